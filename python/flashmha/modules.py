"""FlashMultiHeadAttention as a torch.nn.Module, with the weights' names of the C++ layer."""

from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import Tensor

from . import padding, torch_ops
from .errors import InvalidArgument


class FlashMultiHeadAttention(torch.nn.Module):
    """Multi-head attention: project, normalise (optional), rotate (optional), attend, project.

    Everything stays in [batch, seqlen, num_heads, head_dim]; nothing is transposed. Weights:
    q_proj, k_proj, v_proj, o_proj (and q_norm, k_norm [head_dim], sinks [num_heads]).

    num_kv_heads: keys and values have fewer heads (default: num_heads). head_dim: default
    hidden_size / num_heads. window: keys that a token sees, itself included; 0: all. rope_theta:
    base of the rotary embedding; None: no rotation. qk_norm: RMSNorm of every head of q and k.
    sinks: a trainable logit per head in the denominator. dropout: of probabilities, in training.
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
        self.softmax_scale, self.softcap, self.rope_theta = softmax_scale, softcap, rope_theta
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

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Optional[Tensor] = None,
        position_ids: Optional[Tensor] = None,
        encoder_states: Optional[Tensor] = None,
        cu_seqlens: Optional[Tensor] = None,
        max_seqlen: Optional[int] = None,
    ) -> Tensor:
        """[batch, seqlen, hidden_size] -> [batch, seqlen, hidden_size].

        attention_mask: [batch, seqlen_k], non-zero: real token; padding may be anywhere. Rows of
        padding are 0 before the last projection if the layer is causal. position_ids: integers
        [batch, seqlen], rotary positions; default: the number of real tokens before. encoder_states
        [batch, seqlen_k, hidden_size]: keys and values come from there (not causal, no rotation;
        the mask is theirs). cu_seqlens: int32 [num_sequences + 1] over the flattened tokens of a
        packed batch, with max_seqlen (default: looked up); not together with a mask.
        """
        batch, seqlen = hidden_states.shape[:2]
        source = hidden_states if encoder_states is None else encoder_states
        q = self.q_proj(hidden_states).unflatten(-1, (self.num_heads, self.head_dim))
        k = self.k_proj(source).unflatten(-1, (self.num_kv_heads, self.head_dim))
        v = self.v_proj(source).unflatten(-1, (self.num_kv_heads, self.head_dim))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        causal = self.causal and encoder_states is None
        if cu_seqlens is not None and (attention_mask is not None or encoder_states is not None):
            raise InvalidArgument("[FlashMultiHeadAttention] cu_seqlens goes neither with a mask "
                                  "nor with encoder_states")
        mask = None if attention_mask is None else attention_mask.bool()
        if self.rope_theta is not None and encoder_states is None:
            if position_ids is None:
                position_ids = self._positions(batch, seqlen, mask, cu_seqlens, q.device)
            q, k = self._rotate(q, k, position_ids)
        options = self._options(causal, q)
        if mask is None and cu_seqlens is None:
            return self.o_proj(torch_ops.attend(q, k, v, options)[0].flatten(-2))
        if cu_seqlens is not None:
            longest = int(cu_seqlens.diff().max()) if max_seqlen is None else max_seqlen
            queries = keys = padding.Rows(None, cu_seqlens, longest)
        else:
            queries, keys = padding.queries_and_keys(mask, seqlen, causal)
        options.update(cu_seqlens_q=queries.cu_seqlens, cu_seqlens_k=keys.cu_seqlens,
                       max_seqlen_q=queries.max_seqlen, max_seqlen_k=keys.max_seqlen)
        out, _ = torch_ops.attend(queries.gather(q), keys.gather(k), keys.gather(v), options)
        return self.o_proj(queries.scatter(out, batch, seqlen).flatten(-2))

    def _options(self, causal: bool, q: Tensor) -> dict:
        options = dict(causal=causal, softmax_scale=self.softmax_scale, softcap=self.softcap,
                       sinks=self.sinks)
        if self.window > 0:
            options.update(window_left=self.window - 1,
                           window_right=0 if causal else self.window - 1)
        if self.training and self.dropout > 0:
            options.update(dropout_p=self.dropout, rng_state=torch_ops.new_rng_state(q))
        return options

    @staticmethod
    def _positions(batch: int, seqlen: int, mask: Optional[Tensor], cu_seqlens: Optional[Tensor],
                   device: Union[torch.device, str]) -> Tensor:
        if mask is not None:
            return (mask.cumsum(-1) - 1).clamp(min=0)
        rows = torch.arange(batch * seqlen, device=device)
        if cu_seqlens is None:
            return (rows % seqlen).view(batch, seqlen)
        sequence = torch.searchsorted(cu_seqlens, rows, right=True) - 1
        return (rows - cu_seqlens[sequence]).view(batch, seqlen)

    def _rotate(self, q: Tensor, k: Tensor, position_ids: Tensor):
        positions = position_ids.expand(q.shape[:2]).to(torch.int32).contiguous()
        pairs = torch.arange(0, self.head_dim, 2, device=q.device, dtype=torch.float32)
        rows = torch.arange(int(positions.max()) + 1, device=q.device, dtype=torch.float32)
        angles = torch.outer(rows, self.rope_theta ** (-pairs / self.head_dim))
        tables = angles.cos(), angles.sin()
        return (torch_ops.rotary(q, *tables, positions, False),
                torch_ops.rotary(k, *tables, positions, False))
