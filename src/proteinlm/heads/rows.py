"""Rows of features with labels, block by block: what linear estimators are fitted on.

In: blocks that can be gone through again and again, e.g. slices of a memory-mapped fp16 cache, so that features need
not fit in memory. Out: their labels, groups and moments from one pass, and in later passes centred fp32 chunks.

Shape letters in `heads`: N rows (residues or proteins), D features, K classes; T residues of a batch, L residues of a
protein, B proteins, M tasks, C channels.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proteinlm.errors import InputError

CHUNK_BYTES = 2**24
"""Size of an fp32 chunk: what two matrix products read one after the other should still lie in the cache."""

UNLABELLED = -1
"""Rows of this label are left out: nothing is known of them (missing density, masked residues, unknown class)."""


@dataclass(frozen=True)
class Block:
    """Rows of features, and what is known of them.

    Args:
        features_ND: fp16, fp32 or fp64, shape (N, D); may be memory-mapped.
        targets_N: the class of each row, 0 to K - 1, or `UNLABELLED`, shape (N,); for regression floats, NaN where
            unknown, shape (N, M).
        groups_N: the protein or cluster of each row, any integers, shape (N,). Rows of one group are never parted
            between fitting and choosing.
    """

    features_ND: np.ndarray
    targets_N: np.ndarray
    groups_N: np.ndarray


@dataclass
class Survey:
    """What one pass over the blocks tells.

    Attributes:
        targets_N, groups_N: of all rows that have a label, in order.
        mean_D, scale_D: float64 mean and standard deviation of each feature; the scale of a constant one is 1.
    """

    targets_N: np.ndarray
    groups_N: np.ndarray
    mean_D: Tensor
    scale_D: Tensor

    @property
    def rows(self) -> int:
        """How many rows have a label."""
        return len(self.targets_N)


def survey(blocks: Iterable[Block]) -> Survey:
    """Labels, groups and moments of all labelled rows, in one pass.

    Raises:
        InputError: blocks that can be gone through only once, shapes that do not fit, features that are not finite, or
            no labelled rows.

    >>> block = Block(np.array([[1.0, 5.0], [3.0, 5.0], [9.0, 9.0]]), np.array([0, 1, -1]), np.array([7, 7, 8]))
    >>> found = survey([block])
    >>> found.rows, found.mean_D.tolist(), found.scale_D.tolist()
    (2, [2.0, 5.0], [1.0, 1.0])
    """
    if iter(blocks) is blocks:
        raise InputError(
            "the blocks are an iterator, which ends after one pass; give a list, or an object with __iter__"
        )
    targets, groups = [], []
    count, mean_D, squares_D = 0, torch.zeros(()), torch.zeros(())
    for block in blocks:
        kept = labelled(block)
        targets.append(block.targets_N[kept])
        groups.append(block.groups_N[kept])
        for chunk_ND in _chunks(block):
            variance_D, chunk_mean_D = torch.var_mean(chunk_ND.double(), 0, correction=0)
            new, delta_D = len(chunk_ND), chunk_mean_D - mean_D
            # Chan's rule for joining the moments of two parts.
            squares_D = squares_D + variance_D * new + delta_D**2 * (count * new / (count + new))
            mean_D = mean_D + delta_D * (new / (count + new))
            count += new
    if not count:
        raise InputError("no row has a label; a head cannot be fitted on nothing")
    if not bool(torch.isfinite(squares_D).all()):
        raise InputError(f"feature {int(torch.isfinite(squares_D).int().argmin())} is not finite in some row")
    scale_D = (squares_D / count).sqrt()
    # Below this a feature differs from a constant by rounding alone.
    constant_D = scale_D <= 1e-6 * mean_D.abs()
    return Survey(np.concatenate(targets), np.concatenate(groups), mean_D, scale_D.masked_fill(constant_D, 1.0))


def labelled(block: Block) -> np.ndarray:
    """Which rows of a block count, bool, shape (N,).

    Raises:
        InputError: the shapes do not fit.
    """
    rows = len(block.features_ND)
    if block.features_ND.ndim != 2 or len(block.targets_N) != rows or block.groups_N.shape != (rows,):
        raise InputError(
            f"features of shape {block.features_ND.shape}, labels of shape {block.targets_N.shape} and groups of shape "
            f"{block.groups_N.shape}; one label and one group per row are needed"
        )
    if block.targets_N.dtype.kind == "f":
        finite: np.ndarray = np.isfinite(block.targets_N).reshape(rows, -1).all(1)
        return finite
    known: np.ndarray = block.targets_N != UNLABELLED
    return known


def centred(blocks: Iterable[Block], mean_D: Tensor) -> Iterator[Tensor]:
    """The labelled rows in order, fp32 and minus the mean, some thousand at a time.

    Raises:
        InputError: the width is another one than that of the mean.
    """
    mean_D = mean_D.float()
    for block in blocks:
        for chunk_ND in _chunks(block):
            if chunk_ND.shape[1] != len(mean_D):
                raise InputError(f"a block has {chunk_ND.shape[1]} features, others have {len(mean_D)}")
            yield chunk_ND.sub_(mean_D)


def _chunks(block: Block) -> Iterator[Tensor]:
    """The labelled rows of a block, copied to fp32."""
    known_N = labelled(block)
    rows = max(64, CHUNK_BYTES // (4 * max(1, block.features_ND.shape[1])))
    for start in range(0, len(known_N), rows):
        known = known_N[start : start + rows]
        part_ND = block.features_ND[start : start + rows]
        if known.any():
            yield as_tensor(part_ND if known.all() else part_ND[known]).to(torch.float32, copy=True)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares memory with an array, which is only read from."""
    with warnings.catch_warnings():
        # A memory map that was opened for reading alone is what we want here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def folds_of(groups_N: np.ndarray, folds: int, random: np.random.Generator) -> np.ndarray:
    """A fold for each row: whole groups, in random order, each to the fold that has the fewest rows so far.

    Args:
        groups_N: group of each row, shape (N,). folds: how many. random: where the order comes from.

    Returns:
        int64, shape (N,), 0 to folds - 1.

    Raises:
        InputError: fewer groups than folds.

    >>> folds_of(np.array([4, 4, 9, 9, 5, 5]), 3, np.random.default_rng(0)).tolist()
    [1, 1, 0, 0, 2, 2]
    """
    _, number_N, rows_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    if len(rows_G) < folds:
        raise InputError(f"{len(rows_G)} groups cannot be parted into {folds} folds; give more groups or fewer folds")
    fold_G, filled = np.zeros(len(rows_G), np.int64), np.zeros(folds)
    for group in random.permutation(len(rows_G)):
        fold_G[group] = filled.argmin()
        filled[fold_G[group]] += rows_G[group]
    return fold_G[number_N]


def sample_of(groups_N: np.ndarray, rows: int, random: np.random.Generator) -> np.ndarray:
    """Whole groups, drawn at random until at least `rows` rows are in; all of them where there are no more.

    Returns:
        bool, shape (N,).

    >>> int(sample_of(np.array([4, 4, 9, 9, 5, 5]), 3, np.random.default_rng(0)).sum())
    4
    """
    _, number_N, rows_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    order = random.permutation(len(rows_G))
    before = np.cumsum(rows_G[order]) - rows_G[order]
    taken_G = np.zeros(len(rows_G), bool)
    taken_G[order[before < rows]] = True
    return taken_G[number_N]
