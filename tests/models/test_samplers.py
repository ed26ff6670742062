"""Samplers against distributions that are known exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from models.absorbing import AbsorbingDiffusion
from models.autoregressive import AutoregressivePrior
from models.samplers import diffusion_trajectory, draw_categorical, remask_times, sample_diffusion, sample_mlm
from models.transformer import Transformer

DRAWS = 50_000
CHANCE = 1e-4  # a right sampler fails a test this seldom; the seeds are fixed, so in fact never


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Of Pearson's chi-square test; outcomes that hardly ever occur are pooled."""
    rare = expected * counts.sum() < 10
    pooled = [torch.cat([values[~rare], values[rare].sum()[None]]) for values in (counts, expected)]
    keep = pooled[1] > 0
    return float(chisquare(pooled[0][keep].numpy(), (pooled[1][keep] * counts.sum()).numpy()).pvalue)


def all_masked(model: Any, n: int) -> Tensor:
    return torch.full((n, model.N), model.mask_id)


def draw(model: Any, steps: int, temp: float, x_T: Tensor | None = None, seed: int = 0) -> Tensor:
    x_T = all_masked(model, DRAWS) if x_T is None else x_T
    return sample_diffusion(model, x_T, mask_id=model.mask_id, steps=steps, temp=temp, generator=seeded(seed))


# --- one draw -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temp", [0.5, 1.0, 2.0])
def test_categorical_follows_the_tempered_softmax(temp: float) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -3.0])
    ids = draw_categorical(logits.expand(200_000, 5), temp, seeded())
    assert ids.dtype == torch.int64
    assert p_value(torch.bincount(ids, minlength=5), (logits.double() / temp).softmax(0)) > CHANCE


def test_categorical_keeps_rare_events() -> None:
    p = torch.tensor([1e-5, 3e-5, 1e-4, 1e-3, 0.0], dtype=torch.float64)
    p[-1] = 1 - p.sum()
    counts = torch.zeros(5, dtype=torch.int64)
    generator = seeded()
    for _ in range(8):
        counts += torch.bincount(draw_categorical(p.log().expand(500_000, 5), 1.0, generator), minlength=5)
    assert p_value(counts, p) > CHANCE


def test_categorical_does_not_mind_a_large_common_offset() -> None:
    """In float32 scores this large would be rounded to sixteenths, and ties would go to the first code."""
    logits = torch.tensor([1e6, 1e6, 1e6, 1e6 + 1])
    counts = torch.bincount(draw_categorical(logits.expand(500_000, 4), 1.0, seeded()), minlength=4)
    assert p_value(counts, logits.double().softmax(0)) > CHANCE


def test_categorical_never_draws_what_has_no_probability() -> None:
    logits = torch.tensor([float("-inf"), 0.0, float("-inf")])
    assert draw_categorical(logits.expand(10_000, 3), 1.0, seeded()).unique().tolist() == [1]


def test_categorical_keeps_leading_shape_and_repeats_with_its_generator() -> None:
    logits = torch.randn((2, 5, 7), generator=seeded(3))
    first, again, other = (draw_categorical(logits, 1.0, seeded(seed)) for seed in (0, 0, 1))
    assert first.shape == (2, 5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- ancestral sampling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temp", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_ancestral_sampling_draws_from_the_exact_distribution(exact_model: Any, steps: int, temp: float) -> None:
    expected = exact_model.ancestral(steps, temp)
    assert expected.sum().item() == pytest.approx(1)
    assert p_value(exact_model.counts(draw(exact_model, steps, temp)), expected) > CHANCE


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 3, "temp": 1.1},
        {"steps": 2, "temp": 1.0},
        {"steps": 3, "temp": 1.0, "reveal": lambda s: 1.0 if s == 1 else 0.2},  # not 1/s
    ],
    ids=["temperature", "steps", "reveal rate"],
)
def test_the_comparison_rejects_a_wrong_sampler(exact_model: Any, wrong: dict[str, Any]) -> None:
    counts = exact_model.counts(draw(exact_model, 3, 1.0))
    assert p_value(counts, exact_model.ancestral(**wrong)) < 1e-6


