"""Proteins with labels for maps: orthologous group and species, kingdom of life, enzyme class.

In: the data folder. Out: records with residues and labels. Kingdoms and enzyme classes are for maps, not for scores:
close relatives stand on both sides of any random split of them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from proteinlm.datasets.sources import locate
from proteinlm.datasets.tables import Row, read_records

KINGDOMS = ("Archaea", "Bacteria", "Eukaryota", "Viruses")
"""Kingdoms in the order of their class numbers."""

ENZYME_CLASSES = (
    "oxidoreductases",
    "transferases",
    "hydrolases",
    "lyases",
    "isomerases",
    "ligases",
    "translocases",
)
"""Main classes of the Enzyme Commission: number 1 first."""

_EC_NUMBER = re.compile(r"[1-7](\.(n?\d+|-)){0,3}")


@dataclass(frozen=True)
class OrthologousProtein:
    """A protein of Open OrthoBench.

    Attributes:
        id: of the protein. group: its reference orthogroup. species: where it is from. residues: L letters.
    """

    id: str
    group: str
    species: str
    residues: str


@dataclass(frozen=True)
class KingdomProtein:
    """A protein with its kingdom.

    Attributes:
        id: of the protein. kingdom: one of `KINGDOMS`. ec_number: such as `3.1.-.-`, or None. residues: L letters.
        source: the collection that it is from. Kingdoms come from different collections, which a model can tell apart.
    """

    id: str
    kingdom: str
    ec_number: str | None
    residues: str
    source: str

    @property
    def kingdom_class(self) -> int:
        """Number in `KINGDOMS`."""
        return KINGDOMS.index(self.kingdom)

    @property
    def enzyme_class(self) -> int | None:
        """Number in `ENZYME_CLASSES`; None where no EC number is known."""
        return main_class(self.ec_number) if self.ec_number is not None else None


@dataclass(frozen=True)
class Enzyme:
    """EC numbers of a Swiss-Prot entry, whose sequence is in the training corpus.

    Attributes:
        id: accession. ec_numbers: at least one.
    """

    id: str
    ec_numbers: tuple[str, ...]


def main_class(ec_number: str) -> int:
    """Number in `ENZYME_CLASSES` of an EC number.

    >>> ENZYME_CLASSES[main_class("3.1.-.-")]
    'hydrolases'
    """
    return int(ec_number[0]) - 1


def read_orthologs(folder: str | Path | None) -> tuple[OrthologousProtein, ...]:
    """The 1,108 proteins of 45 orthogroups in 12 animals.

    Args:
        folder: the data folder; None for what PROTEINLM_DATA names.

    Raises:
        InputError: the file is missing or has a row that cannot be used.
    """
    return read_records(
        locate(folder, "orthobench"),
        ("refog", "species", "id", "sequence"),
        lambda row: OrthologousProtein(row.text("id"), row.text("refog"), row.text("species"), row.residues()),
    )


def read_kingdoms(folder: str | Path | None) -> tuple[KingdomProtein, ...]:
    """The 11,372 proteins with a kingdom; 2,258 of them with an EC number."""
    return read_records(locate(folder, "kingdom"), ("id", "kingdom", "ec", "source", "sequence"), _kingdom_protein)


def read_enzymes(folder: str | Path | None) -> tuple[Enzyme, ...]:
    """The 113,146 Swiss-Prot entries with EC numbers, without sequences."""
    return read_records(locate(folder, "swissprot_ec"), ("accession", "ec_numbers"), _enzyme)


def _kingdom_protein(row: Row) -> KingdomProtein:
    ec_number = row.optional("ec")
    return KingdomProtein(
        id=row.text("id"),
        kingdom=row.one_of("kingdom", KINGDOMS),
        ec_number=_checked(row, ec_number) if ec_number is not None else None,
        residues=row.residues(),
        source=row.text("source"),
    )


def _enzyme(row: Row) -> Enzyme:
    return Enzyme(row.text("accession"), tuple(_checked(row, part) for part in row.text("ec_numbers").split(";")))


def _checked(row: Row, ec_number: str) -> str:
    if _EC_NUMBER.fullmatch(ec_number) is None:
        raise row.fail(f"EC number {ec_number!r} must be written like 3.1.21.4 or 3.1.-.-")
    return ec_number
