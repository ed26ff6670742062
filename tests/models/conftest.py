"""A distribution small enough to enumerate, as the model that samplers and bounds are checked against."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
from small_models import seeded
from torch import Tensor

from models.prior.transformer import pick

State = tuple[int, ...]


class ExactModel:
    """A random joint distribution p(x) of N tokens out of K; called as a model, it gives every log p(x_i | visible).

    At a visible place the logits are noise, since nothing may depend on them.
    """

    N = K = mask_id = 3

    def __init__(self) -> None:
        generator = seeded()
        weights = torch.rand((self.K,) * self.N, generator=generator, dtype=torch.float64).pow(3)
        self.p = weights / weights.sum()
        self.outcomes: list[State] = list(itertools.product(range(self.K), repeat=self.N))
        states = list(itertools.product(range(self.K + 1), repeat=self.N))
        self.table = torch.stack([self._state_logits(state, generator) for state in states])
        self.calls: list[int] = []  # rows of each call

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.table[self._index(x, self.K + 1)]

    def logits_at(self, x: Tensor, places: Tensor) -> Tensor:
        return pick(self(x), places)

    def counts(self, x: Tensor) -> Tensor:
        """How often each outcome occurs among the draws x [n,N], in the order of `outcomes`."""
        assert x.min() >= 0
        assert x.max() < self.K
        return torch.bincount(self._index(x, self.K), minlength=len(self.outcomes))

    def bound(self, total_steps: int | None) -> Tensor:
        """Upper bound on −log p of each of `outcomes`, nats, its expectation over masks taken by enumeration.

        With `total_steps` the T-step bound, for None the one in continuous time.
        """
        x_0 = torch.tensor(self.outcomes)
        value = torch.zeros(len(x_0), dtype=torch.float64)
        for places in itertools.product([False, True], repeat=self.N):
            if (m := sum(places)) == 0:
                continue
            if total_steps is None:
                weight = 1 / (m * math.comb(self.N, m))
            else:
                levels = [t / total_steps for t in range(1, total_steps + 1)]
                weight = sum(q ** (m - 1) * (1 - q) ** (self.N - m) for q in levels) / total_steps
            mask = torch.tensor(places).expand(len(x_0), -1)
            log_p = self(x_0.masked_fill(mask, self.mask_id)).log_softmax(-1).gather(2, x_0[..., None]).squeeze(2)
            value -= weight * (log_p * mask).sum(1)
        return value

    def ancestral(self, steps: int, temp: float, start: State = (3, 3, 3)) -> Tensor:
        """Exact distribution over `outcomes` of T-step ancestral sampling, by dynamic programming over the states."""
        return self._after([(1 / s, 0.0) for s in range(steps, 0, -1)], temp, start)

    def remasked(self, probabilities: Sequence[float], temp: float) -> Tensor:
        """Exact distribution over `outcomes` of masking and filling with each probability in turn."""
        return self._after([(1.0, probability) for probability in probabilities], temp, (3, 3, 3))

    def _after(self, steps: list[tuple[float, float]], temp: float, start: State) -> Tensor:
        """Steps that draw a token anew with one probability if it is masked, and another if not; drawn see no other."""
        now: dict[State, float] = {start: 1.0}
        for if_masked, if_visible in steps:
            later: dict[State, float] = defaultdict(float)
            for (state, p), drawn in itertools.product(now.items(), itertools.product([False, True], repeat=self.N)):
                chances = [if_masked if token == self.mask_id else if_visible for token in state]
                q = p * math.prod(c if d else 1 - c for c, d in zip(chances, drawn, strict=True))
                if q == 0:
                    continue
                seen = tuple(self.mask_id if d else token for token, d in zip(state, drawn, strict=True))
                p_of = (self.table[self._index(torch.tensor(seen), self.K + 1)] / temp).softmax(-1).tolist()
                options = [list(enumerate(p_of[i])) if drawn[i] else [(state[i], 1.0)] for i in range(self.N)]
                for choice in itertools.product(*options):
                    later[tuple(token for token, _ in choice)] += q * math.prod(c for _, c in choice)
            now = later
        assert set(now) <= set(self.outcomes)
        return torch.tensor([now.get(outcome, 0.0) for outcome in self.outcomes], dtype=torch.float64)

    def _state_logits(self, state: State, generator: torch.Generator) -> Tensor:
        visible = tuple(slice(None) if token == self.mask_id else slice(token, token + 1) for token in state)
        logits = torch.randn((self.N, self.K), generator=generator, dtype=torch.float64)
        for place, token in enumerate(state):
            if token == self.mask_id:
                others = [axis for axis in range(self.N) if axis != place]
                logits[place] = self.p[visible].sum(others).log()
        return logits

    @staticmethod
    def _index(x: Tensor, base: int) -> Tensor:
        return (x * base ** torch.arange(x.shape[-1] - 1, -1, -1)).sum(-1)


@pytest.fixture
def exact_model() -> ExactModel:
    return ExactModel()
