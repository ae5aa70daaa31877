"""What is in a store, in numbers: for `plm corpus stats`.

In: a store. Out: `Statistics`; the manifest knows most of it, cluster sizes are counted from the cluster index.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from proteinlm.corpora.manifest import Manifest
from proteinlm.corpora.store import Store

BLOCK = 1 << 20


@dataclass(frozen=True)
class Statistics:
    """What is in a store.

    Attributes:
        sequences, residues, shortest, longest, mean_length: of the store.
        composition: share of each letter, most frequent first. length_histogram: sequences by length.
        clusters, largest_cluster: 0 where there are none. cluster_sizes: clusters by size, bins 1, 2, 3-4, 5-8 ...
        fates: what became of the records of the input; the counts add up to `records`.
    """

    sequences: int
    residues: int
    shortest: int
    longest: int
    mean_length: float
    composition: dict[str, float]
    length_histogram: dict[str, int]
    clusters: int
    largest_cluster: int
    cluster_sizes: dict[str, int]
    fates: dict[str, int]


def statistics(store: Store) -> Statistics:
    """Count what is in a store.

    >>> import io, tempfile
    >>> from pathlib import Path
    >>> from proteinlm.corpora.build import BuildOptions, build
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fasta = io.BytesIO(b">a a\\nMKT\\n>b a\\nMKV\\n>c a\\nMKL\\n>d d\\nGG\\n")
    ...     manifest = build(fasta, Path(folder, "store"), BuildOptions(clusters="header"))
    ...     found = statistics(Store.open(Path(folder, "store")))
    >>> found.cluster_sizes, found.largest_cluster, found.mean_length
    ({'1': 1, '3-4': 1}, 3, 2.75)
    """
    manifest = store.manifest
    ranked = sorted(manifest.composition.items(), key=lambda item: (-item[1], item[0]))
    bits: Counter[int] = Counter()
    largest = 0
    for first in range(0, store.num_clusters, BLOCK):
        sizes = np.diff(store.cluster_starts[first : first + BLOCK + 1])
        largest = max(largest, int(sizes.max()))
        # Bin k holds sizes above 2^(k-1) up to 2^k.
        values, counts = np.unique(np.ceil(np.log2(sizes)).astype(int), return_counts=True)
        bits.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return Statistics(
        sequences=manifest.sequences,
        residues=manifest.residues,
        shortest=manifest.shortest,
        longest=manifest.longest,
        mean_length=manifest.residues / manifest.sequences,
        composition={letter: count / manifest.residues for letter, count in ranked},
        length_histogram=manifest.length_histogram,
        clusters=manifest.clusters,
        largest_cluster=largest,
        cluster_sizes={_size_bin(bit): bits[bit] for bit in sorted(bits)},
        fates=fates(manifest),
    )


def fates(manifest: Manifest) -> dict[str, int]:
    """What became of the records of the input; the counts add up to `records`."""
    found = {
        "in the store": manifest.sequences,
        "refused": manifest.refused,
        "too short": manifest.too_short,
        "too long": manifest.too_long,
        "copies, merged": manifest.merged,
        "without a cluster": manifest.unclustered,
        "left out, they would leak": manifest.left_out,
    }
    assert sum(found.values()) == manifest.records, "a record is lost"
    return found


def _size_bin(bit: int) -> str:
    return str(1 << bit) if bit < 2 else f"{(1 << (bit - 1)) + 1}-{1 << bit}"
