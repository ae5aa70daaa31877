"""Tables of labelled data: read line by line, every value checked, every complaint with its file and line.

In: a tab-separated file with a header row, plain or compressed. Out: frozen records that the caller's function makes of
each row. Nothing is skipped: a row that cannot be used ends the reading with one line that says why.
"""

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from proteinlm.errors import InputError
from proteinlm.sequences.source import DAMAGE_ERRORS, Tap, decompressed

RESIDUES = frozenset("ACDEFGHIKLMNPQRSTVWYXBUZOJ")
"""Letters that a published sequence may hold: the twenty, and X B U Z O J."""


class Identified(Protocol):
    """Anything that has an id."""

    @property
    def id(self) -> str:
        """What it is called."""


class Sequenced(Protocol):
    """Anything that has an id and residues."""

    @property
    def id(self) -> str:
        """What it is called."""

    @property
    def residues(self) -> str:
        """Its sequence."""


Made = TypeVar("Made", bound=Identified)
Kept = TypeVar("Kept", bound=Sequenced)


@dataclass(frozen=True)
class Row:
    """One row of a table, whose values are checked as they are taken.

    Attributes:
        file: name of the file. line: its line, from 1. values: the text of each column.
    """

    file: str
    line: int
    values: dict[str, str]

    def fail(self, why: str) -> InputError:
        """The error to raise for this row."""
        return InputError(f"{self.file}, line {self.line}: {why}")

    def text(self, column: str) -> str:
        """The value, which must not be empty."""
        value = self.values[column]
        if not value:
            raise self.fail(f"column {column!r} is empty; give a value or remove the row")
        return value

    def optional(self, column: str) -> str | None:
        """The value, None where it is empty."""
        return self.values[column] or None

    def one_of(self, column: str, allowed: Iterable[str]) -> str:
        """The value, which must be one of those allowed."""
        value = self.values[column]
        if value not in allowed:
            raise self.fail(f"{column} is {value!r}; it must be one of {', '.join(sorted(allowed))}")
        return value

    def integer(self, column: str) -> int:
        """The value as a whole number."""
        try:
            return int(self.values[column])
        except ValueError as error:
            raise self.fail(f"{column} is {self.values[column]!r}; it must be a whole number") from error

    def number(self, column: str) -> float:
        """The value as a finite number; NaN where it is empty."""
        text = self.values[column]
        try:
            value = float(text) if text else math.nan
        except ValueError as error:
            raise self.fail(f"{column} is {text!r}; it must be a number") from error
        if text and not math.isfinite(value):
            raise self.fail(f"{column} is {text!r}; it must be finite, or empty where it was not measured")
        return value

    def residues(self, column: str = "sequence") -> str:
        """The value as a sequence: at least one residue, upper case, no gaps."""
        return self._letters(column, self.text(column), RESIDUES)

    def labels(self, column: str, allowed: Iterable[str], length: int) -> str:
        """The value as one label for each of `length` residues."""
        value = self.values[column]
        if len(value) != length:
            raise self.fail(f"{column} has {len(value)} labels for {length} residues; there must be one for each")
        return self._letters(column, value, frozenset(allowed))

    def _letters(self, column: str, value: str, allowed: frozenset[str]) -> str:
        if strange := set(value) - allowed:
            at = next(index for index, letter in enumerate(value) if letter in strange)
            raise self.fail(f"{column} has {value[at]!r} at position {at + 1}; allowed are {''.join(sorted(allowed))}")
        return value


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file without their ends; gzip, xz, bzip2 and zstd are read as they come.

    Raises:
        InputError: the file cannot be opened, is empty, damaged or no UTF-8 text.
    """
    title = repr(str(path))
    try:
        handle = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot open {title}: {error.strerror}; give the path of a readable file") from error
    with handle:
        if not handle.peek(1):
            raise InputError(f"{title} is empty; get the file again")
        held = b""
        try:
            for block in decompressed(Tap(handle, title)):
                *lines, held = (held + block).split(b"\n")
                yield from (line.decode("utf-8").rstrip("\r") for line in lines)
            if held:
                yield held.decode("utf-8").rstrip("\r")
        except DAMAGE_ERRORS as error:
            raise InputError(f"{title} is damaged ({error}); get the file again") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{title} is not UTF-8 text; convert it or get it again") from error


def read_rows(path: Path, columns: Sequence[str], separator: str = "\t") -> Iterator[Row]:
    """The rows of a table, lazily.

    Args:
        path: the file. columns: columns that it must have; others are read too.
        separator: between values; with a comma, values may be quoted as in any CSV file.

    Raises:
        InputError: a column is missing, stands twice, or a row has more or fewer values than the header.
    """
    lines = text_lines(path)
    rows = _parsed(path, lines, separator)
    header = [name.strip() for name in next(rows, [])]
    absent = [column for column in columns if column not in header]
    if absent:
        raise InputError(f"{path.name} has no column {', '.join(absent)}; it has {', '.join(header)}")
    if len(set(header)) < len(header):
        raise InputError(f"{path.name} names a column twice: {', '.join(header)}; rename one of them")
    for number, values in enumerate(rows, 2):
        if len(values) != len(header):
            raise InputError(f"{path.name}, line {number}: {len(values)} values for {len(header)} columns")
        yield Row(path.name, number, dict(zip(header, values, strict=True)))


def _parsed(path: Path, lines: Iterator[str], separator: str) -> Iterator[list[str]]:
    """The values of each line; between commas they may be quoted."""
    if separator != ",":
        yield from (line.split(separator) for line in lines)
        return
    try:
        yield from csv.reader(lines, strict=True)
    except csv.Error as error:
        raise InputError(f"{path.name} is no CSV file ({error}); get the file again") from error


def read_records(path: Path, columns: Sequence[str], make: Callable[[Row], Made]) -> tuple[Made, ...]:
    """What `make` makes of each row of a table; ids must be unique and there must be at least one row.

    Raises:
        InputError: as `read_rows` and `make`, and for an id that stands twice.
    """
    first_line: dict[str, int] = {}
    records = []
    for row in read_rows(path, columns):
        record = make(row)
        if record.id in first_line:
            raise row.fail(f"id {record.id!r} stands on line {first_line[record.id]} already; ids must be unique")
        first_line[record.id] = row.line
        records.append(record)
    if not records:
        raise InputError(f"{path.name} has no rows; get the file again")
    return tuple(records)


def check_unique(records: Iterable[Identified], what: str) -> None:
    """Refuse ids that stand twice.

    Args:
        records: anything with an id. what: where they come from, for the message.

    Raises:
        InputError: at the first id that was seen before.
    """
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise InputError(f"{what}: id {record.id!r} stands there twice; ids must be unique")
        seen.add(record.id)


def remove_shared(train: Iterable[Kept], test: Iterable[Sequenced]) -> tuple[tuple[Kept, ...], tuple[Kept, ...]]:
    """Part training records from those whose sequence, letter by letter, or id is also in the test set.

    Args:
        train: records to train on. test: records that must stay unseen.

    Returns:
        Those to keep and those to leave out, each in the order given.
    """
    test = tuple(test)
    sequences, ids = {record.residues for record in test}, {record.id for record in test}
    kept: list[Kept] = []
    shared: list[Kept] = []
    for record in train:
        (shared if record.residues in sequences or record.id in ids else kept).append(record)
    return tuple(kept), tuple(shared)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in lines)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}; choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def text_of(path: Path) -> io.StringIO:
    """A whole text file, decompressed, as a handle for libraries that want one."""
    return io.StringIO("".join(line + "\n" for line in text_lines(path)))
