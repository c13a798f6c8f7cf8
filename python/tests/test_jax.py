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
