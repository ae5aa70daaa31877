"""Every set of a data folder read from end to end: is it whole, and how much does it hold?

In: the data folder and the key of a set. Out: one line of counts, or the error of the reader.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from proteinlm.datasets.alignments import read_balifam, read_chain_alignments, read_example_alignments, read_pfam
from proteinlm.datasets.annotations import read_enzymes, read_kingdoms, read_orthologs
from proteinlm.datasets.chains import read_chains, read_coordinates
from proteinlm.datasets.conservation import read_conservation
from proteinlm.datasets.domains import read_cath, read_scop, without_excluded_folds
from proteinlm.datasets.leakage import read_proteins
from proteinlm.datasets.localisation import for_q2, for_q10, localisation_splits, read_deeploc
from proteinlm.datasets.secondary_structure import disagreement, read_cb513, read_netsurfp
from proteinlm.datasets.sources import locate
from proteinlm.datasets.tables import Sequenced
from proteinlm.datasets.variants import read_assays

Folder = str | Path | None


def _size(records: Iterable[Sequenced], what: str) -> str:
    records = tuple(records)
    return f"{len(records):,} {what}, {sum(len(record.residues) for record in records):,} residues"


def _netsurfp(folder: Folder) -> str:
    chains = read_netsurfp(folder)
    train = sum(chain.split == "train" for chain in chains)
    different, known = disagreement(chains)
    return (
        f"{_size(chains, 'chains')}: {train:,} training, {len(chains) - train:,} validation; "
        f"eight states known for {known:,} residues, {different:,} of them unlike the three states"
    )


def _cb513(folder: Folder) -> str:
    chains = read_cb513(folder)
    counted = sum(int(chain.counted.sum()) for chain in chains)
    return f"{_size(chains, 'chains')}, {counted:,} of them count; {len({c.residues for c in chains})} sequences"


def _scop(folder: Folder) -> str:
    domains = read_scop(folder)
    return f"{_size(domains, 'domains')}; {len(without_excluded_folds(domains)):,} without the excluded folds"


def _deeploc(folder: Folder) -> str:
    splits = localisation_splits(folder)
    return (
        f"{_size(read_deeploc(folder), 'proteins')}: {len(splits.train):,} training, {len(splits.test):,} test, "
        f"{len(splits.removed)} in both; test proteins with a class: "
        f"{len(for_q10(splits.test)):,} in Q10, {len(for_q2(splits.test)):,} in Q2"
    )


def _coordinates(folder: Folder) -> str:
    coordinates = read_coordinates(folder, read_chains(folder))
    return f"{len(coordinates):,} chains, {len(coordinates.stored):,} residues"


def _dms(folder: Folder) -> str:
    assays = read_assays(folder)
    stops = sum(int(assay.has_stop().sum()) for assay in assays)
    return f"{len(assays)} assays, {sum(map(len, assays)):,} variants, {stops:,} of them with a stop"


def _kingdom(folder: Folder) -> str:
    proteins = read_kingdoms(folder)
    return f"{_size(proteins, 'proteins')}; {sum(one.ec_number is not None for one in proteins):,} with EC number"


def _chain_alignments(folder: Folder) -> str:
    found = read_chain_alignments(folder, read_chains(folder))
    rows = [len(alignment) for alignment in found.values()]
    return f"{len(rows):,} alignments, {sum(rows):,} rows, at least {min(rows)} each"


def _balifam(folder: Folder) -> str:
    return f"{len(read_balifam(folder, 100))} families of 100, {len(read_balifam(folder, 1000))} of 1000"


def _pfam(folder: Folder) -> str:
    return ", ".join(
        f"{one.id}: {len(one.alignment):,} rows, {len(one.pairs):,} distances" for one in read_pfam(folder)
    )


CHECKS: dict[str, Callable[[Folder], str]] = {
    "held_out": lambda folder: _size(read_proteins(locate(folder, "held_out")), "proteins"),
    "netsurfp": _netsurfp,
    "cb513": _cb513,
    "scop": _scop,
    "cath": lambda folder: _size(read_cath(folder), "domains"),
    "chains": lambda folder: _size(read_chains(folder), "chains"),
    "coordinates": _coordinates,
    "deeploc": _deeploc,
    "conservation": lambda folder: _size(read_conservation(folder), "chains"),
    "dms": _dms,
    "orthobench": lambda folder: _size(read_orthologs(folder), "proteins"),
    "kingdom": _kingdom,
    "swissprot_ec": lambda folder: f"{len(read_enzymes(folder)):,} entries",
    "chain_alignments": _chain_alignments,
    "balifam": _balifam,
    "pfam": _pfam,
    "example_alignments": lambda folder: f"{len(read_example_alignments(folder))} alignments",
}
"""What to read for each key of `sources.SOURCES`, and what to say of it."""
