"""The rotary embedding of flash_attn.layers.rotary, with gradients."""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple, Union

import torch
from torch import Tensor

from ... import torch_ops
from ..ops.triton.rotary import apply_rotary, check, positions_of

__all__ = [
    "ApplyRotaryEmb",
    "ApplyRotaryEmbKV_",
    "ApplyRotaryEmbQKV_",
    "RotaryEmbedding",
    "apply_rotary_emb",
    "apply_rotary_emb_func",
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
    "apply_rotary_emb_torch",
    "rotate_half",
]


class ApplyRotaryEmb(torch.autograd.Function):
    """In place: x itself is rotated and returned, and so is the gradient that comes back."""

    @staticmethod
    def forward(ctx, x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0,
                cu_seqlens=None, max_seqlen=None):
        ctx.save_for_backward(cos, sin, cu_seqlens,
                              seqlen_offsets if isinstance(seqlen_offsets, Tensor) else None)
        ctx.offset = seqlen_offsets
        ctx.interleaved, ctx.inplace = interleaved, inplace
        return apply_rotary(x, cos, sin, seqlen_offsets, cu_seqlens, max_seqlen, interleaved,
                            inplace)

    @staticmethod
    def backward(ctx, do):
        cos, sin, cu_seqlens, offsets = ctx.saved_tensors
        dx = apply_rotary(do, cos, sin, ctx.offset if offsets is None else offsets, cu_seqlens,
                          None, ctx.interleaved, ctx.inplace, conjugate=True)
        return dx, None, None, None, None, None, None, None


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: Union[int, Tensor] = 0,
    cu_seqlens: Optional[Tensor] = None,
    max_seqlen: Optional[int] = None,
) -> Tensor:
    """Rotates the first rotary_dim elements of every head of x; differentiable in x.

    x: (batch, seqlen, nheads, headdim), or (total_seqlen, nheads, headdim) with cu_seqlens
    (batch + 1). cos, sin: (seqlen_rotary, rotary_dim / 2), rotary_dim <= headdim. interleaved:
    pairs of even and odd dimensions (GPT-J) instead of first and second half (GPT-NeoX, Llama).
    inplace: x is changed. seqlen_offsets: (batch,) or int, added to the positions.
    """
    if inplace:
        return ApplyRotaryEmb.apply(x, cos, sin, interleaved, inplace, seqlen_offsets, cu_seqlens,
                                    max_seqlen)
    check(x, cos, sin, cu_seqlens)
    positions = positions_of(x, seqlen_offsets, cu_seqlens)
    return torch_ops.rotary(x, cos.detach().float().contiguous(),
                            sin.detach().float().contiguous(), positions, interleaved)


apply_rotary_emb_func = apply_rotary_emb


