"""From duplicates and cluster assignments to what is kept, and to the clusters of what is kept.

In: buckets of copies and of assignments, by position in the input. Out: a file that says of every position whether it
is kept, and the two files of the cluster index. Copies hand their cluster on to the sequence that stands for them, so
that a copy which the table names helps one that it does not name. Each pass holds one range of positions or one bucket.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from proteinlm.corpora.buckets import (
    HASHED,
    KEY,
    RANGE_ROWS,
    Buckets,
    by_digest,
    by_range,
    first_of_group,
    group_starts,
    ranges,
)
from proteinlm.corpora.columns import HashedFile
from proteinlm.corpora.store import POSITION

KEPT, MERGED, UNCLUSTERED, CONTAINED, ELSEWHERE = range(5)
"""What becomes of a position: kept; a copy of another; without a cluster; left out because it would leak; on the
other side of a split."""


@dataclass(frozen=True)
class Fates:
    """What becomes of each position.

    Attributes:
        folder: holds `fates.bin` (uint8, one of `KEPT` ... each) and `partners.bin` (int64, for each merged or
            contained position in order the position of the sequence that it is equal to, or that it would leak).
        total, merged, unclustered, contained, elsewhere: positions.
        merged_across: kept ones whose copies were in other clusters too.
    """

    folder: Path
    total: int
    merged: int = 0
    unclustered: int = 0
    contained: int = 0
    elsewhere: int = 0
    merged_across: int = 0

    @property
    def kept(self) -> int:
        """Positions that are kept."""
        return self.total - self.merged - self.unclustered - self.contained - self.elsewhere


def without_copies(folder: Path, total: int, merged: Buckets, assigned: Buckets | None) -> tuple[Fates, Buckets | None]:
    """Drop the copies, and hand their clusters on to what they are copies of.

    Args:
        folder: where to write. total: positions. merged: from `Duplicates.find`. assigned: from `clusters`.

    Returns:
        The fates, and the assignments of what is kept, by range of `index`.
    """
    moved = None if assigned is None else Buckets(folder, "moved", assigned.fields)
    with (folder / "fates.bin").open("wb") as fates, (folder / "partners.bin").open("wb") as partners:
        for number in range(ranges(total)):
            first = number * RANGE_ROWS
            target = np.arange(first, min(first + RANGE_ROWS, total))
            rows = merged.take(number)
            rows = rows[np.argsort(rows["dropped"])]
            target[rows["dropped"] - first] = rows["kept"]
            fate = np.full(len(target), KEPT, np.uint8)
            fate[rows["dropped"] - first] = MERGED
            fate.tofile(fates)
            rows["kept"].astype(POSITION).tofile(partners)
            if assigned is not None and moved is not None:
                rows = assigned.take(number)
                rows["index"] = target[rows["index"] - first]
                moved.add(by_range(rows["index"]), {name: rows[name] for name in rows.dtype.names})
    return Fates(folder, total, merged.rows), moved


def with_clusters(fates: Fates, assigned: Buckets) -> tuple[Fates, Buckets]:
    """Give each kept position its cluster, and drop those that have none.

    Args:
        fates: what is known so far. assigned: by range of `index`; rows of what is not kept do not count.

    Returns:
        The fates, and rows of `KEY`, `index` (among what is kept now) and `representative`, by digest.
    """
    grouped = Buckets(fates.folder, "grouped", [*KEY, ("index", "<i8"), ("representative", "?")])
    kept = unclustered = across = 0
    path, fresh = fates.folder / "fates.bin", fates.folder / "fates.new"
    with path.open("rb") as old, fresh.open("wb") as new:
        for number in range(ranges(fates.total)):
            first = number * RANGE_ROWS
            fate = np.fromfile(old, np.uint8, RANGE_ROWS)
            rows = assigned.take(number)
            rows, more = _one_cluster_each(rows[fate[rows["index"] - first] == KEPT])
            across += more
            has_cluster = np.zeros(len(fate), bool)
            has_cluster[rows["index"] - first] = True
            lost = (fate == KEPT) & ~has_cluster
            fate[lost] = UNCLUSTERED
            fate.tofile(new)
            position = kept + np.cumsum(fate == KEPT) - 1
            columns = {name: rows[name] for name in ("high", "low", "representative")}
            grouped.add(by_digest(rows["high"]), {**columns, "index": position[rows["index"] - first]})
            kept += int((fate == KEPT).sum())
            unclustered += int(lost.sum())
    fresh.replace(path)
    return replace(fates, unclustered=unclustered, merged_across=across), grouped


def _one_cluster_each(rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Of the rows with one index the first by choice; it represents if any row with the same cluster does."""
    rows = rows[np.lexsort((rows["choice"], rows["index"]))]
    starts = group_starts(rows["index"])
    first = first_of_group(starts)
    same = (rows["high"] == rows["high"][first]) & (rows["low"] == rows["low"][first])
    leads = np.unique(first[same & rows["representative"]])
    across = len(np.unique(first[~same]))
    rows["representative"] = False
    rows["representative"][leads] = True
    return rows[starts], across


def no_clusters(folder: Path) -> dict[str, dict[str, Any]]:
    """The two files of a store without clusters, empty; entries for the manifest."""
    return {name: HashedFile(folder / name).close() for name in ("members.bin", "cluster_starts.bin")}


def write_clusters(
    folder: Path, work: Path, total: int, grouped: Buckets
) -> tuple[dict[str, dict[str, Any]], int, int]:
    """Write `members.bin` and `cluster_starts.bin`: clusters in the order of their first sequences.

    Args:
        folder: where to write. work: where buckets may lie. total: sequences. grouped: from `with_clusters`.

    Returns:
        Entries for the manifest, the number of clusters, and how many have no representative.
    """
    ordered = Buckets(work, "ordered", [("first", "<i8"), ("index", "<i8"), ("representative", "?")])
    for number in range(HASHED):
        rows = grouped.take(number)
        rows = rows[np.lexsort((rows["index"], rows["low"], rows["high"]))]
        first = rows["index"][first_of_group(group_starts(rows["high"], rows["low"]))]
        columns = {"first": first, "index": rows["index"], "representative": rows["representative"]}
        ordered.add(by_range(first), columns)
    members, cluster_starts = HashedFile(folder / "members.bin"), HashedFile(folder / "cluster_starts.bin")
    written = clusters = without = 0
    for number in range(ranges(total)):
        rows = ordered.take(number)
        rows = rows[np.lexsort((rows["index"], ~rows["representative"], rows["first"]))]
        starts = group_starts(rows["first"])
        members.write(rows["index"].astype(POSITION))
        cluster_starts.write((np.flatnonzero(starts) + written).astype(POSITION))
        written += len(rows)
        clusters += int(starts.sum())
        without += int((~rows["representative"][starts]).sum())
    assert written == total, f"{written} members of {total} sequences"
    cluster_starts.write(np.array([written], POSITION))
    return {file.name: file.close() for file in (members, cluster_starts)}, clusters, without
