#!/usr/bin/env python3
"""Times PyTorch's CPU flash attention on one thread: the peer figures of docs/performance/cpu.md.

    python3 torch_cpu_attention.py [--json FILE] [--dtypes float32 bfloat16]
                                   [--lengths 256 1024 4096] [--seconds 2]

FLOPs are counted as FlashMHA counts them: forward 4 B H S^2 D, backward 10 B H S^2 D, half of it
when causal. The share is against the fp32 FMA peak that a register-only loop reaches in the same
run (fma_peak.c beside this file, compiled with cc).
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BATCH, HEADS = 1, 8


def fma_peak_gflops():
    source = pathlib.Path(__file__).with_name("fma_peak.c")
    with tempfile.TemporaryDirectory() as folder:
        binary = f"{folder}/fma_peak"
        subprocess.run(["cc", "-O2", "-o", binary, source], check=True)
        return float(subprocess.run([binary], check=True, capture_output=True, text=True).stdout)


def median_seconds(step, budget_s):
    """Median of as many repeats as fit into the budget (at least 3, at least 1 if they are slow)."""
    start = time.perf_counter()
    step()
    at_least = 3 if time.perf_counter() - start < budget_s else 1
    times = []
    while len(times) < at_least or sum(times) < budget_s and len(times) < 200:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(times)


def measure(seqlen, head_dim, causal, dtype, budget_s):
    shape = (BATCH, HEADS, seqlen, head_dim)
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    dout = torch.randn(shape, dtype=dtype)

    def forward():
        with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            scaled_dot_product_attention(q, k, v, is_causal=causal)

    def forward_backward():
        q.grad = k.grad = v.grad = None
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            scaled_dot_product_attention(q, k, v, is_causal=causal).backward(dout)

    unit = BATCH * HEADS * seqlen**2 * head_dim * (0.5 if causal else 1.0) * 1e-9
    forward_s, _ = median_seconds(forward, budget_s)
    both_s, repeats = median_seconds(forward_backward, budget_s)
    return {
        "seqlen": seqlen, "head_dim": head_dim, "causal": causal, "dtype": str(dtype).split(".")[1],
        "forward_ms": forward_s * 1e3, "forward_gflops": 4 * unit / forward_s,
        "forward_backward_ms": both_s * 1e3, "forward_backward_gflops": 14 * unit / both_s,
        "backward_gflops": 10 * unit / (both_s - forward_s), "repeats": repeats,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each figure")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    peak = fma_peak_gflops()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread; "
          f"fp32 FMA peak {peak:.1f} GFLOP/s")
    print("dtype     head_dim causal seqlen | forward GFLOP/s share | backward GFLOP/s share | "
          "forward+backward GFLOP/s")
    rows = []
    for dtype in (getattr(torch, name) for name in arguments.dtypes):
        for head_dim in (64, 128):
            for causal in (False, True):
                for seqlen in arguments.lengths:
                    row = measure(seqlen, head_dim, causal, dtype, arguments.seconds)
                    rows.append(row)
                    print(f"{row['dtype']:<9} {head_dim:8} {causal!s:>6} {seqlen:6} |"
                          f" {row['forward_gflops']:15.1f} {row['forward_gflops'] / peak:5.2f} |"
                          f" {row['backward_gflops']:16.1f} {row['backward_gflops'] / peak:5.2f} |"
                          f" {row['forward_backward_gflops']:24.1f}", flush=True)
    print(f"fp32 FMA peak again: {fma_peak_gflops():.1f} GFLOP/s")
    if arguments.json:
        report = {"torch": torch.__version__, "fma_peak_gflops": peak, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
