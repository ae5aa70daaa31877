"""What the tests of heads share: features with a planted signal, and the same with labels dealt out at random."""

import itertools

import numpy as np

from proteinlm.heads.rows import Block


def planted(rows: int, width: int, classes: int, strength: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of unequal scale and offset, and classes drawn by a softmax of a linear map of them.

    Args:
        strength: standard deviation of the logits; at 20 the class is next to certain.
    """
    random = np.random.default_rng(seed)
    hidden = random.standard_normal((rows, width))
    weight = random.standard_normal((width, classes)) * strength / np.sqrt(width)
    labels = (hidden @ weight + random.gumbel(size=(rows, classes))).argmax(1)
    mixing = np.eye(width) + 0.3 * random.standard_normal((width, width)) / np.sqrt(width)
    features = hidden @ mixing * random.uniform(0.1, 10, width) + random.uniform(-30, 30, width)
    return features.astype(np.float32), labels


def blocks_of(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, rows: int = 300) -> list[Block]:
    """The rows in blocks of unequal size."""
    starts = [0, *range(rows, len(labels), rows), len(labels)]
    return [Block(features[a:b], labels[a:b], groups[a:b]) for a, b in itertools.pairwise(starts) if b > a]


def shuffled(labels: np.ndarray, seed: int = 1) -> np.ndarray:
    """The same labels in another order: nothing can be learnt from the features."""
    return np.random.default_rng(seed).permutation(labels)
