"""Functions whose kernels are replayed as CUDA graphs: hundreds of short ones run faster than a host launches them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

EAGER_CALLS = 3  # before a capture: by then lazily made state, an optimiser's moments say, exists
EAGER_CALLS_OF_REPLICAS = 11  # DistributedDataParallel measures the first ten
MOST_GRAPHS = 8  # of one function; they share the memory of their intermediate results, and each keeps its outputs


class Captured:
    """A function of tensors on the current CUDA device that does the same at each call with inputs of the same shapes.

    Its first calls run as they are. Then one graph per shapes is captured and replayed: what the function does on the
    host happens no more, and what it changes or keeps, it must change in place. Shapes beyond the first few stay eager.
    Layers in it that torch.compile compiles are compiled for the shapes of the first call; for others they run as they
    are where that code does not fit: compiling anew takes longer than a batch's last rounds.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        generators: Sequence[torch.Generator] = (),
        eager_calls: int = EAGER_CALLS,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """generators: on CUDA, what the function draws from beside the global stream; seeds set later are heeded.

        eager_calls: calls before a capture. stream: where it runs before a capture and is captured; None: one of its
        own.
        """
        self._function = function
        self._eager_calls = eager_calls
        self._generators = generators
        self._stream = stream or torch.cuda.Stream()  # what runs before a capture must not run on the default stream
        self._pool = torch.cuda.graph_pool_handle()  # for all: one graph runs at a time, and outputs are copied at once
        self._calls: dict[tuple[torch.Size, ...], int] = {}
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """What the function returns, tensors in dicts, lists and tuples; replayed ones are copies."""
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
    """One capture, and the memory that its kernels read and write."""

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
            # Other threads, such as one that pins batches, may go on with what a capture forbids.
            with (
                torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
                _uncached_autocast(),
            ):
                self._outputs = function(*self._inputs)
        except RuntimeError as error:  # of the capture's end, which hides why it could not be whole
            if isinstance(error.__context__, RuntimeError):
                raise error.__context__ from None
            raise

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, self._outputs)


def _uncached_autocast() -> torch.autocast:
    """The ambient autocast without its cache, whose casts would be those of the weights at the capture."""
    return torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )
