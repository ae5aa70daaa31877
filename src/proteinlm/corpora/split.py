"""Hold-outs: a store in two, by whole clusters, without leaks.

In: a store with clusters, a fraction and a seed. Out: two stores, `train` and `heldout`. Whether a cluster is held out
depends on the seed and on the identifier of its representative alone, so that a cluster stays on its side when the
corpus grows. A sequence that is, letter by letter, part of one on the other side is left out of its own side
(papers.md 1 holds out clusters; that nothing of them is seen whole in training is checked besides).
"""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from proteinlm.corpora.buckets import RANGE_ROWS, Buckets, by_range, ranges
from proteinlm.corpora.clusters import ASSIGNED
from proteinlm.corpora.columns import SHARD_RESIDUES, HashedFile, Writer, seal, whole_folder
from proteinlm.corpora.copying import copy_kept
from proteinlm.corpora.grouping import CONTAINED, ELSEWHERE, KEPT, Fates, no_clusters, with_clusters, write_clusters
from proteinlm.corpora.leaks import Part, contained, leaking
from proteinlm.corpora.manifest import Manifest
from proteinlm.corpora.store import POSITION, Store
from proteinlm.errors import InputError
from proteinlm.sequences.fasta import FastaSummary

TRAIN, HELDOUT = 0, 1
SIDES = ("train", "heldout")
"""Names of the two folders."""

CLUSTER_BLOCK = 1 << 16


@dataclass(frozen=True)
class SplitOptions:
    """How to split.

    Args:
        fraction: of the clusters, to be held out (each with this probability). seed: another seed, other clusters.
        shard_residues: most residues in one file of letters.
    """

    fraction: float = 0.1
    seed: int = 0
    shard_residues: int = SHARD_RESIDUES

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise InputError(f"the fraction to hold out is {self.fraction}; it must lie between 0 and 1")


def is_held_out(representative: str, options: SplitOptions) -> bool:
    """Whether the cluster of this representative is held out.

    >>> sum(is_held_out(f"P{number:05d}", SplitOptions(fraction=0.25)) for number in range(1000))
    243
    """
    key = f"{options.seed}\t{representative}".encode()
    draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return draw < options.fraction * 2**64


def split(path: str | Path, out: str | Path, options: SplitOptions | None = None) -> tuple[Manifest, Manifest]:
    """Split a store.

    Args:
        path: a store with clusters. out: a new folder, which gets the stores `train` and `heldout`.

    Returns:
        The manifests of the two. `records` is what the store had on that side, `left_out` what leaked, listed in
        `refused.tsv`.

    Raises:
        InputError: the store has no clusters, a side would be empty, or `out` exists or cannot be written.
    """
    options = options or SplitOptions()
    store = Store.open(path)
    if not store.num_clusters:
        raise InputError(
            f"{str(path)!r} has no clusters, and a random split of single proteins leaks; "
            "build it with --clusters (`plm corpus cluster` makes a table)"
        )
    with whole_folder(Path(out)) as folder:
        work = folder / "work"
        work.mkdir()
        sides = _draw_sides(store, work, options)
        manifests = [_write_side(store, folder, sides, side, options) for side in (TRAIN, HELDOUT)]
        shutil.rmtree(work)
    return manifests[0], manifests[1]


def _draw_sides(store: Store, work: Path, options: SplitOptions) -> Path:
    """Draw the clusters; a file with the side of each sequence, one byte each."""
    drawn = Buckets(work, "drawn", [("index", "<i8")])
    held_out = 0
    for first in range(0, store.num_clusters, CLUSTER_BLOCK):
        starts = store.cluster_starts[first : first + CLUSTER_BLOCK + 1]
        members = store.members[starts[0] : starts[-1]]
        leads = members[starts[:-1] - starts[0]]
        chosen = np.array([is_held_out(store.identifier(lead), options) for lead in leads.tolist()], bool)
        held_out += int(chosen.sum())
        index = members[np.repeat(chosen, np.diff(starts))]
        drawn.add(by_range(index), {"index": index})
    if held_out in (0, store.num_clusters):
        raise InputError(
            f"{held_out} of {store.num_clusters} clusters would be held out; give another fraction than "
            f"{options.fraction}, or another seed"
        )
    sides = work / "sides.bin"
    with sides.open("wb") as file:
        for number in range(ranges(len(store))):
            first = number * RANGE_ROWS
            side = np.full(min(RANGE_ROWS, len(store) - first), TRAIN, np.uint8)
            side[drawn.take(number)["index"] - first] = HELDOUT
            side.tofile(file)
    return sides


