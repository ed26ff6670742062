"""Codebook health: start codes where the encoder's outputs are, and restart codes that nothing uses.

Not part of the published recipe. Restarts follow Dhariwal et al. 2020 (Jukebox, arXiv 2005.00341, section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.vqgan.quantizers import flatten_places, id_counts


def draw_latents(z: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` places of the encoder's output z [B,D,h,w], as evenly often as possible: [count,D] float32."""
    flat = flatten_places(z).float()
    rounds = count // len(flat) + 1
    picks = [torch.randperm(len(flat), generator=generator, device=z.device) for _ in range(rounds)]
    return flat[torch.cat(picks)[:count]]


class CodeUsage:
    """Counts how often each code was used since the last `reset`."""

    def __init__(self, codebook_size: int, device: torch.device) -> None:
        self.counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)

    def add(self, ids: Tensor) -> None:
        """Count ids of any shape, int64."""
        self.counts += id_counts(ids, len(self.counts))

    def dead(self) -> Tensor:
        """[K] bool: the codes that were not used."""
        return self.counts == 0

    def reset(self) -> None:
        """Start counting anew."""
        self.counts.zero_()


@torch.no_grad()
def restart_codes(codebook: Tensor, dead: Tensor, z: Tensor, generator: torch.Generator) -> None:
    """Move the codes marked in `dead` [K] bool onto random places of the encoder's output z [B,D,h,w], in place."""
    codebook[dead] = draw_latents(z, int(dead.sum()), generator).to(codebook.dtype)
