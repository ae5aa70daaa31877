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


def example_store(folder: Path, clusters: bool = True) -> Path:
    """A store of 40 proteins of `examples/`; neighbours share a cluster, named after the first of the two."""
    examples = Path(__file__).resolve().parents[1] / "examples" / "proteins.fasta"
    records = examples.read_text("utf-8").split(">")[1:41]
    with (folder / "small.fasta").open("w", encoding="utf-8") as file:
        for number, record in enumerate(records):
            header, residues = record.split("\n", 1)
            lead = records[number // 2 * 2].split()[0]
            file.write(f">{header.split()[0]} {lead}\n{residues}")
    build(folder / "small.fasta", folder / "store", BuildOptions(clusters="header" if clusters else None))
    return folder / "store"
