"""Following many plans at once, on any device.

An image is evaluated only when one of its tokens is due. Images do not wait for one another: each row of a batch is at
an event of its own, and an image that is finished makes room for the next. What is due is known on the host before
anything is evaluated, so the host never waits for the device.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.sampling.categorical import RULE, LogitsAtFn, Rule
from models.sampling.plans import Event, Plan

Wrap = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]  # a function → one that does the same, faster

WIDTH = 8  # with static shapes, places per image are filled up to a multiple of it: at the published sizes, to 8


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn. Beside rule, steps and sampler nothing changes them, but for the network's rounding."""

    batch_size: int  # most images that are evaluated together; ValueError below 1
    rule: Rule = RULE
    steps: int | None = None  # of a prior that predicts masked tokens, at most T; None: T
    sampler: str = "diffusion"  # of such a prior; see `models.sampling.samplers`
    n: int | None = None  # how many images there are, where that is known: saves evaluations on CUDA
    wrap: Wrap | None = None  # is given the function that evaluates a round, such as `Captured` for a CUDA graph of it
    invalid: Tensor | None = None  # counts draws from logits that are not finite; see `invert_cdf`
    static: bool | None = None  # few shapes, for code that is compiled for them; None: on CUDA

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")

    def static_on(self, device: torch.device) -> bool:
        """Whether shapes are to be static on a device."""
        return device.type == "cuda" if self.static is None else self.static


@dataclass(frozen=True)
class Denoiser:
    """A network that predicts masked tokens, as samplers see it."""

    logits_at: LogitsAtFn
    mask_id: int  # K
    total_steps: int  # T
    device: torch.device


def run_plans(denoiser: Denoiser, plans: Iterable[Plan], drawing: Drawing) -> Iterator[Tensor]:
    """The samples of plans, in their order: ids [N] int64 on the denoiser's device.

    With static shapes, places per image come in steps of `WIDTH`, and a batch is halved as images run out.
    """
    static, size = drawing.static_on(denoiser.device), drawing.batch_size
    if static and drawing.n:
        # The smallest batch that takes as many turns, so that the last one fills its rows: 129 for 257 images and 256.
        size = math.ceil(drawing.n / math.ceil(drawing.n / size))

    def draw(x: Tensor, places: Tensor, uniforms: Tensor) -> Tensor:
        x = x.scatter(1, places, denoiser.mask_id)
        return x.scatter(1, places, drawing.rule.draw(denoiser.logits_at(x, places), uniforms, drawing.invalid))

    waiting: dict[int, Tensor] = {}  # finished before an earlier one
    upcoming = 0
    for number, ids in _finished(drawing.wrap(draw) if drawing.wrap else draw, plans, size, denoiser.device, static):
        waiting[number] = ids
        while upcoming in waiting:
            yield waiting.pop(upcoming)
            upcoming += 1


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
    draw: Callable[..., Tensor], plans: Iterable[Plan], batch_size: int, device: torch.device, static: bool
) -> Iterator[tuple[int, Tensor]]:
    """Numbers and ids of the plans' samples, as they are finished."""
    done: list[tuple[int, Tensor]] = []

    def begun() -> Iterator[_UnderWay]:
        for number, plan in enumerate(plans):
            events = iter(plan.events)
            if due := next(events, None):
                yield _UnderWay(number, plan.start, events, due)
            else:
                done.append((number, plan.start.to(device)))

    queue = begun()
    rows = list(itertools.islice(queue, batch_size))
    if rows:
        x = torch.stack([row.start for row in rows]).to(device)
    while rows:
        x = draw(x, *(_to(part, device) for part in _aligned([row.due for row in rows], WIDTH if static else 1)))
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
        if static and needed:
            size = len(rows)
            while size > 1 and (half := (size + 1) // 2) >= needed:
                size = half
        if size < len(rows):
            # A row whose image is finished, and that stays to fill the batch, does its last event again.
            kept = sorted(range(len(rows)), key=lambda place: rows[place].finished)[:size]
            x, rows = x[_to(torch.tensor(kept, dtype=torch.int64), device)], [rows[place] for place in kept]
    yield from done


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _aligned(events: Sequence[Event], multiple: int) -> tuple[Tensor, Tensor]:
    """Places and uniforms of events, a row each: [B,m], where `multiple` divides m.

    Shorter ones repeat their first draw, which changes nothing.
    """
    sizes = [len(event.places) for event in events]
    counts, columns = torch.tensor(sizes).unsqueeze(1), torch.arange(-(-max(sizes) // multiple) * multiple)
    index = counts.cumsum(0) - counts + columns.where(columns < counts, 0)
    places, uniforms = (torch.cat(parts) for parts in zip(*((e.places, e.uniforms) for e in events), strict=True))
    return places[index], uniforms[index]
