"""One thread everywhere: default threads on a busy machine can cost ten times the time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["N2N_STRICT"] = "1"  # a fault in a rule of growth is a fault, in commands that tests start too

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
