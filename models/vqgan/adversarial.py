"""Adversarial terms of the VQGAN objective (Esser et al. 2021, equations 5 to 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_loss(logits_fake: Tensor) -> Tensor:
    """−mean D(x̂): discriminator logits of any shape → scalar."""
    return -logits_fake.float().mean()


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """½ (mean max(0, 1 − D(x)) + mean max(0, 1 + D(x̂))): logits of any shape → scalar."""
    return 0.5 * (F.relu(1.0 - logits_real.float()).mean() + F.relu(1.0 + logits_fake.float()).mean())


def adaptive_weight(reconstruction_grad: Tensor, generator_grad: Tensor, max_weight: float) -> Tensor:
    """Weight of the generator's adversarial loss, in float32: ‖∇L_rec‖ / (‖∇L_g‖ + 1e-4), within 0..`max_weight`.

    Both gradients are taken at the generator's last layer, in the same units; their shapes are free.
    """
    ratio = torch.linalg.vector_norm(reconstruction_grad.float()) / (
        torch.linalg.vector_norm(generator_grad.float()) + 1e-4
    )
    return ratio.clamp(0.0, max_weight)
