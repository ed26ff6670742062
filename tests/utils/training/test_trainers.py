"""What updates, state and validation of both stages promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulated_cuda import WaitError, without_waiting
from torch import Tensor

from trainers import assert_same_state, go_on, prior_trainer, state_of, vqgan_trainer
from utils.training.bookkeeping import Averages, SkippedUpdates
from utils.training.prior_trainer import PriorTrainer
from utils.training.vqgan_trainer import VQGANTrainer

DROPOUT = {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}
AUGMENTED = {"diff_aug": True, "horizontal_flip": True}
KINDS: dict[str, dict[str, Any]] = {
    "absorbing": DROPOUT | {"sampler": "absorbing", "warmup_iters": 6},
    "autoregressive": DROPOUT | {"sampler": "autoregressive", "warmup_iters": 6},
    "nearest": AUGMENTED | {"quantizer": "nearest", "restart_dead_codes": 4},
    "gumbel": AUGMENTED | {"quantizer": "gumbel"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_precision = pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])


def trainer(kind: str, amp_dtype: torch.dtype | None = None, **changes: Any) -> PriorTrainer | VQGANTrainer:
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
@every_precision
def test_updates_are_a_function_of_seed_and_step(kind: str, amp_dtype: torch.dtype | None) -> None:
    first, second, other = (trainer(kind, amp_dtype, seed=seed) for seed in (0, 0, 1))
    run(first, 0, 4)
    torch.manual_seed(99)  # the global stream has no say
    run(second, 0, 4)
    assert_same_state(first, second)
    run(other, 0, 4)
    assert any(not torch.equal(value, state_of(first)[name]) for name, value in state_of(other).items())


@every_kind
@every_precision
def test_a_continued_training_equals_an_uninterrupted_one(kind: str, amp_dtype: torch.dtype | None) -> None:
    changes = {"steps_per_update_ema": 2, "ema_warmup": amp_dtype is None, "ema_beta": 0.25}
    whole, first, second = (trainer(kind, amp_dtype, **changes) for _ in range(3))
    run(whole, 0, 9)
    run(first, 0, 5)
    go_on(second, first)
    run(second, 5, 9)
    assert_same_state(whole, second)


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
