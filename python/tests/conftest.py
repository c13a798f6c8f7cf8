import os
import sys

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(__file__))


@pytest.fixture
def rng(request):
    """Random numbers; FLASHMHA_TEST_SEED repeats a run, failures print their seed."""
    seed = int(os.environ.get("FLASHMHA_TEST_SEED", np.random.SeedSequence().entropy % 2**32))
    print(f"FLASHMHA_TEST_SEED={seed}")
    return np.random.default_rng(seed)