def rotate_half(x: Tensor, interleaved: bool = False) -> Tensor:
    """(x1, x2) -> (-x2, x1), of halves or of neighbours."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary_emb_torch(x: Tensor, cos: Tensor, sin: Tensor,
                           interleaved: bool = False) -> Tensor:
    """apply_rotary_emb in PyTorch's own operations; cos, sin (seqlen, rotary_dim / 2) or
    (batch, seqlen, rotary_dim / 2)."""
    rotary_dim = 2 * cos.shape[-1]
    assert rotary_dim <= x.shape[-1]
    if interleaved:
        cos, sin = (t.repeat_interleave(2, dim=-1).unsqueeze(-2) for t in (cos, sin))
    else:
        cos, sin = (torch.cat((t, t), dim=-1).unsqueeze(-2) for t in (cos, sin))
    rotated = x[..., :rotary_dim]
    rotated = rotated * cos + rotate_half(rotated, interleaved) * sin
    return torch.cat((rotated, x[..., rotary_dim:]), dim=-1)


def _queries_and_keys(qkv: Tensor, num_heads_q: Optional[int]) -> Tuple[Tensor, Tensor]:
    """Views of q and k in (batch, seqlen, 3, nheads, headdim), or in (batch, seqlen,
    num_heads_q + 2 * num_heads_k, headdim)."""
    if qkv.dim() == 5:
        assert qkv.shape[2] == 3
        return qkv[:, :, 0], qkv[:, :, 1]
    assert qkv.dim() == 4 and num_heads_q is not None
    num_heads_k = (qkv.shape[2] - num_heads_q) // 2
    assert qkv.shape[2] == num_heads_q + 2 * num_heads_k
    return qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q:num_heads_q + num_heads_k]


class _RotateInPlace(torch.autograd.Function):
    """Rotates parts of a packed tensor, which are found by `parts_of`, in place."""

    @staticmethod
    def forward(ctx, packed, parts_of, tables, interleaved, seqlen_offsets):
        ctx.arguments = parts_of, tables, interleaved, seqlen_offsets
        for part, (cos, sin) in zip(parts_of(packed), tables):
            apply_rotary(part, cos, sin, seqlen_offsets, interleaved=interleaved, inplace=True)
        return packed

    @staticmethod
    def backward(ctx, gradient):
        parts_of, tables, interleaved, seqlen_offsets = ctx.arguments
        gradient = gradient.clone()
        for part, (cos, sin) in zip(parts_of(gradient), tables):
            apply_rotary(part, cos, sin, seqlen_offsets, interleaved=interleaved, inplace=True,
                         conjugate=True)
        return gradient, None, None, None, None


def _rotate_in_place(packed, parts_of, tables, interleaved, seqlen_offsets):
    if not torch.compiler.is_compiling():
        return _RotateInPlace.apply(packed, parts_of, tables, interleaved, seqlen_offsets)
    rotated = packed.clone()
    for part, (cos, sin) in zip(parts_of(rotated), tables):
        part.copy_(apply_rotary_emb(part, cos, sin, interleaved, seqlen_offsets=seqlen_offsets))
    with torch.no_grad():
        packed.copy_(rotated)
    return rotated


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Optional[Tensor] = None,
    sin_k: Optional[Tensor] = None,
    interleaved: bool = False,
    seqlen_offsets: Union[int, Tensor] = 0,
    num_heads_q: Optional[int] = None,
) -> Tensor:
    """Rotates q and k inside qkv, in place; qkv (batch, seqlen, 3, nheads, headdim), or (batch,
    seqlen, num_heads_q + 2 * num_heads_k, headdim) with num_heads_q."""
    tables = ((cos, sin), (cos if cos_k is None else cos_k, sin if sin_k is None else sin_k))
    return _rotate_in_place(qkv, lambda t: _queries_and_keys(t, num_heads_q), tables, interleaved,
                            seqlen_offsets)


def apply_rotary_emb_kv_(kv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False,
                         seqlen_offsets: Union[int, Tensor] = 0) -> Tensor:
    """Rotates k inside kv (batch, seqlen, 2, nheads, headdim), in place."""
    assert kv.dim() == 5 and kv.shape[2] == 2
    return _rotate_in_place(kv, lambda t: (t[:, :, 0],), ((cos, sin),), interleaved,
                            seqlen_offsets)


class ApplyRotaryEmbQKV_:
    """apply_rotary_emb_qkv_, for programs that call its apply."""

    apply = staticmethod(apply_rotary_emb_qkv_)


class ApplyRotaryEmbKV_:
    """apply_rotary_emb_kv_, likewise."""

    apply = staticmethod(apply_rotary_emb_kv_)


class RotaryEmbedding(torch.nn.Module):
    """Tables that grow with the sequence, and apply_rotary_emb_qkv_ with them.

    With scale_base (512 is usual) queries and keys are scaled by position as well (Sun et al. 2022,
    "XPos"). The tables are computed in float32, also in a model of 16 bits, whose conversion has
    rounded the frequencies.
    """

    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False,
                 scale_base: Optional[float] = None, device: Any = None):
        super().__init__()
        self.dim, self.base = dim, float(base)
        self.interleaved, self.scale_base = interleaved, scale_base
        self.register_buffer("inv_freq", self._compute_inv_freq(device), persistent=False)
        scale = None if scale_base is None else self._compute_scale(device)
        self.register_buffer("scale", scale, persistent=False)
        self._seq_len_cached = 0
        # [seqlen, dim / 2], of the dtype they were asked for in; those of k only with a scale_base.
        self._cos_cached: Optional[Tensor] = None
        self._sin_cached: Optional[Tensor] = None
        self._cos_k_cached: Optional[Tensor] = None
        self._sin_k_cached: Optional[Tensor] = None

    def _pairs(self, device: Any) -> Tensor:
        return torch.arange(0, self.dim, 2, device=device, dtype=torch.float32)

    def _compute_inv_freq(self, device: Any = None) -> Tensor:
        return 1.0 / self.base ** (self._pairs(device) / self.dim)

    def _compute_scale(self, device: Any = None) -> Tensor:
        return (self._pairs(device) + 0.4 * self.dim) / (1.4 * self.dim)

    def _in_float32(self, buffer: Tensor, compute: Callable, device: Any) -> Tensor:
        """A buffer as it was before the model was converted to 16 bits."""
        return buffer.to(device) if buffer.dtype == torch.float32 else compute(device)

    def _update_cos_sin_cache(self, seqlen: int, device: Any = None, dtype: Any = None) -> None:
        cos = self._cos_cached
        if (cos is not None and seqlen <= self._seq_len_cached and cos.device == device and
                cos.dtype == dtype and not (self.training and cos.is_inference())):
            return
        positions = torch.arange(seqlen, device=device, dtype=torch.float32)
        angles = torch.outer(positions,
                             self._in_float32(self.inv_freq, self._compute_inv_freq, device))
        cos, sin = angles.cos(), angles.sin()
        self._seq_len_cached = seqlen
        if self.scale is not None:
            power = (positions - seqlen // 2) / self.scale_base
            scale = self._in_float32(self.scale, self._compute_scale, device) ** power[:, None]
            self._cos_k_cached = (cos / scale).to(dtype)
            self._sin_k_cached = (sin / scale).to(dtype)
            cos, sin = cos * scale, sin * scale
        self._cos_cached, self._sin_cached = cos.to(dtype), sin.to(dtype)

    def forward(self, qkv: Tensor, kv: Optional[Tensor] = None,
                seqlen_offset: Union[int, Tensor] = 0, max_seqlen: Optional[int] = None,
                num_heads_q: Optional[int] = None) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """qkv as in apply_rotary_emb_qkv_, in place; or qkv = q (batch, seqlen, nheads, headdim)
        and kv (batch, seqlen, 2, nheads, headdim), of which kv is changed in place."""
        if max_seqlen is None:
            max_seqlen = qkv.shape[1]
            if not isinstance(seqlen_offset, Tensor):
                max_seqlen += seqlen_offset
        self._update_cos_sin_cache(max_seqlen, qkv.device, qkv.dtype)
        cos, sin, cos_k, sin_k = (self._cos_cached, self._sin_cached, self._cos_k_cached,
                                  self._sin_k_cached)
        if kv is None:
            return apply_rotary_emb_qkv_(qkv, cos, sin, cos_k, sin_k, self.interleaved,
                                         seqlen_offset, num_heads_q)
        if cos_k is None:
            cos_k, sin_k = cos, sin
        q = apply_rotary_emb(qkv, cos, sin, self.interleaved, seqlen_offsets=seqlen_offset)
        return q, apply_rotary_emb_kv_(kv, cos_k, sin_k, self.interleaved, seqlen_offset)
