"""Samplers of masked tokens, by plans and in lock-step: the exact laws, and what is evaluated when."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from emulated_cuda import without_waiting
from small_models import CHANCE, p_value, seeded, transformer
from torch import Tensor

from models.prior.absorbing import AbsorbingDiffusion
from models.sampling.categorical import Rule, image_generators
from models.sampling.plans import Plan, diffusion_plan, mlm_plan, remask_times
from models.sampling.rounds import WIDTH, Denoiser, Drawing, run_plans
from models.sampling.samplers import diffusion_trajectory

DRAWS = 8_000
CPU = torch.device("cpu")


class Uniform:
    """A model without preferences; keeps the rows of each call."""

    def __init__(self, tokens: int) -> None:
        self.N, self.mask_id = tokens, 2
        self.calls: list[int] = []

    def logits_at(self, x: Tensor, places: Tensor) -> Tensor:
        self.calls.append(len(x))
        return torch.zeros((*places.shape, 2), device=x.device)


def run(model: Any, plans: Iterable[Plan], batch_size: int = 1000, temp: float = 1.0, **options: Any) -> Tensor:
    drawing = Drawing(batch_size, Rule(temp), **options)
    return torch.stack(list(run_plans(Denoiser(model.logits_at, model.mask_id, 1, CPU), plans, drawing)))


def diffusion_plans(model: Any, steps: int, n: int = DRAWS, start: tuple[int, ...] | None = None) -> Iterator[Plan]:
    x_T = torch.tensor(start or (model.mask_id,) * model.N)
    for generator in image_generators(n, seeded()):
        yield diffusion_plan(x_T, mask_id=model.mask_id, steps=steps, generator=generator)


def trajectory(model: Any, steps: int, n: int, temp: float = 1.0, seed: int = 0) -> Tensor:
    x_T, options = torch.full((n, model.N), model.mask_id), {"mask_id": model.mask_id, "generator": seeded(seed)}
    return torch.stack(list(diffusion_trajectory(model, x_T, steps=steps, rule=Rule(temp), **options)))


# --- the exact laws
@pytest.mark.parametrize("lock_step", [False, True])
@pytest.mark.parametrize(("steps", "temp"), [(1, 1.0), (2, 1.5), (3, 0.7), (8, 0.7), (8, 1.0)])
def test_the_law_of_the_reverse_process(exact_model: Any, steps: int, temp: float, lock_step: bool) -> None:
    if lock_step:
        x = trajectory(exact_model, steps, DRAWS, temp)[-1]
    else:
        x = run(exact_model, diffusion_plans(exact_model, steps), temp=temp)
    counts = exact_model.counts(x)
    assert p_value(counts, exact_model.ancestral(steps, temp)) > CHANCE
    assert p_value(counts, exact_model.ancestral(steps, 1.25 * temp)) < 1e-6
    assert p_value(counts, exact_model.ancestral(steps + 1 if steps < 3 else 1, temp)) < 1e-6


@pytest.mark.parametrize("start", [(3, 1, 3), (0, 3, 2), (2, 3, 3)])
def test_visible_tokens_condition_the_rest_and_stay(exact_model: Any, start: tuple[int, ...]) -> None:
    x = run(exact_model, diffusion_plans(exact_model, 4, start=start))
    visible = torch.tensor(start) != exact_model.mask_id
    assert (x[:, visible] == torch.tensor(start)[visible]).all()
    assert p_value(exact_model.counts(x), exact_model.ancestral(4, 1.0, start)) > CHANCE


@pytest.mark.parametrize("temp", [0.7, 1.0])
@pytest.mark.parametrize("probabilities", [[1.0], [1.0, 0.5], [0.2, 0.6, 0.1]])
def test_the_law_of_masking_and_filling(exact_model: Any, probabilities: list[float], temp: float) -> None:
    start, options = torch.full((3,), 3), {"mask_id": 3, "mask_probabilities": probabilities}
    plans = (mlm_plan(start, generator=generator, **options) for generator in image_generators(DRAWS, seeded()))
    counts = exact_model.counts(run(exact_model, plans, temp=temp))
    assert p_value(counts, exact_model.remasked(probabilities, temp)) > CHANCE
    assert p_value(counts, exact_model.remasked(probabilities, 1.25 * temp)) < 1e-6


def test_remask_times_fall_evenly_from_the_last_step_to_the_first() -> None:
    assert remask_times(256, 256) == list(range(256, 0, -1))
    assert remask_times(9, 5) == [9, 7, 5, 3, 1]
    assert remask_times(16, 1) == [16]


# --- in lock-step, where every state on the way can be seen
def test_a_trajectory_reveals_each_token_once_at_a_uniform_step(exact_model: Any) -> None:
    states = trajectory(exact_model, 8, 10_000)
    assert states.shape == (9, 10_000, exact_model.N)
    assert (states[0] == exact_model.mask_id).all()
    assert (states[-1] != exact_model.mask_id).all()
    changed = states[1:] != states[:-1]
    assert (changed.sum(0) == 1).all()
    assert exact_model.calls == changed.any(2).sum(1).tolist()  # an image only when one of its tokens is due
    counts = torch.bincount(changed.long().argmax(0).flatten(), minlength=8)
    assert p_value(counts, torch.full((8,), 1 / 8, dtype=torch.float64)) > CHANCE
    again, other = (trajectory(exact_model, 8, 10_000, seed=seed) for seed in (0, 1))
    assert torch.equal(states, again)
    assert not torch.equal(states, other)


def test_the_lock_step_sampler_draws_codes_only() -> None:
    x_T, invalid = torch.full((2, 6), 7), torch.tensor(0)
    options = {"mask_id": 7, "steps": 3, "rule": Rule(), "generator": seeded(), "invalid": invalid}
    *_, last = diffusion_trajectory(lambda x: torch.full((len(x), 6, 7), torch.nan), x_T, **options)
    assert last.max() < 7
    assert invalid.item() == 12


# --- by plans: what is evaluated, and when
def test_finished_images_make_room_at_once() -> None:
    model = Uniform(16)
    run(model, diffusion_plans(model, 16, 200), batch_size=8)
    shrinking = model.calls[model.calls.index(next(rows for rows in model.calls if rows < 8)) :]
    assert sum(shrinking) < 8 * 16  # the batch is full until the last images are under way
    assert shrinking == sorted(shrinking, reverse=True)


def test_the_queue_is_read_no_further_than_needed() -> None:
    model, plans = Uniform(8), iter(range(1000))
    left = (plan for plan, _ in zip(diffusion_plans(model, 4, 1000), plans, strict=True))
    next(run_plans(Denoiser(model.logits_at, 2, 1, CPU), left, Drawing(4)))
    assert next(plans) <= 12


def test_nothing_masked_means_no_evaluation(exact_model: Any) -> None:
    plans = list(diffusion_plans(exact_model, 8, 1, start=(0, 1, 2)))
    plans.append(mlm_plan(torch.tensor([2, 2, 0]), mask_id=3, mask_probabilities=[0.0], generator=seeded()))
    assert run(exact_model, plans).tolist() == [[0, 1, 2], [2, 2, 0]]
    assert exact_model.calls == []


def test_random_numbers_are_the_same_whatever_is_masked() -> None:
    starts = (torch.tensor(start) for start in ([3, 3, 3], [3, 0, 3]))
    (whole,), (part,) = (diffusion_plan(start, mask_id=3, steps=1, generator=seeded(4)).events for start in starts)
    assert whole.places.tolist() == [0, 1, 2]
    assert part.places.tolist() == [0, 2]
    assert torch.equal(whole.uniforms[[0, 2]], part.uniforms)


def test_sampling_records_no_gradients(exact_model: Any) -> None:
    scores = torch.zeros((1, 1, 3), requires_grad=True)

    def logits_at(x: Tensor, places: Tensor) -> Tensor:
        logits = scores.expand(*places.shape, -1) * 1
        assert not logits.requires_grad
        return logits

    plans = diffusion_plans(exact_model, 2, 4)
    assert len(list(run_plans(Denoiser(logits_at, 3, 1, CPU), plans, Drawing(2)))) == 4
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("static", [False, True])
def test_the_host_never_waits_for_the_device(cuda: None, static: bool) -> None:
    model = Uniform(8)
    plans = list(diffusion_plans(model, 4, 20))  # what is due is known before anything is evaluated
    samples = run_plans(Denoiser(model.logits_at, 2, 1, torch.device("cuda")), plans, Drawing(3, static=static))
    first = next(samples)  # the batch is put there at the start
    with without_waiting():
        rest = list(samples)
    assert torch.stack([first, *rest]).max() < 2


@pytest.mark.parametrize(("n", "sizes"), [(1, []), (6, [4, 2, 1]), (7, [5, 3, 2, 1]), (40, [6, 3, 2, 1])])
def test_with_static_shapes_a_batch_is_halved_and_samples_stay(exact_model: Any, n: int, sizes: list[int]) -> None:
    seen: dict[bool, list[list[torch.Size]]] = {False: [], True: []}

    def drawn(static: bool) -> Tensor:
        def wrap(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda *inputs: seen[static].append([each.shape for each in inputs]) or draw(*inputs)

        return run(exact_model, plans, 6, static=static, wrap=wrap)

    plans = list(diffusion_plans(exact_model, 3, n))
    plans[::5] = [Plan(torch.tensor([0, 1, 2]), [])] * len(plans[::5])  # some of the images have nothing to draw
    assert torch.equal(drawn(static=True), drawn(static=False))
    assert sum(rows for (rows, _), *_ in seen[False]) == sum(len(plan.events) for plan in plans)
    needed = [min(size for size in sizes if size >= rows) for (rows, _), *_ in seen[False]]
    assert seen[True] == [[(size, 3), (size, WIDTH), (size, WIDTH)] for size in needed]


@pytest.mark.parametrize("steps", [256, 50])
@pytest.mark.parametrize(("n", "batch_size"), [(257, 256), (385, 256), (256, 256), (64, 20), (24, 16)])
def test_few_rows_are_evaluated_in_vain(n: int, batch_size: int, steps: int) -> None:
    """Static shapes cost little more than the evaluations that the images need, and few different ones."""
    model = Uniform(256)
    plans = list(diffusion_plans(model, steps, n))
    assert len(run(model, plans, batch_size, n=n, static=True)) == n
    needed = sum(len(plan.events) for plan in plans)  # type: ignore[arg-type]
    distinct = steps * (1 - (1 - 1 / steps) ** 256)  # steps at which some token is revealed: 162 of 256
    assert abs(needed / n - distinct) < 5 * 6 / n**0.5  # their number has a deviation of about 6
    assert needed <= sum(model.calls) <= (1.1 if n == 24 else 1.05) * needed
    assert max(model.calls) <= batch_size
    assert len(set(model.calls)) <= 1 + math.ceil(math.log2(batch_size))


# --- through the prior
@torch.no_grad()
@pytest.mark.parametrize("mlm", [False, True])
def test_many_plans_at_once_give_what_the_plain_algorithm_gives(mlm: bool) -> None:
    net, start = transformer(std=0.5, codebook_size=7, vocab_size=8, n_head=2), torch.tensor([7, 7, 2, 7, 7, 7])
    prior = AbsorbingDiffusion(net, mask_id=7, total_steps=5)

    def plan(seed: int) -> Plan:
        if mlm:
            return mlm_plan(start, mask_id=7, mask_probabilities=[0.9, 0.5, 0.2], generator=seeded(seed))
        return diffusion_plan(start, mask_id=7, steps=4, generator=seeded(seed))

    def follow(plan: Plan) -> Tensor:
        x = plan.start.clone()
        for event in plan.events:
            x[event.places] = 7
            x[event.places] = Rule(0.9).draw(prior.logits_at(x[None], event.places[None])[0], event.uniforms)
        return x

    together = run(prior, map(plan, range(12)), 5, temp=0.9, static=True)
    assert torch.equal(together, torch.stack([follow(plan(seed)) for seed in range(12)]))
    free, five, two = (prior.sample(8, generator=seeded(), sample_steps=steps) for steps in (None, 5, 2))
    assert torch.equal(free, five)  # T steps, unless told otherwise
    assert not torch.equal(free, two)
