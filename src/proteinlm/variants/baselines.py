"""Scores of substitutions that know neither the protein nor its relatives: what a model has to beat.

In: `Variants`. Out: a number for each, higher is fitter. None needs an alignment or looks at what stands around a
residue; a variant's score is the sum over its substitutions.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from proteinlm.models.encodings import RESIDUES, blosum62_table
from proteinlm.sequences.alphabet import LETTERS, STANDARD
from proteinlm.variants.changes import Variants

# Robinson & Robinson 1991, PNAS 88:8880, per thousand, in the order of STANDARD; the background of BLAST's statistics.
_BACKGROUND = np.array(
    (
        *(78.05, 19.25, 53.64, 62.95, 38.56, 73.77, 21.99, 51.42, 57.44, 90.19),
        *(22.43, 44.87, 52.03, 42.64, 51.29, 71.20, 58.41, 64.41, 13.30, 32.16),
    )
)


def blosum62(variants: Variants) -> Float64[np.ndarray, " N"]:
    """How easily the residues replace each other in conserved blocks, in half bits.

    >>> blosum62(Variants.of("MKTA", ["K2R", "K2R:A4W"])).tolist()
    [2.0, -1.0]
    """
    rows = RESIDUES.residue_ids("".join(LETTERS[column] for column in variants.wild_S))
    columns = _standard_columns(variants.mutant_S)
    return variants.total(blosum62_table()[rows, columns].astype(np.float64))


def background(variants: Variants) -> Float64[np.ndarray, " N"]:
    """How much more frequent in proteins the new residues are than the old ones, in nats; other letters count as mean.

    >>> background(Variants.of("MKTA", ["A4L", "A4W"])).round(3).tolist()
    [0.145, -1.77]
    """
    of_letter = np.full(len(LETTERS), np.log(_BACKGROUND.sum() / len(STANDARD)))
    of_letter[[LETTERS.index(residue) for residue in STANDARD]] = np.log(_BACKGROUND)
    return variants.total(of_letter[variants.mutant_S] - of_letter[variants.wild_S])


def fewer_substitutions(variants: Variants) -> Float64[np.ndarray, " N"]:
    """The number of substitutions, negative: whatever changes more is worse.

    >>> fewer_substitutions(Variants.of("MKTA", ["K2R", "K2R:A4W"])).tolist()
    [-1.0, -2.0]
    """
    return -variants.total(np.ones(len(variants.variant_S)))


def _standard_columns(letters_S: np.ndarray) -> np.ndarray:
    return np.array([STANDARD.index(LETTERS[letter]) for letter in letters_S], np.int64)


BASELINES: dict[str, Callable[[Variants], np.ndarray]] = {
    "BLOSUM62": blosum62,
    "background frequencies": background,
    "fewer substitutions": fewer_substitutions,
}
"""Baselines by name. The last one ranks nothing where all variants change as many residues."""
