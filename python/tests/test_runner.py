"""scripts/flash_attn_tests.py, which runs flash_attn's own tests: what it samples, and the CPU in
the place of "cuda"."""

import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("torch")
SCRIPT = pathlib.Path(__file__).parents[2] / "scripts/flash_attn_tests.py"

# As flash_attn's tests are written.
TESTS = """
import pytest
import torch
from flash_attn import flash_attn_func

is_sm80 = torch.cuda.get_device_capability("cuda") == (8, 0)

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d", [32, 64, 128])
@pytest.mark.parametrize("seqlen_q,seqlen_k", [(5, 7), (9, 5000), (30, 40)])
def test_many(seqlen_q, seqlen_k, d, causal, dtype):
    print(f"case {seqlen_q} {seqlen_k} {d} {causal} {dtype}")
    device = "cuda"
    q = torch.randn(2, seqlen_q, 4, d, device=device, dtype=dtype)
    k = torch.randn(2, seqlen_k, 4, d, device=device, dtype=dtype)
    out = flash_attn_func(q, k, k, causal=causal)
    assert flash_attn_func.__module__ == "flashmha.flash_attn.flash_attn_interface"
    assert out.shape == q.shape

def test_one():
    assert torch.zeros(1, device="cuda").sum() == 0
"""


def run(path, *arguments):
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(path), "--device", "cpu", "-s", *arguments],
        capture_output=True, text=True)
    cases = sorted(re.findall(r"case (.*)", result.stdout))
    return result.returncode, cases, result.stdout


def test_samples_and_shards(tmp_path):
    path = tmp_path / "test_upstream.py"
    path.write_text(TESTS)
    code, cases, output = run(path, "--cases", "8", "--max-seqlen", "100")
    assert code == 0 and "9 passed" in output, output
    assert len(set(cases)) == 8 and not any("5000" in case for case in cases)
    assert run(path, "--cases", "8", "--max-seqlen", "100")[1] == cases
    assert run(path, "--cases", "8", "--max-seqlen", "100", "--seed", "1")[1] != cases
    parts = [run(path, "--cases", "8", "--max-seqlen", "100", "--shard", f"{i}/3")[1]
             for i in (1, 2, 3)]
    assert sorted(sum(parts, [])) == cases
    assert len(run(path, "--cases", "1000", "-k", "many")[1]) == 36


def test_a_failure_is_one(tmp_path):
    path = tmp_path / "test_upstream.py"
    path.write_text(TESTS.replace("out.shape == q.shape", "False"))
    code, _, output = run(path, "--cases", "2")
    assert code == 1 and "2 failed, 1 passed" in output
