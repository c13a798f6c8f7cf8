"""What attention is, in a few lines of PyTorch in float64, and random problems to solve with it."""

import math

import torch

F64 = torch.float64
INFINITY = float("inf")
GRADIENTS = ("q", "k", "v", "bias", "sinks")


def as_float32(value):
    return torch.tensor(value, dtype=torch.float32).item()


def scale_of(case):
    return as_float32(case.scale or 1.0 / math.sqrt(case.head_dim))


def band(case, seqlen_q, seqlen_k):
    """Boolean [seqlen_q, seqlen_k]: what causal and the window let each query see."""
    i = torch.arange(seqlen_q)[:, None] + (0 if case.top_left else seqlen_k - seqlen_q)
    j = torch.arange(seqlen_k)[None, :]
    left, right = case.window[0], 0 if case.causal else case.window[1]
    seen = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)
    if left >= 0:
        seen &= j >= i - left
    if right >= 0:
        seen &= j <= i + right
    return seen


def attend(case, q, k, v, slopes=None, bias=None, mask=None, sinks=None):
    """One sequence: q [seqlen_q, heads, head_dim], k and v [seqlen_k, heads_kv, ...], slopes and
    sinks [heads], bias and mask [heads or 1, seqlen_q or 1, seqlen_k or 1]. Returns out like q and
    lse [heads, seqlen_q]."""
    seqlen_q, seqlen_k, group = q.shape[0], k.shape[0], case.heads_q // case.heads_kv
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale_of(case)
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    if slopes is not None:
        shift = 0 if case.top_left else seqlen_k - seqlen_q
        distance = (torch.arange(seqlen_q)[:, None] + shift - torch.arange(seqlen_k)).abs()
        scores = scores - slopes[:, None, None] * distance
    if bias is not None:
        scores = scores + bias
    seen = band(case, seqlen_q, seqlen_k)
    scores = scores.masked_fill(~(seen if mask is None else seen & mask), -INFINITY)
    if sinks is not None:
        sink_column = sinks[:, None, None].expand(-1, seqlen_q, 1)
        scores = torch.cat([scores, sink_column], dim=-1)
    empty = (scores == -INFINITY).all(dim=-1)
    scores = scores.masked_fill(empty[..., None], 0.0)
    weights = scores.softmax(dim=-1)[..., :seqlen_k].masked_fill(empty[..., None], 0.0)
    # A row without any key has an empty sum: logsumexp needs at least one column.
    lse = torch.nn.functional.pad(scores, (0, 1), value=-INFINITY).logsumexp(dim=-1)
    return torch.einsum("hij,jhd->ihd", weights, v), lse.masked_fill(empty, -INFINITY)


# ---- problems ------------------------------------------------------------------------------------

def on_grid(generator, *shape):
    values = torch.randn(*shape, generator=generator, dtype=F64)
    return ((values * 64).round() / 64).clamp(-3.96875, 3.96875)


def map_shape(case, pattern):
    sizes = {"1": 1, "b": case.batch, "h": case.heads_q, "q": max_seqlen(case, "q"),
             "k": max_seqlen(case, "k")}
    return [sizes[letter] for letter in pattern]


def max_seqlen(case, side):
    lengths = case.lengths_q if side == "q" else case.lengths_k
    return max(lengths) if lengths else getattr(case, f"seqlen_{side}")


def starts(lengths):
    return [sum(lengths[:b]) for b in range(len(lengths) + 1)]


def make_options(case, generator):
    tensors = {}
    if case.alibi:
        shape = [case.batch, case.heads_q][-len(case.alibi):]
        tensors["alibi_slopes"] = torch.randint(1, 40, shape, generator=generator).to(F64) / 64
    if case.bias:
        bias = on_grid(generator, *map_shape(case, case.bias))
        if case.bias_infinities:
            bias[torch.rand(bias.shape, generator=generator) < 0.3] = -INFINITY
            bias[..., 0, :] = -INFINITY if case.bias_infinities == "row" else 0.5
        tensors["bias"] = bias
    if case.mask:
        mask = torch.rand(map_shape(case, case.mask), generator=generator) < 0.6
        if case.mask_empty_rows:
            mask[:, :, ::3] = False
        tensors["mask"] = mask
    if case.sinks:
        tensors["sinks"] = on_grid(generator, case.heads_q)
    return tensors


