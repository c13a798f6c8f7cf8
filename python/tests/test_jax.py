"""Arrays of JAX: results are JAX arrays in memory that was not copied."""

import flashmha
import numpy as np
import pytest

jax = pytest.importorskip("jax")


def devices():
    found = {"cpu": jax.devices("cpu")[0]}
    try:
        found["gpu"] = jax.devices("gpu")[0]
    except RuntimeError:
        pass
    return found


DEVICES = devices()
GPU = pytest.param("gpu", marks=[pytest.mark.gpu, pytest.mark.skipif(
    "gpu" not in DEVICES, reason="JAX sees no GPU")])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("where", ["cpu", GPU])
def test_attention(rng, where, dtype):
    if where == "gpu" and dtype == "float32":
        pytest.skip("float32 is for CPUs")
    device = DEVICES[where]
    values = [rng.standard_normal((2, 9, heads, 16)) for heads in (4, 2, 2)]
    q, k, v = (jax.device_put(jax.numpy.asarray(x, dtype=dtype), device) for x in values)
    out, lse = flashmha.attention(q, k, v, causal=True, return_lse=True)
    assert isinstance(out, jax.Array) and out.dtype == q.dtype and lse.dtype == np.float32
    assert out.devices() == lse.devices() == {device}
    exact = [np.asarray(x, np.float32) for x in (q, k, v)]
    expected, expected_lse = flashmha.attention(*exact, causal=True, return_lse=True)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.02)
    np.testing.assert_allclose(np.asarray(lse), expected_lse,
                               atol=1e-5 if where == "cpu" else 5e-3)
    gradients = flashmha.attention_backward(jax.numpy.ones_like(out), q, k, v, out, lse,
                                            causal=True)
    assert gradients.dq.dtype == q.dtype and gradients.dk.shape == k.shape
    assert gradients.dv.devices() == {device}
    true_dv = flashmha.attention_backward(np.ones_like(expected), *exact, expected, expected_lse,
                                          causal=True).dv
    np.testing.assert_allclose(np.asarray(gradients.dv, np.float32), true_dv, atol=0.05)


def test_caches_are_read_but_never_written(rng):
    """Arrays of JAX are immutable, and other arrays may share their memory."""
    q, k, v = (jax.numpy.asarray(rng.standard_normal((1, n, 2, 16)), dtype="float32")
               for n in (1, 8, 8))
    filled = jax.numpy.asarray([5], dtype="int32")
    out = flashmha.attention_with_kvcache(q, k, v, cache_seqlens=filled)
    expected = flashmha.attention(q, k[:, :5], v[:, :5])
    np.testing.assert_allclose(out, expected, atol=1e-5)
    before = np.array(k)
    with pytest.raises(TypeError, match="k_cache must be an array that can be written"):
        flashmha.attention_with_kvcache(q, k, v, k[:, :1], v[:, :1], cache_seqlens=filled)
    assert np.array_equal(k, before)


def random(rng, device, *shapes, dtype="float32"):
    return [jax.device_put(jax.numpy.asarray(rng.standard_normal(shape), dtype=dtype), device)
            for shape in shapes]


@pytest.fixture(params=["cpu", GPU])
def where(request):
    """(device, dtype)"""
    return DEVICES[request.param], "float32" if request.param == "cpu" else "bfloat16"


