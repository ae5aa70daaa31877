"""Secondary structure: NetSurfP-2.0's training and validation chains, and CB513 to test on.

In: the data folder. Out: chains with three and eight states per residue and a mask. A residue counts only where the
mask is 1; eight states are known for a part of NetSurfP's residues. Class orders are those of ProtTrans'
released heads.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int8

from proteinlm.datasets.sources import locate
from proteinlm.datasets.tables import Row, read_records, remove_shared
from proteinlm.errors import InputError

SS3 = "HEC"
"""Three states in the order of their class numbers: helix, strand, other (papers.md 7.1, from bio_embeddings)."""

SS8 = "GHIBESTC"
"""DSSP's eight states in the order of their class numbers; C is coil, which DSSP leaves blank."""

SS3_OF_SS8 = {"G": "H", "H": "H", "I": "H", "B": "E", "E": "E", "S": "C", "T": "C", "C": "C"}
"""NetSurfP's reduction of eight states to three."""

UNKNOWN = -1
"""Class of a residue whose state is not known or masked out."""

COLUMNS = ("chain", "split", "sequence", "ss3", "mask", "ss8")
SPLITS = ("train", "val", "CB513")

MOST_DISAGREEMENT = 0.01
"""Largest share of residues whose ss3 is not that of their ss8. NetSurfP's own tables have 0.3 %, CB513 none."""


@dataclass(frozen=True)
class SecondaryStructureChain:
    """A chain with a state for each residue.

    Attributes:
        id: PDB entry and chain, or the number in CB513. split: `train`, `val` or `CB513`. residues: L letters.
        ss3: L of H, E, C. ss8: L of DSSP's letters, `.` where unknown. mask: L of `0` and `1`; 1 counts.
    """

    id: str
    split: str
    residues: str
    ss3: str
    ss8: str
    mask: str

    @property
    def counted(self) -> Bool[np.ndarray, " L"]:
        """Where the mask is 1."""
        return np.frombuffer(self.mask.encode("ascii"), np.uint8) == ord("1")

    def ss3_classes(self) -> Int8[np.ndarray, " L"]:
        """Class in `SS3` of each residue, -1 where it does not count.

        >>> SecondaryStructureChain("a", "train", "MKT", "HEC", "HE.", "011").ss3_classes().tolist()
        [-1, 1, 2]
        """
        return np.where(self.counted, class_numbers(self.ss3, SS3), np.int8(UNKNOWN))

    def ss8_classes(self) -> Int8[np.ndarray, " L"]:
        """Class in `SS8` of each residue, -1 where it does not count or is not known.

        >>> SecondaryStructureChain("a", "train", "MKT", "HEC", "HE.", "011").ss8_classes().tolist()
        [-1, 4, -1]
        """
        return np.where(self.counted, class_numbers(self.ss8, SS8), np.int8(UNKNOWN))


@dataclass(frozen=True)
class SecondaryStructureSplits:
    """What to train, choose and test on.

    Attributes:
        train, validation: NetSurfP-2.0. test: CB513. removed: chains left out of train and validation, because CB513
            holds the same sequence.
    """

    train: tuple[SecondaryStructureChain, ...]
    validation: tuple[SecondaryStructureChain, ...]
    test: tuple[SecondaryStructureChain, ...]
    removed: tuple[SecondaryStructureChain, ...]


def class_numbers(letters: str, order: str) -> Int8[np.ndarray, " L"]:
    """The place of each letter in `order`; -1 for a letter that is not in it.

    >>> class_numbers("HC.E", SS3).tolist()
    [0, 2, -1, 1]
    """
    table = np.full(256, UNKNOWN, np.int8)
    table[np.frombuffer(order.encode("ascii"), np.uint8)] = np.arange(len(order))
    return table[np.frombuffer(letters.encode("latin-1"), np.uint8)]


def three_states(ss8: str) -> str:
    """Eight states reduced to three; `.` (unknown) stays.

    Raises:
        InputError: a letter is none of DSSP's eight.

    >>> three_states("GHIBESTC.")
    'HHHEECCC.'
    """
    table = SS3_OF_SS8 | {".": "."}
    if strange := set(ss8) - set(table):
        raise InputError(f"{min(strange)!r} is none of the eight states {SS8}")
    return "".join(table[letter] for letter in ss8)


def read_netsurfp(folder: str | Path | None) -> tuple[SecondaryStructureChain, ...]:
    """NetSurfP-2.0's 10,792 chains, training and validation.

    Args:
        folder: the data folder; None for what PROTEINLM_DATA names.

    Raises:
        InputError: the file is missing or has a row that cannot be used.
    """
    return _read(folder, "netsurfp")


def read_cb513(folder: str | Path | None) -> tuple[SecondaryStructureChain, ...]:
    """CB513's 511 chains: a test set. Some chains stand there several times, with masks for different domains."""
    return _read(folder, "cb513")


def secondary_structure_splits(folder: str | Path | None) -> SecondaryStructureSplits:
    """NetSurfP-2.0 to train and choose on, CB513 to test on, without the sequences that both hold."""
    test = read_cb513(folder)
    kept, removed = remove_shared(read_netsurfp(folder), test)
    train = tuple(chain for chain in kept if chain.split == "train")
    validation = tuple(chain for chain in kept if chain.split == "val")
    if shared := remove_shared(train, validation)[1]:
        raise InputError(f"{shared[0].id} is a training chain, and its sequence is in the validation set too")
    return SecondaryStructureSplits(train, validation, test, removed)


def disagreement(chains: Iterable[SecondaryStructureChain]) -> tuple[int, int]:
    """Residues whose ss3 is not that of their known ss8, and residues whose ss8 is known."""
    different = known = 0
    for chain in chains:
        both = np.array([chain.ss3.encode("ascii"), three_states(chain.ss8).encode("ascii")])
        given, derived = (np.frombuffer(row.tobytes(), np.uint8) for row in both)
        has_ss8 = derived != ord(".")
        known += int(has_ss8.sum())
        different += int((given != derived)[has_ss8].sum())
    return different, known


def check_agreement(chains: Sequence[SecondaryStructureChain], what: str) -> None:
    """Refuse a set whose three states are not the reduction of its eight, by more than `MOST_DISAGREEMENT`."""
    different, known = disagreement(chains)
    if different > MOST_DISAGREEMENT * known:
        raise InputError(
            f"{what}: ss3 is not that of ss8 at {different:,} of {known:,} residues (at most {MOST_DISAGREEMENT:.0%} "
            "may differ); are the columns mixed up?"
        )


def _read(folder: str | Path | None, key: str) -> tuple[SecondaryStructureChain, ...]:
    path = locate(folder, key)
    chains = read_records(path, COLUMNS, _chain)
    check_agreement(chains, path.name)
    return chains


def _chain(row: Row) -> SecondaryStructureChain:
    residues = row.residues()
    length = len(residues)
    return SecondaryStructureChain(
        id=row.text("chain"),
        split=row.one_of("split", SPLITS),
        residues=residues,
        ss3=row.labels("ss3", SS3, length),
        ss8=row.labels("ss8", SS8 + ".", length),
        mask=row.labels("mask", "01", length),
    )
