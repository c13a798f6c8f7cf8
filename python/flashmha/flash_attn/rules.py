"""Error texts that users of flash_attn know, in front of our own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional

import torch
from torch import Tensor

from ..errors import Error, InvalidArgument, Unsupported


def _familiar(q: Tensor, k: Tensor, v: Tensor, alibi_slopes: Optional[Tensor]) -> Optional[str]:
    """What flash_attn would say to these tensors; None if it says nothing of the kind."""
    heads_k = k.shape[-2]
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "FlashAttention only supports Ampere GPUs or newer"
    if q.device.type == "cuda" and q.dtype not in (torch.float16, torch.bfloat16):
        return "FlashAttention only support fp16 and bf16 data type"
    if k.dtype != q.dtype:
        return "query and key must have the same dtype"
    if v.dtype != q.dtype:
        return "query and value must have the same dtype"
    if q.shape[-1] > 256:
        return "FlashAttention forward only supports head dimension at most 256"
    if heads_k == 0 or q.shape[-2] % heads_k != 0:
        return "Number of heads in key/value must divide number of heads in query"
    if alibi_slopes is not None and alibi_slopes.dtype != torch.float32:
        return "ALiBi slopes must have dtype fp32"
    return None


def familiar_error(error: Error, q: Tensor, k: Tensor, v: Tensor,
                   alibi_slopes: Optional[Tensor]) -> Error:
    """The error with flash_attn's own words in front, if it has any."""
    text = _familiar(q, k, v, alibi_slopes)
    return error if text is None else type(error)(f"{text}. {error}")


@contextmanager
def familiar_errors(q: Tensor, k: Tensor, v: Tensor, alibi_slopes: Optional[Tensor]) -> Iterator:
    """Puts flash_attn's own words in front of errors about these tensors."""
    try:
        yield
    except (InvalidArgument, Unsupported) as error:
        raise familiar_error(error, q, k, v, alibi_slopes) from None


def require(condition: bool, text: str) -> None:
    if not condition:
        raise InvalidArgument(text)


def require_batch(q: Tensor, options: Dict[str, Any]) -> None:
    """flash_attn refuses an empty batch."""
    ends = options.get("cu_seqlens_q")
    batch = q.shape[0] if ends is None else ends.shape[0] - 1
    if batch < 1:
        raise InvalidArgument("batch size must be positive")
