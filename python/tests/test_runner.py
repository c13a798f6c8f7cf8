"""scripts/flash_attn_tests.py, which runs flash_attn's own tests: what it samples, and the CPU in
the place of "cuda"."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import types

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

def test_wrong():
    assert torch.ones(1, device="cuda").sum() == 0
"""


def script():
    spec = importlib.util.spec_from_file_location("flash_attn_tests", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sampling():
    module = script()
    marks = [(["seqlen_q", "seqlen_k"], [(5, 7), (9, 5000), (30, 40)]), (["d"], [(32,), (64,)]),
             (["causal"], [(False,), (True,)])]

    def draw(cases=6, seed="0", shard=(1, 1), max_seqlen=100):
        options = types.SimpleNamespace(cases=cases, seed=seed, shard=shard, max_seqlen=max_seqlen)
        return [tuple(case.items()) for case in module.Sample(options).draw("test", marks)]

    found = draw()
    assert len(set(found)) == 6 and all(dict(case)["seqlen_k"] != 5000 for case in found)
    assert draw() == found and draw(seed="1") != found
    parts = [draw(shard=(i, 3)) for i in (1, 2, 3)]
    assert sorted(sum(parts, [])) == sorted(found)
    assert len(draw(cases=100, max_seqlen=None)) == 12 and len(draw(cases=100)) == 8


def test_a_run(tmp_path):
    """On the CPU: what fails, fails; the rest passes; only the sample runs."""
    path = tmp_path / "test_upstream.py"
    path.write_text(TESTS)
    result = subprocess.run([sys.executable, str(SCRIPT), str(path), "--device", "cpu", "--cases",
                             "4", "--max-seqlen", "100", "-s"], capture_output=True, text=True)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 failed, 5 passed" in result.stdout and "test_wrong" in result.stdout
    cases = re.findall(r"case (.*)", result.stdout)
    assert len(set(cases)) == 4 and not any("5000" in case for case in cases)
