"""Vector quantisers: continuous latents to codebook ids (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import WHOLE, BatchPart

QUANTIZERS = ("nearest", "gumbel")
BETA_TERMS = ("codebook", "commitment")


@dataclass(frozen=True)
class Quantized:
    """What a quantiser made of latents z."""

    z: Tensor  # [B,D,h,w], the latents
    z_q: Tensor  # [B,D,h,w], quantised latents; gradients flow straight through to z
    ids: Tensor  # [B,N] int64 in 0..K-1, N = h·w in raster order
    loss: Tensor  # scalar with a gradient: codebook and commitment terms (nearest), weighted KL term (gumbel)


def nearest_ids(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the Euclidean-nearest code, in float32 whatever the ambient precision.

    z: [M,D]; codebook: [K,D]. Returns [M] int64. |z|² is the same for every code and is left out.
    """
    with torch.autocast(z.device.type, enabled=False):
        codes = codebook.float()
        return torch.addmm(codes.square().sum(1), z.float(), codes.t(), alpha=-2).argmin(1)


def flatten_places(z: Tensor) -> Tensor:
    """[B,D,h,w] → [B·h·w, D], a row per place."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def lookup(ids: Tensor, codebook: Tensor, size: Sequence[int]) -> Tensor:
    """ids [B,N] and codes [K,D] → embeddings [B,D,h,w], with (h, w) = `size`."""
    return F.embedding(ids, codebook).unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def id_counts(ids: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs: any shape of int64 ids → [K] int64."""
    # Not bincount, which waits for the device to learn how many different ids there are.
    flat = ids.flatten()
    return flat.new_zeros(codebook_size).scatter_add_(0, flat, torch.ones_like(flat))


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy (nats) of the distribution given by `counts` [K]; between 1 and K."""
    p = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-torch.special.xlogy(p, p).sum())


class VectorQuantizer(nn.Module):
    """Nearest-code quantiser with a straight-through gradient (van den Oord et al. 2017)."""

    def __init__(self, codebook_size: int, emb_dim: int, beta: float, beta_term: str = "codebook") -> None:
        super().__init__()
        if beta_term not in BETA_TERMS:
            raise ValueError(f"beta_term must be one of {BETA_TERMS}, not {beta_term!r}")
        self.beta = beta
        self.beta_term = beta_term
        self.embedding = nn.Embedding(codebook_size, emb_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    @property
    def codebook(self) -> Tensor:
        """The codes, [K,D]."""
        return self.embedding.weight

    def forward(
        self,
        z: Tensor,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        part: BatchPart = WHOLE,
    ) -> Quantized:
        """Quantise z [B,D,h,w]. Nothing here is random or soft: the keywords serve the Gumbel quantiser."""
        z = z.float()
        ids = self.ids(z)
        z_q = self.lookup(ids, z.shape[-2:])
        commitment, codebook = F.mse_loss(z, z_q.detach()), F.mse_loss(z_q, z.detach())
        # Departure from the VQ-VAE paper, as published and by default: beta weighs the codebook term.
        full, weighed = (commitment, codebook) if self.beta_term == "codebook" else (codebook, commitment)
        return Quantized(z, z + (z_q - z).detach(), ids, full + self.beta * weighed)

    def ids(self, z: Tensor) -> Tensor:
        """z [B,D,h,w] → nearest codes [B,N] int64."""
        return nearest_ids(flatten_places(z), self.codebook).view(len(z), z.shape[2] * z.shape[3])

    def lookup(self, ids: Tensor, size: Sequence[int]) -> Tensor:
        """ids [B,N] → their embeddings [B,D,h,w], with (h, w) = `size`."""
        return lookup(ids, self.codebook, size)

    def mean_distance(self, z: Tensor) -> Tensor:
        """Mean squared distance over all pairs of a latent of z [B,D,h,w] and a code; scalar."""
        flat, codes = flatten_places(z).float(), self.codebook
        return flat.square().sum(1).mean() + codes.square().sum(1).mean() - 2 * flat.mean(0) @ codes.mean(0)


class GumbelQuantizer(nn.Module):
    """Gumbel-softmax quantiser: soft while training, the most likely code in evaluation (Jang et al. 2017)."""

    def __init__(
        self,
        codebook_size: int,  # K
        emb_dim: int,  # D, width of z and of the codes
        kl_weight: float,  # weight of KL(q(code | z) ‖ uniform)
        straight_through: bool,  # while training: hard codes in the forward pass, soft gradients
    ) -> None:
        super().__init__()
        self.kl_weight = kl_weight
        self.straight_through = straight_through
        self.proj = nn.Conv2d(emb_dim, codebook_size, kernel_size=1)
        self.embed = nn.Embedding(codebook_size, emb_dim)

    @property
    def codebook(self) -> Tensor:
        """The codes, [K,D]."""
        return self.embed.weight

    def forward(
        self,
        z: Tensor,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        part: BatchPart = WHOLE,
    ) -> Quantized:
        """Quantise z [B,D,h,w]; the noise of training comes from `generator`, evaluation has none.

        part: which part of the batch z is.
        """
        logits = self.logits(z)
        if self.training:
            race = part.draw(logits.shape, lambda shape: logits.new_empty(shape).exponential_(generator=generator))
            noise = race.log()  # −Gumbel(0, 1)
            weights = F.softmax((logits - noise) / temperature, dim=1)
        else:
            weights = F.softmax(logits / temperature, dim=1)
        ids = weights.argmax(1)
        if self.straight_through or not self.training:
            hard = F.one_hot(ids, logits.shape[1]).permute(0, 3, 1, 2).to(weights.dtype)
            weights = hard - weights.detach() + weights
        with torch.autocast(z.device.type, enabled=False):
            z_q = torch.einsum("bkhw,kd->bdhw", weights, self.codebook)
        q = F.softmax(logits, dim=1)
        kl = (q * torch.log(q * logits.shape[1] + 1e-10)).sum(1).mean()
        return Quantized(z, z_q, ids.flatten(1), self.kl_weight * kl)

    def logits(self, z: Tensor) -> Tensor:
        """z [B,D,h,w] → unnormalised log-probabilities of the codes, [B,K,h,w] float32."""
        with torch.autocast(z.device.type, enabled=False):
            return self.proj(z.float())

    def ids(self, z: Tensor) -> Tensor:
        """z [B,D,h,w] → most likely codes [B,N] int64, without noise."""
        return self.logits(z).argmax(1).flatten(1)

    def lookup(self, ids: Tensor, size: Sequence[int]) -> Tensor:
        """ids [B,N] → their embeddings [B,D,h,w], with (h, w) = `size`."""
        return lookup(ids, self.codebook, size)


# Both have `codebook` [K,D], `forward`, `ids` and `lookup`, and their state is all that decides on a code: by it, codes
# of images are kept.
Quantizer = VectorQuantizer | GumbelQuantizer


def gumbel_temperature(step: int) -> float:
    """Temperature of the Gumbel softmax at `step` (updates done so far): 1, falling to 1/16 at step 150,000."""
    return max(1 / 16, 1 - step / 160_000)
