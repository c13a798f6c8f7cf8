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
        return _native.empty([int(size) for size in shape], dtype or dtype_name(like))
    import numpy

    return numpy.empty(tuple(shape), dtype=numpy.dtype(dtype) if dtype else like.dtype)


def give_back(array: Any, like: Any) -> Any:
    """`array` (made by empty) as an array of the library of `like`."""
    return adopt(array, like) if library(like) == "jaxlib" else array


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
