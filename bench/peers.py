"""Attention on a GPU beside PyTorch's FlashAttention-2, in one run, as a table of ratios.

    python3 bench/peers.py build/cuda/tests/cuda/attention_benchmark [milliseconds]

The program prints one line for each cell of the grid; the same cells are timed in PyTorch with
scaled_dot_product_attention, FLASH_ATTENTION only. TFLOP/s count 4 B H S S D forward and 10 B H S S D
backward, half of it when causal. A ratio above 1: FlashMHA is faster.
"""

import math
import statistics
import subprocess
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ROWS, WIDTH = 16384, 2048


def seconds_of(count, work):
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def median_seconds(measurement, work):
    work()
    once = seconds_of(3, work) / 3
    count = max(3, int(measurement / once))
    return statistics.median(seconds_of(count, work) / count for _ in range(5))


def torch_seconds(head_dim, causal, seqlen, measurement):
    shape = (ROWS // seqlen, seqlen, WIDTH // head_dim, head_dim)

    def random():
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2)

    q, k, v = (random().requires_grad_() for _ in range(3))
    dout = random()

    def forward():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with torch.no_grad():
            forward_seconds = median_seconds(measurement, forward)
        out = forward()
        backward_seconds = median_seconds(
            measurement, lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
        )
    return {"forward": forward_seconds, "backward": backward_seconds}


def main():
    program = sys.argv[1]
    milliseconds = float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {milliseconds} ms a measurement")
    lines = subprocess.run(
        [program, str(milliseconds)], check=True, capture_output=True, text=True
    ).stdout.split("\n")
    ours = {}
    decode = [line.split()[1:] for line in lines if line.startswith("decode")]
    for line in lines:
        if not line or line.startswith("decode"):
            continue
        name, head_dim, causal, seqlen, time_ms = line.split()
        ours[name, int(head_dim), bool(int(causal)), int(seqlen)] = float(time_ms) / 1e3
    cells = sorted({key[1:] for key in ours}, key=lambda cell: (cell[0], cell[1], cell[2]))
    peers = {cell: torch_seconds(*cell, milliseconds / 1e3) for cell in cells}
    ratios = {"forward": [], "backward": [], "deterministic": []}
    lengths = sorted({seqlen for _, _, seqlen in cells})
    print(f"TFLOP/s at sequence {' '.join(map(str, lengths))}")
    print("| pass | head_dim | mask | FlashMHA | PyTorch | ratio |")
    print("|---|---|---|---|---|---|")
    for name in ratios:
        peer = "forward" if name == "forward" else "backward"
        for head_dim, causal in sorted({cell[:2] for cell in cells}):
            row = [[], [], []]
            for seqlen in lengths:
                products = 4 if name == "forward" else 10
                flops = products * ROWS * seqlen * WIDTH / (2 if causal else 1)
                mine = ours[name, head_dim, causal, seqlen]
                theirs = peers[head_dim, causal, seqlen][peer]
                ratios[name].append(theirs / mine)
                row[0].append(f"{flops / mine / 1e12:.0f}")
                row[1].append(f"{flops / theirs / 1e12:.0f}")
                row[2].append(f"{theirs / mine:.2f}")
            mask = "causal" if causal else "full"
            print(f"| {name} | {head_dim} | {mask} | " + " | ".join(map(" ".join, row)) + " |")
    for name, values in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, values)))
        print(f"{name}: geometric mean {mean:.2f}, lowest {min(values):.2f}")
    print("| decode: heads q/kv | batch | cache length | microseconds | TB/s of K and V |")
    print("|---|---|---|---|---|")
    for heads_q, heads_kv, batch, length, time_ms in decode:
        cache_bytes = 2 * 2 * int(batch) * int(length) * int(heads_kv) * 128
        seconds = float(time_ms) / 1e3
        print(
            f"| {heads_q}/{heads_kv} | {batch} | {length} | {seconds * 1e6:.1f} "
            f"| {cache_bytes / seconds / 1e12:.2f} |"
        )


if __name__ == "__main__":
    main()
