"""Plans, followed one by one and many at once: the exact laws, and what is evaluated when."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from emulated_cuda import without_waiting
from small_models import CHANCE, p_value, seeded, transformer
from torch import Tensor

from models.prior.absorbing import AbsorbingDiffusion
from models.sampling.categorical import LogitsAtFn, Rule, image_generators
from models.sampling.plans import Plan, diffusion_plan, mlm_plan, remask_times
from models.sampling.rounds import WIDTH, Denoiser, Drawing, run_plans

DRAWS = 8_000
CPU = torch.device("cpu")


def denoiser(logits_at: LogitsAtFn, mask_id: int = 3, device: torch.device = CPU) -> Denoiser:
    return Denoiser(logits_at, mask_id, total_steps=1, device=device)


def run(model: Any, plans: Iterator[Plan], temp: float = 1.0, batch_size: int = 1000) -> Tensor:
    def logits_at(x: Tensor, places: Tensor) -> Tensor:
        return model(x).gather(1, places.unsqueeze(2).expand(-1, -1, model.K))

    return torch.stack(list(run_plans(denoiser(logits_at, model.mask_id), plans, Drawing(batch_size, Rule(temp)))))


def diffusion_plans(
    model: Any, steps: int, n: int = DRAWS, seed: int = 0, start: Sequence[int] | None = None
) -> Iterator[Plan]:
    x_T = torch.full((model.N,), model.mask_id) if start is None else torch.tensor(start)
    for generator in image_generators(n, seeded(seed)):
        yield diffusion_plan(x_T, mask_id=model.mask_id, steps=steps, generator=generator)


def uniform(x: Tensor, places: Tensor) -> Tensor:
    """Logits of two codes."""
    return torch.zeros((*places.shape, 2), device=x.device)


# --- the exact laws -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temp", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_the_law_of_the_reverse_process(exact_model: Any, steps: int, temp: float) -> None:
    counts = exact_model.counts(run(exact_model, diffusion_plans(exact_model, steps), temp))
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
    start = torch.full((exact_model.N,), exact_model.mask_id)
    plans = (
        mlm_plan(start, mask_id=exact_model.mask_id, mask_probabilities=probabilities, generator=generator)
        for generator in image_generators(DRAWS, seeded())
    )
    counts = exact_model.counts(run(exact_model, plans, temp))
    assert p_value(counts, exact_model.remasked(probabilities, temp)) > CHANCE
    assert p_value(counts, exact_model.remasked(probabilities, 1.25 * temp)) < 1e-6


def test_remask_times_fall_evenly_from_the_last_step_to_the_first() -> None:
    assert remask_times(256, 256) == list(range(256, 0, -1))
    assert remask_times(9, 5) == [9, 7, 5, 3, 1]
    assert remask_times(16, 1) == [16]


# --- what is evaluated, and when ----------------------------------------------------------------------------------


class Counting:
    """Uniform logits; keeps the rows of each call."""

    def __init__(self, tokens: int, codes: int) -> None:
        self.N, self.K, self.mask_id = tokens, codes, codes
        self.calls: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return torch.zeros((*x.shape, self.K))


def test_evaluations_per_image_at_the_published_size() -> None:
    model, n, steps = Counting(256, 2), 64, 256
    run(model, diffusion_plans(model, steps, n), batch_size=16)
    expected = steps * (1 - (1 - 1 / steps) ** model.N)
    per_image = sum(model.calls) / n
    assert per_image <= 165
    assert abs(per_image - expected) < 5 * 6 / n**0.5  # the number of distinct times has a deviation of about 6


def test_finished_images_make_room_at_once() -> None:
    model = Counting(16, 2)
    run(model, diffusion_plans(model, 16, 200), batch_size=8)
    shrinking = model.calls.index(next(rows for rows in model.calls if rows < 8))
    assert sum(model.calls[shrinking:]) < 8 * 16  # the batch is full until the last images are under way
    assert model.calls[shrinking:] == sorted(model.calls[shrinking:], reverse=True)


def test_the_queue_is_read_no_further_than_needed() -> None:
    taken = []

    def plans() -> Iterator[Plan]:
        for number, plan in enumerate(diffusion_plans(model, 4, 1000)):
            taken.append(number)
            yield plan

    model = Counting(8, 2)
    samples = run_plans(denoiser(uniform, 2), plans(), Drawing(4))
    next(samples)
    assert len(taken) <= 12


def test_nothing_masked_means_no_evaluation(exact_model: Any) -> None:
    (x,) = run(exact_model, diffusion_plans(exact_model, 8, 1, start=(0, 1, 2)))
    start = torch.tensor([2, 2, 0])
    plan = mlm_plan(start, mask_id=exact_model.mask_id, mask_probabilities=[0.0], generator=seeded())
    (y,) = run(exact_model, iter([plan]))
    assert (x.tolist(), y.tolist()) == ([0, 1, 2], [2, 2, 0])
    assert exact_model.calls == []


def test_random_numbers_are_the_same_whatever_is_masked() -> None:
    whole, part = (
        diffusion_plan(torch.tensor(start), mask_id=3, steps=1, generator=seeded(4)) for start in ([3, 3, 3], [3, 0, 3])
    )
    ((first,), (second,)) = (list(plan.events) for plan in (whole, part))
    assert first.places.tolist() == [0, 1, 2]
    assert second.places.tolist() == [0, 2]
    assert torch.equal(first.uniforms[[0, 2]], second.uniforms)


def test_sampling_records_no_gradients(exact_model: Any) -> None:
    scores = torch.zeros((1, 1, 3), requires_grad=True)

    def logits_at(x: Tensor, places: Tensor) -> Tensor:
        logits = scores.expand(*places.shape, -1) * 1
        assert not logits.requires_grad
        return logits

    plans = diffusion_plans(exact_model, 2, 4)
    assert len(list(run_plans(denoiser(logits_at), plans, Drawing(2)))) == 4
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("static", [False, True])
def test_the_host_never_waits_for_the_device(cuda: None, static: bool) -> None:
    plans = list(diffusion_plans(Counting(8, 2), 4, 20))  # what is due is known before anything is evaluated
    on_cuda = denoiser(uniform, 2, torch.device("cuda"))
    samples = run_plans(on_cuda, plans, Drawing(3, static=static))
    first = next(samples)  # the batch is put there at the start
    with without_waiting():
        rest = list(samples)
    assert torch.stack([first, *rest]).max() < 2


class Shapes:
    """As a `Wrap`: keeps the shapes that the wrapped function is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Size, ...]] = []

    def __call__(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*inputs: Tensor) -> Tensor:
            self.seen.append(tuple(tensor.shape for tensor in inputs))
            return function(*inputs)

        return wrapped


