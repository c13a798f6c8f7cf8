"""Whole models on a GPU beside Hugging Face Transformers, in one run, as a table of ratios.

    python3 bench/peers_model.py build/cuda/apps/flashmha [small|1b ...]

Llama in bfloat16, batch 2: a training step (forward, loss, backward, AdamW), inference, and 64 greedy
tokens after a prompt of 128; milliseconds are medians, memory is the peak of what is allocated.
Transformers runs with eager and with SDPA attention, a dynamic cache and fused AdamW on bfloat16
weights; FlashMHA's AdamW keeps float32 master weights and moments. A ratio above 1: FlashMHA is faster,
or needs less memory.
"""

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import transformers

BATCH, PROMPT, NEW_TOKENS = 2, 128, 64
MODELS = {
    "small": {"vocab": 32000, "hidden": 512, "intermediate": 1376, "layers": 8, "heads": 8,
              "kv_heads": 8, "head_dim": 64},
    "1b": {"vocab": 32000, "hidden": 2048, "intermediate": 5632, "layers": 16, "heads": 16,
           "kv_heads": 4, "head_dim": 128},
}
SEQUENCES = (256, 2048)
ROWS = ("training", "inference", "generation", "training_memory", "inference_memory")


def median_ms(work, repetitions):
    for _ in range(3):
        work()
    times = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def peak_bytes(work):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def transformers_model(sizes, attention):
    config = transformers.LlamaConfig(
        vocab_size=sizes["vocab"], hidden_size=sizes["hidden"],
        intermediate_size=sizes["intermediate"], num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"], num_key_value_heads=sizes["kv_heads"],
        head_dim=sizes["head_dim"], attn_implementation=attention)
    with torch.device("cuda"):
        return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def measure_transformers(sizes, attention):
    results = {}
    torch.manual_seed(0)
    model = transformers_model(sizes, attention).eval()
    for seqlen in SEQUENCES:
        ids = torch.randint(sizes["vocab"], (BATCH, seqlen), device="cuda")

        def infer(ids=ids):
            with torch.no_grad():
                model(ids, use_cache=False)

        results["inference", seqlen] = median_ms(infer, 10)
        results["inference_memory", seqlen] = peak_bytes(infer)
    prompt = torch.randint(sizes["vocab"], (BATCH, PROMPT), device="cuda")
    mask = torch.ones_like(prompt)

    def generate():
        with torch.no_grad():
            model.generate(prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS,
                           min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)

    results["generation", SEQUENCES[0]] = median_ms(generate, 3)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for seqlen in SEQUENCES:
        ids = torch.randint(sizes["vocab"], (BATCH, seqlen), device="cuda")

        def train(ids=ids):
            model(ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        results["training", seqlen] = median_ms(train, 10)
        results["training_memory", seqlen] = peak_bytes(train)
    del model, optimizer
    gc.collect()
    torch.cuda.empty_cache()
    return results


def run_flashmha(program, sizes, seqlen, new_tokens):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        subprocess.run(
            [program, "benchmark", "--device=cuda:0", "--dtype=bfloat16", "--level=model",
             f"--batch-size={BATCH}", f"--seq-length={seqlen}", f"--new-tokens={new_tokens}",
             f"--json={report.name}", *flags],
            check=True, stdout=subprocess.DEVNULL)
        return json.load(open(report.name))["model"]


def measure_flashmha(program, sizes):
    results = {}
    for seqlen in SEQUENCES:
        report = run_flashmha(program, sizes, seqlen, 1)
        for row in ROWS:
            if row == "generation":
                continue
            unit = "bytes" if row.endswith("memory") else "ms"
            results[row, seqlen] = report[f"{row}_flash_{unit}"]
    report = run_flashmha(program, sizes, PROMPT, NEW_TOKENS)
    results["generation", SEQUENCES[0]] = report["generation_flash_ms"]
    return results


def shown(row, value):
    return f"{value / 2**20:.0f} MiB" if row.endswith("memory") else f"{value:.2f} ms"


def main():
    program, names = sys.argv[1], sys.argv[2:] or list(MODELS)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, "
          f"Transformers {transformers.__version__}")
    print("| model | sequence | row | FlashMHA | eager | SDPA | eager / FlashMHA | SDPA / FlashMHA |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        sizes = MODELS[name]
        ours = measure_flashmha(program, sizes)
        eager = measure_transformers(sizes, "eager")
        sdpa = measure_transformers(sizes, "sdpa")
        for row in ROWS:
            for seqlen in SEQUENCES:
                key = (row, seqlen)
                if key not in ours:
                    continue
                where = f"{PROMPT} + {NEW_TOKENS}" if row == "generation" else seqlen
                print(f"| {name} | {where} | {row.replace('_', ' ')} | {shown(row, ours[key])} "
                      f"| {shown(row, eager[key])} | {shown(row, sdpa[key])} "
                      f"| {eager[key] / ours[key]:.2f} | {sdpa[key] / ours[key]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
