"""Quantisers: continuous latents to ids of codes, and back (paper, section 3.1).

One more quantiser is a subclass of `Quantizer`, a line of `utils.pretrained.building.QUANTIZERS`, and its settings.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import NOISE, Noise

BETA_TERMS = ("codebook", "commitment")


@dataclass(frozen=True)
class Quantized:
    """What a quantiser made of latents z."""

    z: Tensor  # [B,D,h,w], the latents
    z_q: Tensor  # [B,D,h,w], quantised latents; gradients flow straight through to z
    ids: Tensor  # [B,N] int64 in 0..K-1, N = h·w in raster order
    loss: Tensor  # scalar: the quantiser's term of the autoencoder's objective


class Quantizer(nn.Module, ABC):
    """Turns latents into ids of K codes. Its state dict decides on the ids: codes of images are cached by it."""

    size: int  # K, number of codes
    codebook: Tensor  # [K,D], only where codes are vectors that are learned
    restartable = False  # whether a code is a place among the encoder's outputs, so that `restart` can move it there
    depends_on_step = False  # whether `forward` uses the number of the step, so that no CUDA graph can hold it

    @abstractmethod
    def forward(self, z: Tensor, *, step: int = 0, noise: Noise = NOISE) -> Quantized:
        """Quantise z [B,D,h,w]. step: updates done so far; noise: what is random while training."""

    @abstractmethod
    def ids(self, z: Tensor) -> Tensor:
        """z [B,D,h,w] → codes [B,N] int64, without noise."""

    def lookup(self, ids: Tensor, size: Sequence[int]) -> Tensor:
        """ids [B,N] → quantised latents [B,D,h,w], with (h, w) = `size`: here, the codes' vectors."""
        return F.embedding(ids, self.codebook).unflatten(1, tuple(size)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def restart(self, codes: Tensor, z: Tensor, generator: torch.Generator) -> None:
        """Move `codes` [K] bool onto random places of z [B,D,h,w], as evenly often as possible; if `restartable`.

        Not part of the published recipe (Dhariwal et al. 2020, arXiv 2005.00341, section 3.1).
        """
        flat, count = flatten_places(z).float(), int(codes.sum())
        rounds = count // len(flat) + 1
        places = [torch.randperm(len(flat), generator=generator, device=z.device) for _ in range(rounds)]
        self.codebook[codes] = flat[torch.cat(places)[:count]].to(self.codebook.dtype)


class VectorQuantizer(Quantizer):
    """Nearest-code quantiser with a straight-through gradient (van den Oord et al. 2017, arXiv 1711.00937)."""

    restartable = True

    def __init__(self, codebook_size: int, emb_dim: int, beta: float, beta_term: str = "codebook") -> None:
        super().__init__()
        if beta_term not in BETA_TERMS:
            raise ValueError(f"beta_term must be one of {BETA_TERMS}, not {beta_term!r}")
        self.size, self.beta, self.beta_term = codebook_size, beta, beta_term
        self.embedding = nn.Embedding(codebook_size, emb_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    @property
    def codebook(self) -> Tensor:  # type: ignore[override]
        return self.embedding.weight

    def forward(self, z: Tensor, *, step: int = 0, noise: Noise = NOISE) -> Quantized:
        """ẑ_q = z + sg(z_q − z); loss ‖z − sg(z_q)‖² + β ‖sg(z) − z_q‖², means over places and channels.

        β weighs the codebook term, as in the published code; with `beta_term` `commitment` the first term, as in the
        VQ-VAE paper.
        """
        z = z.float()
        ids = self.ids(z)
        z_q = self.lookup(ids, z.shape[-2:])
        commitment, codebook = F.mse_loss(z, z_q.detach()), F.mse_loss(z_q, z.detach())
        full, weighed = (commitment, codebook) if self.beta_term == "codebook" else (codebook, commitment)
        return Quantized(z, z + (z_q - z).detach(), ids, full + self.beta * weighed)

    def ids(self, z: Tensor) -> Tensor:
        return nearest_ids(flatten_places(z), self.codebook).view(len(z), z.shape[2] * z.shape[3])


class GumbelQuantizer(Quantizer):
    """Gumbel-softmax quantiser: soft while training, the most likely code in evaluation (Jang et al. 2017)."""

    depends_on_step = True  # by the temperature

    def __init__(self, codebook_size: int, emb_dim: int, kl_weight: float, straight_through: bool) -> None:
        """kl_weight: of KL(q(code | z) ‖ uniform). straight_through: training's codes are hard, with soft gradients."""
        super().__init__()
        self.size, self.kl_weight, self.straight_through = codebook_size, kl_weight, straight_through
        self.proj = nn.Conv2d(emb_dim, codebook_size, kernel_size=1)
        self.embed = nn.Embedding(codebook_size, emb_dim)

    @property
    def codebook(self) -> Tensor:  # type: ignore[override]
        return self.embed.weight

    def forward(self, z: Tensor, *, step: int = 0, noise: Noise = NOISE) -> Quantized:
        """z_q = Σ_k softmax((logits + Gumbel noise) / temperature)_k e_k; loss: weighted KL(q ‖ uniform)."""
        logits, temperature = self.logits(z), gumbel_temperature(step)
        noisy = logits - noise.exponential(logits.shape, like=logits).log() if self.training else logits
        weights = F.softmax(noisy / temperature, dim=1)
        ids = weights.argmax(1)
        if self.straight_through or not self.training:
            hard = F.one_hot(ids, self.size).permute(0, 3, 1, 2).to(weights.dtype)
            weights = hard - weights.detach() + weights
        with torch.autocast(z.device.type, enabled=False):
            z_q = torch.einsum("bkhw,kd->bdhw", weights, self.codebook)
        q = F.softmax(logits, dim=1)
        kl = (q * torch.log(q * self.size + 1e-10)).sum(1).mean()
        return Quantized(z, z_q, ids.flatten(1), self.kl_weight * kl)

    def logits(self, z: Tensor) -> Tensor:
        """z [B,D,h,w] → unnormalised log-probabilities of the codes, [B,K,h,w] float32."""
        with torch.autocast(z.device.type, enabled=False):
            return self.proj(z.float())

    def ids(self, z: Tensor) -> Tensor:
        return self.logits(z).argmax(1).flatten(1)


def gumbel_temperature(step: int) -> float:
    """Temperature of the Gumbel softmax at `step` (updates done so far): 1, falling to 1/16 at step 150,000."""
    return max(1 / 16, 1 - step / 160_000)


def nearest_ids(z: Tensor, codebook: Tensor) -> Tensor:
    """z [M,D], codebook [K,D] → the Euclidean-nearest codes [M] int64, in float32 whatever the ambient precision."""
    with torch.autocast(z.device.type, enabled=False):
        codes = codebook.float()  # |z|² is the same for every code and is left out
        return torch.addmm(codes.square().sum(1), z.float(), codes.t(), alpha=-2).argmin(1)


def flatten_places(z: Tensor) -> Tensor:
    """[B,D,h,w] → [B·h·w, D], a row per place."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def id_counts(ids: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs: any shape of int64 ids → [K] int64."""
    # Not bincount, which waits for the device to learn how many different ids there are.
    flat = ids.flatten()
    return flat.new_zeros(codebook_size).scatter_add_(0, flat, torch.ones_like(flat))


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy (nats) of the distribution given by `counts` [K]; between 1 and K."""
    p = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-torch.special.xlogy(p, p).sum())
