"""The C++ library. Arrays may be of any library with DLPack; None: not given. flashmha.attention
and flashmha.flash_attn are what programs should call."""

from typing import Any, Optional, Sequence

__version__: str

def num_threads() -> int:
    """Threads that CPU kernels use."""

def set_num_threads(count: int) -> None:
    """Sets the threads of CPU kernels; 0 restores the default."""

def num_gpus() -> int:
    """GPUs that can be used; 0 in a build without CUDA."""

def attend(
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    top_left: bool = False,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    bias: Any = None,
    mask: Any = None,
    sinks: Any = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    deterministic: bool = False,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
    seqused_q: Any = None,
    seqused_k: Any = None,
    block_table: Any = None,
    dout: Any = None,
    dlse: Any = None,
    dq: Any = None,
    dk: Any = None,
    dv: Any = None,
    dbias: Any = None,
    dsinks: Any = None,
) -> None:
    """Writes out and lse; with dout given, reads them and writes dq, dk, dv and, where given, dbias
    and dsinks."""

def attend_to_cache(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    out: Any,
    lse: Any,
    k: Any = None,
    v: Any = None,
    rotary_cos: Any = None,
    rotary_sin: Any = None,
    rotary_interleaved: bool = False,
    positions: Any = None,
    cache_seqlens: Any = None,
    cache_batch_idx: Any = None,
    cache_leftpad: Any = None,
    block_table: Any = None,
    num_splits: int = 0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    top_left: bool = False,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    bias: Any = None,
    mask: Any = None,
    sinks: Any = None,
) -> None:
    """Writes out and lse, and appends k and v to the cache where given."""

def empty(shape: Sequence[int], dtype: str) -> Any:
    """An array on the CPU with unspecified contents, for any library with DLPack."""

def rotary(
    x: Any,
    cos: Any,
    sin: Any,
    positions: Any,
    y: Any,
    interleaved: bool = False,
    conjugate: bool = False,
) -> None:
    """Rotates x [batch, seqlen, num_heads, head_dim] or [total, num_heads, head_dim] into y, which
    may be x; cos, sin float32 [num_positions, rotary_dim / 2]; positions int32 [batch, seqlen] or
    [total]."""
