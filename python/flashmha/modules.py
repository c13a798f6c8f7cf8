"""FlashMultiHeadAttention as a torch.nn.Module, with the weights' names of the C++ layer."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Tuple

import torch
from torch import Tensor

from . import padding, torch_ops
from .attention import CacheOptions
from .errors import InvalidArgument
from .rotary import RotaryTables

__all__ = ["FlashMultiHeadAttention", "KVCache"]


class KVCache:
    """Keys and values of one layer, in memory of a fixed size.

    k, v: [batch, capacity, num_kv_heads, head_dim]. seqlens: int32 [batch], slots that are filled.
    leftpad: int32 [batch] or None, first slot that holds a real token.
    """

    def __init__(self, k: Tensor, v: Tensor, leftpad: Optional[Tensor] = None):
        self.k, self.v = k, v
        self.seqlens = torch.zeros(k.shape[0], dtype=torch.int32, device=k.device)
        self.leftpad = leftpad
        self.length = 0  # tokens so far, known without asking the device

    @property
    def capacity(self) -> int:
        return self.k.shape[1]

    def reset(self) -> None:
        """Forgets all tokens."""
        self.seqlens.zero_()
        self.length = 0


class FlashMultiHeadAttention(torch.nn.Module):
    """Multi-head attention: project, normalise (optional), rotate (optional), attend, project.

    Everything stays in [batch, seqlen, num_heads, head_dim]; nothing is transposed. Weights:
    q_proj, k_proj, v_proj, o_proj (and q_norm, k_norm [head_dim], sinks [num_heads]).

    num_kv_heads: keys and values have fewer heads (default: num_heads). head_dim: default
    hidden_size / num_heads. window: keys that a token sees, itself included; 0: all. rope_theta:
    base of the rotary embedding; None: no rotation. rope_parameters: as in Transformers, rope_type
    ("default", "linear", "dynamic", "yarn" or "llama3"), factor, original_max_position_embeddings,
    ..., with rope_theta there or here. max_position_embeddings: rows of its tables from the start,
    and the trained length of "dynamic", "yarn" and "llama3". rope_interleaved: pairs (2i, 2i + 1)
    instead of halves. qk_norm: RMSNorm of every head of q and k. sinks: a trainable logit per head
    in the denominator. dropout: of probabilities, in training.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: Optional[int] = None,
        head_dim: Optional[int] = None,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        causal: bool = True,
        window: int = 0,
        softmax_scale: Optional[float] = None,
        softcap: float = 0.0,
        dropout: float = 0.0,
        rope_theta: Optional[float] = None,
        rope_parameters: Optional[Mapping[str, Any]] = None,
        rope_interleaved: bool = False,
        max_position_embeddings: int = 2048,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        sinks: bool = False,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads % num_kv_heads != 0:
            raise InvalidArgument(f"[FlashMultiHeadAttention] num_heads ({num_heads}) must be a "
                                  f"multiple of num_kv_heads ({num_kv_heads})")
        if head_dim is None:
            if hidden_size % num_heads != 0:
                raise InvalidArgument(
                    f"[FlashMultiHeadAttention] hidden_size ({hidden_size}) must be a multiple of "
                    f"num_heads ({num_heads}), or head_dim given")
            head_dim = hidden_size // num_heads
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.causal, self.window, self.dropout = causal, window, dropout
        self.softmax_scale, self.softcap = softmax_scale, softcap
        where = dict(device=device, dtype=dtype)

        def linear(inputs, outputs, bias):
            return torch.nn.Linear(inputs, outputs, bias=bias, **where)

        self.q_proj = linear(hidden_size, num_heads * head_dim, qkv_bias)
        self.k_proj = linear(hidden_size, num_kv_heads * head_dim, qkv_bias)
        self.v_proj = linear(hidden_size, num_kv_heads * head_dim, qkv_bias)
        self.o_proj = linear(num_heads * head_dim, hidden_size, out_bias)
        self.q_norm = torch.nn.RMSNorm(head_dim, norm_eps, **where) if qk_norm else None
        self.k_norm = torch.nn.RMSNorm(head_dim, norm_eps, **where) if qk_norm else None
        self.sinks = torch.nn.Parameter(torch.zeros(num_heads, **where)) if sinks else None
        self.rotary = None
        if rope_theta is not None or rope_parameters is not None:
            given = dict(rope_parameters or {})
            if rope_theta is not None:
                given["rope_theta"] = rope_theta
            self.rotary = RotaryTables(head_dim, given, max_position_embeddings, rope_interleaved,
                                       self.q_proj.weight.device)

    def _apply(self, fn, recurse=True):
        """to(), cuda(), ...: the tables go along, and stay float32."""
        super()._apply(fn, recurse)
        if self.rotary is not None:
            self.rotary.place(self.q_proj.weight.device)
        return self

    def new_cache(self, batch: int, capacity: int, leftpad: Optional[Tensor] = None) -> KVCache:
        """An empty cache for forward; leftpad int32 [batch]: padding in front of each row."""
        weight = self.k_proj.weight
        shape = (batch, capacity, self.num_kv_heads, self.head_dim)
        k, v = (torch.empty(shape, device=weight.device, dtype=weight.dtype) for _ in range(2))
        return KVCache(k, v, leftpad)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Optional[Tensor] = None,
        position_ids: Optional[Tensor] = None,
        encoder_states: Optional[Tensor] = None,
        cu_seqlens: Optional[Tensor] = None,
        max_seqlen: Optional[int] = None,
        cache: Optional[KVCache] = None,
        num_positions: Optional[int] = None,
    ) -> Tensor:
        """[batch, seqlen, hidden_size] -> [batch, seqlen, hidden_size].

        attention_mask: [batch, seqlen_k], non-zero: real token; padding may be anywhere. Rows of
        padding are 0 before the last projection. position_ids: integers
        [batch, seqlen], rotary positions, all below num_positions; default: the number of real
        tokens before. encoder_states [batch, seqlen_k, hidden_size]: keys and values come from
        there (not causal, no rotation; the mask is theirs). cu_seqlens: int32 [num_sequences + 1]
        over the flattened tokens of a packed batch, with max_seqlen. cache: of new_cache; the
        tokens are appended to every row, and attend to all before them; no gradient. A mask,
        cu_seqlens, encoder_states and a cache exclude each other, but for a mask of encoder_states.

        What is to be looked up in tensors makes the host wait for a GPU: the rows of a mask, once
        for all layers that get the same one; the longest sequence without max_seqlen; the largest
        of position_ids without num_positions.
        """
        self._check(attention_mask, encoder_states, cu_seqlens, cache)
        batch, seqlen = hidden_states.shape[:2]
        source = hidden_states if encoder_states is None else encoder_states
        q = self.q_proj(hidden_states).unflatten(-1, (self.num_heads, self.head_dim))
        k = self.k_proj(source).unflatten(-1, (self.num_kv_heads, self.head_dim))
        v = self.v_proj(source).unflatten(-1, (self.num_kv_heads, self.head_dim))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        causal = self.causal and encoder_states is None
        mask = None if attention_mask is None else padding.as_boolean(attention_mask)
        if self.rotary is not None and encoder_states is None:
            if position_ids is None:
                position_ids, num_positions = self._positions(
                    batch, seqlen, mask, cu_seqlens, max_seqlen, cache, q.device)
            elif num_positions is None:
                num_positions = int(position_ids.max()) + 1
            q, k = self._rotate(q, k, position_ids, num_positions)
        if cache is not None:
            out = self._attend_to_cache(q, k, v, cache)
        elif mask is None and cu_seqlens is None:
            out = torch_ops.attend(q, k, v, self._options(causal, q))[0]
        elif mask is not None and torch.compiler.is_compiling():
            out = self._attend_with_mask(q, k, v, mask, causal, encoder_states is None)
        else:
            out = self._attend_to_rows(q, k, v, mask, cu_seqlens, max_seqlen, causal,
                                       encoder_states is None)
        return self.o_proj(out.flatten(-2))

    @staticmethod
    def _check(attention_mask, encoder_states, cu_seqlens, cache) -> None:
        if cu_seqlens is not None and (attention_mask is not None or encoder_states is not None):
            raise InvalidArgument("[FlashMultiHeadAttention] cu_seqlens goes neither with a mask "
                                  "nor with encoder_states")
        if cache is not None and not (attention_mask is encoder_states is cu_seqlens is None):
            raise InvalidArgument("[FlashMultiHeadAttention] a cache goes neither with a mask "
                                  "(new_cache takes leftpad), nor encoder_states, nor cu_seqlens")

    def _options(self, causal: bool, q: Tensor) -> dict:
        options = dict(causal=causal, softmax_scale=self.softmax_scale, softcap=self.softcap,
                       sinks=self.sinks)
        if self.window > 0:
            options["window_left"] = self.window - 1
            options["window_right"] = 0 if causal else self.window - 1
        if self.training and self.dropout > 0:
            options["dropout_p"] = self.dropout
            options["rng_state"] = torch_ops.new_rng_state(q)
        return options

    def _attend_to_rows(self, q, k, v, mask, cu_seqlens, max_seqlen, causal, to_self) -> Tensor:
        """Without padding: queries and keys of the real tokens alone."""
        batch, seqlen = q.shape[:2]
        if cu_seqlens is not None:
            longest = int(cu_seqlens.diff().max()) if max_seqlen is None else max_seqlen
            queries = keys = padding.Rows(None, cu_seqlens, longest)
        else:
            queries, keys = padding.queries_and_keys(mask, seqlen, from_mask=to_self)
        options = {**self._options(causal, q), **padding.lengths(queries, keys)}
        out, _ = torch_ops.attend(queries.gather(q), keys.gather(k), keys.gather(v), options)
        return queries.scatter(out, batch, seqlen)

    def _attend_with_mask(self, q, k, v, mask, causal, to_self) -> Tensor:
        """With padding, whose keys nobody sees: nothing is looked up, as a compiler wants it."""
        options = self._options(causal, q)
        seen = mask[:, None, None, :]
        if self.window > 0:  # counts real tokens
            del options["window_left"], options["window_right"]
            keys = mask.cumsum(-1)
            queries = keys if to_self else (torch.arange(1, q.shape[1] + 1, device=q.device) +
                                            keys[:, -1:] - q.shape[1])
            distance = queries[:, None, :, None] - keys[:, None, None, :]
            seen = seen & (distance < self.window) & (distance > -self.window)
        out, _ = torch_ops.attend(q, k, v, {**options, "mask": seen})
        return out * mask[..., None, None] if to_self else out

    def _attend_to_cache(self, q, k, v, cache: KVCache) -> Tensor:
        seqlen = q.shape[1]
        if cache.length + seqlen > cache.capacity:
            raise InvalidArgument(
                f"[FlashMultiHeadAttention] the cache has {cache.capacity} slots; {cache.length} "
                f"are filled, and {seqlen} tokens come")
        options = self._options(self.causal, q)
        out, _ = torch_ops.attend_to_cache(
            q.detach(), cache.k, cache.v,
            CacheOptions(k.detach(), v.detach(), cache_seqlens=cache.seqlens,
                         cache_leftpad=cache.leftpad, softmax_scale=self.softmax_scale,
                         causal=self.causal, window_left=options.get("window_left", -1),
                         window_right=options.get("window_right", -1), softcap=self.softcap,
                         sinks=None if self.sinks is None else self.sinks.detach()), False)
        cache.seqlens += seqlen
        cache.length += seqlen
        return out

    def _positions(self, batch: int, seqlen: int, mask: Optional[Tensor],
                   cu_seqlens: Optional[Tensor], max_seqlen: Optional[int],
                   cache: Optional[KVCache], device: torch.device) -> Tuple[Tensor, int]:
        """Positions [batch, seqlen], and a number that all are below."""
        if mask is not None:
            return (mask.cumsum(-1) - 1).clamp(min=0), seqlen
        if cache is not None:
            positions = cache.seqlens[:, None] + torch.arange(seqlen, device=device)
            if cache.leftpad is not None:
                positions = (positions - cache.leftpad[:, None]).clamp(min=0)
            return positions, cache.length + seqlen
        rows = torch.arange(batch * seqlen, device=device)
        if cu_seqlens is None:
            return (rows % seqlen).view(batch, seqlen), seqlen
        sequence = torch.searchsorted(cu_seqlens, rows, right=True) - 1
        return (rows - cu_seqlens[sequence]).view(batch, seqlen), max_seqlen or batch * seqlen

    def _rotate(self, q: Tensor, k: Tensor, position_ids: Tensor,
                num_positions: int) -> Tuple[Tensor, Tensor]:
        positions = position_ids.expand(q.shape[:2]).to(torch.int32).contiguous()
        cos, sin = self.rotary.tables(num_positions, q.device)
        return (torch_ops.rotary(q, cos, sin, positions, self.rotary.interleaved),
                torch_ops.rotary(k, cos, sin, positions, self.rotary.interleaved))
