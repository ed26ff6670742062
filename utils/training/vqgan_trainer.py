"""One update of the VQGAN, and its validation (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hparams.settings.models import VQGANSettings
from hparams.settings.training import TrainingSettings
from models.vqgan.quantizers import id_counts, perplexity
from models.vqgan.similarity import psnr
from models.vqgan.vqgan import VQGAN
from utils.machine.compiling import compile_blocks
from utils.machine.evaluation import evaluating
from utils.machine.seeding import derive_seed, reseed
from utils.runs.job import Job
from utils.training.trainer import StageTrainer
from utils.training.vqgan_step import VQGANStep, synchronise_batch_norm


class VQGANTrainer(StageTrainer[VQGAN]):
    """Updates of both networks and their validation."""

    def __init__(self, job: Job, training: TrainingSettings, settings: VQGANSettings, vqgan: VQGAN) -> None:
        # With channels last tensor cores need no transposing; on CPUs oneDNN picks its own layout either way.
        self.memory_format = torch.channels_last if job.device.type == "cuda" else torch.contiguous_format
        self.vqgan: VQGAN = vqgan.to(job.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        trained = {"ae": vqgan.ae, "disc": vqgan.disc}
        # A graph holds no number of the host's: not the step's, nor the random state that micro-batches go back to.
        capturable = not vqgan.ae.quantize.depends_on_step and training.accumulate_steps == 1
        super().__init__(job, training, vqgan, trained, vqgan.ae.idle_parameters(), capturable=capturable)
        self.horizontal_flip, self.settings = training.horizontal_flip, settings
        compile_blocks(vqgan, job.compile, job.device)
        # How often each code was used since dead ones were last restarted
        self.usage = torch.zeros(vqgan.ae.quantize.size, dtype=torch.int64, device=job.device)
        if job.ranks.count > 1 and settings.sync_batchnorm:
            synchronise_batch_norm(vqgan.disc)
        ranks, compress = job.ranks, training.compress_gradients
        self._gradients = VQGANStep(vqgan, job.amp_dtype, self.micro_batches, ranks, compress, self._stream)

    def step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """One update of both networks on images uint8 [B,C,H,W], this process's part of the step's batch.

        Returns the terms of the losses, scalars, over the whole batch; `code_counts` [K] says how often each code was
        used, `lr` is the learning rate. `skipped` is 1 where a network's gradients were not finite: then it stays as it
        was, its statistics too.
        """
        generator = reseed(self._generator, self.seed, "vqgan", step)
        x = self._prepare(images)
        if self.horizontal_flip and derive_seed(self.seed, "flip", step) % 2:
            x = x.flip(-1)
        if step == 0 and self.settings.codebook_init == "encoder" and self.vqgan.ae.quantize.restartable:
            with torch.no_grad():
                self._restart(torch.ones_like(self.usage, dtype=torch.bool), self.vqgan.ae.encoder(x), generator)
        phase = (self.vqgan.adversarial(step), self.vqgan.discriminator_learns(step))
        terms, counts, z, finite = self.replayed(partial(self._update, step), phase)(x)
        self._care_for_codes(counts, z, step, generator)
        if self.ema:
            self.ema.follow(self.vqgan, step)
        more = {"batch_perplexity": perplexity(counts), "code_counts": counts, "lr": torch.tensor(self.lr)}
        return {**terms, **more, "skipped": (~finite).float()}

    def _update(self, step: int, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """What `step` does on the device with images x [B,C,H,W] in [0,1].

        Returns the losses' terms, uses of each code [K], the encoder's output, and whether gradients were finite.
        """
        buffers = [buffer.clone() for buffer in self.vqgan.buffers()]
        ae, disc = self.optimisers["ae"], self.optimisers["disc"]
        scales = []
        for optimiser in (ae, disc):
            optimiser.zero_grad()
            scales.append(optimiser.scaler.scale(torch.ones((), device=self.device)))
        terms, ids, z = self._gradients.backward(x, step, self._generator, *scales)
        terms = self._existing(terms)
        terms = dict(zip(terms, self.ranks.mean(torch.stack(list(terms.values()))).unbind(), strict=True))
        counts = self.ranks.sum(id_counts(ids, len(self.usage)))
        finite = disc.step() if "d_loss" in terms else terms["g_loss"].isfinite()
        for now, before in zip(self.vqgan.buffers(), buffers, strict=True):
            now.copy_(torch.where(finite, now, before))
        return terms, counts, z, finite & ae.step()

    def validate(self, batches: Iterable[Tensor]) -> dict[str, float]:
        """Means over images of the averaged model's reconstruction, and the codes in use.

        batches: uint8 [b,C,H,W], of this process's share of the images; the means are over those of all.
        """
        model, sums = self.averaged, torch.zeros(4, dtype=torch.float64)  # the last is the number of images
        usage = torch.zeros_like(self.usage)
        with evaluating(model):
            for batch in batches:
                x, n = self._prepare(batch), len(batch)
                with self.autocast():
                    x_hat, quantized = model.ae(x)
                    l1, perceptual = model.reconstruction_terms(x, x_hat.float())
                quality = psnr(x_hat.float().clamp(0, 1), x).double().sum()
                sums += torch.stack(
                    [l1.double() * n, perceptual.double() * n, quality, torch.full_like(quality, n)]
                ).cpu()
                usage += id_counts(quantized.ids, len(usage))
        *totals, images = self.ranks.sum(sums.to(self.device)).tolist()
        l1_mean, perceptual_mean, psnr_mean = (total / images for total in totals)
        counts = self.ranks.sum(usage)
        return {
            **self._existing({"l1": l1_mean, "perceptual": perceptual_mean}),
            "psnr_db": psnr_mean,
            "codebook_perplexity": perplexity(counts).item(),
            "codebook_used": (counts > 0).double().mean().item(),
        }

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstructions by the averaged model: uint8 [B,C,H,W] → [B,C,H,W] in [0,1]."""
        model = self.averaged
        with evaluating(model), self.autocast():
            return model.ae(self._prepare(images))[0].float().clamp(0, 1)

    def state_dict(self) -> dict[str, Any]:
        scalers = {name: optimiser.scaler.state_dict() for name, optimiser in self.optimisers.items()}
        return super().state_dict() | {"scalers": scalers, "usage": self.usage}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name, optimiser in self.optimisers.items():
            optimiser.load_scaler(state["scalers"][name])
        self.usage.copy_(state["usage"])

    def _prepare(self, images: Tensor) -> Tensor:
        return (images.to(self.device, non_blocking=True).float() / 255).contiguous(memory_format=self.memory_format)

    def _existing(self, terms: Mapping[str, Any]) -> dict[str, Any]:
        """Without a perceptual network there is no such term, rather than one of zeros."""
        return {name: term for name, term in terms.items() if name != "perceptual" or self.vqgan.perceptual is not None}

    def _care_for_codes(self, counts: Tensor, z: Tensor, step: int, generator: torch.Generator) -> None:
        """Count the uses of codes, and restart those without any every `restart_dead_codes` steps."""
        every, until = self.settings.restart_dead_codes, self.settings.restart_dead_codes_until
        if not (every and self.vqgan.ae.quantize.restartable) or (until and step >= until):
            return
        self.usage += counts
        if (step + 1) % every == 0 and self._restart(self.usage == 0, z, generator):
            self.usage.zero_()

    @torch.no_grad()
    def _restart(self, codes: Tensor, z: Tensor, generator: torch.Generator) -> bool:
        """Move `codes` [K] bool onto the encoder's outputs z, gathered from all processes, if these are finite."""
        z = self.ranks.gather(z)
        if not z.isfinite().all():
            return False
        quantizer = self.vqgan.ae.quantize
        quantizer.restart(codes, z, generator)
        if self.ema:  # an average of a code's old and new place would be neither
            self.ema.model.ae.quantize.codebook[codes] = quantizer.codebook[codes]
        if moments := self.optimisers["ae"].adam.state.get(quantizer.codebook):  # none while every update was skipped
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name][codes] = 0
        return True
