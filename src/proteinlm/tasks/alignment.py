"""Family alignment: do residues that are aligned have like vectors?

In: alignments of families. Out: for pairs of residues from different sequences of a family, the AUC of their cosine as
a sign that they stand in the same column: over all pairs, over pairs of the same amino acid, and over pairs of
different ones. The last is what a residue's kind cannot tell. Source: papers.md 3, row e (Rives et al., Figure 3,
Table S1).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from proteinlm.datasets.alignments import Alignment, read_balifam, read_pfam
from proteinlm.errors import InputError
from proteinlm.metrics import area_under_roc
from proteinlm.tasks.base import GroupScores, Question, Reply, Result, Task, Wanted
from proteinlm.tasks.homology import unit

SEQUENCES, QUICK_SEQUENCES = 40, 12
"""Of a family, drawn at random; vectors of these are kept."""

PAIRS, QUICK_PAIRS = 1000, 300
"""Of each kind, in each family."""

QUICK_FAMILIES = 12
DRAWN_AT_ONCE, MOST_DRAWS = 1 << 14, 64
CONDITIONS = ("all pairs", "same amino acid", "different amino acids")
EXAMPLE = "PF00014"
BINS = 41

Pairs = Int64[np.ndarray, "P 4"]
"""Sequence and residue of the one, sequence and residue of the other, counted from 0."""


@dataclass(frozen=True)
class Family:
    """What is asked about one family.

    Args:
        id: of the family. residues: the sequences drawn.
        pairs: for each condition, pairs of the same column and pairs of different columns.
    """

    id: str
    residues: tuple[str, ...]
    pairs: dict[str, tuple[Pairs, Pairs]]


def draw_pairs(places_SC: np.ndarray, residues: tuple[str, ...], count: int, random: np.random.Generator) -> Family:
    """Draw pairs of residues from different sequences of a family; its `id` is left empty.

    Args:
        places_SC: which residue of each sequence stands in each column, -1 at a gap. residues: of each sequence.
        count: pairs of each kind at most; fewer where a family has not as many in a million draws.

    >>> places = np.array([[0, 1, 2], [0, 1, 2]])
    >>> family = draw_pairs(places, ("MKT", "MRT"), 5, np.random.default_rng(0))
    >>> same, other = family.pairs["different amino acids"]
    >>> same[:, 1].tolist(), bool((other[:, 1] != other[:, 3]).all())
    ([1, 1, 1, 1, 1], True)
    """
    letters_SC = np.array(
        [
            [ord(text[place]) if place >= 0 else 0 for place in row]
            for text, row in zip(residues, places_SC, strict=True)
        ]
    )
    sequences, columns = places_SC.shape
    found: dict[tuple[str, bool], list[np.ndarray]] = {
        (name, same): [] for name in CONDITIONS for same in (True, False)
    }
    for _ in range(MOST_DRAWS):
        short = [key for key, parts in found.items() if sum(map(len, parts)) < count]
        if not short:
            break
        for same in sorted({key[1] for key in short}):
            one, other = random.integers(0, sequences, size=(2, DRAWN_AT_ONCE))
            column, across = random.integers(0, columns, size=(2, DRAWN_AT_ONCE))
            across = column if same else across
            usable = (one != other) & (places_SC[one, column] >= 0) & (places_SC[other, across] >= 0)
            usable &= np.full(DRAWN_AT_ONCE, same) | (column != across)
            alike = letters_SC[one, column] == letters_SC[other, across]
            drawn = np.stack([one, places_SC[one, column], other, places_SC[other, across]], axis=1).astype(np.int64)
            for name, which in zip(CONDITIONS, (usable, usable & alike, usable & ~alike), strict=True):
                found[name, same].append(drawn[which])
    pairs = {
        name: (np.concatenate(found[name, True])[:count], np.concatenate(found[name, False])[:count])
        for name in CONDITIONS
    }
    return Family("", residues, pairs)


def draw_family(alignment: Alignment, sequences: int, count: int, random: np.random.Generator) -> Family:
    """Draw distinct sequences of an alignment, and pairs between them.

    Args:
        alignment: of a family. sequences: at most. count: pairs of each kind at most. random: of both draws.

    Raises:
        InputError: fewer than two distinct sequences.
    """
    rows: dict[str, int] = {}
    for row in random.permutation(len(alignment)):
        residues = alignment.residues(int(row))
        if residues and len(rows) < sequences:
            rows.setdefault(residues, int(row))
    if len(rows) < 2:
        raise InputError(f"{alignment.id} has {len(rows)} distinct sequences; an alignment has two or more")
    places_SC = np.stack([alignment.residue_of_column(row) for row in rows.values()])
    found = draw_pairs(places_SC, tuple(rows), count, random)
    return Family(alignment.id, found.residues, found.pairs)


def cosines(vectors_RD: Float[np.ndarray, "R D"], starts: np.ndarray, pairs: Pairs) -> Float[np.ndarray, "P"]:
    """Cosine of the two vectors of each pair, 0 where one of them is zero.

    To six decimals, so that equal vectors are equal whatever the rounding of sums.

    Args:
        vectors_RD: of length 1, of the residues of all sequences end to end. starts: of each sequence.
        pairs: see `Pairs`.
    """
    one_P, other_P = (starts[pairs[:, side]] + pairs[:, side + 1] for side in (0, 2))
    found: np.ndarray = np.einsum("pd,pd->p", vectors_RD[one_P], vectors_RD[other_P]).round(6)
    return found


class FamilyAlignment(Task):
    """AUC of cosines in alignments of balifam's and Pfam's families."""

    name = "alignment"
    version = 1
    title = "Family alignment: cosine of aligned residues (AUC)"
    source = "Rives et al. 2021, Figure 3 and Table S1"
    needs = frozenset(("residues",))
    sources = ("balifam", "pfam")

    def questions(self) -> Iterator[Question]:
        """The residue vectors of the sequences drawn from each family."""
        alignments = [family.reference for family in read_balifam(self.options.data)]
        alignments += [family.alignment for family in read_pfam(self.options.data)]
        if self.options.quick:
            alignments = [*alignments[: QUICK_FAMILIES - 1], alignments[-2]]
        random = self.random()
        sizes = (QUICK_SEQUENCES, QUICK_PAIRS) if self.options.quick else (SEQUENCES, PAIRS)
        self.families = [draw_family(alignment, *sizes, random) for alignment in alignments]
        self.numbers: dict[tuple[int, int], int] = {}
        self.vectors: dict[int, np.ndarray] = {}
        for family, content in enumerate(self.families):
            for sequence, residues in enumerate(content.residues):
                self.numbers[family, sequence] = len(self.numbers)
                yield Question(residues, Wanted(kept=True, layer=self.options.layer))

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the view of the vectors on disk."""
        assert reply.kept is not None, "vectors were wanted to be kept"
        self.vectors[number] = reply.kept

    def finish(self) -> list[Result]:
        """AUC of each family, and their mean; intervals draw families again."""
        areas: dict[str, dict[str, float]] = {name: {} for name in CONDITIONS}
        histograms: dict[str, list[int]] = {}
        for family, content in enumerate(self.families):
            vectors_RD, starts = self._unit_vectors(family)
            for name, pairs in content.pairs.items():
                same, other = (cosines(vectors_RD, starts, one) for one in pairs)
                if len(same) and len(other):
                    areas[name][content.id] = area_under_roc(same, other)
                if content.id == EXAMPLE:
                    histograms[f"{name}, same column"] = _histogram(same)
                    histograms[f"{name}, different columns"] = _histogram(other)
        return [self._result(name, areas[name], histograms) for name in CONDITIONS]

    def _unit_vectors(self, family: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of length 1 of all residues of a family's sequences, end to end, and where each sequence starts."""
        parts = [
            self.vectors[self.numbers[family, sequence]] for sequence in range(len(self.families[family].residues))
        ]
        starts = np.cumsum([0, *map(len, parts)])
        return unit(np.concatenate(parts).astype(np.float32)), starts

    def _result(self, name: str, areas: dict[str, float], histograms: dict[str, list[int]]) -> Result:
        if not areas:
            raise InputError(f"no family has {name} in the same column and in different ones")
        limits = (
            f"{len(areas)} families of BAliBASE (by way of balifam) and Pfam, not the paper's 128 of Pfam",
            f"up to {SEQUENCES} sequences and {PAIRS} pairs of each kind in a family: the paper does not say how many",
            *(("a quick run: fewer families, sequences and pairs",) if self.options.quick else ()),
        )
        edges = np.linspace(-1, 1, BINS).round(3).tolist()
        chosen = {title: counts for title, counts in histograms.items() if title.startswith(f"{name}, ")}
        table = {"family": EXAMPLE, "edges": edges, **chosen} if chosen else {}
        scores = GroupScores(list(areas), np.array(list(areas.values())), np.ones(len(areas)))
        return self.result(f"AUC, {name}", scores, notes=limits, table=table)


def _histogram(values: np.ndarray) -> list[int]:
    counts, _ = np.histogram(values, bins=np.linspace(-1, 1, BINS))
    found: list[int] = counts.tolist()
    return found
