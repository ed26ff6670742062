"""Sampling that evaluates an image only when one of its tokens is due, and gives each image random numbers of its own.

The network does not see t, so a token's reveal step can be drawn ahead: revealing with probability 1/s at the steps
s = S … 1 makes it uniform on 1..S. An image then needs an evaluation only at its distinct reveal steps, in expectation
S · (1 − (1 − 1/S)^N) of them: 162 of 256 at S = N = 256. Images do not wait for one another: each of a batch is at an
event of its own, and one that is finished makes room for the next.

What is due is known on the host before anything is evaluated, so the host never waits for the device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.sampling.categorical import Wrap, as_it_is, invert_cdf

LogitsAtFn = Callable[[Tensor, Tensor], Tensor]  # x_t [B,N] int64 and places [B,m] int64 → logits there, [B,m,K]

WIDTH = 8  # with static shapes, places per image are filled up to a multiple of it: at the published sizes, to 8


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
    n: int | None = None,
    static: bool = False,
    wrap: Wrap = as_it_is,
    invalid: Tensor | None = None,
) -> Iterator[Tensor]:
    """The samples of `images`, in their order: ids [N] int64 on `device`.

    At most `batch_size` images are under way, and as many as that while there are more to begin. What an image becomes
    depends on the images beside it only as far as the network's arithmetic does. static: few shapes, for code that is
    compiled for them: places per image in steps of `WIDTH`, and a batch that is halved as images run out. It begins
    with `even_rows`, if `n` says how many images there are. `wrap` is given the function that evaluates a round.
    invalid: see `invert_cdf`; each round adds to it in place.
    """
    if static and n:
        batch_size = even_rows(n, batch_size)

    def draw(x: Tensor, places: Tensor, uniforms: Tensor) -> Tensor:
        x = x.scatter(1, places, mask_id)
        return x.scatter(1, places, invert_cdf(logits_at(x, places), temp, uniforms, invalid))

    waiting: dict[int, Tensor] = {}  # finished before an earlier one
    upcoming = 0
    for number, ids in _finished(wrap(draw), images, batch_size, device, static):
        waiting[number] = ids
        while upcoming in waiting:
            yield waiting.pop(upcoming)
            upcoming += 1


def even_rows(n: int, batch_size: int) -> int:
    """The smallest batch that takes as many turns at `n` ≥ 1 images as one of `batch_size`: 129 for 257 images and 256.

    So that the last turn, too, fills its rows.
    """
    return math.ceil(n / math.ceil(n / batch_size))


@dataclass
class _UnderWay:
    """An image in a row of the batch."""

    number: int
    start: Tensor
    events: Iterator[Event]
    due: Event
    finished: bool = False


@torch.no_grad()
def _finished(
    draw: Callable[[Tensor, Tensor, Tensor], Tensor],
    images: Iterable[Image],
    batch_size: int,
    device: torch.device,
    static: bool,
) -> Iterator[tuple[int, Tensor]]:
    """Numbers and ids of the images, as they are finished."""
    done: list[tuple[int, Tensor]] = []

    def begun() -> Iterator[_UnderWay]:
        for number, image in enumerate(images):
            events = iter(image.events)
            if due := next(events, None):
                yield _UnderWay(number, image.start, events, due)
            else:
                done.append((number, image.start.to(device)))

    queue = begun()
    rows = list(itertools.islice(queue, batch_size))
    if rows:
        x = torch.stack([row.start for row in rows]).to(device)
    while rows:
        parts = _aligned([row.due for row in rows], WIDTH if static else 1)
        x = draw(x, *(_to(part, device) for part in parts))
        new: dict[int, Tensor] = {}
        for place, row in enumerate(rows):
            if row.finished:
                continue
            if due := next(row.events, None):
                row.due = due
                continue
            row.finished = True
            done.append((row.number, x[place].clone()))
            if follower := next(queue, None):
                rows[place], new[place] = follower, follower.start
        if new:
            x = x.index_copy(0, _to(torch.tensor(list(new)), device), _to(torch.stack(list(new.values())), device))
        yield from done
        done.clear()
        size = needed = sum(not row.finished for row in rows)
        if static:
            size = _halved(len(rows), needed)
        if size < len(rows):
            # A row whose image is finished, and that stays to fill the batch, does its last event again.
            kept = sorted(range(len(rows)), key=lambda place: rows[place].finished)[:size]
            x, rows = x[_to(torch.tensor(kept, dtype=torch.int64), device)], [rows[place] for place in kept]
    yield from done


def _halved(size: int, needed: int) -> int:
    """The least of size, ⌈size/2⌉, ⌈size/4⌉ … 1 that is at least `needed`; 0 where none is."""
    if needed == 0:
        return 0
    while size > 1 and (half := (size + 1) // 2) >= needed:
        size = half
    return size


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _aligned(events: Sequence[Event], multiple: int) -> tuple[Tensor, Tensor]:
    """Places and uniforms of events, a row each, [B,m]. Shorter ones repeat their first draw, which changes nothing.

    m is a multiple of `multiple`.
    """
    sizes = [len(event.places) for event in events]
    counts, columns = torch.tensor(sizes).unsqueeze(1), torch.arange(-(-max(sizes) // multiple) * multiple)
    index = counts.cumsum(0) - counts + columns.where(columns < counts, 0)
    places, uniforms = (torch.cat(parts) for parts in zip(*((e.places, e.uniforms) for e in events), strict=True))
    return places[index], uniforms[index]
