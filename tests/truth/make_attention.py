#!/usr/bin/env python3
"""Makes attention.safetensors: attention problems (attention_cases.py) with their exact answers.

    python3 make_attention.py [--out attention.safetensors]

The answers come from a few lines of PyTorch in float64 and from its autograd (attention_math.py).
Every one is compared with what other people's code gives for the same problem
(attention_witnesses.py), and the script fails if they differ.

A query row that sees no key has no softmax: our rule, out = 0, lse = -inf and no gradient, is built
in here (PyTorch's own answer is 0 or NaN depending on the version and the backend). Inputs lie on a
grid of 1/64 below 4, so that they are exact in bfloat16, float16 and float32: the same file serves
every dtype.
"""

import argparse
import json
import warnings
import zlib

import torch
import transformers
from safetensors.torch import save_file
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as rotate_interleaved
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_halves

from attention_cases import CASES
from attention_math import (F64, attend, make_inputs, make_options, max_seqlen, on_grid, scale_of,
                            solve, starts)
from attention_witnesses import WITNESSES

warnings.filterwarnings("ignore")


# ---- a cache of keys and values ------------------------------------------------------------------

def rotate(x, cos, sin, interleaved):
    """x [seqlen, heads, head_dim]; cos and sin [seqlen, rotary_dim / 2] turn the first part."""
    rotary_dim = 2 * cos.shape[-1]
    head, tail = x[None, ..., :rotary_dim], x[..., rotary_dim:]
    if interleaved:
        head = rotate_interleaved(head, sin[None], cos[None])
    else:
        twice = [torch.cat([table, table], dim=-1)[None] for table in (cos, sin)]
        head, _ = rotate_halves(head, head, *twice, unsqueeze_dim=2)
    return torch.cat([head[0], tail], dim=-1)


