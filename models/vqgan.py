"""The VQGAN: autoencoder, discriminator and the objectives that train them (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.adversarial import adaptive_weight, generator_loss, hinge_discriminator_loss
from models.augment import diff_augment
from models.autoencoder import VQAutoEncoder
from models.discriminator import Discriminator
from models.quantizers import gumbel_temperature

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
    judged: Judged | None  # None before the discriminator's start


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
    ) -> GeneratorPass:
        """Add the gradients of the autoencoder's objective at images `x` to its parameters.

        x: [B,C,H,W] in [0,1]. step: updates done so far. generator: noise of the Gumbel quantiser and of DiffAugment.
        amp_dtype: autocast the networks to this type. scale: factor on every gradient (loss scaling in float16).

        Both losses' gradients are taken once, at x̂. The last layer's gradients, which the adaptive weight compares, and
        the autoencoder's follow from them: neither the perceptual network nor the discriminator is walked twice.
        """
        autocast = torch.autocast(x.device.type, dtype=amp_dtype, enabled=amp_dtype is not None)
        with autocast:
            z = self.ae.encoder(x)
            quantized = self.ae.quantize(z, temperature=gumbel_temperature(step), generator=generator)
            x_hat = self.ae.generator(quantized.z_q)
        leaf = x_hat.detach().float().requires_grad_()

        with autocast:
            l1, perceptual = self.reconstruction_terms(x, leaf)
        (grad,) = torch.autograd.grad((l1 + perceptual) * scale, leaf)

        adversarial = step >= self.disc_start_step
        # Before its start the discriminator has no say, but its statistics see the fakes, as published
        with autocast, torch.set_grad_enabled(adversarial):
            fake = diff_augment(leaf, generator) if self.diff_aug else leaf
            before = self.disc.statistics()
            logits_fake = self.disc(fake)
            g_loss = generator_loss(logits_fake)
        weight = torch.zeros_like(g_loss)
        if adversarial:
            (g_grad,) = torch.autograd.grad(g_loss * scale, leaf, retain_graph=True)
            at_last_layer = [
                torch.autograd.grad(x_hat, self.ae.generator.last_layer, g.to(x_hat.dtype), retain_graph=True)[
                    0
                ].float()
                for g in (grad, g_grad)
            ]
            weight = adaptive_weight(at_last_layer[0] / scale, at_last_layer[1] / scale, self.disc_weight_max)
            grad = grad + weight * g_grad
        torch.autograd.backward([x_hat, quantized.loss * scale], [grad.to(x_hat.dtype), None])

        l1, perceptual, g_loss, codebook = (term.detach() for term in (l1, perceptual, g_loss, quantized.loss))
        terms = GeneratorTerms(l1 + perceptual + weight * g_loss + codebook, l1, perceptual, g_loss, weight, codebook)
        judged = Judged(logits_fake, before, self.disc.statistics()) if adversarial else None
        return GeneratorPass(terms, leaf.detach(), quantized.ids, z.detach(), judged)

    def discriminator_loss(self, x: Tensor, judged: Judged, generator: torch.Generator | None = None) -> Tensor:
        """Hinge loss, scalar. x: images [B,C,H,W] in [0,1]; judged: what the generator's pass left.

        The discriminator must not have changed since; only its parameters are to get gradients.
        """
        logits_real = self.disc(diff_augment(x, generator) if self.diff_aug else x)
        if self.disc.training:  # as published, the running statistics see the fakes again after the reals
            self.disc.see_again(judged.before, judged.after)
        return hinge_discriminator_loss(logits_real, judged.logits)

    def reconstruction_terms(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean |x − x̂| and the weighted mean perceptual distance of images [B,C,H,W]; scalars."""
        return (x - x_hat).abs().mean(), self._perceptual(x, x_hat)

    def _perceptual(self, x: Tensor, x_hat: Tensor) -> Tensor:
        if self.perceptual is None:
            return x_hat.new_zeros(())
        return self.perceptual_weight * self.perceptual(x, x_hat).float().mean()