def make_inputs(case, generator):
    """q, k, v, dout (and dlse) in the layouts of attention.h, and the tensors of the options."""
    if case.kind == "varlen":
        rows_q, rows_k = [sum(case.lengths_q)], [sum(case.lengths_k)]
    else:
        rows_q, rows_k = [case.batch, case.seqlen_q], [case.batch, case.seqlen_k]
    tensors = {
        "q": on_grid(generator, *rows_q, case.heads_q, case.head_dim) * case.q_factor,
        "k": on_grid(generator, *rows_k, case.heads_kv, case.head_dim),
        "v": on_grid(generator, *rows_k, case.heads_kv, case.head_dim_v),
        "dout": on_grid(generator, *rows_q, case.heads_q, case.head_dim_v),
    }
    if case.dlse:
        outer = [] if case.kind == "varlen" else [case.batch]
        tensors["dlse"] = on_grid(generator, *outer, case.heads_q, rows_q[-1])
    return tensors | make_options(case, generator)


def options_of_sequence(case, tensors, b, seqlen_q, seqlen_k):
    """The options' tensors as attend wants them for sequence b."""
    slopes = tensors.get("alibi_slopes")
    if slopes is not None and slopes.dim() == 2:
        slopes = slopes[b]
    maps = {}
    for name in ("bias", "mask"):
        full = tensors.get(name)
        if full is not None:  # a broadcast dimension stays 1: slicing cannot shorten it below that
            full = full[b if full.shape[0] > 1 else 0]
            rows = seqlen_q if full.shape[1] > 1 else 1
            columns = seqlen_k if full.shape[2] > 1 else 1
            maps[name] = full[:, :rows, :columns]
    return {"slopes": slopes, "sinks": tensors.get("sinks"), **maps}


def forward_dense(case, tensors):
    results = [attend(case, tensors["q"][b], tensors["k"][b], tensors["v"][b],
                      **options_of_sequence(case, tensors, b, case.seqlen_q, case.seqlen_k))
               for b in range(case.batch)]
    return torch.stack([out for out, _ in results]), torch.stack([lse for _, lse in results])


def forward_varlen(case, tensors):
    """Rows beyond the used ones get out 0 and lse -inf, and take no part as keys."""
    outs, lses = [], []
    begins_q, begins_k = starts(case.lengths_q), starts(case.lengths_k)
    for b in range(case.batch):
        seqlen_q = case.used_q[b] if case.used_q else case.lengths_q[b]
        seqlen_k = case.used_k[b] if case.used_k else case.lengths_k[b]
        keys = slice(begins_k[b], begins_k[b] + seqlen_k)
        out, lse = attend(case, tensors["q"][begins_q[b]:begins_q[b] + seqlen_q],
                          tensors["k"][keys], tensors["v"][keys],
                          **options_of_sequence(case, tensors, b, seqlen_q, seqlen_k))
        unused = case.lengths_q[b] - seqlen_q
        outs.append(torch.nn.functional.pad(out, (0, 0, 0, 0, 0, unused)))
        lses.append(torch.nn.functional.pad(lse, (0, unused), value=-INFINITY))
    return torch.cat(outs), torch.cat(lses, dim=1)


def loss_of(forward, case, tensors):
    out, lse = forward(case, tensors)
    loss = (out * tensors["dout"]).sum()
    if case.dlse:  # where lse is -inf, there is nothing to move
        loss = loss + (lse.masked_fill(lse == -INFINITY, 0.0) * tensors["dlse"]).sum()
    return loss, out, lse


def gradients(loss, leaves):
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {f"d{name}": torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), found)}


def with_leaves(tensors):
    leaves = {name: tensors[name].clone().requires_grad_() for name in GRADIENTS if name in tensors}
    return tensors | leaves, leaves


def solve(case, tensors):
    """out, lse and the gradients of sum(out * dout) + sum(lse * dlse)."""
    forward = forward_varlen if case.kind == "varlen" else forward_dense
    tensors, leaves = with_leaves(tensors)
    loss, out, lse = loss_of(forward, case, tensors)
    return {"out": out.detach(), "lse": lse.detach(), **gradients(loss, leaves)}
