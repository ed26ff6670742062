"""Lock-step and autoregressive samplers against distributions that are known exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models.prior.absorbing import AbsorbingDiffusion
from models.prior.autoregressive import AutoregressivePrior
from models.prior.transformer import Transformer
from models.sampling.categorical import image_generators, invert_cdf
from models.sampling.samplers import diffusion_trajectory, sample_autoregressive

CHANCE = 1e-4  # a right sampler fails a test this seldom; the seeds are fixed, so in fact never
PValue = Callable[[Tensor, Tensor], float]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- lock-step ----------------------------------------------------------------------------------------------------


def trajectory(model: Any, steps: int, n: int, temp: float = 1.0, seed: int = 0) -> Tensor:
    x_T = torch.full((n, model.N), model.mask_id)
    states = diffusion_trajectory(model, x_T, mask_id=model.mask_id, steps=steps, temp=temp, generator=seeded(seed))
    return torch.stack(list(states))


@pytest.mark.parametrize(("steps", "temp"), [(1, 1.0), (3, 0.7), (8, 1.0)])
def test_the_last_state_has_the_exact_distribution(exact_model: Any, p_value: PValue, steps: int, temp: float) -> None:
    counts = exact_model.counts(trajectory(exact_model, steps, 50_000, temp)[-1])
    assert p_value(counts, exact_model.ancestral(steps, temp)) > CHANCE


def test_the_trajectory_reveals_each_token_once_and_for_good(exact_model: Any) -> None:
    states = trajectory(exact_model, 8, 2000)
    assert states.shape == (9, 2000, exact_model.N)
    assert (states[0] == exact_model.mask_id).all()
    assert (states[-1] != exact_model.mask_id).all()
    changed = states[1:] != states[:-1]
    assert (changed.sum(0) == 1).all()


def test_the_reveal_step_is_uniform(exact_model: Any, p_value: PValue) -> None:
    states = trajectory(exact_model, 8, 10_000)
    step = (states[1:] != states[:-1]).long().argmax(0)
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64)
    assert p_value(torch.bincount(step.flatten(), minlength=8), uniform) > CHANCE


def test_an_image_is_evaluated_only_when_one_of_its_tokens_is_due(exact_model: Any) -> None:
    states = trajectory(exact_model, 8, 500)
    assert exact_model.calls == (states[1:] != states[:-1]).any(2).sum(1).tolist()


def test_a_trajectory_is_a_function_of_the_generator(exact_model: Any) -> None:
    first, again, other = (trajectory(exact_model, 8, 100, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- autoregressive -----------------------------------------------------------------------------------------------


def small_transformer(*, causal: bool = True) -> Transformer:
    torch.manual_seed(0)
    net = Transformer(
        codebook_size=7,
        vocab_size=7 if causal else 8,
        n_emb=16,
        n_head=2,
        n_layers=2,
        block_size=6,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        causal=causal,
    )
    for parameter in net.parameters():  # far from uniform, so that a wrong cache shows
        torch.nn.init.normal_(parameter, std=0.5)
    return net.eval()


@torch.no_grad()
def test_cached_keys_and_values_give_the_logits_of_the_whole_prefix() -> None:
    net = small_transformer()
    ids = torch.randint(7, (3, 6), generator=seeded())
    whole = AutoregressivePrior(net).logits(ids)
    cache, static = net.new_cache(3), net.new_cache(3)
    steps = [net.next_logits(ids[:, :0], cache)]
    static_steps = [net.next_logits(ids[:, :0], static)]
    for place in range(5):
        new = ids[:, place : place + 1]
        steps.append(net.next_logits(new, cache))
        static_steps.append(net.following_logits(new, torch.tensor([place + 1]), static))
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(static_steps, dim=1), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_cache_is_continued_by_several_codes_at_once() -> None:
    net = small_transformer()
    ids = torch.randint(7, (3, 5), generator=seeded())
    cache = net.new_cache(3)
    parts = [net.next_logits(ids[:, :2], cache), net.next_logits(ids[:, 2:], cache)]
    torch.testing.assert_close(torch.cat(parts, dim=1), net.next_logits(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temp", [0.8, 1.0])
def test_autoregressive_sampling_equals_sampling_without_a_cache(temp: float) -> None:
    prior = AutoregressivePrior(small_transformer())
    uniforms = torch.stack([torch.rand(6, dtype=torch.float64, generator=g) for g in image_generators(50, seeded(4))])
    ids = torch.empty((50, 0), dtype=torch.int64)
    with torch.no_grad():
        for place in range(6):
            logits = prior.net.next_logits(ids)[:, -1]
            ids = torch.cat([ids, invert_cdf(logits, temp, uniforms[:, place])[:, None]], dim=1)
    assert torch.equal(prior.sample(50, generator=seeded(4), temp=temp), ids)
    wrapped = []
    static = sample_autoregressive(
        prior.net, uniforms, temp=temp, static=True, wrap=lambda function: wrapped.append(function) or function
    )
    assert torch.equal(static, ids)
    assert len(wrapped) == 1
    assert not torch.equal(prior.sample(50, generator=seeded(5), temp=temp), ids)


def test_an_autoregressive_sample_is_a_function_of_its_own_generator() -> None:
    prior = AutoregressivePrior(small_transformer())
    alone = [next(prior.samples([seeded(seed)], batch_size=1)).tolist() for seed in range(8)]
    assert len({tuple(ids) for ids in alone}) > 4
    for batch_size in (3, 8, 20):
        assert [ids.tolist() for ids in prior.samples(map(seeded, range(8)), batch_size=batch_size)] == alone
    assert [ids.tolist() for ids in prior.samples(map(seeded, range(1, 8, 3)), batch_size=2)] == alone[1::3]


def test_no_more_autoregressive_samples_are_drawn_together_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, together = AutoregressivePrior(small_transformer()), []
    new_cache = prior.net.new_cache
    monkeypatch.setattr(prior.net, "new_cache", lambda batch: together.append(batch) or new_cache(batch))
    prior.sample(8, generator=seeded(), batch_size=3)
    assert together == [3, 3, 2]


def test_autoregressive_sampling_draws_from_the_product_of_its_conditionals(p_value: PValue) -> None:
    net = small_transformer()
    net.pos_emb = torch.nn.Parameter(net.pos_emb[:, :2].detach())  # 49 outcomes
    prior = AutoregressivePrior(net)
    outcomes = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    with torch.no_grad():
        p = 2 ** (-2 * prior.losses(outcomes).double())
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    ids = prior.sample(20_000, generator=seeded(), batch_size=5000)
    assert p_value(torch.bincount(ids[:, 0] * 7 + ids[:, 1], minlength=49), p / p.sum()) > CHANCE


# --- both priors --------------------------------------------------------------------------------------------------


def small_prior(kind: str) -> AbsorbingDiffusion | AutoregressivePrior:
    if kind == "autoregressive":
        return AutoregressivePrior(small_transformer())
    return AbsorbingDiffusion(small_transformer(causal=False), mask_id=7, total_steps=5)


@pytest.mark.parametrize("kind", ["absorbing", "autoregressive"])
def test_no_samples_are_an_empty_batch(kind: str) -> None:
    none = small_prior(kind).sample(0)
    assert (none.shape, none.dtype) == ((0, 6), torch.int64)
    with pytest.raises(ValueError, match="the number of samples must be at least 0, not -1"):
        small_prior(kind).sample(-1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        small_prior(kind).sample(2, batch_size=0)


@pytest.mark.parametrize("options", [{}, {"sample_type": "mlm"}, {"kind": "autoregressive"}])
def test_a_prior_without_finite_logits_draws_codes_only_and_says_so(options: dict[str, Any]) -> None:
    options = dict(options)
    prior = small_prior(options.pop("kind", "absorbing"))
    for parameter in prior.parameters():
        parameter.data.fill_(torch.nan)
    ids = torch.stack(list(prior.samples([seeded(0), seeded(1)], batch_size=2, **options)))
    assert ids.max() < 7
    with pytest.raises(FloatingPointError, match="not finite"):
        prior.sample(2, generator=seeded(), **options)


def test_the_lock_step_sampler_draws_codes_only() -> None:
    x_T, invalid = torch.full((2, 6), 7), torch.tensor(0)
    options = {"mask_id": 7, "steps": 3, "temp": 1.0, "generator": seeded(), "invalid": invalid}
    *_, last = diffusion_trajectory(lambda x: torch.full((len(x), 6, 7), torch.nan), x_T, **options)
    assert last.max() < 7
    assert invalid.item() == 12