def test_more_steps_bring_the_distribution_nearer_to_the_joint(exact_model: Any) -> None:
    errors = [(exact_model.ancestral(steps, 1.0) - exact_model.p.flatten()).abs().sum() for steps in (1, 2, 8, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]


@pytest.mark.parametrize("start", [(3, 1, 3), (0, 3, 2), (2, 3, 3)])
def test_visible_tokens_condition_the_rest_and_stay(exact_model: Any, start: tuple[int, ...]) -> None:
    x_T = torch.tensor(start).expand(DRAWS, -1)
    x = draw(exact_model, 4, 1.0, x_T)
    visible = torch.tensor(start) != exact_model.mask_id
    assert (x[:, visible] == torch.tensor(start)[visible]).all()
    assert p_value(exact_model.counts(x), exact_model.ancestral(4, 1.0, start)) > CHANCE


def test_the_start_tokens_are_left_as_they_are(exact_model: Any) -> None:
    x_T = all_masked(exact_model, 10)
    draw(exact_model, 3, 1.0, x_T)
    assert torch.equal(x_T, all_masked(exact_model, 10))


def trajectory(model: Any, steps: int, n: int, seed: int = 0) -> Tensor:
    states = diffusion_trajectory(
        model, all_masked(model, n), mask_id=model.mask_id, steps=steps, temp=1.0, generator=seeded(seed)
    )
    return torch.stack(list(states))


def test_the_trajectory_reveals_each_token_once_and_for_good(exact_model: Any) -> None:
    states = trajectory(exact_model, 8, 2000)
    assert states.shape == (9, 2000, exact_model.N)
    assert (states[0] == exact_model.mask_id).all()
    assert (states[-1] != exact_model.mask_id).all()
    changed = states[1:] != states[:-1]
    assert (changed.sum(0) == 1).all()
    assert torch.equal(states[-1], draw(exact_model, 8, 1.0, all_masked(exact_model, 2000)))


def test_the_reveal_step_is_uniform(exact_model: Any) -> None:
    states = trajectory(exact_model, 8, 10_000)
    step = (states[1:] != states[:-1]).long().argmax(0)
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64)
    assert p_value(torch.bincount(step.flatten(), minlength=8), uniform) > CHANCE


def test_an_image_is_evaluated_only_when_one_of_its_tokens_is_due(exact_model: Any) -> None:
    n, steps = 5000, 8
    states = trajectory(exact_model, steps, n)
    per_step = (states[1:] != states[:-1]).any(2).sum(1).tolist()
    assert exact_model.calls == per_step
    per_image = (states[1:] != states[:-1]).any(2).sum(0).double()
    expected = steps * (1 - ((steps - 1) / steps) ** exact_model.N)
    assert abs(per_image.mean() - expected) < 5 * per_image.std() / n**0.5


def test_nothing_masked_means_no_evaluation(exact_model: Any) -> None:
    x = torch.tensor([[0, 1, 2], [2, 2, 0]])
    assert torch.equal(draw(exact_model, 8, 1.0, x), x)
    sample_mlm(exact_model, x, mask_id=exact_model.mask_id, mask_probabilities=[0.0], temp=1.0, generator=seeded())
    assert exact_model.calls == []


