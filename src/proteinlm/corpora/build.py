"""From a FASTA file to a store, streaming, in memory that does not grow: one pass over the file, some over the rest.

In: a FASTA file, and what is known of clusters. Out: a folder that `Store.open` takes. Every record of the file is
accounted for: it is in the store, or it was refused, outside the length limits, a copy of an earlier one, or without a
cluster where clusters were asked for; `refused.tsv` and `merged.tsv` in the store list them.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from proteinlm.corpora.clusters import HeaderClusters, TableClusters, TableFacts
from proteinlm.corpora.columns import (
    BLOCK_RESIDUES,
    SHARD_RESIDUES,
    Block,
    HashedFile,
    Writer,
    seal,
    whole_folder,
)
from proteinlm.corpora.copying import copy_kept, refusal
from proteinlm.corpora.duplicates import Duplicates
from proteinlm.corpora.grouping import no_clusters, with_clusters, without_copies, write_clusters
from proteinlm.corpora.manifest import Manifest
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.fasta import FastaSummary, Record, Refused, scan_fasta
from proteinlm.sequences.source import Source

LETTERS = Alphabet(name="residue letters", tokens=tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), pad=0, mask=None)
"""What a store takes: any letter. What becomes of X, B, U, Z, O and J is for the alphabet of the model to say."""

HEADER = "header"
"""In place of a cluster table: the clusters stand in the headers."""

Clusters = HeaderClusters | TableClusters


@dataclass(frozen=True)
class BuildOptions:
    """How to build a store.

    Args:
        clusters: `header`, the path of a two-column table, or None for a store without clusters.
        min_length, max_length: records of other lengths stay outside; None: no limit.
        shard_residues: most residues in one file of letters.
        advance: told how many residues have been read since the last call.
    """

    clusters: str | None = None
    min_length: int = 1
    max_length: int | None = None
    shard_residues: int = SHARD_RESIDUES
    advance: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        if self.min_length < 1:
            raise InputError(f"the least length is {self.min_length}; it must be 1 or more")
        if self.max_length is not None and self.max_length < self.min_length:
            raise InputError(f"the greatest length is {self.max_length}, below the least, {self.min_length}")
        if self.shard_residues < 1:
            raise InputError(f"a shard of {self.shard_residues} residues holds nothing; give 1 or more")


def build(source: Source, out: str | Path, options: BuildOptions | None = None) -> Manifest:
    """Build a store from a FASTA file.

    Args:
        source: a path, `-` for standard input or a binary handle; plain or compressed.
        out: the folder to make. It appears when everything is in it.
        options: clusters, limits; the default has none.

    Returns:
        The manifest, with the fate of every record.

    Raises:
        InputError: the input cannot be used, nothing of it is left, or `out` exists or cannot be written.

    >>> import io, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = build(io.BytesIO(b">a\\nMKT\\n>b\\nMKT\\n>c\\nM1\\n"), Path(folder, "store"))
    >>> manifest.records, manifest.sequences, manifest.merged, manifest.refused
    (3, 1, 1, 1)
    """
    options = options or BuildOptions()
    with whole_folder(Path(out)) as folder:
        work = folder / "work"
        work.mkdir()
        intake = _Intake(work, options)
        summary = scan_fasta(source, LETTERS, intake.take)
        intake.flush()
        if not intake.writer.rows:
            raise InputError(
                f"nothing is left to build from: of {summary.records} records {summary.refused} were refused, "
                f"{intake.too_short} are too short and {intake.too_long} too long"
            )
        manifest = _finish(folder, work, intake, summary)
        shutil.rmtree(work)
        name = Path(source).name if isinstance(source, str | Path) else "-"
        return seal(folder, replace(manifest, source=name))


class _Intake:
    """Takes the records of the file as they pass, and writes them block by block.

    Args:
        work: a folder for what is not the store's. options: of the build.
    """

    def __init__(self, work: Path, options: BuildOptions) -> None:
        (work / "raw").mkdir()
        self.options = options
        self.writer = Writer(work / "raw", options.shard_residues)
        self.duplicates = Duplicates(work)
        self.clusters: Clusters | None = None
        if options.clusters == HEADER:
            self.clusters = HeaderClusters(work)
        elif options.clusters is not None:
            self.clusters = TableClusters(work, Path(options.clusters))
        self.refused = HashedFile(work.parent / "refused.tsv")
        self.cluster_source = None if options.clusters is None else Path(options.clusters).name
        self.too_short = self.too_long = 0
        self._records: list[Record] = []
        self._residues = 0

    def take(self, item: Record | Refused) -> None:
        """Take one item of the FASTA file."""
        if isinstance(item, Refused):
            self.refused.write(refusal(item.id or f"(record {item.index + 1})", item.reason))
            return
        length = len(item.residues)
        most = self.options.max_length
        if length < self.options.min_length:
            self.too_short += 1
            self.refused.write(refusal(item.id, f"{length} residues, the least is {self.options.min_length}"))
        elif most is not None and length > most:
            self.too_long += 1
            self.refused.write(refusal(item.id, f"{length} residues, the most is {most}"))
        else:
            self._records.append(item)
            self._residues += length
            if self._residues >= BLOCK_RESIDUES:
                self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if not self._records:
            return
        sequences = [record.residues.encode("ascii") for record in self._records]
        identifiers = [record.id for record in self._records]
        names = [identifier.encode("utf-8") for identifier in identifiers]
        self.duplicates.add(self.writer.rows, sequences)
        if self.clusters is not None:
            self.clusters.add(self.writer.rows, identifiers, [record.header for record in self._records])
        self.writer.append(
            Block(
                np.frombuffer(b"".join(sequences), np.uint8),
                np.fromiter(map(len, sequences), np.int64, len(sequences)),
                np.frombuffer(b"".join(names), np.uint8),
                np.fromiter(map(len, names), np.int64, len(names)),
            )
        )
        if self.options.advance is not None:
            self.options.advance(self._residues)
        self._records, self._residues = [], 0


def _finish(folder: Path, work: Path, intake: _Intake, summary: FastaSummary) -> Manifest:
    """Merge, cluster and copy: the store, all but its manifest, from what was taken in."""
    intake.writer.close()
    assigned = intake.clusters.find() if intake.clusters is not None else None
    fates, assigned = without_copies(work, intake.writer.rows, intake.duplicates.find(), assigned)
    if assigned is None:
        files, clusters, without = no_clusters(folder), 0, 0
    else:
        fates, grouped = with_clusters(fates, assigned)
        if not fates.kept:
            where = intake.options.clusters
            remedy = (
                "is it of another file?" if where != HEADER else "headers are to read `>ACC CLUSTER`, or as UniRef's"
            )
            raise InputError(f"none of {fates.total} records has a cluster in {where!r}; {remedy}")
        files, clusters, without = write_clusters(folder, work, fates.kept, grouped)
    writer = Writer(folder, intake.options.shard_residues)
    files.update(copy_kept(work / "raw", fates, writer, intake.refused, work / "raw", consume=True))
    table = intake.clusters.facts if isinstance(intake.clusters, TableClusters) else TableFacts(None, 0, 0)
    manifest = writer.manifest(summary)
    assert manifest.records == summary.refused + intake.too_short + intake.too_long + fates.total, "a record is lost"
    return replace(
        manifest,
        too_short=intake.too_short,
        too_long=intake.too_long,
        min_length=intake.options.min_length,
        max_length=intake.options.max_length,
        merged=fates.merged,
        merged_across=fates.merged_across,
        unclustered=fates.unclustered,
        clusters=clusters,
        cluster_source=intake.cluster_source,
        cluster_sha256=table.sha256,
        cluster_rows=table.rows,
        cluster_rows_unused=table.unused,
        without_representative=without,
        files={**manifest.files, **files},
    )
