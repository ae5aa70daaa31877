"""Lists of variants read, tables of scores written.

In: a text file with a variant per line, or a table with a column `mutant` as ProteinGym's have. Out: `Wanted` variants
with the line each stands on, for what is said about them. Scores go into CSV with ProteinGym's columns `mutant` and
`mutated_sequence`, then `score` and `protein`.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from proteinlm.config import nearest
from proteinlm.datasets.tables import text_lines
from proteinlm.datasets.variants import parse_variant
from proteinlm.errors import InputError
from proteinlm.variants.changes import Variants
from proteinlm.variants.run import VariantScores

COLUMNS = ("mutant", "mutated_sequence", "score", "protein")


@dataclass(frozen=True)
class Wanted:
    """A variant that is to be scored.

    Attributes:
        file, line: where it stands. mutant: as written. protein: id of its protein, or None where the file has none.
    """

    file: str
    line: int
    mutant: str
    protein: str | None

    def fail(self, why: str) -> InputError:
        """The error to raise for this line."""
        return InputError(f"{self.file}, line {self.line}: {why}")


def read_mutations(path: Path) -> list[Wanted]:
    """Variants of a file, in its order.

    Args:
        path: a variant per line (empty lines and lines that begin with # are passed over), or a table, separated by
            commas or tabs, whose header names a column `mutant` and, for several proteins, a column `protein`.

    Raises:
        InputError: the file cannot be read, holds no variant, or a row has too few or too many values.
    """
    lines = [(number, line) for number, line in enumerate(text_lines(path), 1) if line.strip() and line[0] != "#"]
    if not lines:
        raise InputError(f"{path.name} holds no variant; write one per line, like A24G or A24G:K30R")
    separator = "\t" if "\t" in lines[0][1] else ","
    header = [name.strip() for name in next(csv.reader([lines[0][1]], delimiter=separator))]
    if "mutant" in header:
        found = list(_rows(path, lines, header, separator))
    elif len(header) > 1:
        raise InputError(f"{path.name}, line {lines[0][0]}: no column is called mutant, only {', '.join(header)}")
    else:
        found = [Wanted(path.name, number, line.strip(), None) for number, line in lines]
    if not found:
        raise InputError(f"{path.name} holds a header and no variant")
    return found


def _rows(path: Path, lines: list[tuple[int, str]], header: list[str], separator: str) -> Iterator[Wanted]:
    for number, line in lines[1:]:
        values = next(csv.reader([line], delimiter=separator))
        if len(values) != len(header):
            raise InputError(f"{path.name}, line {number}: {len(values)} values under {len(header)} columns")
        row = dict(zip(header, (value.strip() for value in values), strict=True))
        yield Wanted(path.name, number, row["mutant"], row.get("protein"))


def assign(wanted: Iterable[Wanted], proteins: Iterable[str]) -> dict[str, list[Wanted]]:
    """Variants by the id of their protein, every protein present.

    Raises:
        InputError: a protein is unknown, or none is named although there are several.
    """
    found: dict[str, list[Wanted]] = {protein: [] for protein in proteins}
    for item in wanted:
        if item.protein is None and len(found) != 1:
            raise item.fail(f"which of the {len(found)} proteins? Give a table with the columns mutant and protein")
        protein = next(iter(found)) if item.protein is None else item.protein
        if protein not in found:
            close = nearest(protein, found)
            raise item.fail(f"there is no protein {protein!r} in the FASTA file{close}")
        found[protein].append(item)
    return found


def variants_of(wild_type: str, wanted: Iterable[Wanted], offset: int = 0) -> Variants:
    """The variants of a protein, each checked.

    Args:
        wild_type: residues. wanted: its variants. offset: what their positions exceed those of the residues by.

    Raises:
        InputError: one does not fit; the message names file and line.
    """
    mutants = []
    for item in wanted:
        try:
            mutants.append(renumbered(item.mutant, -offset))
            Variants.of(wild_type, mutants[-1:])
        except InputError as error:
            shifted = f" (--offset {offset})" if offset else ""
            raise item.fail(f"{error}{shifted}") from error
    return Variants.of(wild_type, mutants)


def renumbered(mutant: str, by: int) -> str:
    """A variant with other position numbers.

    Raises:
        InputError: it is not well written, or a position falls below 1.

    >>> renumbered("A24G:K30R", -23)
    'A1G:K7R'
    """
    parts = []
    for item in parse_variant(mutant):
        if item.position + by < 1:
            raise InputError(f"{item} would stand at position {item.position + by}; the offset is too large")
        parts.append(f"{item.wild}{item.position + by}{item.mutant}")
    return ":".join(parts)


class ScoreTable:
    """Writes scores as CSV.

    Args:
        file: open for writing, with newline="". offset: added to the positions that are written.

    >>> import io, numpy
    >>> file = io.StringIO()
    >>> found = VariantScores(Variants.of("MKT", ["K2R"]), numpy.array([-1.25]), "wt-marginals", runs=1, windows=False)
    >>> ScoreTable(file).write("protein-1", found)
    >>> file.getvalue().splitlines()
    ['mutant,mutated_sequence,score,protein', 'K2R,MRT,-1.250000,protein-1']
    """

    def __init__(self, file: TextIO, offset: int = 0) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(COLUMNS)
        self._offset = offset

    def write(self, protein: str, scores: VariantScores) -> None:
        """Add the variants of a protein."""
        rows = zip(scores.mutants, scores.variants.sequences(), scores.scores, strict=True)
        for mutant, sequence, score in rows:
            name = renumbered(mutant, self._offset) if self._offset else mutant
            self._writer.writerow((name, sequence, f"{score:.6f}", protein))
