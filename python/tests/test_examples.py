"""The examples run."""

import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(name):
    return subprocess.run([sys.executable, str(EXAMPLES / name)], check=True, text=True,
                          capture_output=True).stdout


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
