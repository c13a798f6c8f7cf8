"""Array libraries: who made an array, and new arrays of the same library on the same device."""

from __future__ import annotations

import sys
from typing import Any, Optional, Sequence

from . import _native

_FLOAT32_STATISTICS = ("float16", "bfloat16", "float32")


def is_torch(array: Any) -> bool:
    """Whether the array is a torch.Tensor. Does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def library(array: Any) -> str:
    """Top-level module of the array's class: "numpy", "torch", "jaxlib", "cupy", ..."""
    return "torch" if is_torch(array) else type(array).__module__.partition(".")[0]


def is_traced_by_jax(*arrays: Any) -> bool:
    """Whether one of the arrays is a stand-in inside jax.jit, jax.grad, ..."""
    jax = sys.modules.get("jax")
    return jax is not None and any(isinstance(array, jax.core.Tracer) for array in arrays)


def dtype_name(array: Any) -> str:
    """Name of the element type: "float16", "bfloat16", ..."""
    return str(array.dtype).rpartition(".")[2]


def empty(shape: Sequence[int], like: Any, dtype: Optional[str] = None) -> Any:
    """A new array to be written; dtype (a name) defaults to that of `like`."""
    name = library(like)
    if name == "torch":
        import torch

        return torch.empty(tuple(shape), dtype=getattr(torch, dtype or dtype_name(like)),
                           device=like.device)
    if name == "cupy":
        import cupy

        with like.device:
            return cupy.empty(tuple(shape), dtype=dtype or like.dtype)
    if name == "jaxlib":  # its arrays cannot be written: give_back makes one of this
        return _native.empty([int(size) for size in shape], dtype or dtype_name(like),
                             _device_of(like))
    import numpy

    return numpy.empty(tuple(shape), dtype=numpy.dtype(dtype) if dtype else like.dtype)


def _device_of(array: Any) -> str:
    """The device of an array of JAX, as the C++ library names it."""
    device = next(iter(array.devices()))
    return "cpu" if device.platform == "cpu" else f"cuda:{device.local_hardware_id}"


def wait_for(first: Any, *others: Any) -> None:
    """JAX computes on streams that nobody else can queue work on: its arrays must be ready."""
    if library(first) == "jaxlib":
        for array in (first, *others):
            if hasattr(array, "block_until_ready"):
                array.block_until_ready()


def pool_of(array: Any) -> Any:
    """Where a call gets its workspace from: the library's own memory pool, if it has one."""
    name = library(array)
    if name == "torch":
        from . import torch_operators

        return torch_operators.pool_of(array)
    if name == "cupy":
        import cupy

        return lambda num_bytes, index: cupy.empty(((num_bytes + 3) // 4,), dtype="int32")
    return None


def give_back(array: Any, like: Any) -> Any:
    """`array` (made by empty and written) as an array of the library of `like`."""
    if library(like) != "jaxlib":
        return array
    _native.synchronize(_device_of(like))
    return adopt(array, like)


def current_stream(array: Any) -> int:
    """The CUDA stream that the library of an array works on; 0: the default one.

    The C++ library asks for those without an exchange table (PyTorch has one from 2.10 on).
    """
    name = library(array)
    if name == "torch":
        import torch

        return torch.cuda.current_stream(array.device).cuda_stream
    if name == "cupy":
        import cupy

        with array.device:
            return cupy.cuda.get_current_stream().ptr
    return 0


def refuse_immutable(**arrays: Any) -> None:
    """Arrays that a function writes; DLPack does not say that those of JAX are read only."""
    for name, array in arrays.items():
        if library(array) == "jaxlib":
            raise TypeError(f"[attention_with_kvcache] {name} must be an array that can be "
                            "written; arrays of JAX are immutable")


def adopt(array: Any, like: Any) -> Any:
    """An array of the C++ library as one of the library of `like`, without a copy."""
    name = library(like)
    if name == "torch":
        import torch

        return torch.from_dlpack(array)
    if name == "cupy":
        import cupy

        return cupy.from_dlpack(array)
    if name == "jaxlib":
        import jax

        return jax.numpy.from_dlpack(array)
    if name == "numpy":
        import numpy

        return numpy.asarray(array)
    return array


def statistics_dtype(array: Any) -> str:
    """Element type of lse and of the gradients of bias and sinks."""
    return "float32" if dtype_name(array) in _FLOAT32_STATISTICS else "float64"
