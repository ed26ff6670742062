"""The autoregressive prior, for comparison with the diffusion model."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from models.prior.prior import CodeLength, Codes, Draws, Prior, PriorLoss
from models.prior.transformer import Transformer
from models.sampling.rounds import Drawing


class AutoregressivePrior(Prior):
    """p(codes) = Π p(code i | codes before i), in raster order. Parameter names are the published ones."""

    exact = True

    def __init__(self, net: Transformer) -> None:
        super().__init__()
        self.net = net

    @property
    def network(self) -> Transformer:
        return self.net

    def logits(self, x: Tensor) -> Tensor:
        """ids [B,N] int64 in 0..K-1 → logits [B,N,K] float32; place i is predicted from the ids before it."""
        self._check_shape(x)
        return self.net.next_logits(x[:, :-1])

    def losses(self, codes: Codes, draws: Draws | None = None) -> PriorLoss:
        """−log2 p(ids), bits per token, as objective and code length."""
        ids = codes.unconditional()
        nats = F.cross_entropy(self.logits(ids).transpose(1, 2), ids, reduction="none")
        bits = nats.mean(1) / math.log(2)
        return PriorLoss(bits, bits, nats.sum(1))

    def code_length(
        self, codes: Codes, generator: torch.Generator, *, bound: str = "t_step", evaluations: int | None = None
    ) -> CodeLength:
        """Exact, by one evaluation."""
        nats = self.losses(codes).loss.double() * (self.tokens * math.log(2))
        return CodeLength(nats, torch.zeros_like(nats))

    def samples(
        self, generators: Iterable[torch.Generator], drawing: Drawing, starts: Codes | None = None
    ) -> Iterator[Tensor]:
        """Token by token in raster order, whatever the steps and the sampler of other priors."""
        if starts is not None:
            raise ValueError("an autoregressive prior cannot fit tokens to given ones that come later")
        numbers = (torch.rand(self.tokens, dtype=torch.float64, generator=generator) for generator in generators)
        batches = iter(lambda: list(itertools.islice(numbers, drawing.batch_size)), [])
        return (ids for batch in batches for ids in self.draw_tokens(torch.stack(batch).to(self.device), drawing))

    @torch.no_grad()
    def draw_tokens(self, uniforms: Tensor, drawing: Drawing) -> Tensor:
        """Draw the tokens one by one, keeping keys and values of those before: [B,N] int64.

        uniforms: [B,N] float64 in [0,1) on the model's device, the random number of each token. With static shapes all
        places have the same, and `drawing.wrap` is given what gives a place's logits.
        """
        static, ids = drawing.static_on(uniforms.device), torch.empty_like(uniforms, dtype=torch.int64)
        cache = self.net.new_cache(len(ids))
        logits = self.net.next_logits(ids[:, :0], cache)
        following: Callable[..., Tensor] = partial(self.net.following_logits, cache=cache)
        if drawing.wrap:
            following = drawing.wrap(following)
        for place in range(self.tokens):
            ids[:, place] = drawing.rule.draw(logits[:, -1], uniforms[:, place], drawing.invalid)
            if place + 1 == self.tokens:
                break
            new = ids[:, place : place + 1]
            if static:
                logits = following(new, torch.tensor([place + 1]).to(ids.device, non_blocking=True))
            else:
                logits = self.net.next_logits(new, cache)
        return ids