def make_cache(case, generator):
    """The cache before the call. Slots without a key are NaN: nobody may look at them."""
    totals = [filled + case.seqlen_new for filled in case.cache_seqlens]
    tensors = {"cache_seqlens": torch.tensor(case.cache_seqlens)}
    if case.page_size:
        pages = [-(-total // case.page_size) for total in totals]
        order = torch.randperm(sum(pages) + 2, generator=generator)  # two pages belong to nobody
        table = torch.zeros(case.batch, max(pages), dtype=torch.long)
        for b, first in enumerate(starts(pages)[:-1]):
            table[b, :pages[b]] = order[first:first + pages[b]]
        tensors["block_table"] = table
        outer, capacity = len(order), case.page_size
    else:
        outer, capacity = case.num_rows or case.batch, case.seqlen_k
    for name, dim in (("k_cache", case.head_dim), ("v_cache", case.head_dim_v)):
        tensors[name] = torch.full((outer, capacity, case.heads_kv, dim), float("nan"), dtype=F64)
        for b, filled in enumerate(case.cache_seqlens):
            for slot in range(case.leftpad[b] if case.leftpad else 0, filled):
                where = slot_of(case, tensors, b, slot)
                tensors[name][where] = on_grid(generator, case.heads_kv, dim)
    if case.leftpad:
        tensors["cache_leftpad"] = torch.tensor(case.leftpad)
    if case.batch_idx:
        tensors["cache_batch_idx"] = torch.tensor(case.batch_idx)
    return tensors


def slot_of(case, tensors, b, slot):
    """(row, column) of a slot of sequence b in the cache."""
    if case.page_size:
        return tensors["block_table"][b, slot // case.page_size].item(), slot % case.page_size
    return (case.batch_idx[b] if case.batch_idx else b), slot


def make_decode_inputs(case, generator):
    tensors = make_cache(case, generator) | make_options(case, generator)
    tensors["q"] = on_grid(generator, case.batch, case.seqlen_q, case.heads_q,
                           case.head_dim) * case.q_factor
    if case.seqlen_new:
        shape = (case.batch, case.seqlen_new, case.heads_kv)
        tensors["k_new"] = on_grid(generator, *shape, case.head_dim)
        tensors["v_new"] = on_grid(generator, *shape, case.head_dim_v)
    if case.rotary_dim:
        rate = 100.0 ** (-torch.arange(0, case.rotary_dim, 2, dtype=F64) / case.rotary_dim)
        angles = torch.arange(16)[:, None] * rate
        tensors["cos"], tensors["sin"] = angles.cos().float(), angles.sin().float()
    if case.positions:
        first = torch.tensor(case.cache_seqlens) - torch.tensor(case.leftpad)
        tensors["positions"] = first[:, None] + torch.arange(case.seqlen_q)
    return tensors


def solve_decode(case, tensors):
    """out, lse and the cache after the call: appended keys are rotated and stored, then seen."""
    after = {name: tensors[name].clone() for name in ("k_cache", "v_cache")}
    results = []
    for b, filled in enumerate(case.cache_seqlens):
        positions = tensors["positions"][b] if case.positions else filled + torch.arange(
            max(case.seqlen_q, case.seqlen_new))
        q = tensors["q"][b]
        new = [tensors[name][b] for name in ("k_new", "v_new")] if case.seqlen_new else []
        if case.rotary_dim:
            cos, sin = (tensors[name].to(F64)[positions] for name in ("cos", "sin"))
            q = rotate(q, cos[:case.seqlen_q], sin[:case.seqlen_q], case.interleaved)
            new[0] = rotate(new[0], cos[:case.seqlen_new], sin[:case.seqlen_new], case.interleaved)
        for i in range(case.seqlen_new):
            where = slot_of(case, tensors, b, filled + i)
            after["k_cache"][where], after["v_cache"][where] = new[0][i], new[1][i]
        slots = range(case.leftpad[b] if case.leftpad else 0, filled + case.seqlen_new)
        k, v = (torch.stack([after[name][slot_of(case, tensors, b, slot)] for slot in slots])
                for name in ("k_cache", "v_cache"))
        results.append(attend(case, q, k, v, sinks=tensors.get("sinks")))
    return {"out": torch.stack([out for out, _ in results]),
            "lse": torch.stack([lse for _, lse in results]),
            "k_cache_after": after["k_cache"], "v_cache_after": after["v_cache"]}


# ---- the file ------------------------------------------------------------------------------------

def describe(case):
    """What the test needs besides the tensors; options at their defaults are left out."""
    described = {"name": case.name, "kind": case.kind}
    if not case.default_scale:
        described["softmax_scale"] = scale_of(case)
    if case.kind == "varlen":
        described["max_seqlen_q"] = max_seqlen(case, "q")
        described["max_seqlen_k"] = max_seqlen(case, "k")
    for name, value in (("causal", case.causal), ("top_left", case.top_left),
                        ("softcap", case.softcap), ("interleaved", case.interleaved)):
        if value:
            described[name] = value
    for name, value in zip(("window_left", "window_right"), case.window):
        if value != -1:
            described[name] = value
    return described


def stored(name, tensor):
    if tensor.dtype == torch.bool or tensor.dtype == torch.float32:
        return tensor.contiguous()
    if not tensor.dtype.is_floating_point:
        return tensor.to(torch.int32)
    if name in ("q", "k", "v", "dout", "bias", "sinks", "k_cache", "v_cache", "k_new", "v_new"):
        exact = tensor.to(torch.bfloat16)
        assert torch.equal(exact.to(F64).nan_to_num(), tensor.nan_to_num()), name
        return exact.contiguous()
    if name in ("alibi_slopes", "dlse"):
        return tensor.to(torch.float32)
    return tensor.contiguous()  # results, in float64


def make_case(case):
    """All tensors of a case, and how far each witness was from the truth."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    if case.kind == "decode":
        inputs = make_decode_inputs(case, generator)
        return inputs | solve_decode(case, inputs), {}
    inputs = make_inputs(case, generator)
    truth = solve(case, inputs)
    distances = {}
    for name, (witness, limit) in WITNESSES.items():
        distance = witness(case, inputs, truth)
        if distance is None:
            continue
        assert distance <= limit, f"{case.name}: {name} differs by {distance}"
        distances[name] = distance
    for side, lengths, used in (("q", case.lengths_q, case.used_q),
                                ("k", case.lengths_k, case.used_k)):
        if lengths:
            inputs[f"cu_seqlens_{side}"] = torch.tensor(starts(lengths))
        if used:
            inputs[f"seqused_{side}"] = torch.tensor(used)
    return inputs | truth, distances


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="attention.safetensors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    file, described = {}, []
    for case in CASES:
        tensors, distances = make_case(case)
        for name, tensor in tensors.items():
            file[f"{case.name}.{name}"] = stored(name, tensor)
        described.append(describe(case))
        print(f"{case.name:<36}", "  ".join(f"{name} {distance:.1e}"
                                            for name, distance in distances.items()))
    made_by = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    about = {"made_by": made_by, "cases": described}  # one key: more are written in random order
    save_file(file, arguments.out, metadata={"truth": json.dumps(about, separators=(",", ":"))})
    size = sum(tensor.numel() * tensor.element_size() for tensor in file.values())
    print(f"{len(CASES)} cases, {len(file)} tensors, {size / 2**20:.2f} MiB -> {arguments.out}")


if __name__ == "__main__":
    main()
