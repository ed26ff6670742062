"""The prior's Transformer: sizes, what each place sees, positions and dropout."""

import pytest
import torch
from small_models import transformer

from models.prior.autoregressive import AutoregressivePrior
from models.prior.prior import Codes


def ids(n: int = 6) -> torch.Tensor:
    return torch.randint(9, (2, n), generator=torch.Generator().manual_seed(0))


def changed_places(logits: torch.Tensor, other: torch.Tensor) -> list[bool]:
    return ((logits - other).abs().amax((0, 2)) > 1e-6).tolist()


@pytest.mark.parametrize(("causal", "vocab_size", "expected"), [(False, 1025, 76_838_912), (True, 1024, 76_838_400)])
def test_published_size(causal: bool, vocab_size: int, expected: int) -> None:
    sizes = {"codebook_size": 1024, "vocab_size": vocab_size, "n_emb": 512, "n_head": 8, "n_layers": 24}
    with torch.device("meta"):
        net = transformer(**sizes, block_size=256, causal=causal)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


@pytest.mark.parametrize("training", [False, True])
def test_logits_are_float32_under_autocast(training: bool) -> None:
    """In evaluation they are computed so, too; training's loss takes the faster product."""
    net, causal = transformer().train(training), transformer(causal=True, vocab_size=9).train(training)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        first = causal.next_logits(ids(0), cache := causal.new_cache(2))
        following = causal.following_logits(ids(1), torch.tensor([1]), cache)
        for logits in (net(ids()), net.logits_at(ids(), torch.tensor([[0], [3]])), first, following):
            assert logits.dtype == torch.float32
            assert torch.equal(logits, logits.bfloat16().float()) == training


def test_every_place_sees_every_other() -> None:
    net, x = transformer(), ids()
    for place in range(6):
        other = x.clone()
        other[:, place] = 9
        assert changed_places(net(x), net(other)) == [True] * 6


def test_a_causal_place_sees_only_what_is_before_it() -> None:
    prior, x = AutoregressivePrior(transformer(causal=True, vocab_size=9)), ids()
    assert prior.logits(x).shape == (2, 6, 9)
    for place in range(6):
        other = x.clone()
        other[:, place] = (other[:, place] + 1) % 9
        assert changed_places(prior.logits(x), prior.logits(other)) == [later > place for later in range(6)]


def test_the_first_code_is_predicted_from_the_start_token() -> None:
    net = transformer(causal=True, vocab_size=9)
    before = net.next_logits(ids(0))
    assert before.shape == (2, 1, 9)
    torch.nn.init.normal_(net.start_tok, std=3.0)
    assert (net.next_logits(ids(0)) - before).abs().max() > 1e-3


def test_autoregressive_loss_is_the_mean_code_length() -> None:
    prior, x = AutoregressivePrior(transformer(causal=True, vocab_size=9)), ids()
    p = prior.logits(x).softmax(-1).gather(2, x[..., None]).squeeze(2)
    torch.testing.assert_close(prior.losses(Codes(x)).loss, -p.log2().mean(1))
    assert prior.tokens == 6


@pytest.mark.parametrize("n", [1, 6])
def test_attention_by_hand(n: int) -> None:
    attention = transformer().blocks[0].attn
    x = torch.randn(2, n, 16, generator=torch.Generator().manual_seed(1))
    q, k, v = (layer(x).view(2, n, 4, 4).transpose(1, 2) for layer in (attention.query, attention.key, attention.value))
    weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, n, 16))
    torch.testing.assert_close(attention(x), expected)


def test_positions_tell_places_apart() -> None:
    logits = transformer()(torch.full((1, 6), 3))
    assert (logits[:, 1:] - logits[:, :-1]).abs().amax(2).min() > 1e-3


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="7 tokens do not fit the 6 positions"):
        transformer()(ids(7))
    net = transformer(causal=True, vocab_size=9)
    cache = net.new_cache(2)
    net.next_logits(ids(5), cache)  # the start token is the sixth
    with pytest.raises(ValueError, match="7 tokens"):
        net.next_logits(ids(1), cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_chosen_places_are_those_of_all_places(dtype: torch.dtype) -> None:
    net, x = transformer(), ids()
    chosen = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    places = torch.tensor([[4, 0, 4], [5, 1, 2]])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        everywhere = net(x)
        close = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.05, "atol": 0.05}
        torch.testing.assert_close(net(x, chosen), everywhere[chosen], **close)
        picked = everywhere.gather(1, places[..., None].expand(-1, -1, 9))
        torch.testing.assert_close(net.logits_at(x, places), picked, **close)


@pytest.mark.parametrize("place", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_dropout_acts_while_training_only(place: str) -> None:
    net, x = transformer(**{place: 0.5}), ids()
    torch.testing.assert_close(net(x), transformer()(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_residual_dropout_falls_on_all_that_a_block_adds() -> None:
    """On attention and on the network behind it: where nothing is left of either, blocks hand on what they get."""
    net, x = transformer(resid_pdrop=1.0).train(), ids()
    torch.testing.assert_close(net(x), net.head(net.ln_f(net.tok_emb(x) + net.pos_emb)))
