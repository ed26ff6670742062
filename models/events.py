"""Sampling that evaluates an image only when one of its tokens is due, and gives each image random numbers of its own.

The network does not see t, so a token's reveal step can be drawn ahead: revealing with probability 1/s at the steps
s = S … 1 makes it uniform on 1..S. An image then needs an evaluation only at its distinct reveal steps, in expectation
S · (1 − (1 − 1/S)^N) of them: 162 of 256 at S = N = 256. Images do not wait for one another: each of a batch is at an
event of its own, and one that is finished makes room for the next.

What is due is known on the host before anything is evaluated, so the host never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.categorical import invert_cdf

LogitsAtFn = Callable[[Tensor, Tensor], Tensor]  # x_t [B,N] int64 and places [B,m] int64 → logits there, [B,m,K]


@dataclass(frozen=True)
class Event:
    """One evaluation of one image: tokens that are masked, then drawn together."""

    places: Tensor  # [m] int64, different ones, m ≥ 1
    uniforms: Tensor  # [m] float64 in [0,1), the random number of each draw


@dataclass(frozen=True)
class Image:
    """What makes one sample: its start, and the events that lead from there to its end."""

    start: Tensor  # [N] int64, partly or wholly masked
    events: Iterable[Event]  # in their order; drawn from when they are due


def diffusion_image(start: Tensor, *, mask_id: int, steps: int, generator: torch.Generator) -> Image:
    """Ancestral sampling in `steps` steps from a start [N] whose visible tokens stay: each masked token is drawn once.

    The random numbers come from a CPU generator, and are the same whatever is masked.
    """
    step = torch.randint(1, steps + 1, start.shape, generator=generator)
    uniforms = torch.rand(start.shape, dtype=torch.float64, generator=generator)
    masked = (start == mask_id).nonzero().squeeze(1)
    order = masked[step[masked].argsort(descending=True, stable=True)]
    sizes = torch.unique_consecutive(step[order], return_counts=True)[1].tolist()
    return Image(start, [Event(*both) for both in zip(order.split(sizes), uniforms[order].split(sizes), strict=True)])


def remask_times(total_steps: int, steps: int) -> list[int]:
    """The times at which `mlm_image` masks: `steps` of them, evenly from T down to 1."""
    return torch.linspace(total_steps, 1, steps, dtype=torch.float64).round().long().tolist()


def mlm_image(start: Tensor, *, mask_id: int, mask_probabilities: Sequence[float], generator: torch.Generator) -> Image:
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

    return Image(start, events())


def sample_images(
    logits_at: LogitsAtFn,
    images: Iterable[Image],
    *,
    mask_id: int,
    temp: float,
    batch_size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """The samples of `images`, in their order: ids [N] int64 on `device`.

    At most `batch_size` images are under way, and as many as that while there are more to begin. What an image becomes
    depends on the images beside it only as far as the network's arithmetic does.
    """
    waiting: dict[int, Tensor] = {}  # finished before an earlier one
    upcoming = 0
    for number, ids in _finished(logits_at, images, mask_id, temp, batch_size, device):
        waiting[number] = ids
        while upcoming in waiting:
            yield waiting.pop(upcoming)
            upcoming += 1


@torch.no_grad()
def _finished(
    logits_at: LogitsAtFn, images: Iterable[Image], mask_id: int, temp: float, batch_size: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Numbers and ids of the images, as they are finished."""
    queue = enumerate(images)
    x = torch.empty((0, 0), dtype=torch.int64, device=device)
    numbers: list[int] = []  # of the image in each row of x
    coming: list[Iterator[Event]] = []
    due: list[Event] = []
    while True:
        starts = []
        while len(numbers) < batch_size and (entry := next(queue, None)):
            number, image = entry
            events = iter(image.events)
            if event := next(events, None):
                numbers.append(number)
                coming.append(events)
                due.append(event)
                starts.append(image.start)
            else:
                yield number, image.start.to(device)
        if starts:
            new = torch.stack(starts).to(device, non_blocking=True)
            x = torch.cat([x, new]) if len(x) else new
        if not numbers:
            return
        places, uniforms = (part.to(device, non_blocking=True) for part in _aligned(due, device.type == "cuda"))
        x = x.scatter(1, places, mask_id)
        x = x.scatter(1, places, invert_cdf(logits_at(x, places), temp, uniforms))

        following = [next(events, None) for events in coming]
        for row, event in enumerate(following):
            if event is None:
                yield numbers[row], x[row].clone()
        kept = [row for row, event in enumerate(following) if event is not None]
        if len(kept) < len(numbers):
            x = x[torch.tensor(kept, dtype=torch.int64).to(device, non_blocking=True)]
        numbers, coming = [numbers[row] for row in kept], [coming[row] for row in kept]
        due = [event for event in following if event is not None]


def _aligned(events: Sequence[Event], pin: bool) -> tuple[Tensor, Tensor]:
    """Places and uniforms of events, a row each, [B,m]. Shorter ones repeat their first draw, which changes nothing."""
    places = pad_sequence([event.places for event in events], batch_first=True, padding_value=-1)
    uniforms = pad_sequence([event.uniforms for event in events], batch_first=True)
    padding = places < 0
    places, uniforms = (torch.where(padding, part[:, :1], part) for part in (places, uniforms))
    return (places.pin_memory(), uniforms.pin_memory()) if pin else (places, uniforms)
