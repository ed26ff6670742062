"""The autoregressive prior's sampler against distributions that are known exactly, and what both priors share."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from small_models import seeded, transformer

from models.prior.absorbing import AbsorbingDiffusion
from models.prior.autoregressive import AutoregressivePrior
from models.prior.prior import Codes, Prior
from models.sampling.categorical import Rule, image_generators
from models.sampling.rounds import Drawing

BOTH = pytest.mark.parametrize("kind", ["absorbing", "autoregressive"])
IDS = torch.randint(7, (3, 6), generator=seeded())


def small_prior(kind: str = "autoregressive") -> Any:
    """Far from uniform, so that a wrong cache shows."""
    sizes = {"std": 0.5, "codebook_size": 7, "n_head": 2}
    if kind == "autoregressive":
        return AutoregressivePrior(transformer(**sizes, vocab_size=7, causal=True))
    return AbsorbingDiffusion(transformer(**sizes, vocab_size=8), mask_id=7, total_steps=5)


@torch.no_grad()
def test_cached_keys_and_values_give_the_logits_of_the_whole_prefix() -> None:
    prior = small_prior()
    net, whole = prior.net, prior.logits(IDS)
    caches = [net.new_cache(3) for _ in range(3)]
    one_by_one, static = ([net.next_logits(IDS[:, :0], cache)] for cache in caches[:2])
    for place in range(5):
        new = IDS[:, place : place + 1]
        one_by_one.append(net.next_logits(new, caches[0]))
        static.append(net.following_logits(new, torch.tensor([place + 1]), caches[1]))
    several = [net.next_logits(ids, caches[2]) for ids in (IDS[:, :2], IDS[:, 2:5])]
    for parts in (one_by_one, static, several):
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)
    p = whole.softmax(-1).gather(2, IDS[..., None]).squeeze(2)
    torch.testing.assert_close(prior.losses(Codes(IDS)).loss, -p.log2().mean(1))  # the mean code length


@torch.no_grad()
@pytest.mark.parametrize("temp", [0.8, 1.0])
def test_autoregressive_sampling_equals_sampling_without_a_cache(temp: float) -> None:
    prior = small_prior()
    uniforms = torch.stack([torch.rand(6, dtype=torch.float64, generator=g) for g in image_generators(50, seeded(4))])
    ids = torch.empty((50, 0), dtype=torch.int64)
    for place in range(6):
        logits = prior.net.next_logits(ids)[:, -1]
        ids = torch.cat([ids, Rule(temp).draw(logits, uniforms[:, place])[:, None]], dim=1)
    assert torch.equal(prior.sample(50, generator=seeded(4), temp=temp), ids)
    wrapped: list[Any] = []
    drawing = Drawing(50, Rule(temp), wrap=lambda function: wrapped.append(function) or function, static=True)
    assert torch.equal(prior.draw_tokens(uniforms, drawing), ids)
    assert len(wrapped) == 1
    assert not torch.equal(prior.sample(50, generator=seeded(5), temp=temp), ids)


def test_no_more_autoregressive_samples_are_drawn_together_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, together = small_prior(), []
    new_cache = prior.net.new_cache
    monkeypatch.setattr(prior.net, "new_cache", lambda batch: together.append(batch) or new_cache(batch))
    prior.sample(8, generator=seeded(), batch_size=3)
    assert together == [3, 3, 2]


# --- both priors
@BOTH
def test_what_they_cannot_take_is_refused(kind: str) -> None:
    prior: Prior = small_prior(kind)
    none = prior.sample(0)
    assert (none.shape, none.dtype) == ((0, 6), torch.int64)
    with pytest.raises(ValueError, match="the number of samples must be at least 0, not -1"):
        prior.sample(-1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        prior.sample(2, batch_size=0)
    for shape in ((2, 5), (2, 7), (6,)):
        with pytest.raises(ValueError, match=r"tokens must have shape \[B, 6\], not "):
            prior.logits(torch.zeros(shape, dtype=torch.int64))
    codes = Codes(IDS, torch.zeros(3))
    with pytest.raises(ValueError, match="takes no condition"):
        prior.losses(codes, prior.draw(3, seeded()))
    with pytest.raises(ValueError, match="takes no condition"):
        prior.code_length(codes, seeded())
    if kind == "autoregressive":
        with pytest.raises(ValueError, match="given ones"):
            prior.samples([seeded()], Drawing(1), Codes(IDS))


@pytest.mark.parametrize("kind", ["diffusion", "mlm", "autoregressive"])
def test_a_sample_is_a_function_of_its_own_generator(kind: str) -> None:
    prior = small_prior(kind)

    def samples(seeds: Iterable[int], batch_size: int) -> list[list[int]]:
        drawing = Drawing(batch_size, Rule(0.9), sampler="mlm" if kind == "mlm" else "diffusion")
        return [ids.tolist() for ids in prior.samples(map(seeded, seeds), drawing)]

    alone = [samples([seed], 1)[0] for seed in range(12)]
    assert len({tuple(ids) for ids in alone}) > 6
    for batch_size in (1, 5, 12, 100):
        assert samples(range(12), batch_size) == alone
    assert samples(range(7, 12), 3) == alone[7:]  # goes on where an interrupted run stopped
    assert samples(range(1, 12, 3), 2) == alone[1::3]  # one of three processes


@pytest.mark.parametrize("kind", ["diffusion", "mlm", "autoregressive"])
def test_a_prior_without_finite_logits_draws_codes_only_and_says_so(kind: str) -> None:
    prior, sampler = small_prior(kind), "mlm" if kind == "mlm" else "diffusion"
    for parameter in prior.parameters():
        parameter.data.fill_(torch.nan)
    assert torch.stack(list(prior.samples([seeded(0), seeded(1)], Drawing(2, sampler=sampler)))).max() < 7
    with pytest.raises(FloatingPointError, match="not finite"):
        prior.sample(2, generator=seeded(), sample_type=sampler)


@BOTH
def test_logits_at_some_places_are_those_of_all(kind: str) -> None:
    prior, places = small_prior(kind), torch.tensor([[0, 3], [5, 1], [2, 4]])
    with torch.no_grad():
        expected = prior.logits(IDS).gather(1, places[..., None].expand(-1, -1, 7))
        torch.testing.assert_close(prior.logits_at(IDS, places), expected)
