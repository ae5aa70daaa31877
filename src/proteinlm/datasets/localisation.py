"""DeepLoc: where in the cell a protein is, and whether it sits in a membrane.

In: the data folder. Out: proteins with one of ten locations and a membrane label. The class order is that of ProtTrans'
released heads. Training labels of the membrane are weak: taken from GO annotations, not from DeepLoc.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from proteinlm.datasets.sources import locate
from proteinlm.datasets.tables import Row, read_records, remove_shared

LOCATIONS = (
    "Cell.membrane",
    "Cytoplasm",
    "Endoplasmic.reticulum",
    "Golgi.apparatus",
    "Lysosome/Vacuole",
    "Mitochondrion",
    "Nucleus",
    "Peroxisome",
    "Plastid",
    "Extracellular",
)
"""The ten locations of Q10 in the order of their class numbers (papers.md 7.1, from bio_embeddings)."""

TWO_LOCATIONS = "Cytoplasm-Nucleus"
"""Proteins of two places: they have no class in Q10."""

MEMBRANE_CLASSES = {"S": 0, "s": 0, "M": 1, "m": 1}
"""Q2: soluble 0, membrane 1. Capital letters are DeepLoc's labels, small ones weak labels from GO."""

MEMBRANE_LABELS = (*MEMBRANE_CLASSES, "U", "?")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LocalisedProtein:
    """A protein of DeepLoc.

    Attributes:
        id: UniProt accession. split: `train`, `val` or `test`. location: one of `LOCATIONS`, or `TWO_LOCATIONS`.
        membrane: `M` membrane, `S` soluble, `U` unknown in DeepLoc; `m`, `s` weak labels; `?` no label.
        residues: L letters. source: where the sequence is from.
    """

    id: str
    split: str
    location: str
    membrane: str
    residues: str
    source: str

    @property
    def location_class(self) -> int | None:
        """Number in `LOCATIONS`; None for proteins of two places, which Q10 leaves out."""
        return LOCATIONS.index(self.location) if self.location in LOCATIONS else None

    @property
    def membrane_class(self) -> int | None:
        """0 soluble, 1 membrane; None where it is not known, which Q2 leaves out."""
        return MEMBRANE_CLASSES.get(self.membrane)

    @property
    def membrane_is_weak(self) -> bool:
        """Whether the membrane label comes from GO annotations."""
        return self.membrane.islower()


@dataclass(frozen=True)
class LocalisationSplits:
    """What to train and score on.

    Attributes:
        train: training proteins. test: the validation proteins, which serve as the test set here.
        removed: training proteins left out, because the test set holds the same sequence.
    """

    train: tuple[LocalisedProtein, ...]
    test: tuple[LocalisedProtein, ...]
    removed: tuple[LocalisedProtein, ...]


def read_deeploc(folder: str | Path | None) -> tuple[LocalisedProtein, ...]:
    """DeepLoc's 8,758 training and 1,678 validation proteins.

    Args:
        folder: the data folder; None for what PROTEINLM_DATA names.

    Raises:
        InputError: the file is missing or has a row that cannot be used.
    """
    columns = ("accession", "split", "location", "membrane", "sequence_source", "sequence")
    return read_records(locate(folder, "deeploc"), columns, _protein)


def localisation_splits(folder: str | Path | None) -> LocalisationSplits:
    """Training and test proteins without the sequences that both hold; labels are left as they are."""
    proteins = read_deeploc(folder)
    test = tuple(protein for protein in proteins if protein.split != "train")
    train, removed = remove_shared((protein for protein in proteins if protein.split == "train"), test)
    return LocalisationSplits(train, test, removed)


def for_q10(proteins: Iterable[LocalisedProtein]) -> tuple[LocalisedProtein, ...]:
    """Those with one of the ten locations."""
    return tuple(protein for protein in proteins if protein.location_class is not None)


def for_q2(proteins: Iterable[LocalisedProtein]) -> tuple[LocalisedProtein, ...]:
    """Those known to be soluble or in a membrane, weak labels included."""
    return tuple(protein for protein in proteins if protein.membrane_class is not None)


def _protein(row: Row) -> LocalisedProtein:
    return LocalisedProtein(
        id=row.text("accession"),
        split=row.one_of("split", SPLITS),
        location=row.one_of("location", (*LOCATIONS, TWO_LOCATIONS)),
        membrane=row.one_of("membrane", MEMBRANE_LABELS),
        residues=row.residues(),
        source=row.text("sequence_source"),
    )
