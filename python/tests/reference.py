"""Attention as plain NumPy formulas, in the precision of the arrays that come in."""

import numpy as np


def visible(seqlen_q, seqlen_k, causal=False, window_size=(-1, -1), align="bottom_right"):
    """Boolean [seqlen_q, seqlen_k]: which keys a query may see."""
    left, right = window_size
    if causal:
        right = 0
    shift = seqlen_k - seqlen_q if align == "bottom_right" else 0
    i, j = np.arange(seqlen_q)[:, None] + shift, np.arange(seqlen_k)[None, :]
    seen = np.ones((seqlen_q, seqlen_k), bool)
    if left >= 0:
        seen &= j >= i - left
    if right >= 0:
        seen &= j <= i + right
    return seen


def attention(q, k, v, causal=False, window_size=(-1, -1), align="bottom_right",
              softmax_scale=None, softcap=0.0, alibi_slopes=None, bias=None, mask=None, sinks=None):
    """out [batch, seqlen_q, heads, head_dim_v], lse [batch, heads, seqlen_q] and probabilities."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat(group, axis=2), v.repeat(group, axis=2)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    scores = np.einsum("bihd,bjhd->bhij", q, k) * q.dtype.type(scale)
    if softcap > 0:
        scores = softcap * np.tanh(scores / softcap)
    seqlen_q, seqlen_k = scores.shape[-2:]
    shift = seqlen_k - seqlen_q if align == "bottom_right" else 0
    if alibi_slopes is not None:
        distance = np.abs(np.arange(seqlen_q)[:, None] + shift - np.arange(seqlen_k)[None, :])
        scores = scores - np.broadcast_to(alibi_slopes, (q.shape[0], q.shape[2]))[
            :, :, None, None] * distance
    if bias is not None:
        scores = scores + bias
    seen = visible(seqlen_q, seqlen_k, causal, window_size, align)[None, None]
    if mask is not None:
        seen = seen & mask
    scores = np.where(seen, scores, -np.inf)
    most = scores.max(-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        most = np.maximum(most, sinks[None, :, None, None])
    safe = np.where(np.isfinite(most), most, 0)
    p = np.exp(scores - safe)
    total = p.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[None, :, None, None] - safe)
    with np.errstate(divide="ignore"):
        lse = (safe + np.log(total))[..., 0]
    p = np.divide(p, total, out=np.zeros_like(p), where=total > 0)
    return np.einsum("bhij,bjhd->bihd", p, v), lse, p


def gradients(dout, q, k, v, dlse=None, **options):
    """dq, dk, dv, and the gradient of the scores [batch, heads, seqlen_q, seqlen_k].

    Without softcap. In the precision of the arrays.
    """
    group = q.shape[2] // k.shape[2]
    out, _, p = attention(q, k, v, **options)
    scale = options.get("softmax_scale", q.shape[-1] ** -0.5)
    k_all, v_all = k.repeat(group, axis=2), v.repeat(group, axis=2)
    dp = np.einsum("bihd,bjhd->bhij", dout, v_all)
    delta = np.einsum("bihd,bihd->bhi", dout, out)
    if dlse is not None:
        delta = delta - dlse
    ds = p * (dp - delta[..., None])
    dq = np.einsum("bhij,bjhd->bihd", ds, k_all) * scale
    dk = np.einsum("bhij,bihd->bjhd", ds, q) * scale
    dv = np.einsum("bhij,bihd->bjhd", p, dout)

    def grouped(x):
        return x.reshape(*x.shape[:2], k.shape[2], group, x.shape[-1]).sum(3)

    return dq, grouped(dk), grouped(dv), ds


def largest_error(found, truth):
    """Largest absolute difference; infinities and NaN must be at the same places."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    assert found.shape == truth.shape
    strange = ~np.isfinite(truth)
    np.testing.assert_array_equal(np.where(strange, found, 0.0), np.where(strange, truth, 0.0))
    assert np.isfinite(found[~strange]).all()
    return np.abs(np.where(strange, 0.0, found) - np.where(strange, 0.0, truth)).max(initial=0.0)


def assert_accurate(found, plain, truth, factor=2.0, slack=1e-6):
    """At most `factor` times the error of a plain implementation in the same precision."""
    error, allowed = largest_error(found, truth), factor * largest_error(plain, truth) + slack
    assert error <= allowed, f"largest error {error:.3g}, allowed {allowed:.3g}"