@pytest.mark.parametrize("options", [
    dict(), dict(causal=True, softmax_scale=0.2), dict(window_size=(3, 1), softcap=2.0),
    dict(causal=True, align="top_left"), dict(dropout=(0.3, 2**63 + 5, 7)),
], ids=lambda options: "-".join(options) or "plain")
def test_jit_and_grad(rng, where, options):
    """In one compiled function; gradients equal the explicit backward's, bit for bit."""
    device, dtype = where
    q, k, v, dout = random(rng, device, (2, 9, 4, 16), (2, 12, 2, 16), (2, 12, 2, 24),
                           (2, 9, 4, 24), dtype=dtype)

    @jax.jit
    def function(q, k, v):
        return flashmha.attention(q * 1, k, v, return_lse=True, deterministic=True, **options)

    out, lse = function(q, k, v)
    expected = flashmha.attention(q, k, v, return_lse=True, **options)
    assert out.devices() == {device} and out.dtype == q.dtype
    for found, wanted in zip((out, lse), expected):
        np.testing.assert_array_equal(np.asarray(found, np.float32),
                                      np.asarray(wanted, np.float32))
    dlse = jax.numpy.ones_like(lse)
    gradients = jax.jit(lambda *x: jax.vjp(function, *x)[1]((dout, dlse)))(q, k, v)
    wanted = flashmha.attention_backward(dout, q, k, v, out, lse, dlse=dlse, deterministic=True,
                                         **options)
    for found, expected in zip(gradients, wanted):
        np.testing.assert_array_equal(np.asarray(found, np.float32),
                                      np.asarray(expected, np.float32))


def test_gradients_of_bias_and_sinks(rng, where):
    device, dtype = where
    q, k, v, bias, sinks, slopes = random(rng, device, (2, 9, 4, 16), *[(2, 12, 2, 16)] * 2,
                                          (1, 4, 1, 12), (4,), (4,), dtype=dtype)
    sinks, slopes = sinks.astype("float32"), abs(slopes).astype("float32")
    mask = jax.device_put(jax.numpy.arange(12)[None, None, None] < 10, device)

    def loss(arrays):
        out = flashmha.attention(*arrays, bias=bias, sinks=sinks, mask=mask, alibi_slopes=slopes)
        return (out.astype("float32") ** 2).sum()

    def loss_of_options(options):
        out = flashmha.attention(q, k, v, mask=mask, alibi_slopes=slopes, **options)
        return (out.astype("float32") ** 2).sum()

    found = jax.jit(jax.grad(loss_of_options))(dict(bias=bias, sinks=sinks))
    assert jax.grad(loss)((q, k, v))[0].shape == q.shape
    options = dict(bias=bias, sinks=sinks, mask=mask, alibi_slopes=slopes)
    out, lse = flashmha.attention(q, k, v, return_lse=True, **options)
    expected = flashmha.attention_backward(2 * out, q, k, v, out, lse, **options)
    tolerance = 1e-5 if dtype == "float32" else 0.03
    np.testing.assert_allclose(np.asarray(found["sinks"], np.float32),
                               np.asarray(expected.dsinks), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(np.asarray(found["bias"], np.float32), np.asarray(expected.dbias),
                               rtol=tolerance, atol=tolerance)


def test_ragged_batches_are_traced(rng, where):
    device, dtype = where
    q, k, v = random(rng, device, (17, 4, 16), (17, 2, 16), (17, 2, 16), dtype=dtype)
    ends = jax.device_put(jax.numpy.asarray([0, 5, 17], dtype="int32"), device)
    options = dict(cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=12, max_seqlen_k=12,
                   causal=True)
    found = jax.jit(lambda q: flashmha.attention(q, k, v, **options))(q)
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(
        flashmha.attention(q, k, v, **options), np.float32))


def test_vmap_runs_one_after_the_other(rng, where):
    device, dtype = where
    q, k, v = random(rng, device, *[(3, 2, 7, 2, 16)] * 3, dtype=dtype)
    found = jax.vmap(lambda q, k, v: flashmha.attention(q, k, v, causal=True))(q, k, v)
    for i in range(3):
        expected = flashmha.attention(q[i], k[i], v[i], causal=True)
        np.testing.assert_array_equal(np.asarray(found[i], np.float32),
                                      np.asarray(expected, np.float32))


def test_errors_name_the_rule_inside_jit(rng):
    q, k, v = random(rng, DEVICES["cpu"], (1, 3, 6, 16), *[(1, 3, 4, 16)] * 2)
    with pytest.raises(Exception, match="must be a multiple of num_heads_kv"):
        jax.block_until_ready(jax.jit(flashmha.attention)(q, k, v))
    with pytest.raises(Exception, match="cannot be differentiated"):
        jax.grad(lambda q: jax.grad(lambda q: flashmha.attention(q, q, q).sum())(q).sum())(
            q[:, :, :4])
