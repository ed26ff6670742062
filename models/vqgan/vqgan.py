"""The VQGAN: autoencoder, discriminator and the objectives that train them (paper, section 3.1)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.parts import WHOLE, BatchPart, Replica, rewind
from models.vqgan.adversarial import adaptive_weight, generator_loss, hinge_discriminator_loss
from models.vqgan.augment import diff_augment
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.discriminator import Discriminator
from models.vqgan.quantizers import Quantized, gumbel_temperature

PerceptualLoss = Callable[
    [Tensor, Tensor], Tensor
]  # two batches of images [B,C,H,W] in [0,1] → distances, one per image


@dataclass(frozen=True)
class GeneratorTerms:
    """Terms of the autoencoder's objective; scalars without gradient."""

    loss: Tensor  # l1 + perceptual + disc_weight · g_loss + codebook
    l1: Tensor  # mean |x − x̂|
    perceptual: Tensor  # λ · mean perceptual distance
    g_loss: Tensor  # −mean D(x̂)
    disc_weight: Tensor  # adaptive weight of g_loss
    codebook: Tensor  # the quantiser's loss


@dataclass(frozen=True)
class Judged:
    """The discriminator's pass over the fakes: its own objective goes on from there, and need not repeat it."""

    logits: Tensor  # D(fake) with its graph; fake is x_hat, augmented if DiffAugment is on
    before: list[Tensor]  # the discriminator's running statistics before the pass
    after: list[Tensor]  # and after it


@dataclass(frozen=True)
class GeneratorPass:
    """What one pass of the autoencoder's objective leaves behind; nothing but `judged` has a gradient."""

    terms: GeneratorTerms
    x_hat: Tensor  # [B,C,H,W] float32, reconstructions
    ids: Tensor  # [B,N] int64
    z: Tensor  # [B,D,h,w], the encoder's output
    judged: list[Judged]  # of each micro-batch; none before the discriminator's start


@dataclass(frozen=True)
class _Look:
    """What the losses make of the reconstructions of a micro-batch."""

    grad: Tensor  # [B,C,H,W], of l1 + perceptual at x̂
    g_grad: Tensor | None  # [B,C,H,W], of g_loss at x̂
    terms: Tensor  # [4]: l1, perceptual, g_loss, codebook
    x_hat: Tensor  # as in `GeneratorPass`
    ids: Tensor
    z: Tensor
    judged: Judged | None


