"""Functions replayed as CUDA graphs: the host launches hundreds of short kernels slower than the GPU runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

EAGER_CALLS = 3  # before a capture, so that state made at first use (an optimiser's moments) exists
EAGER_CALLS_OF_REPLICAS = 11  # DistributedDataParallel measures the first ten
MOST_GRAPHS = 8  # of one function; they share memory for intermediate results, and each keeps its outputs


class Captured:
    """A function of tensors on the current CUDA device whose work depends on the shapes of its inputs alone.

    The first calls run eagerly. Then one graph for each combination of shapes, up to `MOST_GRAPHS`, is captured and
    replayed: the function's Python code runs no more, so it must change tensors that it keeps in place. torch.compile
    compiles its layers for the shapes of the first call only; others run eagerly where that code does not fit, since
    compiling takes longer than the last rounds of a batch.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        generators: Sequence[torch.Generator] = (),  # that it draws from; seeds set later take effect
        eager_calls: int = EAGER_CALLS,  # before a capture
        stream: torch.cuda.Stream | None = None,  # for these calls and the capture; None: a new one
    ) -> None:
        self._function, self._generators, self._eager_calls = function, generators, eager_calls
        self._stream = stream or torch.cuda.Stream()  # CUDA forbids the default one
        self._pool = torch.cuda.graph_pool_handle()  # shared, as graphs run one at a time and outputs are cloned
        self._calls: Counter[tuple[torch.Size, ...]] = Counter()
        self._replays: dict[tuple[torch.Size, ...], Callable[..., Any]] = {}  # each replays a graph

    def __call__(self, *inputs: Tensor) -> Any:
        """What the function returns: tensors in dicts, lists and tuples, cloned after a replay."""
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._replays:
            first = shapes == next(iter(self._calls), shapes)
            with nullcontext() if first else torch.compiler.set_stance("eager_on_recompile"):
                if self._calls[shapes] < self._eager_calls or len(self._replays) == MOST_GRAPHS:
                    self._calls[shapes] += 1
                    with on_stream(self._stream), _uncached_autocast():
                        return self._function(*inputs)
                self._replays[shapes] = self._capture(inputs)
        return self._replays[shapes](inputs)

    def _capture(self, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """Capture a graph for these shapes. Returns what replays it with other inputs."""
        held = [tensor.clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        # thread_local: other threads, such as the one that pins batches, may call what a capture forbids.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        try:
            with capture, _uncached_autocast():
                outputs = self._function(*held)
        except RuntimeError as error:  # raised by the end of the capture, it hides the function's own error
            if isinstance(error.__context__, RuntimeError):
                raise error.__context__ from None
            raise

        def replay(inputs: Sequence[Tensor]) -> Any:
            for mine, given in zip(held, inputs, strict=True):
                mine.copy_(given)
            graph.replay()
            return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, outputs)

        return replay


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """On a stream, in order with the current one."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def _uncached_autocast() -> torch.autocast:
    """The ambient autocast without its cache, or replays would use the casts of the weights at the capture."""
    dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    return torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False)
