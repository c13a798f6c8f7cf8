"""Arrays of JAX: results are JAX arrays in memory that was not copied."""

import flashmha
import numpy as np
import pytest

jax = pytest.importorskip("jax")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_attention(rng, dtype):
    q, k, v = (jax.numpy.asarray(rng.standard_normal((2, 9, heads, 16)), dtype=dtype)
               for heads in (4, 2, 2))
    out, lse = flashmha.attention(q, k, v, causal=True, return_lse=True)
    assert isinstance(out, jax.Array) and out.dtype == q.dtype and lse.dtype == np.float32
    exact = [np.asarray(x, np.float32) for x in (q, k, v)]
    expected, expected_lse = flashmha.attention(*exact, causal=True, return_lse=True)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.02)
    np.testing.assert_allclose(lse, expected_lse, atol=1e-5)
    gradients = flashmha.attention_backward(jax.numpy.ones_like(out), q, k, v, out, lse,
                                            causal=True)
    assert gradients.dq.dtype == q.dtype and gradients.dk.shape == k.shape
