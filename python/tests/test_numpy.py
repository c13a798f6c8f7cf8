"""Attention of NumPy arrays against formulas in double precision."""

import sys
import threading
import time

import flashmha
import numpy as np
import pytest

import reference

CASES = {
    "plain": dict(),
    "causal": dict(causal=True),
    "window": dict(window_size=(3, 2)),
    "causal_window": dict(causal=True, window_size=(4, -1)),
    "top_left": dict(causal=True, align="top_left"),
    "softcap": dict(softcap=2.0, causal=True),
    "scale": dict(softmax_scale=0.3),
}


def random_qkv(rng, batch=2, seqlen_q=13, seqlen_k=21, heads=(6, 2), dims=(32, 32),
               dtype=np.float32):
    q = rng.standard_normal((batch, seqlen_q, heads[0], dims[0]))
    k = rng.standard_normal((batch, seqlen_k, heads[1], dims[0]))
    v = rng.standard_normal((batch, seqlen_k, heads[1], dims[1]))
    return [x.astype(dtype) for x in (q, k, v)]


def double(*tensors):
    return [x.astype(np.float64) for x in tensors]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("case", CASES)
def test_forward(rng, case, dtype):
    options = CASES[case]
    q, k, v = random_qkv(rng, dtype=dtype)
    out, lse = flashmha.attention(q, k, v, return_lse=True, **options)
    assert out.dtype == dtype and lse.dtype == np.float32
    truth, truth_lse, _ = reference.attention(*double(q, k, v), **options)
    plain = reference.attention(q, k, v, **options)[0]
    reference.assert_accurate(out, plain, truth)
    reference.assert_accurate(lse, truth_lse.astype(np.float32), truth_lse, slack=1e-5)


def test_rows_without_keys(rng):
    q, k, v = random_qkv(rng, seqlen_q=9, seqlen_k=4)
    out, lse = flashmha.attention(q, k, v, causal=True, return_lse=True)
    assert (out[:, :5] == 0).all() and np.isneginf(lse[:, :, :5]).all()
    truth, truth_lse, _ = reference.attention(*double(q, k, v), causal=True)
    assert reference.largest_error(out, truth) < 1e-5
    assert reference.largest_error(lse, truth_lse) < 1e-5


def test_bias_mask_sinks_alibi(rng):
    q, k, v = random_qkv(rng, dims=(40, 24))
    options = dict(
        bias=rng.standard_normal((1, 6, 13, 21)).astype(np.float32),
        mask=rng.random((2, 1, 1, 21)) < 0.7,
        sinks=rng.standard_normal(6).astype(np.float32),
        alibi_slopes=rng.random(6).astype(np.float32),
    )
    out, lse = flashmha.attention(q, k, v, return_lse=True, **options)
    truth, truth_lse, _ = reference.attention(*double(q, k, v), **options)
    assert reference.largest_error(out, truth) < 1e-5
    assert reference.largest_error(lse, truth_lse) < 1e-5


@pytest.mark.parametrize("case", ["plain", "causal", "window", "scale"])
def test_backward(rng, case):
    options = CASES[case]
    q, k, v = random_qkv(rng)
    out, lse = flashmha.attention(q, k, v, return_lse=True, **options)
    dout = rng.standard_normal(out.shape).astype(np.float32)
    dlse = rng.standard_normal(lse.shape).astype(np.float32)
    found = flashmha.attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)
    truth = reference.gradients(*double(dout, q, k, v), dlse=dlse.astype(np.float64), **options)
    plain = reference.gradients(dout, q, k, v, dlse=dlse, **options)
    assert found.dbias is None and found.dsinks is None
    for gradient, plain_one, true_one in zip(found, plain, truth[:3]):
        reference.assert_accurate(gradient, plain_one, true_one, factor=3, slack=3e-6)