def test_ancestral_sampling_is_a_function_of_the_generator(exact_model: Any) -> None:
    x_T = all_masked(exact_model, 100)
    first, again, other = (draw(exact_model, 8, 1.0, x_T, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sampling_records_no_gradients() -> None:
    scores = torch.zeros((1, 3, 3), requires_grad=True)

    def model(x: Tensor) -> Tensor:
        logits = scores.expand(len(x), -1, -1) * 1
        assert not logits.requires_grad
        return logits

    sample_diffusion(model, torch.full((4, 3), 3), mask_id=3, steps=2, temp=1.0, generator=seeded())


# --- mask and fill ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temp", [0.7, 1.0])
@pytest.mark.parametrize("probabilities", [[1.0], [1.0, 0.5], [0.2, 0.6, 0.1]])
def test_mlm_sampling_draws_from_the_exact_distribution(
    exact_model: Any, probabilities: list[float], temp: float
) -> None:
    x = sample_mlm(
        exact_model,
        all_masked(exact_model, DRAWS),
        mask_id=exact_model.mask_id,
        mask_probabilities=probabilities,
        temp=temp,
        generator=seeded(),
    )
    counts = exact_model.counts(x)
    assert p_value(counts, exact_model.remasked(probabilities, temp)) > CHANCE
    assert p_value(counts, exact_model.remasked([*probabilities, 0.5], temp)) < 1e-6


def test_remask_times_fall_evenly_from_the_last_step_to_the_first() -> None:
    assert remask_times(256, 256) == list(range(256, 0, -1))
    assert remask_times(9, 5) == [9, 7, 5, 3, 1]
    assert remask_times(16, 1) == [16]


# --- through the priors -------------------------------------------------------------------------------------------


def small_transformer(*, causal: bool) -> Transformer:
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


@pytest.mark.parametrize("sample_type", ["diffusion", "mlm"])
def test_a_prior_samples_codes(sample_type: str) -> None:
    prior = AbsorbingDiffusion(small_transformer(causal=False), mask_id=7, total_steps=5)
    first, again, other = (
        prior.sample(4, generator=seeded(seed), sample_type=sample_type, sample_steps=3, temp=0.9) for seed in (0, 0, 1)
    )
    assert first.shape == (4, 6)
    assert first.dtype == torch.int64
    assert first.max() < 7
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_prior_samples_in_its_total_steps_unless_told_otherwise() -> None:
    prior = AbsorbingDiffusion(small_transformer(causal=False), mask_id=7, total_steps=5)
    free, five, two = (prior.sample(8, generator=seeded(), sample_steps=steps) for steps in (None, 5, 2))
    assert torch.equal(free, five)
    assert not torch.equal(free, two)


def test_a_prior_refuses_an_unknown_sampler() -> None:
    prior = AbsorbingDiffusion(small_transformer(causal=False), mask_id=7, total_steps=5)
    with pytest.raises(ValueError, match="sample_type"):
        prior.sample(1, generator=seeded(), sample_type="magic")


def test_cached_keys_and_values_give_the_logits_of_the_whole_prefix() -> None:
    net = small_transformer(causal=True)
    ids = torch.randint(7, (3, 6), generator=seeded())
    whole = AutoregressivePrior(net).logits(ids)
    logits, past = net.next_logits(ids[:, :0])
    steps = [logits]
    for place in range(5):
        logits, past = net.next_logits(ids[:, place : place + 1], past)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_the_past_is_continued_by_several_codes_at_once() -> None:
    net = small_transformer(causal=True)
    ids = torch.randint(7, (3, 5), generator=seeded())
    first, past = net.next_logits(ids[:, :2])
    rest, _ = net.next_logits(ids[:, 2:], past)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), net.next_logits(ids)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temp", [0.8, 1.0])
def test_autoregressive_sampling_equals_sampling_without_a_cache(temp: float) -> None:
    prior = AutoregressivePrior(small_transformer(causal=True))
    generator, ids = seeded(4), torch.empty((50, 0), dtype=torch.int64)
    with torch.no_grad():
        for _ in range(6):
            logits = prior.net.next_logits(ids)[0][:, -1]
            ids = torch.cat([ids, draw_categorical(logits, temp, generator)[:, None]], dim=1)
    assert torch.equal(prior.sample(50, generator=seeded(4), temp=temp), ids)
    assert not torch.equal(prior.sample(50, generator=seeded(5), temp=temp), ids)


def test_autoregressive_sampling_draws_from_the_product_of_its_conditionals() -> None:
    net = small_transformer(causal=True)
    net.pos_emb = torch.nn.Parameter(net.pos_emb[:, :2].detach())  # 49 outcomes
    prior = AutoregressivePrior(net)
    outcomes = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    with torch.no_grad():
        p = 2 ** (-2 * prior.losses(outcomes).double())
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    ids = prior.sample(20_000, generator=seeded())
    assert p_value(torch.bincount(ids[:, 0] * 7 + ids[:, 1], minlength=49), p / p.sum()) > CHANCE
