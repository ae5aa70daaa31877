"""Which cluster each sequence belongs to: read from headers or from a table, joined on disk.

In: identifiers and headers as they pass, and a two-column table where there is one. Out: rows (position of the
sequence, digest of the cluster's name, whether it is the representative). Three conventions are read from headers:
`>ACC CLUSTER` with nothing behind, lest a description be taken for a cluster; a UniRef identifier followed by another,
which is its cluster; and a UniRef identifier with UniRef's own description (`UniRef50_P1 Some protein n=2 Tax=...
RepID=...`), which is a cluster itself.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proteinlm.corpora.buckets import HASHED, KEY, Buckets, by_digest, by_range, digests, first_of_group, group_starts
from proteinlm.errors import InputError
from proteinlm.sequences.source import DAMAGE_ERRORS, Tap, decompressed, opened

ASSIGNED = [*KEY, ("index", "<i8"), ("choice", "<i8"), ("representative", "?")]
"""A sequence is in a cluster; of several rows with one index the one with the least `choice` counts."""

TABLE_ROWS = 1 << 16

_UNIREF = re.compile(r"UniRef(?:50|90|100)_(\S+)$")


def cluster_of_header(header: str) -> tuple[str, bool] | None:
    """The cluster that a header names, and whether the sequence is its representative.

    Args:
        header: the header line without `>`.

    Returns:
        None where the header names no cluster.

    >>> cluster_of_header("P1 P2"), cluster_of_header("P2 P2")
    (('P2', False), ('P2', True))
    >>> cluster_of_header("UniRef90_P1 UniRef50_P2"), cluster_of_header("UniRef50_P1 Some protein n=2 RepID=P1_HUMAN")
    (('UniRef50_P2', False), ('UniRef50_P1', True))
    >>> cluster_of_header("P1"), cluster_of_header("sp|P1|A_HUMAN Some protein")
    (None, None)
    """
    words = header.split(None, 2)
    own = _UNIREF.match(words[0])
    other = _UNIREF.match(words[1]) if len(words) > 1 else None
    if own:
        return (words[1], own[1] == other[1]) if other else (words[0], True)
    if len(words) != 2:
        return None
    return words[1], words[1] in names_of(words[0])


def names_of(identifier: str) -> tuple[str, ...]:
    """What a table may call a sequence: its identifier; of `sp|P12345|NAME` also the accession, as MMseqs2 does.

    >>> names_of("sp|P69905|HBA_HUMAN"), names_of("P69905")
    (('sp|P69905|HBA_HUMAN', 'P69905'), ('P69905',))
    """
    parts = identifier.split("|")
    return (identifier, parts[1]) if len(parts) > 1 and parts[1] else (identifier,)


class HeaderClusters:
    """Gathers clusters from headers.

    Args:
        folder: where the buckets may lie.
    """

    def __init__(self, folder: Path) -> None:
        self._assigned = Buckets(folder, "assigned", ASSIGNED)

    def add(self, first: int, identifiers: Sequence[str], headers: Sequence[str]) -> None:
        """Take the next records, which stand at positions `first` and on."""
        found = [(index, *named) for index, header in enumerate(headers, first) if (named := cluster_of_header(header))]
        keys = digests(name.encode() for _, name, _ in found)
        index = np.array([index for index, _, _ in found], np.int64)
        columns = {
            "high": keys["high"],
            "low": keys["low"],
            "index": index,
            "choice": index,
            "representative": np.array([lead for _, _, lead in found], bool),
        }
        self._assigned.add(by_range(index), columns)

    def find(self) -> Buckets:
        """The assignments, in buckets by range of `index`."""
        return self._assigned


@dataclass(frozen=True)
class TableFacts:
    """What was read: SHA-256 of the table as stored, its rows, and how many name a sequence that is not there."""

    sha256: str | None
    rows: int
    unused: int


class TableClusters:
    """Gathers identifiers, then joins them with a two-column table: representative, tab, member (MMseqs2, linclust).

    Args:
        folder: where the buckets may lie. table: a path; plain or compressed.
    """

    def __init__(self, folder: Path, table: Path) -> None:
        if not table.is_file():
            raise InputError(f"there is no cluster table {str(table)!r}; give `header` or a file of two columns")
        self.facts = TableFacts(None, 0, 0)
        self._folder = folder
        self._table = table
        self._names = Buckets(folder, "names", [*KEY, ("index", "<i8"), ("choice", "<i8")])

    def add(self, first: int, identifiers: Sequence[str], headers: Sequence[str]) -> None:
        """Take the next records, which stand at positions `first` and on."""
        named = [
            (index, priority, name.encode())
            for index, identifier in enumerate(identifiers, first)
            for priority, name in enumerate(names_of(identifier))
        ]
        keys = digests(name for _, _, name in named)
        index = np.array([index for index, _, _ in named], np.int64)
        choice = 2 * index + np.array([priority for _, priority, _ in named], np.int64)
        columns = {"high": keys["high"], "low": keys["low"], "index": index, "choice": choice}
        self._names.add(by_digest(keys["high"]), columns)

    def find(self) -> Buckets:
        """The assignments, in buckets by range of `index`.

        Raises:
            InputError: the table cannot be read, or puts a member into two clusters.
        """
        table = Buckets(self._folder, "table", [*KEY, ("lead_high", "<u8"), ("lead_low", "<u8"), ("line", "<i8")])
        sha256 = self._read(table)
        assigned = Buckets(self._folder, "assigned", ASSIGNED)
        unused = 0
        for number in range(HASHED):
            unused += self._join(table.take(number), self._names.take(number), assigned)
        self.facts = TableFacts(sha256, table.rows, unused)
        return assigned

    def _read(self, table: Buckets) -> str:
        """Put the rows of the table into buckets by member; its digest."""
        with opened(self._table) as (handle, title):
            tap = Tap(handle, title, hashlib.sha256())
            line = 1
            for rows in _table_rows(decompressed(tap), title):
                leads, members = digests(lead for lead, _ in rows), digests(member for _, member in rows)
                columns = {
                    "high": members["high"],
                    "low": members["low"],
                    "lead_high": leads["high"],
                    "lead_low": leads["low"],
                    "line": np.arange(line, line + len(rows)),
                }
                table.add(by_digest(members["high"]), columns)
                line += len(rows)
            return tap.digest()

    def _join(self, table: np.ndarray, names: np.ndarray, assigned: Buckets) -> int:
        """Assign each name the cluster of the table's row; how many rows no name asked for."""
        table = table[np.lexsort((table["line"], table["low"], table["high"]))]
        starts = group_starts(table["high"], table["low"])
        first = first_of_group(starts)
        conflict = group_starts(table["lead_high"], table["lead_low"]) & ~starts
        if conflict.any():
            at = int(np.argmax(conflict))
            lines = int(table["line"][first[at]]), int(table["line"][at])
            raise InputError(
                f"{str(self._table)!r}: lines {lines[0]} and {lines[1]} put one member into two clusters; keep one"
            )
        table = table[starts]
        # Rows of the table before the names that look for them: the first row of a group is then the answer, if any.
        high, low = (np.concatenate([table[field], names[field]]) for field in ("high", "low"))
        is_name = np.concatenate([np.zeros(len(table), bool), np.ones(len(names), bool)])
        order = np.lexsort((is_name, low, high))
        answer = order[first_of_group(group_starts(high[order], low[order]))]
        found = (order >= len(table)) & (answer < len(table))
        row, name = table[answer[found]], names[order[found] - len(table)]
        columns = {
            "high": row["lead_high"],
            "low": row["lead_low"],
            "index": name["index"],
            "choice": name["choice"],
            "representative": (row["lead_high"] == row["high"]) & (row["lead_low"] == row["low"]),
        }
        assigned.add(by_range(name["index"]), columns)
        return len(table) - len(np.unique(answer[found]))


def _table_rows(blocks: Iterator[bytes], title: str) -> Iterator[list[tuple[bytes, bytes]]]:
    """The rows of the table, some thousands at a time.

    Raises:
        InputError: a line does not have two columns, or the file is damaged.
    """
    rows: list[tuple[bytes, bytes]] = []
    for number, line in enumerate(_lines(blocks, title), 1):
        lead, _, member = line.rstrip(b"\r").partition(b"\t")
        if not (lead and member) or b"\t" in member:
            shown = line[:60].decode("utf-8", "replace")
            raise InputError(
                f"{title}, line {number}: {shown!r} is not `representative TAB member`; give the two-column table that "
                "`mmseqs createtsv` or `mmseqs easy-linclust` writes"
            )
        rows.append((lead, member))
        if len(rows) == TABLE_ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def _lines(blocks: Iterator[bytes], title: str) -> Iterator[bytes]:
    held = b""
    try:
        for block in blocks:
            *whole, held = (held + block).split(b"\n")
            yield from whole
    except DAMAGE_ERRORS as error:
        raise InputError(f"{title} is damaged ({error}); get the file again") from error
    if held:
        yield held
