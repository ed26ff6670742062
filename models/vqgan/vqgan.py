"""The VQGAN: autoencoder, discriminator and the objectives that train them (paper, section 3.1).

The objectives stand here as the equations have them. `utils.training.vqgan_step` computes the same gradients in fewer
passes, in micro-batches and over processes; a test holds that both agree.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import NOISE, Noise
from models.vqgan.augment import diff_augment
from models.vqgan.autoencoder import VQAutoEncoder
from models.vqgan.networks import Discriminator

# Two batches of images [B,C,H,W] in [0,1] → distances, one per image
PerceptualLoss = Callable[[Tensor, Tensor], Tensor]


def generator_loss(logits_fake: Tensor) -> Tensor:
    """−mean D(x̂) (Esser et al. 2021, equation 5): discriminator logits of any shape → scalar."""
    return -logits_fake.float().mean()


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """½ (mean max(0, 1 − D(x)) + mean max(0, 1 + D(x̂))): logits of any shape → scalar."""
    return 0.5 * (F.relu(1.0 - logits_real.float()).mean() + F.relu(1.0 + logits_fake.float()).mean())


def adaptive_weight(reconstruction_grad: Tensor, generator_grad: Tensor, max_weight: float) -> Tensor:
    """‖∇L_rec‖ / (‖∇L_g‖ + 1e-4) within 0..`max_weight` (Esser et al. 2021, equation 7), in float32.

    Both gradients are taken at the generator's last layer, in the same units; their shapes are free.
    """
    norm, g_norm = (torch.linalg.vector_norm(grad.float()) for grad in (reconstruction_grad, generator_grad))
    ratio = norm / (g_norm + 1e-4)
    return ratio.clamp(0.0, max_weight)


@dataclass(frozen=True)
class GeneratorTerms:
    """Terms of the autoencoder's objective, scalars."""

    loss: Tensor  # l1 + perceptual + disc_weight · g_loss + codebook
    l1: Tensor  # mean |x − x̂|
    perceptual: Tensor  # λ · mean perceptual distance
    g_loss: Tensor  # −mean D(x̂)
    disc_weight: Tensor  # adaptive weight of g_loss
    codebook: Tensor  # the quantiser's loss

    @staticmethod
    def of(l1: Tensor, perceptual: Tensor, g_loss: Tensor, disc_weight: Tensor, codebook: Tensor) -> "GeneratorTerms":
        """With their sum."""
        loss = l1 + perceptual + disc_weight * g_loss + codebook
        return GeneratorTerms(loss, l1, perceptual, g_loss, disc_weight, codebook)


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
        self.ae, self.disc = ae, disc
        self.perceptual, self.perceptual_weight, self.diff_aug = perceptual, perceptual_weight, diff_aug
        self.disc_start_step, self.disc_weight_max = disc_start_step, disc_weight_max

    def generator_losses(self, x: Tensor, step: int, noise: Noise = NOISE) -> GeneratorTerms:
        """The autoencoder's objective at images x [B,C,H,W] in [0,1]; `loss` has the gradient.

        step: updates done so far. noise: of the quantiser and of DiffAugment.
        """
        x_hat, quantized = self.ae(x, step=step, noise=noise)
        l1, perceptual = self.reconstruction_terms(x, x_hat)
        # Before its start the discriminator has no say, but its statistics see the fakes, as published
        g_loss = generator_loss(self.disc(self.shown(x_hat, noise)))
        weight = x_hat.new_zeros(())
        if self.adversarial(step):
            last_layer = self.ae.generator.last_layer
            (of_reconstruction,) = torch.autograd.grad(l1 + perceptual, last_layer, retain_graph=True)
            (of_g_loss,) = torch.autograd.grad(g_loss, last_layer, retain_graph=True)
            weight = adaptive_weight(of_reconstruction, of_g_loss, self.disc_weight_max)
        return GeneratorTerms.of(l1, perceptual, g_loss, weight, quantized.loss)

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's objective, scalar: `shown` images, and `shown` reconstructions without their graph.

        In training mode its running statistics see the reals first, as published.
        """
        return hinge_discriminator_loss(self.disc(real), self.disc(fake))

    def reconstruction_terms(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean |x − x̂| and the weighted mean perceptual distance of images [B,C,H,W]; scalars."""
        l1 = (x - x_hat).abs().mean()
        if self.perceptual is None:
            return l1, x_hat.new_zeros(())
        return l1, self.perceptual_weight * self.perceptual(x, x_hat).float().mean()

    def shown(self, images: Tensor, noise: Noise) -> Tensor:
        """What the discriminator sees of images [B,C,H,W]."""
        return diff_augment(images, noise) if self.diff_aug else images

    def adversarial(self, step: int) -> bool:
        """Whether the autoencoder's objective has an adversarial term at a step."""
        return step >= self.disc_start_step

    def discriminator_learns(self, step: int) -> bool:
        """Whether the discriminator is updated at a step: as published, from the step after `disc_start_step` on."""
        return step > self.disc_start_step