class VQGAN(nn.Module):
    """Autoencoder `ae` and discriminator `disc`; the perceptual network stays outside its state."""

    def __init__(
        self,
        ae: VQAutoEncoder,
        disc: Discriminator,
        *,
        perceptual: PerceptualLoss | None,  # None: plain L1
        perceptual_weight: float,  # λ
        disc_start_step: int,  # first step whose objective has an adversarial term
        disc_weight_max: float,  # upper bound of the adaptive weight
        diff_aug: bool,  # DiffAugment in front of the discriminator
    ) -> None:
        super().__init__()
        self.ae = ae
        self.disc = disc
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.disc_start_step = disc_start_step
        self.disc_weight_max = disc_weight_max
        self.diff_aug = diff_aug

    def generator_backward(
        self,
        x: Tensor,
        step: int,
        *,
        generator: torch.Generator | None = None,
        amp_dtype: torch.dtype | None = None,
        scale: Tensor | float = 1.0,
        part: BatchPart = WHOLE,
        micro_batches: int = 1,
        replica: Replica | None = None,
        mean: Callable[[Tensor], Tensor] | None = None,
    ) -> GeneratorPass:
        """Add the gradients of the autoencoder's objective at images `x` to its parameters.

        x: [B,C,H,W] in [0,1]. step: updates done so far. generator: noise of the Gumbel quantiser and of DiffAugment.
        amp_dtype: autocast the networks to this type. scale: factor on every gradient (loss scaling in float16).
        part: which part of the batch x is. micro_batches: equal pieces to do it in, one after the other.
        replica, mean: where x is one process's part, what stands for `ae`, and averages a tensor over the processes.

        Both losses' gradients are taken once, at x̂. The last layer's gradients, which the adaptive weight compares, and
        the autoencoder's follow from them: neither the perceptual network nor the discriminator is walked twice.
        The weight is that of the whole batch: micro-batches are first looked at without keeping their graphs, and pass
        the autoencoder again, with the weight known, for the backward pass.
        """
        adversarial = step >= self.disc_start_step
        twice = adversarial and micro_batches > 1
        autocast = torch.autocast(x.device.type, dtype=amp_dtype, enabled=amp_dtype is not None)
        pieces = list(zip(part.split(micro_batches), x.chunk(micro_batches), strict=True))
        start = generator.get_state() if generator is not None and micro_batches > 1 else None
        run = self.ae if replica is None else replica

        def reconstruct(piece: BatchPart, images: Tensor, keep_graph: bool) -> tuple[Tensor, Quantized]:
            rewind(generator, start)
            noise = {"temperature": gumbel_temperature(step), "generator": generator, "part": piece}
            with autocast:
                if keep_graph:
                    return run(images, **noise)
                with torch.no_grad():
                    quantized = self.ae.quantize(self.ae.encoder(images), **noise)
                    features = self.ae.generator.features(quantized.z_q)
                return self.ae.generator.last_conv(features), quantized

        def backward(x_hat: Tensor, quantized: Quantized, look: _Look) -> None:
            grad = look.grad if look.g_grad is None else look.grad + weight * look.g_grad
            torch.autograd.backward(
                [x_hat, quantized.loss * scale / micro_batches], [(grad / micro_batches).to(x_hat.dtype), None]
            )

        def hold_back(piece: BatchPart) -> contextlib.AbstractContextManager[None]:
            """Only the last micro-batch's pass ends in an average over processes."""
            last = piece is pieces[-1][0]
            return contextlib.nullcontext() if last or replica is None else replica.no_sync()

        looks, at_last_layer = [], []
        for piece, images in pieces:
            with hold_back(piece):
                x_hat, quantized = reconstruct(piece, images, keep_graph=not twice)
                look = self._look(images, x_hat, quantized, adversarial, generator, piece, autocast, scale)
                looks.append(look)
                if adversarial:
                    at_last_layer.append(self._at_last_layer(x_hat, look) / scale)
                if not twice:
                    weight = self._weight(at_last_layer, mean)
                    backward(x_hat, quantized, look)
        after = generator.get_state() if twice and generator is not None else None
        if twice:
            weight = self._weight(at_last_layer, mean)
            for (piece, images), look in zip(pieces, looks, strict=True):
                with hold_back(piece):
                    backward(*reconstruct(piece, images, keep_graph=True), look)
        rewind(generator, after)

        l1, perceptual, g_loss, codebook = torch.stack([look.terms for look in looks]).mean(0).unbind()
        terms = GeneratorTerms(l1 + perceptual + weight * g_loss + codebook, l1, perceptual, g_loss, weight, codebook)
        x_hat, ids, z = (torch.cat([getattr(look, name) for look in looks]) for name in ("x_hat", "ids", "z"))
        return GeneratorPass(terms, x_hat, ids, z, [look.judged for look in looks if look.judged])

    def discriminator_loss(
        self,
        x: Tensor,
        judged: Judged,
        generator: torch.Generator | None = None,
        part: BatchPart = WHOLE,
        replica: Replica | None = None,
    ) -> Tensor:
        """Hinge loss, scalar. x: images [B,C,H,W] in [0,1]; judged: what the generator's pass over them left.

        The discriminator must not have changed since; only its parameters are to get gradients. part: which part of the
        batch x is. replica: what stands for `disc` where that is one process's part.
        """
        disc = self.disc if replica is None else replica
        logits_real = disc(diff_augment(x, generator, part) if self.diff_aug else x)
        if self.disc.training:  # as published, the running statistics see the fakes again after the reals
            self.disc.see_again(judged.before, judged.after)
        return hinge_discriminator_loss(logits_real, judged.logits)

    def _look(
        self,
        x: Tensor,
        x_hat: Tensor,
        quantized: Quantized,
        adversarial: bool,
        generator: torch.Generator | None,
        part: BatchPart,
        autocast: torch.autocast,
        scale: Tensor | float,
    ) -> _Look:
        leaf = x_hat.detach().float().requires_grad_()
        with autocast:
            l1, perceptual = self.reconstruction_terms(x, leaf)
        (grad,) = torch.autograd.grad((l1 + perceptual) * scale, leaf)
        # Before its start the discriminator has no say, but its statistics see the fakes, as published
        with autocast, torch.set_grad_enabled(adversarial):
            fake = diff_augment(leaf, generator, part) if self.diff_aug else leaf
            before = self.disc.statistics()
            logits_fake = self.disc(fake)
            g_loss = generator_loss(logits_fake)
        g_grad = torch.autograd.grad(g_loss * scale, leaf, retain_graph=True)[0] if adversarial else None
        judged = Judged(logits_fake, before, self.disc.statistics()) if adversarial else None
        terms = torch.stack([term.detach() for term in (l1, perceptual, g_loss, quantized.loss)])
        return _Look(grad, g_grad, terms, leaf.detach(), quantized.ids, quantized.z.detach(), judged)

    def _at_last_layer(self, x_hat: Tensor, look: _Look) -> Tensor:
        """Both losses' gradients at the last layer, stacked, float32."""
        last_layer, gradients = self.ae.generator.last_layer, []
        for g in (look.grad, look.g_grad):
            if g is not None:
                # Of a norm near 1, so that float16 holds what comes of it; by a power of two, which rounds nothing.
                norm = torch.linalg.vector_norm(g)
                unit = torch.ldexp(torch.ones_like(norm), torch.frexp(torch.where(norm.isfinite(), norm, 1)).exponent)
                (at_layer,) = torch.autograd.grad(x_hat, last_layer, (g / unit).to(x_hat.dtype), retain_graph=True)
                gradients.append(at_layer.float() * unit)
        return torch.stack(gradients)

    def _weight(self, at_last_layer: Sequence[Tensor], mean: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Adaptive weight from the last layer's gradients of all micro-batches and processes; 0 without any."""
        if not at_last_layer:
            return self.ae.generator.last_layer.new_zeros(())
        gradients = torch.stack(list(at_last_layer)).mean(0)
        reconstruction, g = gradients if mean is None else mean(gradients)
        return adaptive_weight(reconstruction, g, self.disc_weight_max)

    def reconstruction_terms(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean |x − x̂| and the weighted mean perceptual distance of images [B,C,H,W]; scalars."""
        return (x - x_hat).abs().mean(), self._perceptual(x, x_hat)

    def _perceptual(self, x: Tensor, x_hat: Tensor) -> Tensor:
        if self.perceptual is None:
            return x_hat.new_zeros(())
        return self.perceptual_weight * self.perceptual(x, x_hat).float().mean()
