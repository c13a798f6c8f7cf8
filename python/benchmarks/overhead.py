"""What a call costs besides its arithmetic:  python overhead.py [calls a round]

On a GPU: the CPU's time for queueing a call (batch 2, sequence 256, 8 heads, head_dim 64,
bfloat16), beside PyTorch's scaled_dot_product_attention with its flash backend; without waiting for
the GPU. On a CPU, where calls compute: the whole call, and the same on tensors of one token, where
next to nothing is left to compute. Then a step of generation: one token goes into a cache of 256
slots, and attends to it. All functions take turns, round by round; medians and smallest times.
"""

import contextlib
import statistics
import sys
import time

import torch
from flashmha import _native, attention, attention_with_kvcache
from flashmha.flash_attn import flash_attn_func, flash_attn_with_kvcache
from torch.nn.attention import SDPBackend, sdpa_kernel

CALLS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
ROUNDS = 25
GOAL = 60  # per cent of scaled_dot_product_attention


def measure(functions, synchronize, clock):
    """{name: microseconds of a call in each round}"""
    times = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(20):
            function()
    for _ in range(ROUNDS):
        for name, function in functions.items():
            synchronize()
            start = clock()
            for _ in range(CALLS):
                function()
            times[name].append((clock() - start) / 1e3 / CALLS)
    synchronize()
    return times


def report(title, times):
    print(title)
    print(f"  {'a call':35s} {'median':>10s} {'smallest':>10s} {'share':>8s}")
    first = statistics.median(next(iter(times.values())))
    shares = {}
    for name, values in times.items():
        shares[name] = 100 * statistics.median(values) / first
        print(f"  {name:35s} {statistics.median(values):7.1f} us {min(values):7.1f} us "
              f"{shares[name]:6.0f} %")
    return shares


def with_gradient(function, *tensors):
    """A call whose result can be differentiated; the gradient is not computed."""
    leaves = [x.detach().requires_grad_() for x in tensors]

    def call():
        with torch.enable_grad():
            function(*leaves)

    return call


def decode_steps(batch, heads, dim, device, dtype):
    """A token goes into a full cache, and attends to it: with PyTorch alone, and as one call."""
    q, k, v = (torch.randn(batch, 1, heads, dim, device=device, dtype=dtype) for _ in range(3))
    k_cache, v_cache = (torch.randn(batch, 256, heads, dim, device=device, dtype=dtype)
                        for _ in range(2))
    slot = torch.tensor([255], device=device)
    filled = torch.full((batch,), 255, dtype=torch.int32, device=device)

    def pytorch():
        k_cache.index_copy_(1, slot, k)
        v_cache.index_copy_(1, slot, v)
        return torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k_cache, v_cache)))

    return {
        "index_copy_ and scaled_dot_product": pytorch,
        "flash_attn_with_kvcache": lambda: flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=filled, causal=True),
        "attention_with_kvcache": lambda: attention_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=filled, causal=True),
    }


def main():
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    gpu = torch.cuda.is_available() and _native.num_gpus() > 0
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    synchronize = torch.cuda.synchronize if gpu else lambda: None
    # On a GPU the time of this thread; on a CPU other threads take part.
    clock = time.thread_time_ns if gpu else time.perf_counter_ns
    where = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} threads"
    print(f"PyTorch {torch.__version__}, {where}, {CALLS} calls a round")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    for batch, seqlen, heads, dim in ((2, 256, 8, 64), (1, 1, 1, 8)):
        q, k, v = (torch.randn(batch, seqlen, heads, dim, device=device, dtype=dtype)
                   for _ in range(3))
        heads_first = [x.transpose(1, 2) for x in (q, k, v)]
        out = torch.empty_like(q)
        functions = {
            "scaled_dot_product_attention": lambda: sdpa(*heads_first),
            "flash_attn_func": lambda: flash_attn_func(q, k, v),
            "flashmha.attention": lambda: attention(q, k, v),
            "flashmha._native.attend_quickly": lambda: _native.attend_quickly(
                q, k, v, out, None, None, False, -1, -1, 0.0, None),
        }
        title = f"batch {batch}, sequence {seqlen}, {heads} heads of {dim}, {dtype}, {device}"
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if gpu else contextlib.nullcontext():
            shares = report(title, measure(functions, synchronize, clock))
            if gpu and seqlen == 256:
                share = shares["flash_attn_func"]
                print(f"  goal: at most {GOAL} %: {'kept' if share <= GOAL else 'MISSED'}")
            report("  with gradient, forward only", measure({
                "scaled_dot_product_attention": with_gradient(sdpa, *heads_first),
                "flash_attn_func": with_gradient(flash_attn_func, q, k, v)}, synchronize, clock))
            report("  a token and a cache", measure(
                decode_steps(batch, heads, dim, device, dtype), synchronize, clock))


main()
