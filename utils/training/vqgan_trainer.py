"""One update of the VQGAN, and its validation (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hparams.settings.models import VQGANSettings
from hparams.settings.stages import RunSettings
from hparams.settings.training import TrainingSettings
from models.vqgan.quantizers import id_counts, perplexity
from models.vqgan.similarity import psnr
from models.vqgan.vqgan import VQGAN
from utils.machine.compiling import capture_stream, captured_step, compile_blocks
from utils.machine.devices import autocast
from utils.machine.distributed import ALONE, Ranks
from utils.machine.evaluation import evaluating
from utils.machine.seeding import derive_seed, reseed
from utils.training.batch_norm import synchronise_batch_norm
from utils.training.trainer import StageTrainer
from utils.training.vqgan_step import VQGANStep

# Scalar terms of the losses; uses of each code, [K]; the encoder's outputs, [B,D,h,w]; whether gradients were finite
_Updated = tuple[dict[str, Tensor], Tensor, Tensor, Tensor]


class VQGANTrainer(StageTrainer[VQGAN]):
    """Updates of both networks and their validation."""

    def __init__(
        self,
        run: RunSettings,
        training: TrainingSettings,
        settings: VQGANSettings,
        vqgan: VQGAN,
        device: torch.device,
        amp_dtype: torch.dtype | None,
        ranks: Ranks = ALONE,
    ) -> None:
        # With channels last tensor cores need no transposing; on CPUs oneDNN picks its own layout either way.
        self.memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.vqgan: VQGAN = vqgan.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        trained = {"ae": vqgan.ae, "disc": vqgan.disc}
        super().__init__(vqgan, trained, vqgan.ae.idle_parameters(), run, training, device, amp_dtype, ranks)
        self.horizontal_flip = training.horizontal_flip
        self.care = settings
        compile_blocks(vqgan, run.compile, device)
        # How often each code was used since dead ones were last restarted
        self.usage = torch.zeros(vqgan.ae.quantize.size, dtype=torch.int64, device=device)
        if ranks.count > 1 and settings.sync_batchnorm:
            synchronise_batch_norm(vqgan.disc)
        # A graph holds no number of the host's: not the step's, nor the random state that micro-batches go back to.
        capturable = not vqgan.ae.quantize.depends_on_step and self.micro_batches == 1
        self._stream = capture_stream(run.compile, device, amp_dtype, ranks) if capturable else None
        self._backward = VQGANStep(
            vqgan,
            amp_dtype=amp_dtype,
            micro_batches=self.micro_batches,
            ranks=ranks,
            compress=training.compress_gradients,
            stream=self._stream,
        )
        self._generator = torch.Generator(device)
        self._of_phase: tuple[tuple[bool, bool], Callable[[Tensor], _Updated]] | None = None

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
        if step == 0 and self.care.codebook_init == "encoder" and self.vqgan.ae.quantize.restartable:
            with torch.no_grad():
                self._restart(torch.ones_like(self.usage, dtype=torch.bool), self.vqgan.ae.encoder(x), generator)

        terms, counts, z, finite = self._update(step)(x)
        self._care_for_codes(counts, z, step, generator)
        if self.ema:
            self.ema.follow(self.vqgan, step)
        return {
            **terms,
            "batch_perplexity": perplexity(counts),
            "code_counts": counts,
            "lr": torch.tensor(self.lr),
            "skipped": (~finite).float(),
        }

    def _update(self, step: int) -> Callable[[Tensor], _Updated]:
        """`_update_weights` at a step, or its CUDA graph: one for each of the phases in which it does the same."""
        update = partial(self._update_weights, step)
        if self._stream is None:
            return update
        phase = (self.vqgan.adversarial(step), self.vqgan.discriminator_learns(step))
        if self._of_phase is None or self._of_phase[0] != phase:
            self._of_phase = phase, captured_step(update, self._generator, self._stream, self.ranks)
        return self._of_phase[1]

    def _update_weights(self, step: int, x: Tensor) -> _Updated:
        """What an update of both networks on images x [B,C,H,W] does on the device."""
        buffers = [buffer.clone() for buffer in self.vqgan.buffers()]
        ae, disc = self.optimisers["ae"], self.optimisers["disc"]
        ae.zero_grad()
        scale = ae.scaler.scale(torch.ones((), device=self.device))
        done = self._backward.generator_backward(x, step, self._generator, scale)
        terms = self._existing(vars(done.terms))
        learns = self.vqgan.discriminator_learns(step)
        if learns:
            disc.zero_grad()
            d_loss = self._backward.discriminator_backward(x, done.judged, self._generator, disc.scaler)
            terms = terms | {"d_loss": d_loss}
        terms = dict(zip(terms, self.ranks.mean(torch.stack(list(terms.values()))).unbind(), strict=True))
        counts = self.ranks.sum(id_counts(done.ids, len(self.usage)))
        finite = disc.step() if learns else terms["g_loss"].isfinite()
        for now, before in zip(self.vqgan.buffers(), buffers, strict=True):
            now.copy_(torch.where(finite, now, before))
        return terms, counts, done.z, finite & ae.step()

    def validate(self, batches: Iterable[Tensor]) -> dict[str, float]:
        """Reconstruction of images uint8 [b,C,H,W] by the averaged model: means over images, and the codes in use.

        batches: of this process's share of the images; the means are over those of all.
        PSNR is the mean over images of that of each.
        """
        model, sums, images = self.averaged, torch.zeros(3, dtype=torch.float64), 0
        usage = torch.zeros_like(self.usage)
        with evaluating(model):
            for batch in batches:
                x = self._prepare(batch)
                with autocast(self.device, self.amp_dtype):
                    x_hat, quantized = model.ae(x)
                    l1, perceptual = model.reconstruction_terms(x, x_hat.float())
                quality = psnr(x_hat.float().clamp(0, 1), x).double().sum()
                sums += torch.stack([l1.double() * len(x), perceptual.double() * len(x), quality]).cpu()
                usage += id_counts(quantized.ids, len(usage))
                images += len(x)
        totals = self.ranks.sum(torch.cat([sums, torch.tensor([images])]).to(self.device))
        l1_mean, perceptual_mean, psnr_mean = (totals[:3] / totals[3]).tolist()
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
        with evaluating(model), autocast(self.device, self.amp_dtype):
            return model.ae(self._prepare(images))[0].float().clamp(0, 1)

    def release(self) -> None:
        """Let go of CUDA graphs; steps may follow, which run as they are for a while."""
        self._of_phase = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the models."""
        scalers = {name: optimiser.scaler.state_dict() for name, optimiser in self.optimisers.items()}
        return super().state_dict() | {"scalers": scalers, "usage": self.usage}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; the models are loaded on their own."""
        super().load_state_dict(state)
        for name, optimiser in self.optimisers.items():
            optimiser.load_scaler(state["scalers"][name])
        self.usage.copy_(state["usage"])

    def _prepare(self, images: Tensor) -> Tensor:
        x = images.to(self.device, non_blocking=True).float() / 255
        return x.contiguous(memory_format=self.memory_format)

    def _existing(self, terms: Mapping[str, Any]) -> dict[str, Any]:
        """Without a perceptual network there is no such term, rather than one of zeros."""
        return {name: term for name, term in terms.items() if name != "perceptual" or self.vqgan.perceptual is not None}

    def _care_for_codes(self, counts: Tensor, z: Tensor, step: int, generator: torch.Generator) -> None:
        """Count the uses of codes, and restart those without any every `restart_dead_codes` steps."""
        every, until = self.care.restart_dead_codes, self.care.restart_dead_codes_until
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
