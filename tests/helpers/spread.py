"""What several processes compute: training for `test_spread.py`, and PRDC for `test_prdc.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hparams.resolve import resolve
from hparams.settings.stages import PriorStage, VQGANStage
from utils.machine.distributed import Ranks, joined
from utils.metrics.prdc import compute_prdc
from utils.pretrained.building import build_prior, build_vqgan
from utils.runs.job import Job
from utils.training.prior_trainer import PriorTrainer
from utils.training.vqgan_trainer import VQGANTrainer
from warm import together

CPU = torch.device("cpu")
GLOBAL_BATCH = 8
SMALL: dict[str, Any] = {
    "dataset": "churches", "img_size": 8, "nf": 32, "ch_mult": (1, 1), "res_blocks": 1, "attn_resolutions": (),
    "codebook_size": 32, "emb_dim": 4, "ema": True, "ema_beta": 0.9, "steps_per_update_ema": 2,
}  # fmt: skip
STAGE_1 = SMALL | {
    "ndf": 16, "disc_layers": 1, "perceptual": "none", "lr": 2e-4, "disc_start_step": 5, "diff_aug": True,
    "horizontal_flip": True, "codebook_init": "encoder", "restart_dead_codes": 7,
}  # fmt: skip
STAGE_2 = SMALL | {
    "ae_load_dir": "vqgan", "bert_n_emb": 16, "bert_n_head": 2, "bert_n_layers": 2, "total_steps": 8, "lr": 1e-2,
    "warmup_iters": 5,
}  # fmt: skip
GUMBEL = {"quantizer": "gumbel", "codebook_init": "uniform", "restart_dead_codes": 0, "disc_start_step": 3}
MICRO = {"disc_start_step": 2, "restart_dead_codes": 0}


@dataclass(frozen=True)
class Case:
    """What is trained by how many processes, from where."""

    count: int
    steps: range
    settings: dict[str, Any]
    precision: str = "float64"
    resumed: str = ""  # the case that it goes on from


def cases() -> dict[str, Case]:
    """By name, in the order in which they are run."""
    found = {
        "vqgan_local_2": Case(2, range(7), STAGE_1 | {"sync_batchnorm": False}),
        "prior_compressed_2": Case(2, range(30), STAGE_2 | {"compress_gradients": True}, "float32"),
    }
    for count in (1, 2):
        found[f"vqgan_gumbel_{count}"] = Case(count, range(6), STAGE_1 | GUMBEL)
        found[f"prior_autoregressive_{count}"] = Case(count, range(6), STAGE_2 | {"sampler": "autoregressive"})
    for stage, base, micro in (("vqgan", STAGE_1, STAGE_1 | MICRO), ("prior", STAGE_2, STAGE_2)):
        for count in (1, 2, 4):
            for precision in ("float32", "float64"):
                found[f"{stage}_{precision}_{count}"] = Case(count, range(30), base, precision)
        for count, passes in ((1, 1), (1, 4), (2, 2)):
            found[f"{stage}_micro_{count}_{passes}"] = Case(count, range(5), micro | {"accumulate_steps": passes})
        found[f"{stage}_undisturbed"] = Case(1, range(12), base)
        found[f"{stage}_resumed_4"] = Case(4, range(4), base)
        found[f"{stage}_resumed_1"] = Case(1, range(4, 8), base, resumed=f"{stage}_resumed_4")
        found[f"{stage}_resumed_2"] = Case(2, range(8, 12), base, resumed=f"{stage}_resumed_1")
    return found


def images(step: int) -> Tensor:
    coarse = torch.randint(256, (GLOBAL_BATCH, 3, 2, 2), generator=torch.Generator().manual_seed(step))
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)


def codes(step: int, n: int = GLOBAL_BATCH) -> Tensor:
    return torch.randint(4, (n, 16), generator=torch.Generator().manual_seed(step), dtype=torch.int32)


def train(ranks: Ranks, name: str, case: Case, end: dict[str, Any] | None) -> dict[str, Any]:
    """Train as a case says, from the end of another one if given; the end."""
    torch.manual_seed(0)
    trainer: VQGANTrainer | PriorTrainer
    if name.startswith("vqgan"):
        stage = resolve(VQGANStage, case.settings)
        vqgan = build_vqgan(stage.autoencoder, stage.vqgan, perceptual=None)
        trainer = VQGANTrainer(Job(stage, CPU, ranks), stage.training, stage.vqgan, vqgan)
        if "micro" in name:
            vqgan.disc.eval()  # micro-batches have statistics of their own
    else:
        prior_stage = resolve(PriorStage, case.settings)
        prior = build_prior(prior_stage.prior, prior_stage.autoencoder.codebook_size)
        trainer = PriorTrainer(Job(prior_stage, CPU, ranks), prior_stage.training, prior_stage.prior, prior)
    if end:
        for ema, model in trainer.models().items():
            model.load_state_dict(end["models"][str(ema)])
        trainer.load_state_dict(end["trainer"])
    batch = images if name.startswith("vqgan") else codes
    losses = [trainer.step(batch(step).chunk(ranks.count)[ranks.rank], step) for step in case.steps]
    if isinstance(trainer, VQGANTrainer):
        held_out = torch.cat([images(100), images(101)])[:13]
        validation = trainer.validate([held_out[list(ranks.share(13))]])
        few = trainer.validate(held_out[[i]] for i in ranks.share(3))
    else:
        validation, few = (trainer.validate(codes(100, n), batch_size=3) for n in (13, 3))
    return {
        "losses": [{term: value.item() for term, value in step.items() if not value.ndim} for step in losses],
        "models": {str(ema): model.state_dict() for ema, model in trainer.models().items()},
        "trainer": trainer.state_dict(),
        "validation": validation,
        "validation_of_3": few,
    }


def work(out: Path, name: str, case: Case) -> None:
    if case.precision == "float64":  # the product's code as it is: float32, where it is asked for, is float64
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    with joined(CPU, backend="auto", timeout_s=60) as ranks:
        end = torch.load(out / f"{case.resumed}.0.pt", weights_only=True) if case.resumed else None
        torch.save(train(ranks, name, case, end), out / f"{name}.{ranks.rank}.pt")


def run_all(out: Path) -> None:
    """Each case leaves `<name>.<rank>.pt`: losses of the steps, and what there is at the end."""
    for name, case in cases().items():
        together(case.count, work, out, name, case)


def score(folder: Path) -> None:
    """Of each case in `cases.pt`, real and fake features, k and the side of a block: the numbers, how often it ticked.

    They are left in `<count>.<rank>.pt`.
    """
    found = []
    with joined(CPU, backend="auto", timeout_s=60) as ranks:
        for real, fake, k, block in torch.load(folder / "cases.pt", weights_only=True):
            ticks: list[None] = []
            values = compute_prdc(real, fake, k, block=block, tick=lambda ticks=ticks: ticks.append(None), ranks=ranks)
            found.append((values, len(ticks)))
    torch.save(found, folder / f"{ranks.count}.{ranks.rank}.pt")
