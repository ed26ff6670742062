"""The prior's Transformer: sizes, what each place sees, positions and dropout."""

import pytest
import torch
from small_models import normal, seeded, transformer, uniform
from torch import Tensor

from models.prior.autoregressive import AutoregressivePrior
from models.prior.transformer import Transformer

IDS = torch.randint(9, (2, 6), generator=seeded())


def causal_transformer() -> Transformer:
    return transformer(causal=True, vocab_size=9)


def changed_places(logits: Tensor, other: Tensor) -> list[bool]:
    return ((logits - other).abs().amax((0, 2)) > 1e-6).tolist()


@pytest.mark.parametrize(("causal", "vocab_size", "expected"), [(False, 1025, 76_838_912), (True, 1024, 76_838_400)])
def test_published_size(causal: bool, vocab_size: int, expected: int) -> None:
    sizes = {"codebook_size": 1024, "vocab_size": vocab_size, "n_emb": 512, "n_head": 8, "n_layers": 24}
    with torch.device("meta"):
        net = transformer(**sizes, block_size=256, causal=causal)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_float32_under_autocast(training: bool) -> None:
    """In evaluation they are computed so, too; training's loss takes the faster product."""
    net, causal = transformer().train(training), causal_transformer().train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = causal.next_logits(IDS[:, :0], cache := causal.new_cache(2))
        following = causal.following_logits(IDS[:, :1], torch.tensor([1]), cache)
        for logits in (net(IDS), net.logits_at(IDS, torch.tensor([[0], [3]])), first, following):
            assert logits.dtype == torch.float32
            assert torch.equal(logits, logits.bfloat16().float()) == training


def test_a_place_sees_every_other_and_if_causal_only_those_before_it() -> None:
    net, prior = transformer(), AutoregressivePrior(causal_transformer())
    assert prior.logits(IDS).shape == (2, 6, 9)
    for place in range(6):
        other = IDS.clone()
        other[:, place] = (other[:, place] + 1) % 9
        assert changed_places(net(IDS), net(other)) == [True] * 6
        assert changed_places(prior.logits(IDS), prior.logits(other)) == [later > place for later in range(6)]


def test_the_first_code_is_predicted_from_the_start_token() -> None:
    net = causal_transformer()
    before = net.next_logits(IDS[:, :0])
    assert before.shape == (2, 1, 9)
    torch.nn.init.normal_(net.start_tok, std=3.0)
    assert (net.next_logits(IDS[:, :0]) - before).abs().max() > 1e-3


@pytest.mark.parametrize("n", [1, 6])
def test_attention_by_hand(n: int) -> None:
    attention, x = transformer().blocks[0].attn, normal(2, n, 16)
    q, k, v = (layer(x).view(2, n, 4, 4).transpose(1, 2) for layer in (attention.query, attention.key, attention.value))
    weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, n, 16))
    torch.testing.assert_close(attention(x), expected)


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="7 tokens do not fit the 6 positions"):
        transformer()(torch.zeros((2, 7), dtype=torch.int64))
    net = causal_transformer()
    cache = net.new_cache(2)
    net.next_logits(IDS[:, :5], cache)  # the start token is the sixth
    with pytest.raises(ValueError, match="7 tokens"):
        net.next_logits(IDS[:, 5:], cache)


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
def test_logits_of_chosen_places_are_those_of_all_places(half: bool) -> None:
    net, chosen, places = transformer(), uniform(2, 6) < 0.5, torch.tensor([[4, 0, 4], [5, 1, 2]])
    tolerance = {"rtol": 0.05, "atol": 0.05} if half else {"rtol": 1e-4, "atol": 1e-5}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        everywhere = net(IDS)
        torch.testing.assert_close(net(IDS, chosen), everywhere[chosen], **tolerance)
        picked = everywhere.gather(1, places[..., None].expand(-1, -1, 9))
        torch.testing.assert_close(net.logits_at(IDS, places), picked, **tolerance)


@pytest.mark.parametrize("place", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_dropout_acts_while_training_only(place: str) -> None:
    net = transformer(**{place: 0.5})
    torch.testing.assert_close(net(IDS), transformer()(IDS))
    net.train()
    assert not torch.equal(net(IDS), net(IDS))


def test_residual_dropout_falls_on_all_that_a_block_adds() -> None:
    """On attention and on the network behind it: where nothing is left of either, blocks hand on what they get."""
    net = transformer(resid_pdrop=1.0).train()
    torch.testing.assert_close(net(IDS), net.head(net.ln_f(net.tok_emb(IDS) + net.pos_emb)))
