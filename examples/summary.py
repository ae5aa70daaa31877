"""What is in an HDF5 file of protein embeddings, in words.

In: the file that `plm embed` wrote (one vector per protein) and the FASTA file it came from. Out: on the screen, how
many proteins, how wide, made how, and for three peculiar proteins those whose vectors lie nearest to theirs.
Run it with `python examples/summary.py embeddings.h5 examples/proteins.fasta`.
"""

import json
import sys

import dnaio
import h5py
import numpy as np

NEAREST = 3
PROVENANCE = ("model", "model_digest", "input_digest", "layers", "pooling", "precision", "proteinlm", "torch")
"""What the file says of itself that is worth a line each."""

HYDROPATHY = {
    **{"A": 1.8, "R": -4.5, "N": -3.5, "D": -3.5, "C": 2.5, "Q": -3.5, "E": -3.5, "G": -0.4, "H": -3.2, "I": 4.5},
    **{"L": 3.8, "K": -3.9, "M": 1.9, "F": 2.8, "P": -1.6, "S": -0.8, "T": -0.7, "W": -0.9, "Y": -1.3, "V": 4.2},
}
"""Hydropathy of each residue (Kyte and Doolittle 1982, table 2)."""


def share(residues: str, letters: str) -> float:
    """Which part of a protein's residues are among `letters`."""
    return sum(residues.count(letter) for letter in letters) / len(residues)


def hydropathy(residues: str) -> float:
    """Mean hydropathy of a protein; positive is greasy, negative is water-loving."""
    return sum(HYDROPATHY.get(letter, 0.0) for letter in residues) / len(residues)


def read_vectors(path: str) -> tuple[list[str], np.ndarray, dict[str, object]]:
    """Ids, vectors of shape (proteins, width) and how they came to be."""
    with h5py.File(path) as file:
        ids = [str(dataset.attrs["original_id"]) for dataset in file.values()]
        vectors = np.stack([dataset[:] for dataset in file.values()])
        return ids, vectors.astype(np.float64), json.loads(file.attrs["provenance"])


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Cosine of every pair of proteins, after taking off what all proteins share (the mean vector)."""
    centred = vectors - vectors.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    return centred @ centred.T


def describe(accession: str, residues: str) -> str:
    """One protein in one line."""
    return (
        f"{accession:<8}{len(residues):>6} residues   hydropathy {hydropathy(residues):+.2f}   "
        f"Cys {share(residues, 'C'):>4.0%}   Lys+Arg {share(residues, 'KR'):>4.0%}"
    )


def print_neighbours(ids: list[str], similar: np.ndarray, proteins: dict[str, str]) -> None:
    """The proteins nearest to the greasiest, the richest in cysteine, and the most basic one."""
    peculiar = {
        "the most hydrophobic (a membrane protein, most likely)": max(ids, key=lambda key: hydropathy(proteins[key])),
        "the richest in cysteine (disulphide bonds or metal sites)": max(
            ids, key=lambda key: share(proteins[key], "C")
        ),
        "the most basic (as proteins that bind DNA or RNA are)": max(ids, key=lambda key: share(proteins[key], "KR")),
    }
    for title, query in peculiar.items():
        row = similar[ids.index(query)]
        print(f"\n{title}: https://www.uniprot.org/uniprotkb/{query}\n         {describe(query, proteins[query])}")
        for index in np.argsort(-row)[1 : NEAREST + 1]:
            print(f"  {row[index]:.3f}  {describe(ids[index], proteins[ids[index]])}")


def print_check(ids: list[str], similar: np.ndarray, proteins: dict[str, str]) -> None:
    """How much more alike two neighbours are than two proteins drawn blindly."""
    values = np.array([hydropathy(proteins[key]) for key in ids])
    others = similar - 2 * np.eye(len(ids))
    between_neighbours = np.abs(values - values[others.argmax(axis=1)]).mean()
    between_all = np.abs(values[:, None] - values)[~np.eye(len(ids), dtype=bool)].mean()
    print(
        f"\nNearest neighbours differ by {between_neighbours:.2f} in hydropathy, two proteins drawn blindly by "
        f"{between_all:.2f}."
    )


def main(embeddings: str, fasta: str) -> None:
    """Print the summary of `embeddings`, made from `fasta`."""
    ids, vectors, provenance = read_vectors(embeddings)
    with dnaio.open(fasta) as reader:
        proteins = {record.id: record.sequence.upper() for record in reader}
    print(f"{embeddings}: {len(ids)} of the {len(proteins)} proteins of {fasta}, {vectors.shape[1]} numbers each")
    for name in PROVENANCE:
        print(f"  {name.replace('_', ' '):<14}{provenance[name]}")
    similar = cosines(vectors)
    print(f"\nWhat lies near what ({NEAREST} nearest of {len(ids)}, by cosine):")
    print_neighbours(ids, similar, proteins)
    print_check(ids, similar, proteins)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/summary.py EMBEDDINGS.h5 PROTEINS.fasta")
    main(*sys.argv[1:])
