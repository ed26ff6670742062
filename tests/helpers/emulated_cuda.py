"""A CUDA device that is a CPU in disguise, for what goes wrong on a GPU by order or place rather than by arithmetic.

Its tensors have values, to compare with a CPU's. What mixes devices is refused as on CUDA, and so is what waits for the
device, where it must not, and what uses memory on one stream without waiting for another's work on it. A captured graph
replays operations on the memory that they had, which must still be there, and no Python: the host's numbers stay those
of the capture. Kernels, autocast's lists, threads, speed and memory are the CPU's, and nothing is compiled.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")

# Operations whose result, or its shape, the host must know before it goes on; the first is item, bool, int, float.
_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim"}
_WAITING |= {"bincount", "repeat_interleave", "equal"}
# They may have indices on the host, and wait for these.
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# They take a scalar of the host's, beside what PyTorch marks as pointwise.
_FILLING = {"fill", "masked_fill"}


class WaitError(AssertionError):
    """The host waited for the device where it must not."""


class Stream:
    """Work in its order; that of other streams counts as done where this one, or the host, waited for it."""

    def __init__(self, *_: Any) -> None:
        self._done = self._passed = 0  # pieces of work, and how many of them the host waited for
        self._waited: dict[Stream, int] = {}
        _DEVICE.streams.add(self)

    def wait_stream(self, other: Stream) -> None:
        for stream, done in {**other._waited, other: other._done}.items():
            self._waited[stream] = max(done, self._waited.get(stream, 0))

    def wait(self) -> None:  # of the host
        self._passed = self._done

    def work(self, what: Any, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """One more piece of work, on the memory of tensors of the host's."""
        self._done += 1
        for tensor, writes in [*((tensor, False) for tensor in read), *((tensor, True) for tensor in written)]:
            uses: dict[Stream, tuple[int, int]] = tensor.untyped_storage().__dict__.setdefault("uses", {})
            for stream, (used, wrote) in uses.items():  # the last use, and the last one that wrote
                if (used if writes else wrote) > max(stream._passed, self._waited.get(stream, 0)) and stream != self:
                    raise AssertionError(f"{what} does not wait for what another stream does with the same memory")
            uses[self] = self._done, self._done if writes else uses.get(self, (0, 0))[1]


class _Device:
    """What the device is doing."""

    may_be_waited_for = True
    captures: Graph | None = None
    stream: Stream

    def __init__(self) -> None:
        self.streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    def wait(self, what: Any) -> None:
        """The host waits for the current stream."""
        if self.captures is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        if not self.may_be_waited_for:
            raise WaitError(f"{what} waits for the device")
        self.stream.wait()

    @contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        before, self.stream = self.stream, stream or self.stream
        try:
            yield
        finally:
            self.stream = before


_DEVICE = _Device()
_DEVICE.stream = Stream()


