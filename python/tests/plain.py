"""Attention as plain operations of PyTorch, in the precision and on the device of its tensors."""

import math

import torch

import reference


def visible(seqlen_q, seqlen_k, causal=False, window_size=(-1, -1), device=None):
    """Boolean [seqlen_q, seqlen_k], aligned to the bottom right."""
    seen = reference.visible(seqlen_q, seqlen_k, causal, window_size)
    return torch.from_numpy(seen).to(device)


def attention(q, k, v, causal=False, window_size=(-1, -1), softmax_scale=None, softcap=0.0,
              alibi_slopes=None, bias=None, mask=None, sinks=None, kept=None, dropout_p=0.0):
    """out [batch, seqlen_q, heads, head_dim_v]; kept: which probabilities dropout keeps."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    seqlen_q, seqlen_k = scores.shape[-2:]
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        i = torch.arange(seqlen_q, device=q.device)[:, None] + seqlen_k - seqlen_q
        distance = (i - torch.arange(seqlen_k, device=q.device)).abs()
        slopes = alibi_slopes.expand(q.shape[0], -1)[:, :, None, None]
        scores = scores - (slopes * distance).to(q.dtype)
    if bias is not None:
        scores = scores + bias.to(q.dtype)
    seen = visible(seqlen_q, seqlen_k, causal, window_size, q.device)
    if mask is not None:
        seen = seen & mask
    scores = scores.masked_fill(~seen, -math.inf)
    if sinks is not None:
        column = sinks.to(q.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), -1)
    p = scores.softmax(-1)[..., :seqlen_k].nan_to_num(0.0)  # rows that see nothing
    if kept is not None:
        p = (p * kept / (1 - dropout_p)).to(q.dtype)
    return torch.einsum("bhij,bjhd->bihd", p, v)


def largest_error(found, truth):
    """Largest difference; infinities and NaN must be at the same places."""
    return reference.largest_error(found.detach().double().cpu().numpy(),
                                   truth.detach().double().cpu().numpy())


def assert_accurate(found, plain, truth, factor=2.0, slack=1e-5):
    """At most `factor` times the error of a plain implementation in the same precision.

    slack is a share of the largest value, if that is above 1: errors of rounding are.
    """
    scale = max(1.0, truth.detach().abs().nan_to_num(0.0, 0.0).max().item())
    error = largest_error(found, truth)
    allowed = factor * largest_error(plain, truth) + slack * scale
    assert error <= allowed, f"largest error {error:.3g}, allowed {allowed:.3g}"


def check(function, tensors, dout_of=torch.randn_like, factor=2.0, gradient_factor=3.0, slack=1e-5,
          **options):
    """function(*tensors) against attention(*tensors, **options), values and gradients.

    Options that are tensors get gradients as well if they require them.
    """
    extra = [x for x in options.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    out = function(*tensors)
    dout = dout_of(out)
    found = torch.autograd.grad(out, [*tensors, *extra], dout)
    results = []
    for dtype in (tensors[0].dtype, torch.float64):
        leaves = [x.detach().to(dtype).requires_grad_() for x in tensors]
        given = {name: x.detach().to(dtype).requires_grad_() if isinstance(x, torch.Tensor) and
                 x.requires_grad else x for name, x in options.items()}
        wanted = [x for x in given.values() if isinstance(x, torch.Tensor) and x.requires_grad]
        result = attention(*leaves, **given)
        gradients = torch.autograd.grad(result, [*leaves, *wanted], dout.to(dtype))
        results.append((result, gradients))
    (plain_out, plain_gradients), (true_out, true_gradients) = results
    assert_accurate(out, plain_out, true_out, factor, slack)
    for gradient, plain_one, true_one in zip(found, plain_gradients, true_gradients):
        assert_accurate(gradient, plain_one, true_one, gradient_factor, slack)
