"""How `proteins.fasta` was made: 200 Swiss-Prot proteins, evenly spread over the lengths of a larger set.

In: a FASTA file of UniProtKB/Swiss-Prot proteins, ids as accessions. Out: `proteins.fasta` beside this script.
Run it again with `python examples/make_examples.py valid_public.fasta.gz`; the choice has no randomness in it.
"""

import sys
from pathlib import Path

import dnaio

COUNT = 200
SHORTEST, LONGEST = 50, 1000
LINE = 60
"""Residues on a line, as UniProt wraps them."""


def choose(proteins: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """`COUNT` proteins at equal steps through the list sorted by length, returned in the order of their accessions.

    Args:
        proteins: (accession, residues) pairs.

    Returns:
        the chosen pairs; shortest and longest within the limits are always among them.
    """
    by_length = sorted(
        (pair for pair in proteins if SHORTEST <= len(pair[1]) <= LONGEST), key=lambda pair: (len(pair[1]), pair[0])
    )
    step = (len(by_length) - 1) / (COUNT - 1)
    return sorted(by_length[round(step * index)] for index in range(COUNT))


def main(source: str) -> None:
    """Write `proteins.fasta` from the FASTA file `source`."""
    with dnaio.open(source) as reader:
        proteins = [(record.id, record.sequence) for record in reader]
    chosen = choose(proteins)
    with open(Path(__file__).with_name("proteins.fasta"), "w", encoding="ascii") as handle:
        for accession, residues in chosen:
            lines = [residues[start : start + LINE] for start in range(0, len(residues), LINE)]
            handle.write("\n".join([f">{accession}", *lines]) + "\n")
    print(f"{len(chosen)} of {len(proteins)} proteins, {sum(len(residues) for _, residues in chosen):,} residues")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/make_examples.py SWISSPROT.fasta[.gz]")
    main(sys.argv[1])
