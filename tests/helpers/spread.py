"""Train tiny models with several processes, for `test_spread.py`: python spread.py OUT_FOLDER

Imports torch once and forks. Each case leaves `<name>.<rank>.pt`: losses of the steps, and what there is at the end.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what DistributedDataParallel imports late, seconds in each process
from torch import Tensor

from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage
from together import fork
from utils.machine.distributed import Ranks, joined
from utils.pretrained.building import build_prior, build_vqgan
from utils.runs.job import Job
from utils.training.prior_trainer import PriorTrainer
from utils.training.vqgan_trainer import VQGANTrainer

CPU = torch.device("cpu")
GLOBAL_BATCH = 8
SMALL: dict[str, Any] = {
    "dataset": "churches",
    "img_size": 8,
    "nf": 32,
    "ch_mult": (1, 1),
    "res_blocks": 1,
    "attn_resolutions": (),
    "codebook_size": 32,
    "emb_dim": 4,
    "ema": True,
    "ema_beta": 0.9,
    "steps_per_update_ema": 2,
}
STAGE_1 = SMALL | {
    "ndf": 16,
    "disc_layers": 1,
    "perceptual": "none",
    "lr": 2e-4,
    "disc_start_step": 5,
    "diff_aug": True,
    "horizontal_flip": True,
    "codebook_init": "encoder",
    "restart_dead_codes": 7,
}
STAGE_2 = SMALL | {
    "ae_load_dir": "vqgan",
    "bert_n_emb": 16,
    "bert_n_head": 2,
    "bert_n_layers": 2,
    "total_steps": 8,
    "lr": 1e-2,
    "warmup_iters": 5,
}
GUMBEL = {"quantizer": "gumbel", "codebook_init": "uniform", "restart_dead_codes": 0, "disc_start_step": 3}
AUTOREGRESSIVE = {"sampler": "autoregressive"}
MICRO = {"disc_start_step": 2, "restart_dead_codes": 0}


@dataclass(frozen=True)
class Case:
    """What is trained by how many processes, from where."""

    count: int
    steps: range
    precision: str
    settings: dict[str, Any]
    resumed: str = ""  # the case that it goes on from


def cases() -> dict[str, Case]:
    """By name, in the order in which they are run."""
    found = {}
    for stage, base in (("vqgan", STAGE_1), ("prior", STAGE_2)):
        for count in (1, 2, 4):
            if count != 2:
                found[f"{stage}_float32_{count}"] = Case(count, range(30), "float32", base)
            found[f"{stage}_float64_{count}"] = Case(count, range(30), "float64", base)
    for count in (1, 2):
        found[f"vqgan_gumbel_{count}"] = Case(count, range(6), "float64", STAGE_1 | GUMBEL)
        found[f"prior_autoregressive_{count}"] = Case(count, range(6), "float64", STAGE_2 | AUTOREGRESSIVE)
    for count, passes in ((1, 1), (1, 4), (2, 2)):
        for stage, base in (("vqgan", STAGE_1 | MICRO), ("prior", STAGE_2)):
            found[f"{stage}_micro_{count}_{passes}"] = Case(
                count, range(5), "float64", base | {"accumulate_steps": passes}
            )
    found["vqgan_local_2"] = Case(2, range(7), "float64", STAGE_1 | {"sync_batchnorm": False})
    found["prior_compressed_2"] = Case(2, range(30), "float32", STAGE_2 | {"compress_gradients": True})
    for stage, base in (("vqgan", STAGE_1), ("prior", STAGE_2)):  # four steps each
        found[f"{stage}_undisturbed"] = Case(1, range(12), "float64", base)
        found[f"{stage}_resumed_4"] = Case(4, range(4), "float64", base)
        found[f"{stage}_resumed_1"] = Case(1, range(4, 8), "float64", base, f"{stage}_resumed_4")
        found[f"{stage}_resumed_2"] = Case(2, range(8, 12), "float64", base, f"{stage}_resumed_1")
    return found


def images(step: int) -> Tensor:
    coarse = torch.randint(256, (GLOBAL_BATCH, 3, 2, 2), generator=torch.Generator().manual_seed(step))
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)


def codes(step: int, n: int = GLOBAL_BATCH) -> Tensor:
    return torch.randint(4, (n, 16), generator=torch.Generator().manual_seed(step), dtype=torch.int32)


def go_on(trainer: Any, end: dict[str, Any] | None) -> None:
    """Put a trainer to where another one ended."""
    if end:
        for ema, model in trainer.models().items():
            model.load_state_dict(end["models"][str(ema)])
        trainer.load_state_dict(end["trainer"])


def train(ranks: Ranks, name: str, case: Case, end: dict[str, Any] | None) -> dict[str, Any]:
    steps, changes = case.steps, case.settings
    torch.manual_seed(0)
    mine = slice(*(GLOBAL_BATCH // ranks.count * rank for rank in (ranks.rank, ranks.rank + 1)))
    if name.startswith("vqgan"):
        stage = resolve(VQGANStage, changes)
        vqgan = build_vqgan(stage.autoencoder, stage.vqgan, perceptual=None)
        trainer: Any = VQGANTrainer(Job(stage, CPU, ranks), stage.training, stage.vqgan, vqgan)
        if "micro" in name:
            vqgan.disc.eval()  # micro-batches have statistics of their own
        go_on(trainer, end)
        losses = [trainer.step(images(step)[mine], step) for step in steps]
        held_out = torch.cat([images(100), images(101)])[:13]
        validation = trainer.validate([held_out[list(ranks.share(13))]])
        few = trainer.validate(held_out[[i]] for i in ranks.share(3))
    else:
        prior_stage = resolve(PriorStage, changes)
        prior = build_prior(prior_stage.prior, prior_stage.autoencoder.codebook_size)
        trainer = PriorTrainer(Job(prior_stage, CPU, ranks), prior_stage.training, prior_stage.prior, prior)
        go_on(trainer, end)
        losses = [trainer.step(codes(step)[mine], step) for step in steps]
        validation = trainer.validate(codes(100, 13), batch_size=3)
        few = trainer.validate(codes(100, 3), batch_size=3)
    return {
        "losses": [{term: value.item() for term, value in step.items() if not value.ndim} for step in losses],
        "models": {str(ema): model.state_dict() for ema, model in trainer.models().items()},
        "trainer": trainer.state_dict(),
        "validation": validation,
        "validation_of_3": few,
    }


def work(out: Path, name: str, case: Case, rank: int) -> None:
    torch.set_num_threads(1)
    if case.precision == "float64":  # the product's code as it is: float32, where it is asked for, is float64
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    with joined(CPU, backend="auto", timeout_s=60) as ranks:
        end = torch.load(out / f"{case.resumed}.0.pt", weights_only=True) if case.resumed else None
        torch.save(train(ranks, name, case, end), out / f"{name}.{rank}.pt")


def main() -> None:
    out, wanted = Path(sys.argv[1]), sys.argv[2:]
    for name, case in cases().items():
        if wanted and name not in wanted:
            continue
        fork(case.count, partial(work, out, name, case))


if __name__ == "__main__":
    main()