def test_gradients_of_bias_and_sinks(rng):
    q, k, v = random_qkv(rng)
    options = dict(bias=rng.standard_normal((1, 6, 1, 21)).astype(np.float32),
                   sinks=rng.standard_normal(6).astype(np.float32))
    out, lse = flashmha.attention(q, k, v, return_lse=True, **options)
    dout = rng.standard_normal(out.shape).astype(np.float32)
    found = flashmha.attention_backward(dout, q, k, v, out, lse, **options)
    ds = reference.gradients(*double(dout, q, k, v), **options)[3]
    np.testing.assert_allclose(found.dbias, ds.sum((0, 2), keepdims=True), atol=2e-5)
    delta = np.einsum("bihd,bihd->bhi", *double(dout, out))
    weight = np.exp(options["sinks"][None, :, None] - lse.astype(np.float64))
    np.testing.assert_allclose(found.dsinks, -(weight * delta).sum((0, 2)), atol=2e-5)


def test_ragged_is_each_sequence_alone(rng):
    lengths = [(5, 5), (0, 3), (4, 0), (7, 11)]
    cu_q = np.cumsum([0] + [n for n, _ in lengths], dtype=np.int32)
    cu_k = np.cumsum([0] + [n for _, n in lengths], dtype=np.int32)
    q = rng.standard_normal((cu_q[-1] + 2, 4, 16)).astype(np.float32)  # two rows of nobody
    k, v = (rng.standard_normal((cu_k[-1], 2, 16)).astype(np.float32) for _ in range(2))
    ragged = dict(cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=7, max_seqlen_k=11,
                  causal=True)
    out, lse = flashmha.attention(q, k, v, return_lse=True, **ragged)
    assert (out[-2:] == 0).all() and np.isneginf(lse[:, -2:]).all()
    dout = rng.standard_normal(out.shape).astype(np.float32)
    gradients = flashmha.attention_backward(dout, q, k, v, out, lse, **ragged)
    assert (gradients.dq[-2:] == 0).all()
    for b in range(len(lengths)):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        alone = [x[None] for x in (q[rows], k[keys], v[keys])]
        alone_out, alone_lse = flashmha.attention(*alone, causal=True, return_lse=True)
        np.testing.assert_array_equal(out[rows], alone_out[0])
        np.testing.assert_array_equal(lse[:, rows], alone_lse[0])
        expected = flashmha.attention_backward(dout[rows][None], *alone, alone_out, alone_lse,
                                               causal=True)
        np.testing.assert_array_equal(gradients.dq[rows], expected.dq[0])
        np.testing.assert_array_equal(gradients.dk[keys], expected.dk[0])


def test_pages(rng):
    q, k, v = random_qkv(rng, batch=1, seqlen_q=5, seqlen_k=24)
    order = rng.permutation(6)
    pages = [np.empty((6, 4, 2, 32), np.float32) for _ in range(2)]
    for i, page in enumerate(order):
        pages[0][page], pages[1][page] = k[0, 4 * i:4 * i + 4], v[0, 4 * i:4 * i + 4]
    out = flashmha.attention(
        q[0], *pages, causal=True, cu_seqlens_q=np.array([0, 5], np.int32),
        cu_seqlens_k=np.array([0, 22], np.int32), max_seqlen_q=5, max_seqlen_k=22,
        block_table=order[None].astype(np.int32))
    expected = flashmha.attention(q, k[:, :22], v[:, :22], causal=True)
    np.testing.assert_array_equal(out, expected[0])


def test_cache(rng):
    batch, capacity = 3, 16
    q, k_cache, v_cache = random_qkv(rng, batch=batch, seqlen_q=1, seqlen_k=capacity)
    k, v = (rng.standard_normal((batch, 1, 2, 32)).astype(np.float32) for _ in range(2))
    filled = np.array([0, 7, 15], np.int32)
    before = k_cache.copy()
    out = flashmha.attention_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=filled)
    for b, n in enumerate(filled):
        before[b, n] = k[b, 0]
        expected = flashmha.attention(q[b:b + 1], k_cache[b:b + 1, :n + 1],
                                      v_cache[b:b + 1, :n + 1])
        np.testing.assert_allclose(out[b:b + 1], expected, atol=1e-6)
    np.testing.assert_array_equal(k_cache, before)