class DeviceTensor(Tensor):
    """A tensor on the device. PyTorch's own code, below Python, takes it for one of the CPU."""

    on_host: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, on_host: Tensor) -> DeviceTensor:
        layout = {"strides": on_host.stride(), "storage_offset": on_host.storage_offset(), "dtype": on_host.dtype}
        made = Tensor._make_wrapper_subclass(cls, on_host.size(), **layout)  # type: ignore[attr-defined]
        made.on_host = on_host
        return made

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.on_host})"

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceTensor:
        copied = DeviceTensor(self.on_host.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            copied._is_param = True  # type: ignore[attr-defined]
        return memo.setdefault(id(self), copied)

    def __reduce_ex__(self, protocol: Any) -> Any:  # files are read on the host
        return self.on_host.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the device, or into or out of it."""
    name = func.overloadpacket.__name__
    tensors = _tensors((args, kwargs))
    here = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    if name in _WAITING or (name == "copy_" and len(here) == 1) or (name in _INDEXING and any(map(_waits, args[1]))):
        _DEVICE.wait(func)
    if here and name != "copy_":
        _check_places(func, name, args, kwargs)
    if isinstance(kwargs.get("generator"), torch.Generator):
        _check_generator(kwargs["generator"], CUDA)
    if name == "_fused_adam_":
        _check_layouts(*args[:4])
    if "device" in kwargs:
        kwargs = kwargs | {"device": CPU}
    given = {id(tensor.on_host): tensor for tensor in here}  # changed in place, and returned
    if _DEVICE.captures:
        out = _DEVICE.captures.run(func, args, kwargs)
    else:
        arguments = tree_map(_on_host, (args, kwargs))
        out = func(*arguments[0], **arguments[1])
        _DEVICE.stream.work(func, [tensor.on_host for tensor in here], _written(func, *arguments) + _tensors(out))

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return given[id(value)] if id(value) in given else DeviceTensor(value)

    return tree_map(wrapped, out)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]


def _on_host(value: Any) -> Any:
    return value.on_host if isinstance(value, DeviceTensor) else value


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """Those of an operation's arguments that it changes."""
    if "batch_norm" in func._schema.name:  # which does not say so
        return _tensors((args, kwargs))
    if not func._schema.is_mutable:
        return []
    arguments = func._schema.arguments
    values = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    changed = [argument.name for argument in arguments if argument.alias_info and argument.alias_info.is_write]
    return _tensors([values.get(name) for name in changed])


def _check_places(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> None:
    """That an operation with a tensor of the device has all tensors there, but for a scalar to read, and indices."""
    scalars = torch.Tag.pointwise in func.tags or name.rstrip("_") in _FILLING
    changed = _written(func, args, kwargs)
    if name in _INDEXING:
        scalars, args, changed = True, (args[0], *args[2:]), [args[0]]
    elsewhere = not all(isinstance(tensor, DeviceTensor) for tensor in changed)
    others = [tensor for tensor in _tensors((args, kwargs)) if not isinstance(tensor, DeviceTensor)]
    if elsewhere or any(tensor.dim() or not scalars for tensor in others):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found two, cuda:0 and cpu")


def _check_layouts(parameters: Sequence[Tensor], *others: Sequence[Tensor]) -> None:
    """That the fused Adam finds each number of a parameter, its gradient and its moments at the same place."""
    for mine in zip(parameters, *others, strict=True):
        if len({tuple(stride for stride, n in zip(x.stride(), x.shape, strict=True) if n > 1) for x in mine}) > 1:
            raise RuntimeError("params, grads, exp_avgs, and exp_avg_sqs must have same dtype, device, and layout")


def _waits(index: Tensor | None) -> bool:
    return index is not None and (index.dtype in (torch.bool, torch.uint8) or not isinstance(index, DeviceTensor))


class _Generator(torch.Generator):
    """A CPU's generator that says where it draws."""

    device = property(lambda self: self._device)  # type: ignore[assignment]

    def __new__(cls, device: torch.device | str = CPU) -> _Generator:
        made = super().__new__(cls, device=CPU)
        made._device = CUDA if _is_cuda(device) else CPU
        return made


def _check_generator(generator: torch.Generator, device: torch.device) -> None:
    if generator.device != device:
        raise RuntimeError(f"Expected a '{device.type}' device type for generator but found '{generator.device.type}'")
    if _DEVICE.captures is not None and generator not in _DEVICE.captures.generators:
        raise RuntimeError("a generator that is not registered with the graph draws in its capture")


def _is_cuda(named: Any) -> bool:
    return isinstance(named, str | torch.device) and torch.device(named).type == "cuda"


class _Making(TorchDispatchMode):
    """Tensors that are made without others are on the device, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """PyTorch's functions: those that name the device, and those that move tensors, go other ways than on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        here = any(isinstance(value, DeviceTensor) for value in tree_iter((args, kwargs)))
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return _moved(func, args, kwargs)
        if func is Tensor.pin_memory:
            if here:
                raise RuntimeError("only dense CPU tensors can be pinned")
            pinned = args[0].clone()
            pinned.is_pinned_here = True
            return pinned
        if here and func == Tensor.data.__set__:  # type: ignore[attr-defined]
            raise NotImplementedError("other memory for a tensor that is there")
        if here and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if here and func is Tensor.tolist:
            return _moved(Tensor.cpu, args, {}).tolist()
        if _is_cuda(kwargs.get("device")):
            kwargs["device"], here = CPU, True
            if func in (torch.tensor, torch.as_tensor, torch.asarray):
                return _moved(Tensor.cuda, (func(*args, **kwargs),), {})
        elif not here and isinstance(kwargs.get("generator"), torch.Generator):
            _check_generator(kwargs["generator"], CPU)
        with _Making() if here else nullcontext():
            return func(*args, **kwargs)


def _moved(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """What `to`, `cpu` and `cuda` do."""
    tensor, *words = args
    words += [kwargs.pop(name, None) for name in ("device", "dtype", "other")]
    like = next((word for word in words if isinstance(word, Tensor)), tensor)
    named = next((word for word in words if isinstance(word, str | torch.device)), like.device)
    dtype = next((word for word in words if isinstance(word, torch.dtype)), like.dtype)
    to_cuda = func is Tensor.cuda or (func is Tensor.to and _is_cuda(named))
    options = {"dtype": dtype, "copy": kwargs.get("copy", False), "memory_format": kwargs.get("memory_format")}
    if to_cuda != isinstance(tensor, DeviceTensor):
        non_blocking = kwargs.get("non_blocking") or True in words
        if non_blocking and not to_cuda:
            raise WaitError(f"{func} does not wait for what the host is to read")
        # A graph would read the pinned memory again, when it is another's.
        if not (to_cuda and non_blocking and getattr(tensor, "is_pinned_here", False)) or _DEVICE.captures:
            _DEVICE.wait(func)
        tensor = _Crossing.apply(tensor)
    return Tensor.to(tensor, **options)


class _Crossing(torch.autograd.Function):
    """From one device to the other."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        copied = _on_host(tensor).detach().clone()
        if isinstance(tensor, DeviceTensor):
            return copied
        _DEVICE.stream.work("a copy", [], [copied])
        return DeviceTensor(copied)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Crossing.apply(gradient)


class Graph:
    """A captured graph, as `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.generators = [torch.default_generator]
        self._operations: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self._made: dict[int, Tensor] = {}  # by the capture
        self._found: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}  # by it: a tensor, and its memory
        self._changed: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # memory, and what it held

    def register_generator_state(self, generator: torch.Generator) -> None:
        assert generator.device == CUDA
        self.generators.append(generator)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation and keep it."""
        kept = tree_map(self._keep, (args, kwargs))
        args, kwargs = tree_map(_on_host, (args, kwargs))
        for tensor in _written(func, args, kwargs):
            memory = tensor.untyped_storage()
            self._changed.setdefault(memory.data_ptr(), (memory, memory.clone()))
        out = func(*args, **kwargs)
        self._made |= {id(tensor): tensor for tensor in _tensors(out) if id(tensor) not in self._found}
        self._operations.append((func, *kept, out))
        return out

    def _keep(self, value: Any) -> Any:
        if not isinstance(value, DeviceTensor):  # a scalar of the host's is as it was
            return value.clone() if isinstance(value, Tensor) else value
        tensor = value.on_host
        if id(tensor) in self._made:
            return tensor
        if id(tensor) not in self._found:
            self._found[id(tensor)] = weakref.ref(tensor), tensor.detach()
        return self._found[id(tensor)][1]

    def replay(self) -> None:
        """The operations once more, on the same memory."""
        if any(tensor() is None for tensor, _ in self._found.values()):
            raise RuntimeError("a graph uses memory that was freed after its capture")
        with torch.no_grad():
            for func, args, kwargs, out in self._operations:
                anew = func(*args, **kwargs)
                _DEVICE.stream.work(func, _tensors((args, kwargs)), _written(func, args, kwargs) + _tensors(out))
                for mine, other in zip(_tensors(out), _tensors(anew), strict=True):
                    if mine.data_ptr() != other.data_ptr():
                        mine.copy_(other)

    @contextmanager
    def capture(self, stream: Stream | None) -> Iterator[None]:
        """As on CUDA nothing has happened afterwards; here it is undone."""
        for each in _DEVICE.streams:
            each.wait()
        states = [generator.get_state() for generator in self.generators]
        _DEVICE.captures = self
        try:
            with _DEVICE.on(stream):
                yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904 (as PyTorch does)
        finally:
            _DEVICE.captures = None
            for memory, before in self._changed.values():
                memory.copy_(before)
            self._changed.clear()
            found = {tensor.untyped_storage().data_ptr() for _, tensor in self._found.values()}
            for tensor in self._made.values():  # there is nothing in it before a replay
                if tensor.untyped_storage().data_ptr() not in found:
                    tensor.untyped_storage().fill_(255)
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)


class _Event:
    def __init__(self, *, enable_timing: bool = False) -> None:
        self._times, self._time = enable_timing, 0.0

    def record(self, _: Any) -> None:
        self._time = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _DEVICE.wait("Event.synchronize")

    def elapsed_time(self, later: _Event) -> float:
        if not (self._times and later._times):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        return 1000 * (later._time - self._time)


def _grouped(tensors: Any, with_indices: bool = False) -> Any:
    """Lists of tensors by device and type; PyTorch's own takes all for a CPU's."""
    return {
        (lists[0][0].device, dtype): (lists, indices)
        for (_, dtype), (lists, indices) in _group_tensors_by_device_and_dtype(tensors, with_indices).items()
    }


@contextmanager
def emulated_cuda(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A block in which "cuda" is the emulated device."""
    autocast, autocast_dtype, autocasts = torch.autocast, torch.get_autocast_dtype, torch.is_autocast_enabled
    of_cuda = {"CUDAGraph": Graph, "Event": _Event, "Stream": Stream, "stream": _DEVICE.on}
    of_cuda |= {"current_stream": lambda *_: _DEVICE.stream, "synchronize": lambda _: _DEVICE.wait("synchronize")}
    of_cuda |= {"graph": lambda graph, stream=None, **_: graph.capture(stream), "graph_pool_handle": lambda: (0, 1)}
    of_cuda |= {"is_current_stream_capturing": lambda: _DEVICE.captures is not None, "device": lambda _: nullcontext()}
    of_cuda |= {"is_available": lambda: True, "is_bf16_supported": lambda **_: True, "device_count": lambda: 1}
    of_cuda |= {"get_device_name": lambda _: "emulated", "empty_cache": lambda: None}
    of_cuda |= {"max_memory_allocated": lambda _: 0, "max_memory_reserved": lambda _: 0}
    of_cuda |= {"reset_peak_memory_stats": lambda _: None}
    apply = nn.Module._apply

    def applied(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """As on CUDA, parameters that are moved stay the same objects."""
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply(module, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)

    with patch.context() as inside:
        for name, replacement in of_cuda.items():
            inside.setattr(torch.cuda, name, replacement)
        inside.setattr(torch, "Generator", _Generator)
        inside.setattr(torch, "autocast", lambda _, **options: autocast("cpu", **options))
        inside.setattr(torch, "get_autocast_dtype", lambda _: autocast_dtype("cpu"))
        inside.setattr(torch, "is_autocast_enabled", lambda *_: autocasts("cpu"))
        inside.setattr(nn.Module, "compile", lambda *_, **__: None)
        for module in ("torch.optim.optimizer", "torch.nn.utils.clip_grad"):
            inside.setattr(sys.modules[module], "_group_tensors_by_device_and_dtype", _grouped)
        inside.setattr(nn.Module, "_apply", applied)
        with _Functions():
            yield


@contextmanager
def without_waiting() -> Iterator[None]:
    """A block in which what would wait for the device raises `WaitError`."""
    _DEVICE.may_be_waited_for = False
    try:
        yield
    finally:
        _DEVICE.may_be_waited_for = True
