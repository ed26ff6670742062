"""Functions replayed as CUDA graphs: the host launches hundreds of short kernels slower than the GPU runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
        self._function = function
        self._eager_calls = eager_calls
        self._generators = generators
        self._stream = stream or torch.cuda.Stream()  # CUDA forbids the default one
        self._pool = torch.cuda.graph_pool_handle()  # shared, as graphs run one at a time and outputs are cloned
        self._calls: dict[tuple[torch.Size, ...], int] = {}
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """What the function returns: tensors in dicts, lists and tuples, cloned after a replay."""
        shapes = tuple(tensor.shape for tensor in inputs)
        graph = self._graphs.get(shapes)
        if graph is None and self._calls.get(shapes, 0) >= self._eager_calls and len(self._graphs) < MOST_GRAPHS:
            with self._compiling_only_first(shapes):
                graph = _Graph(self._function, inputs, self._stream, self._generators, self._pool)
            self._graphs[shapes] = graph
        if graph is not None:
            return graph.replay(inputs)
        self._calls[shapes] = self._calls.get(shapes, 0) + 1
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), _uncached_autocast(), self._compiling_only_first(shapes):
            outputs = self._function(*inputs)
        current.wait_stream(self._stream)
        return outputs

    def _compiling_only_first(self, shapes: tuple[torch.Size, ...]) -> AbstractContextManager[object]:
        if shapes == next(iter(self._calls)):
            return nullcontext()
        return torch.compiler.set_stance("eager_on_recompile")


class _Graph:
    """One captured graph with its input and output tensors."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Tensor],
        stream: torch.cuda.Stream,
        generators: Sequence[torch.Generator],
        pool: Any,  # of memory, a `torch.cuda.graph_pool_handle`
    ) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self._graph.register_generator_state(generator)
        try:
            # thread_local: other threads, such as the one that pins batches, may call what a capture forbids.
            with (
                torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
                _uncached_autocast(),
            ):
                self._outputs = function(*self._inputs)
        except RuntimeError as error:  # raised by the end of the capture, it hides the function's own error
            if isinstance(error.__context__, RuntimeError):
                raise error.__context__ from None
            raise

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, self._outputs)


def _uncached_autocast() -> torch.autocast:
    """The ambient autocast without its cache, or replays would use the casts of the weights at the capture."""
    return torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )
