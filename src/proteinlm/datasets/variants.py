"""Deep mutational scans: variants of a wild type with measured effects.

In: the data folder. Out: assays whose every variant has been checked against its wild type. A variant is written
`A24G:K30R`: wild-type residue, position from 1, residue instead; `*` is a stop. Higher scores are fitter.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from proteinlm.datasets.sources import locate
from proteinlm.datasets.tables import RESIDUES, Row, read_rows, text_lines
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import STANDARD

STOP = "*"

_SUBSTITUTION = re.compile(rf"([{''.join(sorted(RESIDUES))}])([1-9]\d*)([{STANDARD}*])")


@dataclass(frozen=True)
class Substitution:
    """One residue instead of another.

    Attributes:
        wild: residue of the wild type. position: from 1. mutant: residue instead, or `*`.
    """

    wild: str
    position: int
    mutant: str

    def __str__(self) -> str:
        return f"{self.wild}{self.position}{self.mutant}"


@dataclass(frozen=True, eq=False)
class Assay:
    """A deep mutational scan.

    Attributes:
        name: of the assay. wild_type: its sequence, L residues. mutants: N variants as written.
        scores: N numbers for each column, NaN where a variant was not measured; the first column is the main one.
        source, note: where it is from, and what to know about it.
    """

    name: str
    wild_type: str
    mutants: tuple[str, ...]
    scores: Mapping[str, Float64[np.ndarray, " N"]]
    source: str
    note: str

    def __len__(self) -> int:
        return len(self.mutants)

    @property
    def main_score(self) -> str:
        """Name of the first score column."""
        return next(iter(self.scores))

    def substitutions(self) -> tuple[tuple[Substitution, ...], ...]:
        """The substitutions of every variant."""
        return tuple(parse_variant(mutant) for mutant in self.mutants)

    def num_substitutions(self) -> Int64[np.ndarray, " N"]:
        """How many residues each variant changes."""
        return np.array([mutant.count(":") + 1 for mutant in self.mutants], np.int64)

    def has_stop(self) -> Bool[np.ndarray, " N"]:
        """Which variants hold a stop: a language model has no score for them."""
        return np.array([STOP in mutant for mutant in self.mutants], bool)

    def select(self, chosen: Bool[np.ndarray, " N"]) -> "Assay":
        """The assay with the chosen variants only."""
        mutants = tuple(mutant for mutant, keep in zip(self.mutants, chosen, strict=True) if keep)
        scores = {name: values[chosen] for name, values in self.scores.items()}
        return Assay(self.name, self.wild_type, mutants, scores, self.source, self.note)

    def without_stops(self) -> "Assay":
        """The assay without the variants that hold a stop."""
        return self.select(~self.has_stop())


def parse_variant(text: str) -> tuple[Substitution, ...]:
    """The substitutions of a variant, in the order written.

    Raises:
        InputError: it is not written like `A24G:K30R`, or names a position twice.

    >>> parse_variant("A24G:K30R")[1]
    Substitution(wild='K', position=30, mutant='R')
    """
    found = []
    for part in text.split(":"):
        match = _SUBSTITUTION.fullmatch(part)
        if match is None:
            raise InputError(
                f"variant {text!r}: {part!r} is not a substitution; write it like A24G, several as A24G:K30R"
            )
        found.append(Substitution(match[1], int(match[2]), match[3]))
    if len({item.position for item in found}) < len(found):
        raise InputError(f"variant {text!r} names a position twice; write each once")
    return tuple(found)


def check_variant(substitutions: Iterable[Substitution], wild_type: str) -> None:
    """Refuse substitutions that do not fit the wild type.

    Raises:
        InputError: a position lies beyond its end, or holds another residue than the substitution says.

    >>> check_variant(parse_variant("K2R"), "MA")
    Traceback (most recent call last):
    ...
    proteinlm.errors.InputError: K2R does not fit the wild type, which has A at position 2; is the numbering shifted?
    """
    for item in substitutions:
        if item.position > len(wild_type):
            raise InputError(f"{item} lies beyond the wild type, which has {len(wild_type)} residues")
        if (found := wild_type[item.position - 1]) != item.wild:
            raise InputError(
                f"{item} does not fit the wild type, which has {found} at position {item.position}; "
                "is the numbering shifted?"
            )


def mutate(wild_type: str, variant: str) -> str:
    """The sequence of a variant; `*` is put where a stop is.

    Raises:
        InputError: the variant is not well written or does not fit.

    >>> mutate("MKTA", "K2R:A4G")
    'MRTG'
    """
    substitutions = parse_variant(variant)
    check_variant(substitutions, wild_type)
    residues = list(wild_type)
    for item in substitutions:
        residues[item.position - 1] = item.mutant
    return "".join(residues)


def assay_names(folder: str | Path | None) -> tuple[str, ...]:
    """Names of the assays, in the order of the index."""
    return tuple(row.text("name") for row in read_rows(locate(folder, "dms") / "index.tsv", ("name",)))


def read_assay(folder: str | Path | None, name: str) -> Assay:
    """One assay by its name.

    Args:
        folder: the data folder; None for what PROTEINLM_DATA names. name: one of `assay_names`.

    Raises:
        InputError: there is no such assay, a file is missing, or a variant cannot be used.
    """
    path = locate(folder, "dms")
    columns = ("name", "wt_len", "n_variants", "score_columns", "source", "note")
    rows = {row.text("name"): row for row in read_rows(path / "index.tsv", columns)}
    if name not in rows:
        raise InputError(f"assay {name!r} is unknown; there are {', '.join(rows)}")
    wild_types = _wild_types(path / "wildtypes.fasta")
    if name not in wild_types:
        raise InputError(f"wildtypes.fasta has no record {name!r}; add the wild type of that assay")
    row, wild_type = rows[name], wild_types[name]
    if len(wild_type) != row.integer("wt_len"):
        raise row.fail(f"wt_len is {row.integer('wt_len')}, but the wild type has {len(wild_type)} residues")
    mutants, scores = _read_variants(path / f"{name}.tsv.gz", row.text("score_columns").split(";"), wild_type)
    if len(mutants) != row.integer("n_variants"):
        raise row.fail(f"n_variants is {row.integer('n_variants')}, but {name}.tsv.gz has {len(mutants)}")
    return Assay(name, wild_type, mutants, scores, row.text("source"), row.values["note"])


def read_assays(folder: str | Path | None) -> tuple[Assay, ...]:
    """All assays, in the order of the index."""
    return tuple(read_assay(folder, name) for name in assay_names(folder))


def _read_variants(
    path: Path, score_columns: Sequence[str], wild_type: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Variants and scores of a table, each variant checked."""
    if not path.exists():
        raise InputError(
            f"missing file: {path.name} in {str(path.parent)!r}, which index.tsv lists; get the assays again"
        )
    mutants: dict[str, int] = {}
    scores: dict[str, list[float]] = {column: [] for column in score_columns}
    for row in read_rows(path, ("mutant", "n_mut", *score_columns)):
        mutant = _variant(row, wild_type)
        if mutant in mutants:
            raise row.fail(f"variant {mutant} stands on line {mutants[mutant]} already")
        mutants[mutant] = row.line
        for column, values in scores.items():
            values.append(row.number(column))
    return tuple(mutants), {column: np.array(values, np.float64) for column, values in scores.items()}


def _variant(row: Row, wild_type: str) -> str:
    mutant = row.text("mutant")
    try:
        substitutions = parse_variant(mutant)
        check_variant(substitutions, wild_type)
    except InputError as error:
        raise row.fail(str(error)) from error
    if len(substitutions) != row.integer("n_mut"):
        raise row.fail(f"n_mut is {row.integer('n_mut')}, but {mutant} has {len(substitutions)} substitutions")
    return mutant


def _wild_types(path: Path) -> dict[str, str]:
    """Sequences of a small FASTA file by their ids."""
    if not path.exists():
        raise InputError(f"missing file: {path.name} in {str(path.parent)!r}; get the assays again")
    found: dict[str, list[str]] = {}
    name = ""
    for line in text_lines(path):
        if line.startswith(">"):
            name = line[1:].split()[0]
            if name in found:
                raise InputError(f"{path.name} holds {name!r} twice; ids must be unique")
            found[name] = []
        elif name:
            found[name].append(line.strip())
    return {name: "".join(parts) for name, parts in found.items()}
