"""A CUDA device that is a CPU in disguise, for what goes wrong on a GPU by order or place rather than by arithmetic.

Its tensors have values, to compare with a CPU's. What mixes devices is refused as on CUDA, and so is what waits for the
device, where it must not. A captured graph replays operations on the memory that they had, and no Python: the host's
numbers stay those of the capture. Kernels, streams, threads, speed and memory are the CPU's, and nothing is compiled.
"""

from __future__ import annotations

import sys
import time
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

# Operations whose result, or its shape, the host must know before it goes on.
_WAITING = {
    "_local_scalar_dense",  # item, bool, int, float
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "bincount",
    "repeat_interleave",
    "equal",
}
# They may have indices on the host, and wait for these.
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class WaitError(AssertionError):
    """The host waited for the device where it must not."""


class _Device:
    """What the device is doing."""

    def __init__(self) -> None:
        self.may_be_waited_for = True
        self.captures: Graph | None = None

    def wait(self, what: Any) -> None:
        if self.captures is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        if not self.may_be_waited_for:
            raise WaitError(f"{what} waits for the device")


_DEVICE = _Device()


class DeviceTensor(Tensor):
    """A tensor on the device. PyTorch's own code, below Python, takes it for one of the CPU."""

    on_host: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, on_host: Tensor) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            on_host.size(),
            strides=on_host.stride(),
            storage_offset=on_host.storage_offset(),
            dtype=on_host.dtype,
        )
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
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    if name in _WAITING or (name == "copy_" and len(here) == 1) or (name in _INDEXING and any(map(_waits, args[1]))):
        _DEVICE.wait(func)
    elif here and name not in _INDEXING and any(t.dim() for t in tensors if not isinstance(t, DeviceTensor)):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found two, cuda:0 and cpu")
    if isinstance(kwargs.get("generator"), torch.Generator):
        _check_generator(kwargs["generator"], CUDA)
    if "device" in kwargs:
        kwargs = kwargs | {"device": CPU}
    arguments = tree_map(lambda value: value.on_host if isinstance(value, DeviceTensor) else value, (args, kwargs))
    out = _DEVICE.captures.run(func, *arguments) if _DEVICE.captures else func(*arguments[0], **arguments[1])
    given = {id(tensor.on_host): tensor for tensor in here}  # changed in place, and returned

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return given[id(value)] if id(value) in given else DeviceTensor(value)

    return tree_map(wrapped, out)


def _waits(index: Tensor | None) -> bool:
    return index is not None and (index.dtype == torch.bool or not isinstance(index, DeviceTensor))


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
    options = {"dtype": dtype, "copy": kwargs.get("copy", False)}
    if kwargs.get("memory_format") is not None:
        options["memory_format"] = kwargs["memory_format"]
    if to_cuda != isinstance(tensor, DeviceTensor):
        non_blocking = kwargs.get("non_blocking") or True in words
        if not (to_cuda and non_blocking and getattr(tensor, "is_pinned_here", False)):
            _DEVICE.wait(func)
        tensor = _Crossing.apply(tensor)
    return Tensor.to(tensor, **options)


class _Crossing(torch.autograd.Function):
    """From one device to the other."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.on_host.clone() if isinstance(tensor, DeviceTensor) else DeviceTensor(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Crossing.apply(gradient)


class Graph:
    """A captured graph, as `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.generators = [torch.default_generator]
        self._operations: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self._changed: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # memory, and what it held

    def register_generator_state(self, generator: torch.Generator) -> None:
        assert generator.device == CUDA
        self.generators.append(generator)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation and keep it."""
        if func._schema.is_mutable or "batch_norm" in func._schema.name:  # which does not say so
            for value in tree_iter((args, kwargs)):
                if isinstance(value, Tensor):
                    memory = value.untyped_storage()
                    self._changed.setdefault(memory.data_ptr(), (memory, memory.clone()))
        out = func(*args, **kwargs)
        self._operations.append((func, args, kwargs, out))
        return out

    def replay(self) -> None:
        """The operations once more, on the same memory."""
        with torch.no_grad():
            for func, args, kwargs, out in self._operations:
                for kept, anew in zip(tree_iter(out), tree_iter(func(*args, **kwargs)), strict=True):
                    if isinstance(kept, Tensor) and kept.data_ptr() != anew.data_ptr():
                        kept.copy_(anew)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """As on CUDA nothing has happened afterwards; here it is undone."""
        states = [generator.get_state() for generator in self.generators]
        _DEVICE.captures = self
        try:
            yield
        finally:
            _DEVICE.captures = None
            for memory, before in self._changed.values():
                memory.copy_(before)
            self._changed.clear()
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)


class _Stream:
    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, _: Any) -> None:
        """The device does one thing after the other."""


class _Event:
    def __init__(self, *, enable_timing: bool = False) -> None:
        self._time = 0.0

    def record(self, _: Any) -> None:
        self._time = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _DEVICE.wait("Event.synchronize")

    def elapsed_time(self, later: _Event) -> float:
        return 1000 * (later._time - self._time)


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, **options: Any) -> None:
        super().__init__("cpu", **options)


def _grouped(tensors: Any, with_indices: bool = False) -> Any:
    """Lists of tensors by device and type; PyTorch's own takes all for a CPU's."""
    return {
        (lists[0][0].device, dtype): (lists, indices)
        for (_, dtype), (lists, indices) in _group_tensors_by_device_and_dtype(tensors, with_indices).items()
    }


@contextmanager
def emulated_cuda(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A block in which "cuda" is the emulated device."""
    autocast_dtype, autocasts = torch.get_autocast_dtype, torch.is_autocast_enabled
    of_cuda = {
        "CUDAGraph": Graph,
        "Event": _Event,
        "Stream": _Stream,
        "current_stream": _Stream,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_name": lambda _: "emulated",
        "graph": lambda graph, **_: graph.capture(),
        "is_available": lambda: True,
        "is_bf16_supported": lambda **_: True,
        "is_current_stream_capturing": lambda: _DEVICE.captures is not None,
        "max_memory_allocated": lambda _: 0,
        "max_memory_reserved": lambda _: 0,
        "reset_peak_memory_stats": lambda _: None,
        "stream": lambda _: nullcontext(),
        "synchronize": lambda _: _DEVICE.wait("synchronize"),
    }
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    with patch.context() as inside:
        for name, replacement in of_cuda.items():
            inside.setattr(torch.cuda, name, replacement)
        inside.setattr(torch, "Generator", _Generator)
        inside.setattr(torch, "autocast", _Autocast)
        inside.setattr(torch, "get_autocast_dtype", lambda _: autocast_dtype("cpu"))
        inside.setattr(torch, "is_autocast_enabled", lambda *_: autocasts("cpu"))
        inside.setattr(nn.Module, "compile", lambda *_, **__: None)
        for module in ("torch.optim.optimizer", "torch.nn.utils.clip_grad"):
            inside.setattr(sys.modules[module], "_group_tensors_by_device_and_dtype", _grouped)
        torch.__future__.set_swap_module_params_on_conversion(True)  # as on CUDA, parameters stay the same objects
        try:
            with _Functions():
                yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)


@contextmanager
def without_waiting() -> Iterator[None]:
    """A block in which what would wait for the device raises `WaitError`."""
    _DEVICE.may_be_waited_for = False
    try:
        yield
    finally:
        _DEVICE.may_be_waited_for = True
