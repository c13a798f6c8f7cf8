"""The examples run."""

import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *map(str, arguments)], text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_attention():
    difference = run("attention.py").split()[-1]
    assert float(difference) < 1e-5


def test_switch_flash_attn():
    pytest.importorskip("torch")
    losses = [float(line.split()[-1]) for line in run("switch_flash_attn.py").splitlines()]
    assert losses[-1] < 0.7 * losses[0]


def test_transformers_model():
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    output = run("transformers_model.py").splitlines()
    assert float(output[0].split()[-1]) < 1e-4


def test_train_and_generate(tmp_path):
    lines = run("train_model.py", tmp_path / "run").splitlines()
    held_out = [float(line.split()[-1]) for line in lines if line.startswith("step")]
    assert held_out[-1] < 0.7 * held_out[0] and lines[-1].startswith("finished after step 150")
    assert "resumed after step 150" in run("train_model.py", tmp_path / "run")
    text = run("generate_text.py", tmp_path / "run", "import ")
    assert text.startswith("import ") and "tokens, ended by" in text
