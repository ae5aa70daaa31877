"""Homology-aware splitting: folds for cross-validation that hold relatives together.

In: for every record the keys that it must not share with a record of another fold (a cluster, a family, a fold of SCOP
or CATH, several of them). Out: a fold for every record, seeded and balanced, and a check that does not rely on how the
folds were made. Records that share a key, directly or through others, form one group, and a group is never divided.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from proteinlm.datasets.chains import PdbChain
from proteinlm.datasets.hierarchy import cath_level, is_cath, is_scop, scop_level
from proteinlm.errors import InputError

Keys = Sequence[Sequence[str]]
"""For every record the keys that it has; none for a record that is related to no other."""


@dataclass(frozen=True, eq=False)
class Folds:
    """A division of N records.

    Attributes:
        of_record: (N,) fold of each, from 0. num_folds: how many there are. groups: (N,) group of each.
    """

    of_record: Int64[np.ndarray, " N"]
    num_folds: int
    groups: Int64[np.ndarray, " N"]

    def test(self, fold: int) -> Bool[np.ndarray, " N"]:
        """Which records are tested on in this fold."""
        return self.of_record == fold

    def train(self, fold: int) -> Bool[np.ndarray, " N"]:
        """Which records are trained on in this fold."""
        return self.of_record != fold

    def sizes(self) -> Int64[np.ndarray, " K"]:
        """Records in each fold."""
        return np.bincount(self.of_record, minlength=self.num_folds)


def linked_groups(keys: Keys) -> Int64[np.ndarray, " N"]:
    """Number the groups of records that share keys, directly or through others, in the order of their first records.

    >>> linked_groups([["a"], ["b"], ["a", "c"], ["c"], []]).tolist()
    [0, 1, 0, 0, 2]
    """
    parents = list(range(len(keys)))

    def root(record: int) -> int:
        while parents[record] != record:
            parents[record] = parents[parents[record]]
            record = parents[record]
        return record

    first: dict[str, int] = {}
    for record, names in enumerate(keys):
        for name in names:
            one, other = root(first.setdefault(name, record)), root(record)
            parents[max(one, other)] = min(one, other)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(record), len(numbers)) for record in range(len(keys))], np.int64)


def split_folds(keys: Keys, num_folds: int = 5, seed: int = 0, weights: Sequence[float] | None = None) -> Folds:
    """Divide records into folds that share no key.

    The largest groups are dealt out first, each to the fold that weighs least, ties by chance; so folds are as equal as
    the groups allow, and the same seed gives the same folds.

    Args:
        keys: of each record. num_folds: two or more. seed: of the order of equal groups.
        weights: what a record counts for in balancing (its residues, say); 1 for each if None.

    Raises:
        InputError: there are fewer groups than folds, or fewer than two folds.

    >>> split_folds([["a"], ["a"], ["b"], ["c"]], num_folds=2).sizes().tolist()
    [2, 2]
    """
    if num_folds < 2:
        raise InputError(f"{num_folds} folds are no split; ask for two or more")
    groups = linked_groups(keys)
    weight_of_record = np.ones(len(keys)) if weights is None else np.asarray(weights, np.float64)
    weight_of_group = np.bincount(groups, weight_of_record) if len(groups) else np.empty(0)
    if len(weight_of_group) < num_folds:
        raise InputError(
            f"{len(keys)} records are {len(weight_of_group)} groups of relatives, too few for {num_folds} folds; ask "
            "for fewer folds, or split at a lower level"
        )
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(weight_of_group))
    order = shuffled[np.argsort(-weight_of_group[shuffled], kind="stable")]
    # Which fold is the first among equals must not always be the same one.
    names = generator.permutation(num_folds)
    load = np.zeros(num_folds)
    fold_of_group = np.empty(len(weight_of_group), np.int64)
    for group in order:
        lightest = int(np.argmin(load))
        fold_of_group[group] = names[lightest]
        load[lightest] += weight_of_group[group]
    folds = Folds(fold_of_group[groups], num_folds, groups)
    check_folds(folds.of_record, keys)
    return folds


def check_folds(of_record: Sequence[int] | np.ndarray, keys: Keys) -> None:
    """Refuse folds that share a key; also for a split that was made elsewhere.

    Args:
        of_record: fold of each record. keys: of each record.

    Raises:
        InputError: the first key that is in two folds.

    >>> check_folds([0, 1], [["c.2"], ["c.2"]])
    Traceback (most recent call last):
    ...
    proteinlm.errors.InputError: 'c.2' is in fold 0 (record 1) and in fold 1 (record 2)
    """
    seen: dict[str, int] = {}
    for record, names in enumerate(keys):
        for name in names:
            first = seen.setdefault(name, record)
            if of_record[first] != of_record[record]:
                raise InputError(
                    f"{name!r} is in fold {of_record[first]} (record {first + 1}) and in fold {of_record[record]} "
                    f"(record {record + 1})"
                )


def level_key(code: str, level: str) -> str:
    """The part of a SCOP or CATH code that names a level, whichever of the two it is.

    Raises:
        InputError: it is neither, or its classification has no such level.

    >>> level_key("c.2.1.3", "superfamily"), level_key("3.40.50.720", "fold")
    ('c.2.1', '3.40.50')
    """
    if is_scop(code):
        return scop_level(code, level)
    if is_cath(code):
        return cath_level(code, level)
    raise InputError(f"{code!r} is no full SCOP code (c.2.1.3) and no full CATH code (3.40.50.720)")


def structural_folds(chains: Sequence[PdbChain], level: str, num_folds: int = 5, seed: int = 0) -> Folds:
    """Folds of PDB chains that share no family, superfamily or fold (Rives et al. 2021, Table 3, with other data).

    Args:
        chains: to divide; take those with a classification only, for a chain without one may be related to any other.
        level: `family`, `superfamily` or `fold`. num_folds, seed: as `split_folds`.
    """
    return split_folds([chain.keys(level) for chain in chains], num_folds, seed)
