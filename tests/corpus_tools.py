"""What the tests of corpora share."""

import io
import itertools
from pathlib import Path

from proteinlm.corpora.build import BuildOptions, build
from proteinlm.corpora.store import Store


def fasta(*records: tuple[str, str]) -> io.BytesIO:
    """A FASTA file of (header, sequence) records."""
    return io.BytesIO("".join(f">{header}\n{sequence}\n" for header, sequence in records).encode())


def built(path: Path, options: BuildOptions | None, *records: tuple[str, str]) -> Store:
    """The store of some records."""
    build(fasta(*records), path, options)
    return Store.open(path)


def sequences(store: Store) -> dict[str, str]:
    """Everything in a store: identifier to residues."""
    return {store.identifier(index): store.letters(index).tobytes().decode() for index in range(len(store))}


def clusters(store: Store) -> list[list[str]]:
    """The identifiers of each cluster, as the store has them."""
    starts = store.cluster_starts.tolist()
    return [
        [store.identifier(index) for index in store.members[start:end].tolist()]
        for start, end in itertools.pairwise(starts)
    ]
