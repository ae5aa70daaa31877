"""The manifest of a store: what it holds, where that came from, and what became of every record of the input.

In: counts gathered while a store is written. Out: `manifest.json`, written last, so that a folder with a whole manifest
is a whole store. It carries a digest of itself and, for every other file, its size and SHA-256.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proteinlm.config import from_dict, to_dict
from proteinlm.errors import InputError

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the layout; a store of another version is refused."""


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    Attributes:
        format: version of the layout. version: the package that wrote it.
        source, source_sha256: name and digest (as stored) of the FASTA file; of the parent store for a split.
        records: items of the input = sequences + refused + too_short + too_long + merged + unclustered.
        sequences, residues, shortest, longest: what the store holds.
        refused: records that could not be used. unclustered: those that the cluster table does not name.
        too_short, too_long: records outside `min_length`..`max_length` (None: no limit).
        merged: exact duplicates of an earlier record. merged_across: distinct sequences whose copies stood in more than
            one cluster (they went to the first).
        clusters: 0 where the store has none. cluster_source, cluster_sha256: `header`, or name and digest of the table.
        cluster_rows, cluster_rows_unused: rows of the table, and those that name no record of the input.
        without_representative: clusters whose representative is not in the store; their first member leads.
        left_out: what a split took out of this store because it would leak, else 0.
        letters: the residue letters that occur. composition: how often each.
        length_histogram: sequences by length, `from-to` to count, bins as in `length_bin`.
        normalised: records that had lower case, a final stop or gaps.
        split: how a split was made; empty for a store built from FASTA.
        files: name to size in bytes and SHA-256, of every file but the manifest.
    """

    format: int
    version: str
    source: str
    source_sha256: str
    records: int
    sequences: int
    residues: int
    shortest: int
    longest: int
    refused: int = 0
    unclustered: int = 0
    too_short: int = 0
    too_long: int = 0
    min_length: int = 1
    max_length: int | None = None
    merged: int = 0
    merged_across: int = 0
    clusters: int = 0
    cluster_source: str | None = None
    cluster_sha256: str | None = None
    cluster_rows: int = 0
    cluster_rows_unused: int = 0
    without_representative: int = 0
    left_out: int = 0
    letters: str = ""
    composition: dict[str, int] = field(default_factory=dict)
    length_histogram: dict[str, int] = field(default_factory=dict)
    normalised: dict[str, int] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def content_sha256(self) -> str:
        """Digest of the data files: the same for the same sequences, ids and clusters, whatever version wrote them.

        What a training run should remember of its corpus.
        """
        rows = [f"{name} {self.files[name]['sha256']}" for name in sorted(self.files) if name.endswith(".bin")]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def shards(self) -> list[str]:
        """File names of the letters, in order."""
        return sorted(name for name in self.files if name.startswith("letters-"))

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`."""
        values = to_dict(self)
        text = json.dumps({"sha256": _digest(values), **values}, indent=1, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of the store in `folder`.

        Raises:
            InputError: there is none, it is damaged or was changed, or the layout is of another version.
        """
        path = folder / MANIFEST
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            remedy = "make one with `plm corpus build`"
            raise InputError(f"{str(folder)!r} is not a corpus store: no {MANIFEST}; {remedy}") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{str(path)!r} is damaged ({error}); build the store again") from error
        if not isinstance(values, dict) or values.pop("sha256", None) != _digest(values):
            raise InputError(f"{str(path)!r} was changed: it does not have its own digest; build the store again")
        if values.get("format") != FORMAT:
            found = values.get("format")
            raise InputError(f"{str(folder)!r} has layout {found!r}, not {FORMAT}; build the store again")
        return from_dict(cls, values, str(path))


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def length_bin(length: int) -> str:
    """The bin of a length: 32 wide up to 1,024, then doubling.

    >>> length_bin(1), length_bin(64), length_bin(1024), length_bin(1025), length_bin(5000)
    ('1-32', '33-64', '993-1024', '1025-2048', '4097-8192')
    """
    if length <= 1024:
        low = (length - 1) // 32 * 32
        return f"{low + 1}-{low + 32}"
    high = 1 << (length - 1).bit_length()
    return f"{high // 2 + 1}-{high}"


def histogram(count_of_length: Mapping[int, int]) -> dict[str, int]:
    """Counts by bin, shortest first.

    >>> histogram({40: 2, 7: 1, 33: 1})
    {'1-32': 1, '33-64': 3}
    """
    bins: dict[str, int] = {}
    for length in sorted(count_of_length):
        name = length_bin(length)
        bins[name] = bins.get(name, 0) + count_of_length[length]
    return bins
