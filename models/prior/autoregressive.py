"""The autoregressive prior, for comparison with the diffusion model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.prior.transformer import Transformer
from models.sampling.categorical import Wrap, as_it_is, check_sampling, image_generators, stack_samples
from models.sampling.samplers import sample_autoregressive


class AutoregressivePrior(nn.Module):
    """p(codes) = Π p(code i | codes before i), in raster order. Parameter names are the published ones."""

    def __init__(self, net: Transformer) -> None:
        super().__init__()
        self.net = net

    @property
    def tokens(self) -> int:
        """N, number of tokens of a sample."""
        return self.net.pos_emb.shape[1]

    def logits(self, ids: Tensor) -> Tensor:
        """ids [B,N] int64 in 0..K-1 → logits [B,N,K] float32; place i is predicted from the ids before it."""
        if ids.ndim != 2 or ids.shape[1] != self.tokens:
            raise ValueError(f"ids must have shape [B, {self.tokens}], not {list(ids.shape)}")
        return self.net.next_logits(ids[:, :-1])

    def losses(self, ids: Tensor) -> Tensor:
        """−log2 p(ids), bits per token: ids [B,N] → [B]."""
        nats = F.cross_entropy(self.logits(ids).transpose(1, 2), ids, reduction="none")
        return nats.mean(1) / math.log(2)

    def idle_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that training never uses: none."""
        return iter(())

    def samples(
        self,
        generators: Iterable[torch.Generator],
        *,
        batch_size: int,
        temp: float = 1.0,
        wrap: Wrap = as_it_is,
        invalid: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """A sample for each of the CPU `generators`, in order: ids [N] int64 in 0..K-1, on the model's device.

        A sample is a function of its own generator, whatever is drawn beside it; `batch_size` are drawn together.
        `wrap`, `invalid`: see `sample_autoregressive`.
        """
        check_sampling(temp, batch_size)
        numbers = (torch.rand(self.tokens, dtype=torch.float64, generator=generator) for generator in generators)
        while batch := list(itertools.islice(numbers, batch_size)):
            uniforms = torch.stack(batch).to(self.net.pos_emb.device)
            yield from sample_autoregressive(
                self.net, uniforms, temp=temp, static=uniforms.is_cuda, wrap=wrap, invalid=invalid
            )

    def sample(
        self, n: int, *, generator: torch.Generator | None = None, temp: float = 1.0, batch_size: int = 64
    ) -> Tensor:
        """Draw n samples, at most `batch_size` at a time: ids [n,N] int64 in 0..K-1, on the model's device.

        Without a `generator` the draws follow torch's global stream.

        Raises:
            FloatingPointError: logits are not finite.
        """
        invalid = torch.zeros((), dtype=torch.int64, device=self.net.pos_emb.device)
        generators = image_generators(n, generator)
        samples = self.samples(generators, batch_size=batch_size, temp=temp, invalid=invalid)
        return stack_samples(samples, self.tokens, invalid)
