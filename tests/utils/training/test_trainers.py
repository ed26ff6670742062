"""What updates, state and validation of both stages promise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from emulated_cuda import WaitError, without_waiting
from torch import Tensor

from compare import same
from trainers import go_on, prior_trainer, state_of, vqgan_trainer
from utils.training.bookkeeping import Averages, SkippedUpdates
from utils.training.prior_trainer import PriorTrainer
from utils.training.vqgan_trainer import VQGANTrainer

DROPOUT = {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}
AUGMENTED = {"diff_aug": True, "horizontal_flip": True}
KINDS: dict[str, dict[str, Any]] = {
    "absorbing": {"sampler": "absorbing", "warmup_iters": 6},
    "autoregressive": DROPOUT | {"sampler": "autoregressive", "warmup_iters": 6},
    "nearest": AUGMENTED | {"quantizer": "nearest", "restart_dead_codes": 4},
    "gumbel": AUGMENTED | {"quantizer": "gumbel"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_precision = pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])


def trainer(kind: str, amp_dtype: torch.dtype | None = None, **changes: Any) -> Any:
    make: Any = prior_trainer if "sampler" in KINDS[kind] else vqgan_trainer
    return make(amp_dtype, **KINDS[kind] | changes)


def batch(trainer: PriorTrainer | VQGANTrainer, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    if isinstance(trainer, PriorTrainer):
        return torch.randint(16, (8, 64), generator=generator, dtype=torch.int32).to(trainer.device)
    return torch.randint(256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)


def run(trainer: PriorTrainer | VQGANTrainer, start: int, stop: int) -> None:
    for step in range(start, stop):
        trainer.step(batch(trainer, step), step)


@every_kind
def test_every_step_and_seed_has_random_numbers_of_its_own(kind: str) -> None:
    name, found = "loss" if "sampler" in KINDS[kind] else "g_loss", set()
    for step, seed in ((2, 0), (3, 0), (4, 0), (2, 1)):
        training = trainer(kind, seed=seed)
        found.add(training.step(batch(training, 0), step)[name].item())
    assert len(found) == 4


@every_kind
@every_precision
def test_a_continued_training_equals_an_uninterrupted_one(kind: str, amp_dtype: torch.dtype | None) -> None:
    changes = {"steps_per_update_ema": 2, "ema_warmup": amp_dtype is None, "ema_beta": 0.25}
    whole, first, second = (trainer(kind, amp_dtype, **changes) for _ in range(3))
    run(whole, 0, 9)
    torch.manual_seed(99)  # the global stream has no say
    run(first, 0, 5)
    go_on(second, first)
    run(second, 5, 9)
    assert same(state_of(second), state_of(whole))


@pytest.mark.parametrize("kind", ["absorbing", "autoregressive", "nearest"])
def test_float16_never_leaves_a_weight_that_is_not_finite(kind: str) -> None:
    """300 steps from a loss scale that overflows: updates are skipped until it has fallen, then training goes on."""
    small = {"img_size": 8, "disc_start_step": 60, "codebook_init": "encoder"} if kind == "nearest" else {}
    training = trainer(kind, torch.float16, **small)
    scalers = [optimiser.scaler for optimiser in training.optimisers.values()]
    for scaler in scalers:
        scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**40})
    metrics = []
    for step in range(300):
        data = batch(training, step)
        metrics.append(training.step(data[:2, :, :8, :8] if small else data, step))
        assert all(value.isfinite().all() for value in state_of(training).values()), step
    assert 5 < sum(each["skipped"] for each in metrics) < 100
    assert not any(each["skipped"] for each in metrics[-100:])
    assert all(1 < scaler.get_scale() < 2.0**30 for scaler in scalers)
    if small:
        assert [each["disc_weight"] for each in metrics[:60]] == [0] * 60
        assert all(0 < each["disc_weight"] <= 1 for each in metrics[100:])


@every_kind
def test_validation_changes_nothing_and_repeats(kind: str) -> None:
    training = trainer(kind)
    run(training, 0, 3)
    state, others, stream = state_of(training), copy.deepcopy(training.state_dict()), torch.get_rng_state()
    given = (batch(training, 99), 3) if "sampler" in KINDS[kind] else ([batch(training, 99), batch(training, 98)[:2]],)
    first = training.validate(*given)
    assert training.validate(*given) == first
    if isinstance(training, VQGANTrainer):
        training.reconstruct(batch(training, 9))
    assert same([state_of(training), training.state_dict(), torch.get_rng_state()], [state, others, stream])
    model, average = training.models().values()
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in average.modules())
    model.load_state_dict(average.state_dict())  # whose figures they were
    training.ema = None
    assert training.validate(*given) == first


@pytest.mark.parametrize(
    ("kind", "amp_dtype"),
    [(kind, dtype) for kind in KINDS for dtype in (None, torch.bfloat16)]
    + [("absorbing", torch.float16), ("autoregressive", torch.float16)],
)
def test_a_step_never_waits_for_the_device(cuda: None, kind: str, amp_dtype: torch.dtype | None) -> None:
    changes: dict[str, Any] = {} if "sampler" in KINDS[kind] else {"disc_start_step": 0, "restart_dead_codes": 0}
    training, averages = trainer(kind, amp_dtype, device="cuda", compile="off", **changes), Averages()
    skipped = SkippedUpdates(torch.device("cuda"), most_in_a_row=10)
    run(training, 0, 2)  # Adam's moments, and the scale of float16, come with the first step
    data = batch(training, 2).pin_memory() if isinstance(training, VQGANTrainer) else batch(training, 2)
    with without_waiting():
        metrics = training.step(data, 2)
        skipped.add(2, metrics.pop("skipped"))
        averages.add(metrics)
    with without_waiting(), pytest.raises(WaitError):
        averages.pop()
    assert metrics.get("d_loss", torch.tensor(1)) > 0


def test_without_an_average_the_model_itself_is_shown() -> None:
    training = vqgan_trainer(ema=False)
    assert training.averaged is training.vqgan
    assert set(training.models()) == {False}
    run(training, 0, 2)
