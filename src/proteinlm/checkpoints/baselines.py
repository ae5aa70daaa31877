"""Models that nobody trained, and counts: what a trained model is compared with, loaded like any other.

In: a file of n-gram counts, or a model whose weights are to be forgotten. Out: a model, and its digest where it has no
weights to take it from.
"""

import hashlib
from pathlib import Path

import torch

from proteinlm.checkpoints.contents import architecture_of
from proteinlm.checkpoints.ngram import load_ngram
from proteinlm.errors import InputError
from proteinlm.models import ARCHITECTURES
from proteinlm.models.base import ProteinModel
from proteinlm.models.ngram_model import NGramModel

NO_WEIGHTS = "no weights"
"""The licence of what has none."""


def counts_model(path: Path) -> tuple[ProteinModel, str]:
    """The model of a file of n-gram counts, and its digest: of configuration, keys and counts.

    Raises:
        InputError: as `load_ngram`.
    """
    counts = load_ngram(path)
    hasher = hashlib.sha256(repr(counts.config).encode())
    hasher.update(counts.keys_K.tobytes())
    hasher.update(counts.before_K.tobytes())
    return NGramModel(counts).eval(), hasher.hexdigest()


def same_shape(model: ProteinModel, seed: int) -> ProteinModel:
    """A model of the same architecture and shape with random weights; the generators of the caller are left alone.

    Raises:
        InputError: the model has no weights that could be random.
    """
    if not any(True for _ in model.parameters()):
        raise InputError("a model without parameters has no untrained twin; leave --untrained out")
    architecture, config = architecture_of(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ARCHITECTURES[architecture].model(config).eval()