@pytest.mark.parametrize(("n", "sizes"), [(1, []), (6, [4, 2, 1]), (7, [5, 3, 2, 1]), (40, [6, 3, 2, 1])])
def test_with_static_shapes_a_batch_is_halved_and_samples_stay(exact_model: Any, n: int, sizes: list[int]) -> None:
    def draw(shapes: Shapes, static: bool) -> list[list[int]]:
        def logits_at(x: Tensor, places: Tensor) -> Tensor:
            return exact_model(x).gather(1, places.unsqueeze(2).expand(-1, -1, 3))

        # Some of the images have nothing to draw.
        plans = (
            plan if number % 5 else Plan(torch.tensor([0, 1, 2]), [])
            for number, plan in enumerate(diffusion_plans(exact_model, 3, n))
        )
        samples = run_plans(denoiser(logits_at), plans, Drawing(6, static=static, wrap=shapes))
        return [ids.tolist() for ids in samples]

    free, static = Shapes(), Shapes()
    assert draw(static, True) == draw(free, False)
    rows = [min(size for size in sizes if size >= needed) for (needed, _), *_ in free.seen]
    assert static.seen == [((size, 3), (size, WIDTH), (size, WIDTH)) for size in rows]


@pytest.mark.parametrize("steps", [256, 50])
@pytest.mark.parametrize(
    ("n", "batch_size", "most"),
    [(257, 256, 1.05), (385, 256, 1.05), (256, 256, 1.05), (64, 20, 1.05), (24, 16, 1.1)],
)
def test_few_rows_are_evaluated_in_vain(n: int, batch_size: int, most: float, steps: int) -> None:
    """Static shapes cost little more than the evaluations that the images need, and few different ones."""
    model, shapes = Counting(256, 2), Shapes()
    drawing = Drawing(batch_size, n=n, wrap=shapes, static=True)
    samples = run_plans(denoiser(uniform, 2), diffusion_plans(model, steps, n), drawing)
    assert len(list(samples)) == n
    needed = sum(len(plan.events) for plan in diffusion_plans(model, steps, n))  # type: ignore[arg-type]
    evaluated = [shape[0][0] for shape in shapes.seen]
    assert needed <= sum(evaluated) <= most * needed
    assert max(evaluated) <= batch_size
    assert len(set(evaluated)) <= 1 + math.ceil(math.log2(batch_size))


# --- through the prior --------------------------------------------------------------------------------------------


def small_prior(tokens: int = 6, total_steps: int = 5) -> AbsorbingDiffusion:
    net = transformer(std=0.5, codebook_size=7, vocab_size=8, n_head=2, block_size=tokens)
    return AbsorbingDiffusion(net, mask_id=7, total_steps=total_steps)


def test_a_prior_samples_in_its_total_steps_unless_told_otherwise() -> None:
    prior = small_prior()
    free, five, two = (prior.sample(8, generator=seeded(), sample_steps=steps) for steps in (None, 5, 2))
    assert torch.equal(free, five)
    assert not torch.equal(free, two)


@torch.no_grad()
@pytest.mark.parametrize("mlm", [False, True])
def test_many_plans_at_once_give_what_the_plain_algorithm_gives(mlm: bool) -> None:
    prior, start = small_prior(), torch.tensor([7, 7, 2, 7, 7, 7])

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

    together = run_plans(denoiser(prior.logits_at, 7), map(plan, range(12)), Drawing(5, Rule(0.9), static=True))
    alone = [follow(plan(seed)) for seed in range(12)]
    assert torch.equal(torch.stack(list(together)), torch.stack(alone))
