"""Models of Transformers on FlashMHA:

    import flashmha.transformers
    flashmha.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="flashmha")

Masks. Transformers describes a mask by a function of positions. Causal masks, windows and packed
sequences are recognised and cost no memory; padding is removed before attention and put back after
(left, right and middle padding); unfilled slots of static caches are not read. Every other pattern
(chunks, prefixes, blocks of image tokens), and every mask inside torch.compile, becomes a boolean
mask [batch, 1, seqlen_q, seqlen_k], so that no pattern is ever dropped.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from transformers import AttentionInterface, masking_utils
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import generic

from . import padding, torch_ops
from .errors import InvalidArgument, Unsupported

__all__ = ["NAME", "attention_forward", "attention_mask", "register"]

NAME = "flashmha"


def register() -> None:
    """Makes attn_implementation="flashmha" known to Transformers."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)
    _be_no_flash_attention()


def _be_no_flash_attention() -> None:
    """Transformers takes every name with "flash" in it for a kernel that it has to load, and that
    has the limits of flash_attn (no T5, no chunks, no GPT-OSS). Ours is neither."""
    original = getattr(generic, "is_flash_attention_requested", None)
    if original is None or hasattr(original, "flashmha_original"):
        return

    @functools.wraps(original)
    def is_flash_attention_requested(config=None, requested_attention_implementation=None,
                                     version=None):
        name = requested_attention_implementation
        if name is None and config is not None:
            name = config._attn_implementation
        if name is not None and name.removeprefix("paged|") == NAME:
            return False
        return original(config, requested_attention_implementation, version)

    is_flash_attention_requested.flashmha_original = original
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and vars(module).get(original.__name__) is original:
            setattr(module, original.__name__, is_flash_attention_requested)


# ---- masks ---------------------------------------------------------------------------------------


class Pattern(NamedTuple):
    """A mask function that was recognised."""

    window: Optional[int] = None  # length, the token itself included
    sequences: Optional[Tensor] = None  # packed: number of its sequence for every token


def _code_of(factory: str, *arguments: Any) -> Any:
    """Code of the functions that a factory of Transformers makes; None if there is no such one."""
    make = getattr(masking_utils, factory, None)
    return None if make is None else make(*arguments).__code__


_AND = _code_of("and_masks", masking_utils.causal_mask_function)
_SLIDING = _code_of("sliding_window_overlay", 1)
_PACKED = _code_of("packed_sequence_mask_function", None)
_REMAPPED = _code_of("remap_positions_for_packed_sequence", None, None)
_BIDIRECTIONAL = getattr(masking_utils, "bidirectional_mask_function", None)


def recognise(function: Any) -> Optional[Pattern]:
    """What a mask function is made of; None if it has parts other than the ones named above."""
    if function is masking_utils.causal_mask_function or (
            function is _BIDIRECTIONAL and function is not None):
        return Pattern()
    code = getattr(function, "__code__", None)
    if code is None or function.__closure__ is None:
        return None
    values = {name: cell.cell_contents
              for name, cell in zip(code.co_freevars, function.__closure__)}
    if code is _SLIDING:
        return Pattern(window=int(values["sliding_window"]))
    if code is _PACKED:
        return Pattern(sequences=values["packed_sequence_mask"])
    if code is _REMAPPED:  # positions inside each sequence: what attention of packed rows means
        return recognise(values["mask_function"])
    if code is not _AND:
        return None
    result = Pattern()
    for part in values["mask_functions"]:
        pattern = recognise(part)
        if pattern is None:
            return None
        if pattern.window is not None:
            result = result._replace(window=min(pattern.window, result.window or pattern.window))
        if pattern.sequences is not None:
            if result.sequences is not None:
                return None
            result = result._replace(sequences=pattern.sequences)
    return result


