"""What several test modules need.

The models here are too small to share between threads, and threads that wait for each other starve on a busy machine:
every test, and every process that a test starts, computes on one thread.
"""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


def shared_data(*parts: str) -> Path:
    """A path in the folder of public data that may lie beside the repository; the test is skipped where it does not.

    `from conftest import shared_data`, then `shared_data("goldens", "bio_embeddings", "unirep.npz")`, inside a test.
    """
    path = (Path(__file__).resolve().parents[2] / "shared" / "data").joinpath(*parts)
    if not path.exists():
        pytest.skip(f"public data {'/'.join(parts)} is not beside the repository (../shared/data)")
    return path