def test_strided_views_are_not_copied(rng):
    packed = rng.standard_normal((2, 9, 3, 4, 16)).astype(np.float32)
    out = flashmha.attention(packed[:, :, 0], packed[:, :, 1], packed[:, :, 2])
    parts = [np.ascontiguousarray(packed[:, :, i]) for i in range(3)]
    np.testing.assert_array_equal(out, flashmha.attention(*parts))
    with pytest.raises(ValueError, match="last dimension of q must have stride 1"):
        flashmha.attention(np.asfortranarray(parts[0]), parts[1], parts[2])


def test_read_only_inputs(rng):
    q, k, v = random_qkv(rng)
    expected = flashmha.attention(q, k, v)
    for x in (q, k, v):
        x.flags.writeable = False
    np.testing.assert_array_equal(flashmha.attention(q, k, v), expected)
    with pytest.raises(TypeError, match="k_cache must be an array that can be written"):
        flashmha.attention_with_kvcache(q, k, v, k[:, :1], v[:, :1],
                                        cache_seqlens=np.zeros(2, np.int32))


def test_dropout_is_a_function_of_the_seed(rng):
    q, k, v = random_qkv(rng)
    first = flashmha.attention(q, k, v, dropout=(0.3, 2**63 + 5, 1))
    np.testing.assert_array_equal(first, flashmha.attention(q, k, v, dropout=(0.3, 2**63 + 5, 1)))
    assert not np.array_equal(first, flashmha.attention(q, k, v, dropout=(0.3, 6, 1)))
    assert not np.array_equal(first, flashmha.attention(q, k, v))


def test_errors_name_the_rule_and_the_values(rng):
    q, k, v = random_qkv(rng)
    cases = [
        (ValueError, r"num_heads_q \(6\) must be a multiple of num_heads_kv \(4\)",
         (q, k.repeat(2, 2), v.repeat(2, 2)), {}),
        (ValueError, "k must be float32; got float16", (q, k.astype(np.float16), v), {}),
        (ValueError, "softcap must be 0", (q, k, v), dict(softcap=-1.0)),
        (ValueError, "window_left and window_right", (q, k, v), dict(window_size=(-2, 0))),
        (ValueError, "align must be", (q, k, v), dict(align="middle")),
        (ValueError, "q must be", (q[0], k, v), {}),
        (TypeError, "element type that FlashMHA does not know", (q.astype(np.complex64), k, v), {}),
        (TypeError, "q must be an array", ([1.0], k, v), {}),
        (TypeError, "mask must be an array", (q, k, v), dict(mask="all")),
        (RuntimeError, "bias must be broadcastable", (q, k, v),
         dict(bias=np.zeros((1, 1, 2, 3), np.float32))),
    ]
    for error, words, inputs, options in cases:
        with pytest.raises(error, match=words):
            flashmha.attention(*inputs, **options)
    with pytest.raises(flashmha.InvalidArgument):
        flashmha.attention(q, k, v, causal=True, softmax_scale=float("nan"))


def test_calls_run_without_the_gil(rng):
    """Python goes on in another thread while a call runs. Nobody is made to give way here
    (setswitchinterval): it can go on only if the call lets it."""
    q, k, v = random_qkv(rng, batch=1, seqlen_q=2048, seqlen_k=2048, heads=(8, 8), dims=(64, 64))
    inside, ticks, done = threading.Event(), [], threading.Event()

    def watch():
        while not done.is_set():
            if inside.is_set():
                ticks.append(None)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    interval = sys.getswitchinterval()
    flashmha.set_num_threads(1)
    thread.start()
    sys.setswitchinterval(1000)
    try:
        inside.set()
        flashmha.attention(q, k, v)
        inside.clear()
    finally:
        sys.setswitchinterval(interval)
        flashmha.set_num_threads(0)
        done.set()
        thread.join()
    assert ticks


def test_threads_do_not_change_results(rng):
    q, k, v = random_qkv(rng, seqlen_q=130, seqlen_k=130)
    assert flashmha.num_threads() >= 1
    flashmha.set_num_threads(1)
    alone = flashmha.attention(q, k, v)
    flashmha.set_num_threads(0)
    np.testing.assert_array_equal(alone, flashmha.attention(q, k, v))