def attention_mask(
    batch_size: int,
    kv_length: int,
    q_length: Optional[int] = None,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    cache_position: Optional[Tensor] = None,
    mask_function: Any = masking_utils.causal_mask_function,
    attention_mask: Optional[Tensor] = None,
    **others: Any,
) -> Optional[Tensor]:
    """The mask that attention_forward gets: None, [batch, n] or [batch, 1, q_length, kv_length].

    None: everything that the layer's own causal flag and window let through. [batch, n], n <=
    kv_length: keys from n on are unfilled; booleans mark real tokens, integers number the sequences
    of a packed batch (from 1). Four dimensions: all that may be seen, the causal mask included.
    """
    arguments = dict(others, batch_size=batch_size, kv_length=kv_length, kv_offset=kv_offset,
                     mask_function=mask_function, attention_mask=attention_mask)
    if cache_position is not None:  # Transformers 4
        arguments["cache_position"] = cache_position
        q_length, q_offset = cache_position.shape[0], cache_position[0]
    else:
        arguments.update(q_length=q_length, q_offset=q_offset)

    def spelt_out():
        arguments.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        return masking_utils.sdpa_mask(**arguments)

    pattern = None if torch.compiler.is_compiling() else recognise(mask_function)
    if pattern is None:
        return spelt_out()
    filled = min(kv_length, int(q_offset) + q_length - int(kv_offset))
    if mask_function is _BIDIRECTIONAL:
        filled = kv_length
    if pattern.sequences is not None:
        simple = attention_mask is None and filled == kv_length == q_length
        return _numbered(pattern.sequences) if simple else spelt_out()
    mask = attention_mask
    if mask is not None:
        mask = mask.bool()
        if mask.shape[1] > filled:  # generate() calls a second time, with what was returned here
            mask = mask[:, int(kv_offset):int(kv_offset) + filled]
        if mask.shape[1] < filled:
            mask = torch.nn.functional.pad(mask, (0, filled - mask.shape[1]), value=False)
        if bool(mask.all()):
            mask = None
    if mask is None:
        if filled == kv_length:
            return None
        device = others.get("device", None if attention_mask is None else attention_mask.device)
        return torch.ones((batch_size, filled), dtype=torch.bool, device=device)
    # A window counts slots; without the padding inside a row it would count real tokens.
    if pattern.window is not None and pattern.window < filled and not _without_holes(mask):
        return spelt_out()
    return mask


def _numbered(sequences: Tensor) -> Tensor:
    return (sequences - sequences.amin(-1, keepdim=True) + 1).to(torch.int32)


def _without_holes(mask: Tensor) -> bool:
    """Whether the real tokens of every row are neighbours."""
    starts = mask[:, 0].int() + (mask[:, 1:] & ~mask[:, :-1]).sum(-1)
    return bool((starts <= 1).all())


# ---- attention -----------------------------------------------------------------------------------


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Optional[Tensor],
    dropout: float = 0.0,
    scaling: Optional[float] = None,
    sliding_window: Optional[int] = None,
    softcap: Optional[float] = None,
    is_causal: Optional[bool] = None,
    s_aux: Optional[Tensor] = None,
    position_bias: Optional[Tensor] = None,
    cu_seq_lens_q: Optional[Tensor] = None,
    cu_seq_lens_k: Optional[Tensor] = None,
    max_length_q: Optional[int] = None,
    max_length_k: Optional[int] = None,
    deterministic: Optional[bool] = None,
    **others: Any,
) -> Tuple[Tensor, None]:
    """The attention function of Transformers.

    query [batch, num_heads, seqlen_q, head_dim], key and value [batch, num_heads_kv, seqlen_k,
    head_dim] -> [batch, seqlen_q, num_heads, head_dim], no weights. attention_mask: see
    attention_mask above; floats of four dimensions are added to the scores. position_bias: added to
    the scores, with gradient (T5). s_aux: sinks [num_heads] (GPT-OSS). deterministic: backward
    gives the same bits every time; default: FLASH_ATTENTION_DETERMINISTIC=1 in the environment, or
    torch.use_deterministic_algorithms.
    """
    if others.get("output_attentions"):
        raise Unsupported('[flashmha] attention weights are never stored: use '
                          'attn_implementation="eager" to get them')
    q, k, v = _in_one_dtype(module, query, key, value)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if deterministic is None:
        deterministic = os.environ.get("FLASH_ATTENTION_DETERMINISTIC", "0") == "1"
    options = dict(softmax_scale=scaling, softcap=softcap or 0.0, deterministic=deterministic)
    if s_aux is not None:
        options["sinks"] = s_aux if s_aux.dtype == torch.float32 else s_aux.to(q.dtype)
    if dropout > 0.0:
        options["dropout_p"] = dropout
        options["rng_state"] = torch_ops.new_rng_state(q)
    if attention_mask is not None and attention_mask.dim() == 4:
        if cu_seq_lens_q is not None and cu_seq_lens_k is not None:
            attention_mask = _within(attention_mask, cu_seq_lens_q, cu_seq_lens_k)
        return _dense(q, k, v, attention_mask, position_bias, options), None
    options["causal"] = causal and q.shape[1] > 1
    if sliding_window is not None:
        options["window_left"] = sliding_window - 1
        options["window_right"] = 0 if causal else sliding_window - 1
    if cu_seq_lens_q is not None and cu_seq_lens_k is not None:
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            raise InvalidArgument("[flashmha] a padding mask and cu_seq_lens exclude each other: "
                                  "give one of them")
        # Transformers 5 has renamed the lengths.
        lengths = (cu_seq_lens_q, cu_seq_lens_k, others.get("max_seqlen_q", max_length_q),
                   others.get("max_seqlen_k", max_length_k))
        return _packed(q, k, v, lengths, options), None
    if attention_mask is None:
        return _dense(q, k, v, None, position_bias, options), None
    seqlen_k = min(k.shape[1], attention_mask.shape[1])
    k, v, mask = k[:, :seqlen_k], v[:, :seqlen_k], attention_mask
    if mask.shape[1] > seqlen_k:
        mask = mask[:, -seqlen_k:]
    if position_bias is not None:
        position_bias = position_bias[..., :seqlen_k]
        return _dense(q, k, v, mask.bool()[:, None, None], position_bias, options), None
    if mask.dtype == torch.bool and padding.is_full(mask):
        return _dense(q, k, v, None, None, options), None
    # Who is not causal may be an encoder or attend across: all queries count, which does no harm
    # without a window.
    from_mask = causal or sliding_window is not None
    queries, keys = padding.queries_and_keys(mask, q.shape[1], from_mask)
    batch, seqlen_q = q.shape[:2]
    options = {**options, **padding.lengths(queries, keys)}
    out, _ = torch_ops.attend(queries.gather(q), keys.gather(k), keys.gather(v), options)
    return queries.scatter(out, batch, seqlen_q), None


