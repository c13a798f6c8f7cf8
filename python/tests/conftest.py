import importlib
import os
import sys

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(__file__))
# JAX would take most of a GPU's memory for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def has_gpu():
    """Whether torch sees a GPU and the extension was built for it."""
    try:
        import flashmha
        import torch
    except ImportError:
        return False
    return flashmha.num_gpus() > 0 and torch.cuda.is_available()


GPU = has_gpu()


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a GPU")
    # What FLASHMHA_REQUIRE names must be there, or else tests would be skipped in silence.
    for name in filter(None, os.environ.get("FLASHMHA_REQUIRE", "").split(",")):
        if name == "cuda":
            if not GPU:
                pytest.exit("FLASHMHA_REQUIRE: no GPU, or the extension has no CUDA", returncode=1)
        elif name == "program":
            if not os.environ.get("FLASHMHA_PROGRAM"):
                pytest.exit("FLASHMHA_REQUIRE: FLASHMHA_PROGRAM is not set", returncode=1)
        else:
            try:
                importlib.import_module(name)
            except ImportError as error:
                pytest.exit(f"FLASHMHA_REQUIRE: {error}", returncode=1)


def pytest_collection_modifyitems(items):
    if not GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU, or the extension has no CUDA"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Every device that there is."""
    return request.param


PLACES = [("cpu", "float32"), ("cpu", "bfloat16"), ("cuda", "bfloat16"), ("cuda", "float16")]


@pytest.fixture(params=[
    pytest.param(place, marks=pytest.mark.gpu if place[0] == "cuda" else (), id="-".join(place))
    for place in PLACES])
def place(request):
    """(device, dtype): every type on every device that there is."""
    import torch

    device, dtype = request.param
    return device, getattr(torch, dtype)


@pytest.fixture
def rng(request):
    """Random numbers; FLASHMHA_TEST_SEED repeats a run, failures print their seed."""
    seed = int(os.environ.get("FLASHMHA_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
    print(f"FLASHMHA_TEST_SEED={seed}")
    return np.random.default_rng(seed)
