"""The same attention problems through other people's code; each witness returns how far the truth
is from what it finds, or None if it cannot express the problem.

  sdpa     torch.nn.functional.scaled_dot_product_attention: out and gradients
  flex     torch.nn.attention.flex_attention: out and lse
  gpt_oss  the eager attention of transformers' GPT-OSS: out and gradients, with sinks
  slope    the gradients along a random direction against central differences of the loss
"""

import types

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.gpt_oss import modeling_gpt_oss

from attention_math import (F64, GRADIENTS, INFINITY, forward_dense, forward_varlen, gradients,
                            loss_of, map_shape, scale_of, with_leaves)


def worst(found, expected):
    """Largest difference; inf if infinities or NaNs lie in different places."""
    for kind in (torch.isnan, torch.isneginf, torch.isposinf):
        if not torch.equal(kind(found), kind(expected)):
            return INFINITY
    difference = (found - expected).masked_fill(~found.isfinite(), 0.0).abs()
    return difference.max().item() if difference.numel() else 0.0


def additive_mask(case, tensors):
    """[batch, heads, seqlen_q, seqlen_k]: bias, ALiBi and everything that hides keys."""
    shape = (case.batch, case.heads_q, case.seqlen_q, case.seqlen_k)
    shift = 0 if case.top_left else case.seqlen_k - case.seqlen_q
    left, right = case.window[0], 0 if case.causal else case.window[1]
    seen = torch.ones(shape[2:], dtype=torch.bool)
    seen = seen.tril(shift + right) if right >= 0 else seen
    seen = seen.triu(shift - left) if left >= 0 else seen
    seen = seen & tensors.get("mask", torch.tensor(True))
    total = tensors.get("bias", torch.zeros(1, dtype=F64)).expand(shape)
    if case.alibi:
        offset = torch.arange(case.seqlen_k) - torch.arange(case.seqlen_q)[:, None] - shift
        slopes = tensors["alibi_slopes"].expand(case.batch, case.heads_q)
        total = total - slopes[..., None, None] * offset.abs()
    return torch.where(seen, total, -INFINITY)


def heads_first(tensor):
    return tensor.transpose(-3, -2)


def witness_sdpa(case, tensors, truth):
    if case.kind != "dense" or case.sinks or case.softcap or case.dlse:
        return None
    tensors, leaves = with_leaves(tensors)
    aligned = case.top_left or case.seqlen_q == case.seqlen_k
    maps = case.bias or case.mask or case.alibi
    is_causal = case.causal and aligned and case.window[0] < 0 and not maps
    out = heads_first(scaled_dot_product_attention(
        *(heads_first(tensors[name]) for name in "qkv"), is_causal=is_causal,
        attn_mask=None if is_causal else additive_mask(case, tensors),
        scale=scale_of(case), enable_gqa=case.heads_q != case.heads_kv))
    found = {"out": out.detach(), **gradients((out * tensors["dout"]).sum(), leaves)}
    return max(worst(found[name], truth[name]) for name in found)


def witness_gpt_oss(case, tensors, truth):
    if case.kind != "dense" or not case.sinks or case.softcap or case.dlse:
        return None
    tensors, leaves = with_leaves(tensors)
    module = types.SimpleNamespace(num_key_value_groups=case.heads_q // case.heads_kv,
                                   sinks=tensors["sinks"], training=False)
    out, _ = modeling_gpt_oss.eager_attention_forward(
        module, *(heads_first(tensors[name]) for name in "qkv"),
        attention_mask=additive_mask(case, tensors), scaling=scale_of(case))
    found = {"out": out.detach(), **gradients((out * tensors["dout"]).sum(), leaves)}
    return max(worst(found[name], truth[name]) for name in found)


def documents(lengths, used):
    """For every row of a ragged tensor: its sequence (-1: none, the row is not used) and its place
    in it."""
    used = used or lengths
    rows = [(b if place < used[b] else -1, place)
            for b, length in enumerate(lengths) for place in range(length)]
    return torch.tensor(rows).T


def witness_flex(case, tensors, truth):
    """A ragged batch is one long sequence with a document mask."""
    if case.sinks or case.bias_infinities:
        return None
    ragged = case.kind == "varlen"
    lengths_q = case.lengths_q if ragged else [case.seqlen_q]
    lengths_k = case.lengths_k if ragged else [case.seqlen_k]
    document_q, place_q = documents(lengths_q, case.used_q)
    document_k, place_k = documents(lengths_k, case.used_k)
    ends_q = torch.tensor(case.used_q or lengths_q)
    ends_k = torch.tensor(case.used_k or lengths_k)
    left, right = case.window[0], 0 if case.causal else case.window[1]
    maps = {name: tensors[name].expand(map_shape(case, "bhqk")) for name in ("bias", "mask")
            if name in tensors}
    slopes = tensors["alibi_slopes"].expand(case.batch, case.heads_q) if case.alibi else None

    def distance(i, j):  # of query i from the key that it is aligned to
        shift = 0 if case.top_left else (ends_k - ends_q)[document_q[i]]
        return place_k[j] - place_q[i] - shift

    def sequence(b, i):
        return document_q[i] if ragged else b

    def mask_mod(b, h, i, j):
        seen = (document_q[i] == document_k[j]) & (document_q[i] >= 0)
        if left >= 0:
            seen = seen & (distance(i, j) >= -left)
        if right >= 0:
            seen = seen & (distance(i, j) <= right)
        if "mask" in maps:
            seen = seen & maps["mask"][sequence(b, i), h, place_q[i], place_k[j]]
        return seen

    def score_mod(score, b, h, i, j):
        if case.softcap:
            score = case.softcap * torch.tanh(score / case.softcap)
        if slopes is not None:
            score = score - slopes[sequence(b, i), h] * distance(i, j).abs()
        if "bias" in maps:
            score = score + maps["bias"][sequence(b, i), h, place_q[i], place_k[j]]
        return score

    q, k, v = (tensors[name][None] if ragged else tensors[name] for name in "qkv")
    blocks = create_block_mask(mask_mod, q.shape[0], case.heads_q, q.shape[1], k.shape[1],
                               device="cpu")
    out, lse = flex_attention(heads_first(q), heads_first(k), heads_first(v), score_mod=score_mod,
                              block_mask=blocks, scale=scale_of(case), return_lse=True,
                              enable_gqa=case.heads_q != case.heads_kv)
    out = heads_first(out)
    found = (out[0], lse[0]) if ragged else (out, lse)
    return max(worst(found[0], truth["out"]), worst(found[1], truth["lse"]))


def witness_slope(case, tensors, truth):
    """d loss along a random direction of all inputs: gradients against central differences."""
    generator = torch.Generator().manual_seed(1)
    forward = forward_varlen if case.kind == "varlen" else forward_dense
    names = [name for name in GRADIENTS if name in tensors]
    direction = {name: torch.randn(tensors[name].shape, generator=generator, dtype=F64)
                 for name in names}
    step = 1e-5
    ends = [loss_of(forward, case, tensors | {name: tensors[name] + sign * step * direction[name]
                                              for name in names})[0] for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    expected = sum((truth[f"d{name}"] * direction[name]).sum() for name in names)
    return ((slope - expected).abs() / expected.abs().clamp(min=1.0)).item()


WITNESSES = {  # name: (function, largest difference that is accepted)
    "sdpa": (witness_sdpa, 1e-11),
    "flex": (witness_flex, 1e-11),
    "gpt_oss": (witness_gpt_oss, 1e-11),
    "slope": (witness_slope, 1e-6),
}