def _dense(q, k, v, mask, bias, options):
    if mask is not None:
        mask = mask[..., :k.shape[1]]
        if mask.is_floating_point():
            bias = mask if bias is None else bias + mask
        else:
            options["mask"] = mask.bool()
    if bias is not None:
        bias = bias[..., :k.shape[1]]
        options["bias"] = bias if bias.dtype in (q.dtype, torch.float32) else bias.to(q.dtype)
    return torch_ops.attend(q, k, v, options)[0]


def _within(mask, cu_seq_lens_q, cu_seq_lens_k):
    """A mask of four dimensions, spelt out under a compiler, and nothing beyond the sequences."""
    seqlen_q, seqlen_k = mask.shape[-2:]
    rows, columns = (torch.searchsorted(ends, torch.arange(n, device=mask.device), right=True)
                     for ends, n in ((cu_seq_lens_q, seqlen_q), (cu_seq_lens_k, seqlen_k)))
    same = rows[:, None] == columns[None, :]
    if mask.is_floating_point():
        return mask.masked_fill(~same, -torch.inf)
    return mask.bool() & same


def _packed(q, k, v, lengths, options):
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k = lengths
    if max_seqlen_q is None or max_seqlen_k is None:
        max_seqlen_q = int(cu_seqlens_q.diff().max())
        max_seqlen_k = int(cu_seqlens_k.diff().max())
    queries = padding.Rows(None, cu_seqlens_q.int(), int(max_seqlen_q))
    keys = padding.Rows(None, cu_seqlens_k.int(), int(max_seqlen_k))
    options = {**options, **padding.lengths(queries, keys)}
    batch, seqlen_q = q.shape[:2]
    out, _ = torch_ops.attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), options)
    return out.unflatten(0, (batch, seqlen_q))


def _in_one_dtype(module, query, key, value):
    """GPUs serve 16-bit types: float32 that normalisation layers have left (PEFT) goes back to the
    dtype of the weights. On a CPU float32 stays what it is."""
    if query.dtype == key.dtype == value.dtype and not (
            query.is_cuda and query.dtype == torch.float32):
        return query, key, value
    dtype = value.dtype
    if query.is_cuda and dtype == torch.float32:
        if torch.is_autocast_enabled("cuda"):
            return query, key, value  # torch_ops casts
        dtype = next((layer.weight.dtype for layer in module.modules()
                      if isinstance(layer, torch.nn.Linear)), dtype)
    return query.to(dtype), key.to(dtype), value.to(dtype)
