"""Attention of NumPy arrays, forward and backward:  python attention.py"""

import time

import flashmha
import numpy as np

rng = np.random.default_rng(0)
batch, seqlen, num_heads, num_heads_kv, head_dim = 2, 1024, 8, 2, 64
q = rng.standard_normal((batch, seqlen, num_heads, head_dim), dtype=np.float32)
k, v = (rng.standard_normal((batch, seqlen, num_heads_kv, head_dim), dtype=np.float32)
        for _ in range(2))

start = time.perf_counter()
out, lse = flashmha.attention(q, k, v, causal=True, return_lse=True)
print(f"forward: out {out.shape}, lse {lse.shape}, {1e3 * (time.perf_counter() - start):.1f} ms")

start = time.perf_counter()
gradients = flashmha.attention_backward(np.ones_like(out), q, k, v, out, lse, causal=True)
print(f"backward: dq {gradients.dq.shape}, dk {gradients.dk.shape}, "
      f"{1e3 * (time.perf_counter() - start):.1f} ms")

# The last query of the first head, by the formula.
scores = k[0, :, 0] @ q[0, -1, 0] / np.sqrt(head_dim)
weights = np.exp(scores - scores.max())
expected = weights / weights.sum() @ v[0, :, 0]
print(f"largest difference from the formula: {np.abs(out[0, -1, 0] - expected).max():.1e}")
