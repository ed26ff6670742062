"""One update of the VQGAN, its validation, and all the state that a resumed run needs (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hparams.settings import VQGANStage
from models.codebook import CodeUsage, draw_latents, restart_codes
from models.quantizers import id_counts, perplexity
from models.vqgan import VQGAN
from utils.compiling import compile_autoencoder
from utils.ema import EMA
from utils.evaluation import evaluating
from utils.optimiser import Optimiser
from utils.seeding import derive_seed, make_generator


class VQGANTrainer:
    """Owns model, average and optimisers. Steps count from 0: `step` is the number of updates done so far."""

    def __init__(self, settings: VQGANStage, vqgan: VQGAN, device: torch.device, amp_dtype: torch.dtype | None) -> None:
        # With channels last tensor cores need no transposing; on CPUs oneDNN picks its own layout either way.
        self.memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.vqgan = vqgan.to(device, memory_format=self.memory_format).train()  # type: ignore[call-overload]
        self.device = device
        self.amp_dtype = amp_dtype
        self.seed = settings.run.seed
        self.horizontal_flip = settings.training.horizontal_flip
        self.ema = EMA(vqgan, settings.training.ema_beta) if settings.training.ema else None
        for model in self.models().values():
            compile_autoencoder(model, settings.run.compile, device)
        self.steps_per_update_ema = settings.training.steps_per_update_ema
        self.care = settings.vqgan
        self.nearest = (
            settings.autoencoder.quantizer == "nearest"
        )  # what a code of the other is, encoder outputs are not
        lr = settings.training.lr
        self.optimisers = {
            name: Optimiser(network.parameters(), lr, device, amp_dtype)
            for name, network in (("ae", vqgan.ae), ("disc", vqgan.disc))
        }
        self.usage = CodeUsage(settings.autoencoder.codebook_size, device)

    @property
    def averaged(self) -> VQGAN:
        """The averaged model where there is one, else the trained one."""
        return self.ema.model if self.ema else self.vqgan

    def models(self) -> Mapping[bool, torch.nn.Module]:
        """The models to save, by whether they are the average."""
        return {False: self.vqgan} | ({True: self.ema.model} if self.ema else {})

    def step(self, images: Tensor, step: int) -> dict[str, Tensor]:
        """One update of both networks on images uint8 [B,C,H,W]; returns the terms of the losses, scalars.

        `skipped` is 1 where a network's gradients were not finite: then it stays as it was, its statistics too.
        """
        generator = make_generator(self.device, self.seed, "vqgan", step)
        x = self._prepare(images)
        if self.horizontal_flip and derive_seed(self.seed, "flip", step) % 2:
            x = x.flip(-1)
        if step == 0 and self.nearest and self.care.codebook_init == "encoder":
            self._start_codes(x, generator)

        buffers = [buffer.clone() for buffer in self.vqgan.buffers()]
        ae, disc = self.optimisers["ae"], self.optimisers["disc"]
        ae.zero_grad()
        scale = ae.scaler.scale(torch.ones((), device=self.device))
        done = self.vqgan.generator_backward(x, step, generator=generator, amp_dtype=self.amp_dtype, scale=scale)
        terms = vars(done.terms)
        # The objective's weight counts from disc_start_step, the discriminator's own updates from the step after.
        if step > self.vqgan.disc_start_step and done.judged:
            with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                d_loss = self.vqgan.discriminator_loss(x, done.judged, generator)
            disc.zero_grad()
            disc.scaler.scale(d_loss).backward(inputs=list(self.vqgan.disc.parameters()))
            finite = disc.step()
            terms = terms | {"d_loss": d_loss}
        else:
            finite = done.terms.g_loss.isfinite()
        for now, before in zip(self.vqgan.buffers(), buffers, strict=True):
            now.copy_(torch.where(finite, now, before))
        finite = finite & ae.step()

        self._care_for_codes(done.ids, done.z, step, generator)
        if self.ema and step > 0 and step % self.steps_per_update_ema == 0:
            self.ema.update(self.vqgan)
        counts = id_counts(done.ids, len(self.usage.counts))
        return {**terms, "batch_perplexity": perplexity(counts), "skipped": (~finite).float()}

    def validate(self, batches: Iterable[Tensor]) -> dict[str, float]:
        """Reconstruction of images uint8 [b,C,H,W] by the averaged model: means over images, and the codes in use.

        PSNR is the mean over images of −10·log10(mean squared error), pixels in [0,1].
        """
        model, sums, images = self.averaged, torch.zeros(3, dtype=torch.float64), 0
        usage = CodeUsage(len(self.usage.counts), self.device)
        with evaluating(model):
            for batch in batches:
                x = self._prepare(batch)
                with self._autocast():
                    x_hat, quantized = model.ae(x)
                    l1, perceptual = model.reconstruction_terms(x, x_hat.float())
                mse = (x_hat.float().clamp(0, 1) - x).square().mean((1, 2, 3)).double().clamp(min=1e-10)
                sums += torch.stack([l1.double() * len(x), perceptual.double() * len(x), -10 * mse.log10().sum()]).cpu()
                usage.add(quantized.ids)
                images += len(x)
        l1_mean, perceptual_mean, psnr = (sums / images).tolist()
        return {
            "l1": l1_mean,
            "perceptual": perceptual_mean,
            "psnr_db": psnr,
            "codebook_perplexity": perplexity(usage.counts).item(),
            "codebook_used": (usage.counts > 0).double().mean().item(),
        }

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstructions by the averaged model: uint8 [B,C,H,W] → [B,C,H,W] in [0,1]."""
        model = self.averaged
        with evaluating(model), self._autocast():
            return model.ae(self._prepare(images))[0].float().clamp(0, 1)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the models."""
        return {
            "optimisers": {name: optimiser.adam.state_dict() for name, optimiser in self.optimisers.items()},
            "scalers": {name: optimiser.scaler.state_dict() for name, optimiser in self.optimisers.items()},
            "usage": self.usage.counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the models are loaded on their own."""
        for name, optimiser in self.optimisers.items():
            optimiser.load_adam(state["optimisers"][name])
            optimiser.scaler.load_state_dict(state["scalers"][name])
        self.usage.counts.copy_(state["usage"])

    def _prepare(self, images: Tensor) -> Tensor:
        x = images.to(self.device, non_blocking=True).float() / 255
        return x.contiguous(memory_format=self.memory_format)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    @torch.no_grad()
    def _start_codes(self, x: Tensor, generator: torch.Generator) -> None:
        codebook = self.vqgan.ae.quantize.codebook
        codebook.copy_(draw_latents(self.vqgan.ae.encoder(x), len(codebook), generator))
        if self.ema:
            self.ema.model.ae.quantize.codebook.copy_(codebook)

    @torch.no_grad()
    def _care_for_codes(self, ids: Tensor, z: Tensor, step: int, generator: torch.Generator) -> None:
        every, until = self.care.restart_dead_codes, self.care.restart_dead_codes_until
        if not (self.nearest and every) or (until and step >= until):
            return
        self.usage.add(ids)
        if (step + 1) % every or not z.isfinite().all():
            return
        codebook, dead = self.vqgan.ae.quantize.codebook, self.usage.dead()
        restart_codes(codebook, dead, z, generator)
        if self.ema:  # an average of a code's old and new place would be neither
            self.ema.model.ae.quantize.codebook[dead] = codebook[dead]
        if moments := self.optimisers["ae"].adam.state.get(codebook):  # none while every update was skipped
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name][dead] = 0
        self.usage.reset()
