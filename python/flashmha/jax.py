"""Attention of JAX arrays inside jax.jit and jax.grad, as a foreign function of XLA.

flashmha.attention comes here by itself for what jax.jit, jax.grad and others trace. On a GPU it is
queued where XLA computes, without a wait. Gradients for q, k, v, bias and sinks, and through lse.
Not differentiable twice; jax.vmap runs the batch one after the other.
"""

from __future__ import annotations

import functools
from typing import Any, Dict, NamedTuple, Optional, Tuple

import jax
import numpy
from jax import Array

from . import _native

__all__ = ["Options", "attend"]

_TARGET = "flashmha_attend"
_DIFFERENTIABLE = ("q", "k", "v", "bias", "sinks")


class Options(NamedTuple):
    """What a traced function has as constants."""

    softmax_scale: float
    causal: bool
    window_left: int
    window_right: int
    top_left: bool
    softcap: float
    dropout_p: float
    seed: int
    offset: int
    deterministic: bool
    max_seqlen_q: int
    max_seqlen_k: int


@functools.lru_cache(maxsize=None)
def _register() -> None:
    cpu, cuda = _native.xla_handlers()
    jax.ffi.register_ffi_target(_TARGET, cpu, platform="cpu")
    if _native.num_gpus() > 0:
        jax.ffi.register_ffi_target(_TARGET, cuda, platform="CUDA")


def _attributes(options: Options) -> Dict[str, Any]:
    reals = ("softmax_scale", "softcap", "dropout_p")
    signed = {name: (value + 2**63) % 2**64 - 2**63 for name, value in options._asdict().items()
              if name not in reals}
    return {name: numpy.float32(value) if name in reals else numpy.int64(signed[name])
            for name, value in options._asdict().items()}


def _call(inputs: Dict[str, Array], outputs: Dict[str, Tuple], options: Options) -> Dict[str, Any]:
    """outputs: {name: (shape, dtype)}."""
    _register()
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs.values()]
    call = jax.ffi.ffi_call(_TARGET, results, vmap_method="sequential")
    values = call(*inputs.values(), inputs=",".join(inputs), outputs=",".join(outputs),
                  **_attributes(options))
    return dict(zip(outputs, values))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: Options, arrays: Dict[str, Array]) -> Tuple[Array, Array]:
    q, v = arrays["q"], arrays["v"]
    lse = ((q.shape[1], q.shape[0]) if q.ndim == 3 else (q.shape[0], q.shape[2], q.shape[1]))
    results = _call(arrays, {"out": ((*q.shape[:-1], v.shape[-1]), q.dtype),
                             "lse": (lse, _statistics(q))}, options)
    return results["out"], results["lse"]


def _statistics(q: Array) -> Any:
    return numpy.float64 if q.dtype == numpy.float64 else numpy.float32


def _forward(options: Options, arrays: Dict[str, Array]):
    out, lse = _attend(options, arrays)
    return (out, lse), (arrays, out, lse)


def _backward(options: Options, saved: Tuple, gradients: Tuple[Array, Array]):
    arrays, out, lse = saved
    dout, dlse = gradients
    statistics = _statistics(arrays["q"])
    outputs = {"d" + name: (arrays[name].shape, arrays[name].dtype) for name in "qkv"}
    for name in ("bias", "sinks"):
        if name in arrays:
            outputs["d" + name] = (arrays[name].shape, statistics)
    results = _call(dict(arrays, out=out, lse=lse, dout=dout, dlse=dlse), outputs, options)

    def gradient(name, array):
        if name in _DIFFERENTIABLE:
            return results["d" + name].astype(array.dtype)
        if jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
            return jax.numpy.zeros_like(array)
        return numpy.zeros(array.shape, jax.dtypes.float0)

    return ({name: gradient(name, array) for name, array in arrays.items()},)


_attend.defvjp(_forward, _backward)


def attend(q: Array, k: Array, v: Array, options: Dict[str, Any]) -> Tuple[Array, Array]:
    """out and lse; options are the keywords of flashmha._native.attend."""
    scale: Optional[float] = options.pop("softmax_scale")
    constants = Options(
        softmax_scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        **{name: options.pop(name, 0) for name in Options._fields if name != "softmax_scale"})
    arrays = dict(q=q, k=k, v=v)
    arrays.update({name: x for name, x in options.items() if x is not None})
    return _attend(constants, arrays)
