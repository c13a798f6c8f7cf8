"""What a call costs besides its arithmetic:  python overhead.py [repetitions]

On a GPU: microseconds of the CPU for queueing a forward call (batch 2, sequence 256, 8 heads,
head_dim 64, bfloat16), without waiting for the GPU. On a CPU, where calls compute: the whole call,
and the same call on tensors of one token, where next to nothing is left to compute.
"""

import statistics
import sys
import time

import torch
from flashmha import _native, attention
from flashmha.flash_attn import flash_attn_func

REPETITIONS = int(sys.argv[1]) if len(sys.argv) > 1 else 2000


def microseconds(call, synchronize):
    """Median of 15 rounds."""
    rounds = []
    for _ in range(3):
        call()
    for _ in range(15):
        synchronize()
        start = time.perf_counter()
        for _ in range(max(1, REPETITIONS // 15)):
            call()
        rounds.append(1e6 * (time.perf_counter() - start) / max(1, REPETITIONS // 15))
    synchronize()
    return statistics.median(rounds)


def report(title, q, k, v, synchronize):
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    out, lse = attention(q, k, v, return_lse=True)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    calls = {
        "scaled_dot_product_attention": lambda: sdpa(*heads_first),
        "flash_attn_func": lambda: flash_attn_func(q, k, v),
        "flashmha.attention": lambda: attention(q, k, v),
        "flashmha._native.attend": lambda: _native.attend(q, k, v, out, lse),
    }
    print(title)
    times = {name: microseconds(call, synchronize) for name, call in calls.items()}
    for name, value in times.items():
        share = 100 * value / times["scaled_dot_product_attention"]
        print(f"  {name:30s} {value:10.1f} us {share:7.0f} %")


def main():
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    gpu = torch.cuda.is_available() and _native.num_gpus() > 0
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    synchronize = torch.cuda.synchronize if gpu else lambda: None
    for batch, seqlen, heads, dim in ((2, 256, 8, 64), (1, 1, 1, 8)):
        q, k, v = (torch.randn(batch, seqlen, heads, dim, device=device, dtype=dtype)
                   for _ in range(3))
        report(f"batch {batch}, sequence {seqlen}, {heads} heads of {dim}, {dtype}, {device}", q, k,
               v, synchronize)


main()
