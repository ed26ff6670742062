"""When which token is drawn: plans that are known before anything is evaluated.

The network does not see t, so a token's reveal step can be drawn ahead: revealing with probability 1/s at the steps
s = S … 1 makes it uniform on 1..S. An image then needs an evaluation only at its distinct reveal steps, in expectation
S · (1 − (1 − 1/S)^N) of them: 162 of 256 at S = N = 256.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Event:
    """One evaluation of one image: tokens that are masked, then drawn together."""

    places: Tensor  # [m] int64, different ones, m ≥ 1
    uniforms: Tensor  # [m] float64 in [0,1), the random number of each draw


@dataclass(frozen=True)
class Plan:
    """How one sample is made: its start, and the events that lead from there to its end."""

    start: Tensor  # [N] int64, partly or wholly masked
    events: Iterable[Event]  # in their order; drawn from when they are due


def diffusion_plan(start: Tensor, *, mask_id: int, steps: int, generator: torch.Generator) -> Plan:
    """Ancestral sampling in `steps` steps from a start [N] whose visible tokens stay: each masked token is drawn once.

    The random numbers come from a CPU generator, and are the same whatever is masked.
    """
    step = torch.randint(1, steps + 1, start.shape, generator=generator)
    uniforms = torch.rand(start.shape, dtype=torch.float64, generator=generator)
    masked = (start == mask_id).nonzero().squeeze(1)
    order = masked[step[masked].argsort(descending=True, stable=True)]
    sizes = torch.unique_consecutive(step[order], return_counts=True)[1].tolist()
    return Plan(start, [Event(*both) for both in zip(order.split(sizes), uniforms[order].split(sizes), strict=True)])


def remask_times(total_steps: int, steps: int) -> list[int]:
    """The times at which `mlm_plan` masks: `steps` of them, evenly from T down to 1."""
    return torch.linspace(total_steps, 1, steps, dtype=torch.float64).round().long().tolist()


def mlm_plan(start: Tensor, *, mask_id: int, mask_probabilities: Sequence[float], generator: torch.Generator) -> Plan:
    """Mask and fill, again and again: each token of start [N] is masked with the step's probability, and drawn anew.

    Tokens that are masked at the start are filled at the first step. Random numbers come from a CPU generator.
    """

    def events() -> Iterator[Event]:
        unfilled = start == mask_id
        for probability in mask_probabilities:
            noise, uniforms = torch.rand((2, len(start)), dtype=torch.float64, generator=generator)
            places = ((noise < probability) | unfilled).nonzero().squeeze(1)
            if len(places):
                yield Event(places, uniforms[places])
            unfilled = torch.zeros_like(unfilled)

    return Plan(start, events())
