"""Conservation: how much each residue of a chain may vary in evolution, in nine classes.

In: the data folder. Out: chains of ConSurf-DB with a class for each residue, 1 the most variable, 9 the most conserved.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from proteinlm.datasets.secondary_structure import class_numbers
from proteinlm.datasets.sources import locate
from proteinlm.datasets.tables import Row, read_records, remove_shared
from proteinlm.errors import InputError

CONSERVATION = "123456789"
"""ConSurf's grades in the order of their class numbers."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ConservationChain:
    """A chain with a grade for each residue.

    Attributes:
        id: PDB entry and chain. split: `train`, `val` or `test`. residues: L letters. conservation: L digits, 1-9.
    """

    id: str
    split: str
    residues: str
    conservation: str

    def classes(self) -> Int8[np.ndarray, " L"]:
        """Class of each residue, 0 (most variable) to 8 (most conserved).

        >>> ConservationChain("a", "train", "MKT", "195").classes().tolist()
        [0, 8, 4]
        """
        return class_numbers(self.conservation, CONSERVATION)


def read_conservation(folder: str | Path | None) -> tuple[ConservationChain, ...]:
    """The 9,947 chains, training and validation.

    Args:
        folder: the data folder; None for what PROTEINLM_DATA names.

    Raises:
        InputError: the file is missing, has a row that cannot be used, or a sequence on both sides of the split.
    """
    path = locate(folder, "conservation")
    chains = read_records(path, ("chain", "split", "sequence", "conservation_1_9"), _chain)
    train = (chain for chain in chains if chain.split == "train")
    if shared := remove_shared(train, (chain for chain in chains if chain.split != "train"))[1]:
        raise InputError(f"{path.name}: {shared[0].id} is a training chain, and its sequence is held out too")
    return chains


def _chain(row: Row) -> ConservationChain:
    residues = row.residues()
    return ConservationChain(
        id=row.text("chain"),
        split=row.one_of("split", SPLITS),
        residues=residues,
        conservation=row.labels("conservation_1_9", CONSERVATION, len(residues)),
    )
