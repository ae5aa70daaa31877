"""What several test modules need."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def shared_data(*parts: str) -> Path:
    """A path in the folder of public data that may lie beside the repository; the test is skipped where it does not.

    `from conftest import shared_data`, then `shared_data("goldens", "bio_embeddings", "unirep.npz")`, inside a test.
    """
    path = (Path(__file__).resolve().parents[2] / "shared" / "data").joinpath(*parts)
    if not path.exists():
        pytest.skip(f"public data {'/'.join(parts)} is not beside the repository (../shared/data)")
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The products here are too small to share, and threads that wait for each other starve on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
