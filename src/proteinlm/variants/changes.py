"""The variants of a wild type, as arrays: which residue is put where.

In: a wild type and variants written `A24G:K30R`. Out: `Variants`. Positions are counted from 0 here, and from 1 in all
that people read or write. Shape letters: N variants, S substitutions of all variants one after the other, L residues.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from proteinlm.datasets.variants import STOP, check_variant, parse_variant
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import LETTERS, STANDARD


@dataclass(frozen=True, eq=False)
class Variants:
    """Variants of one wild type.

    Attributes:
        wild_type: L residues. mutants: N variants as written.
        variant_S, position_S: number of the variant, and position from 0, of each substitution; variants ascend.
        wild_S, mutant_S: columns of `LETTERS` before and after.

    >>> variants = Variants.of("MKTA", ["K2R", "K2R:A4G"])
    >>> variants.variant_S.tolist(), variants.position_S.tolist(), variants.sequence(1)
    ([0, 1, 1], [1, 1, 3], 'MRTG')
    """

    wild_type: str
    mutants: tuple[str, ...]
    variant_S: Int64[np.ndarray, " S"]
    position_S: Int64[np.ndarray, " S"]
    wild_S: Int64[np.ndarray, " S"]
    mutant_S: Int64[np.ndarray, " S"]

    @classmethod
    def of(cls, wild_type: str, mutants: Iterable[str]) -> "Variants":
        """The variants, each checked.

        Raises:
            InputError: one is not well written, does not fit the wild type, changes nothing, or holds a stop.
        """
        named = tuple(mutants)
        rows: list[tuple[int, int, int, int]] = []
        for number, mutant in enumerate(named):
            substitutions = parse_variant(mutant)
            check_variant(substitutions, wild_type)
            for item in substitutions:
                if item.mutant == STOP:
                    raise InputError(f"variant {mutant!r} holds a stop, for which a language model has no score")
                if item.mutant == item.wild:
                    raise InputError(f"variant {mutant!r}: {item} changes nothing; leave it out")
                columns = LETTERS.index(item.wild), LETTERS.index(item.mutant)
                rows.append((number, item.position - 1, *columns))
        arrays = np.array(rows, np.int64).reshape(-1, 4).T
        return cls(wild_type, named, *arrays)

    def __len__(self) -> int:
        return len(self.mutants)

    def sequence(self, number: int) -> str:
        """Residues of a variant."""
        residues = list(self.wild_type)
        first, end = self._bounds(number)
        for position, column in zip(self.position_S[first:end], self.mutant_S[first:end], strict=True):
            residues[position] = LETTERS[column]
        return "".join(residues)

    def sequences(self) -> Iterator[str]:
        """Residues of every variant."""
        return (self.sequence(number) for number in range(len(self)))

    def positions(self, number: int) -> tuple[int, ...]:
        """Positions that a variant changes, from 0, ascending."""
        first, end = self._bounds(number)
        return tuple(sorted(self.position_S[first:end].tolist()))

    def total(self, values_S: np.ndarray) -> np.ndarray:
        """Sum of a value per substitution over each variant, float64, shape (N,)."""
        return np.bincount(self.variant_S, weights=values_S, minlength=len(self))

    def _bounds(self, number: int) -> tuple[int, int]:
        first, end = np.searchsorted(self.variant_S, [number, number + 1])
        return int(first), int(end)


def all_substitutions(wild_type: str) -> list[str]:
    """The 19 x L single substitutions, by position and then by residue; letters beyond the twenty are left as they are.

    >>> found = all_substitutions("MXK")
    >>> len(found), found[0], found[-1]
    (38, 'M1A', 'K3Y')
    """
    return [
        f"{wild}{position}{residue}"
        for position, wild in enumerate(wild_type, 1)
        if wild in STANDARD
        for residue in STANDARD
        if residue != wild
    ]