def exclude(path: str | Path, heldout: str | Path, out: str | Path, shard_residues: int = SHARD_RESIDUES) -> Manifest:
    """Leave out of a store whatever would give away a sequence of another one.

    Args:
        path: a store to train on. heldout: a store to evaluate on.
        out: a new folder: the store without sequences that have an identifier of `heldout`, that are part of one of its
            sequences, or that one of its sequences is part of. shard_residues: most residues in one file of letters.

    Returns:
        The manifest; `left_out` counts, `refused.tsv` lists.

    Raises:
        InputError: nothing would be left, or `out` exists or cannot be written.
    """
    store, other = Store.open(path), Store.open(heldout)
    with whole_folder(Path(out)) as folder:
        work = folder / "work"
        work.mkdir()
        sides = work / "sides.bin"
        with sides.open("wb") as file:
            for number in range(ranges(len(store))):
                np.full(min(RANGE_ROWS, len(store) - number * RANGE_ROWS), TRAIN, np.uint8).tofile(file)
        pairs = ((ours, theirs) for ours, theirs, _ in leaking(store, other))
        fates = _fates(store, work, sides, TRAIN, pairs)
        facts: dict[str, Any] = {"side": SIDES[TRAIN], "excluded": other.manifest.content_sha256}
        manifest = _write_store(store, folder, fates, other.path, facts, shard_residues)
        shutil.rmtree(work)
    return manifest


def _write_side(store: Store, folder: Path, sides: Path, side: int, options: SplitOptions) -> Manifest:
    """Write the store of one side."""
    work, target = folder / "work" / SIDES[side], folder / SIDES[side]
    work.mkdir()
    target.mkdir()
    pairs = contained(Part(store, sides, side), Part(store, sides, 1 - side))
    fates = _fates(store, work, sides, side, pairs)
    facts: dict[str, Any] = {"side": SIDES[side], "fraction": options.fraction, "seed": options.seed}
    return _write_store(store, target, fates, store.path, facts, options.shard_residues)


def _write_store(
    store: Store, target: Path, fates: Fates, partners: Path, facts: dict[str, Any], shard_residues: int
) -> Manifest:
    """Write what is kept of a store as a store, clusters included; `partners` are the columns of what leaks."""
    files: dict[str, dict[str, Any]] = {}
    clusters = without = 0
    if store.num_clusters:
        fates, grouped = with_clusters(fates, _assigned(store, fates.folder))
        if fates.kept:
            files, clusters, without = write_clusters(target, fates.folder, fates.kept, grouped)
    else:
        files = no_clusters(target)
    if not fates.kept:
        raise InputError(f"nothing is left for {facts['side']}: all of it is part of the other side")
    writer = Writer(target, shard_residues)
    files.update(copy_kept(store.path, fates, writer, HashedFile(target / "refused.tsv"), partners))
    manifest = writer.manifest(FastaSummary(store.manifest.content_sha256, fates.total - fates.elsewhere, 0, 0, 0, {}))
    return seal(
        target,
        replace(
            manifest,
            source=store.path.name,
            clusters=clusters,
            cluster_source=store.manifest.cluster_source,
            cluster_sha256=store.manifest.cluster_sha256,
            without_representative=without,
            left_out=fates.contained,
            split=facts,
            files={**manifest.files, **files},
        ),
    )


def _fates(store: Store, work: Path, sides: Path, side: int, pairs: Iterable[tuple[int, int]]) -> Fates:
    """Keep what is on this side and not the first of one of the pairs, (sequence, what it leaks)."""
    leaking = Buckets(work, "leaking", [("index", "<i8"), ("outer", "<i8")])
    for inner, outer in pairs:
        index = np.array([inner])
        leaking.add(by_range(index), {"index": index, "outer": np.array([outer])})
    counts = np.zeros(ELSEWHERE + 1, np.int64)
    with (
        sides.open("rb") as side_file,
        (work / "fates.bin").open("wb") as fate_file,
        (work / "partners.bin").open("wb") as partner_file,
    ):
        for number in range(ranges(len(store))):
            here = np.fromfile(side_file, np.uint8, RANGE_ROWS) == side
            fate = np.where(here, KEPT, ELSEWHERE).astype(np.uint8)
            rows = leaking.take(number)
            index, first = np.unique(rows["index"], return_index=True)
            fate[index - number * RANGE_ROWS] = CONTAINED
            fate.tofile(fate_file)
            rows["outer"][first].astype(POSITION).tofile(partner_file)
            counts += np.bincount(fate, minlength=len(counts))
    return Fates(work, len(store), contained=int(counts[CONTAINED]), elsewhere=int(counts[ELSEWHERE]))


def _assigned(store: Store, work: Path) -> Buckets:
    """The clusters of a store as `grouping` wants them; the number of a cluster is its name."""
    assigned = Buckets(work, "assigned", ASSIGNED)
    for first in range(0, store.num_clusters, CLUSTER_BLOCK):
        starts = store.cluster_starts[first : first + CLUSTER_BLOCK + 1]
        members = store.members[starts[0] : starts[-1]]
        number = np.repeat(np.arange(first, first + len(starts) - 1).astype(np.uint64), np.diff(starts))
        leads = np.zeros(len(members), bool)
        leads[starts[:-1] - starts[0]] = True
        columns = {
            # Spread over the buckets, as digests are.
            "high": number << np.uint64(56),
            "low": number,
            "index": members,
            "choice": members,
            "representative": leads,
        }
        assigned.add(by_range(members), columns)
    return assigned
