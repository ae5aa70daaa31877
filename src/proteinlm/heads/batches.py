"""Proteins with labels, dealt out in batches: what networks are trained on.

In: for each protein an array of residue features and the labels of its residues, of itself, or of its residue pairs.
Out: batches without padding, the same for the same seed. Shape letters: see `heads.rows`; R labelled rows of a batch
(its T residues, its B proteins, or its pairs).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.heads.rows import as_tensor

Level = Literal["residue", "protein", "pair"]

POOL = 50
"""Batches whose proteins are sorted by length together, so that a batch holds proteins of about one length."""


@dataclass(frozen=True)
class FeatureBatch:
    """The features of several proteins, end to end.

    Args:
        features_TD: fp32. starts: offsets into it, B + 1 of them.
    """

    features_TD: Tensor
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def to(self, device: torch.device) -> "FeatureBatch":
        """The same batch with its features on `device`."""
        return FeatureBatch(self.features_TD.to(device), self.starts)

    def lengths_B(self) -> Tensor:
        """Residues of each protein, int64."""
        return torch.diff(torch.tensor(self.starts, device=self.features_TD.device))

    def protein_T(self) -> Tensor:
        """Which protein each residue is of, int64."""
        lengths_B = self.lengths_B()
        return torch.repeat_interleave(torch.arange(len(self), device=lengths_B.device), lengths_B)

    def spaced_T(self, gap: int) -> Tensor:
        """Where each residue stands when `gap` empty places lie before, between and behind the proteins, int64.

        >>> FeatureBatch(torch.zeros(5, 1), (0, 2, 5)).spaced_T(3).tolist()
        [3, 4, 8, 9, 10]
        """
        place_T = torch.arange(self.starts[-1], device=self.features_TD.device)
        return place_T + gap * (self.protein_T() + 1)


@dataclass(frozen=True)
class Examples:
    """Proteins and what is known of them.

    Args:
        features: residue features of each protein, fp16 or fp32, shape (L, D); anything with a length and an index, so
            that they may lie in a memory-mapped file.
        labels: of each protein, -1 where unknown, integers of shape (L, M) for M tasks of its residues, (M,) for tasks
            of the protein, or (L, L) for its residue pairs.
    """

    features: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        if len(self.features) != len(self.labels) or not len(self.features):
            raise InputError(f"{len(self.features)} proteins and {len(self.labels)} labels; one for each, at least one")

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class FlatFeatures(Sequence[np.ndarray]):
    """Residue features of all proteins in one array, e.g. a memory-mapped cache, as a sequence with an item a protein.

    >>> [len(one) for one in FlatFeatures(np.zeros((5, 2)), np.array([0, 2, 5]))]
    [2, 3]
    """

    flat_TD: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # an int; slices are not needed
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.flat_TD[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True)
class BatchSize:
    """What fits in a batch: it is full with whatever is reached first. A single protein always fits.

    Args:
        residues, proteins, pairs: most of each. crop: longest stretch of a protein of which pairs are trained on.
    """

    residues: int = 8192
    proteins: int = 64
    pairs: int = 2**17
    crop: int = 256


def order_of(lengths: np.ndarray, size: BatchSize, pairs: bool, random: np.random.Generator) -> list[np.ndarray]:
    """Batches of protein numbers: every protein once, lengths alike in a batch, batches in random order.

    Args:
        lengths: residues of each protein. size: what fits. pairs: whether pairs count too. random: of the order.

    >>> size, random = BatchSize(residues=100, proteins=3), np.random.default_rng(1)
    >>> batches = order_of(np.array([5, 5, 90, 6]), size, False, random)
    >>> sorted(sorted(batch.tolist()) for batch in batches)
    [[0, 1, 3], [2]]
    """
    shuffled = random.permutation(len(lengths))
    average = max(1.0, float(lengths.mean()))
    pool = POOL * max(1, min(size.proteins, int(size.residues / average)))
    batches: list[np.ndarray] = []
    for start in range(0, len(shuffled), pool):
        together = shuffled[start : start + pool]
        together = together[np.argsort(lengths[together], kind="stable")]
        batches += _cut(together, lengths, size, pairs)
    return [batches[number] for number in random.permutation(len(batches))]


def _cut(proteins: np.ndarray, lengths: np.ndarray, size: BatchSize, pairs: bool) -> list[np.ndarray]:
    """Consecutive proteins together, as many as fit."""
    batches, start, residues, squares = [], 0, 0, 0
    for end, protein in enumerate(proteins):
        length = int(lengths[protein])
        square = min(length, size.crop) ** 2 if pairs else 0
        full = end - start >= size.proteins or residues + length > size.residues or squares + square > size.pairs
        if full and end > start:
            batches.append(proteins[start:end])
            start, residues, squares = end, 0, 0
        residues, squares = residues + length, squares + square
    return [*batches, proteins[start:]]


def batches_of(
    examples: Examples, level: Level, size: BatchSize, random: np.random.Generator
) -> Iterator[tuple[FeatureBatch, Tensor]]:
    """One epoch: features and labels of shape (R, M), in random order.

    Proteins longer than `size.crop` give a random stretch of that length where labels are of pairs.

    Raises:
        InputError: labels whose shape does not fit the features.
    """
    lengths = np.array([len(one) for one in examples.features])
    for numbers in order_of(lengths, size, level == "pair", random):
        features, labels = [], []
        for number in numbers:
            x_LD, y = examples.features[number], check_labels(examples, number, level)
            if level == "pair" and len(x_LD) > size.crop:
                start = int(random.integers(0, len(x_LD) - size.crop + 1))
                stretch = slice(start, start + size.crop)
                x_LD, y = x_LD[stretch], y[stretch, stretch]
            features.append(x_LD)
            labels.append(y.reshape(-1, 1) if level == "pair" else np.atleast_2d(y))
        yield collate(features), torch.from_numpy(np.concatenate(labels).astype(np.int64))


def collate(features: Sequence[np.ndarray]) -> FeatureBatch:
    """The features of some proteins as one batch."""
    starts = np.concatenate([[0], np.cumsum([len(one) for one in features])])
    # Converted while it is copied: wide features are read and written as rarely as can be.
    features_TD = torch.empty(int(starts[-1]), features[0].shape[1])
    for start, one in zip(starts, features, strict=False):
        features_TD[start : start + len(one)].copy_(as_tensor(one))
    return FeatureBatch(features_TD, tuple(starts.tolist()))


def check_labels(examples: Examples, number: int, level: Level) -> np.ndarray:
    """The labels of a protein, if their shape is what the level asks for."""
    labels, length = examples.labels[number], len(examples.features[number])
    fits = {
        "residue": labels.ndim == 2 and len(labels) == length,
        "protein": labels.ndim == 1,
        "pair": labels.shape == (length, length),
    }
    if not fits[level]:
        raise InputError(f"protein {number} of {length} residues has labels of shape {labels.shape} per {level}")
    return labels
