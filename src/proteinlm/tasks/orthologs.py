"""Orthologs: is the step from one species to another, or from one gene to another, the same vector everywhere?

In: proteins of orthogroups in several species. For genes i, j and species a, b the query is
v(i, a) + v(j, b) - v(j, a), and the protein of gene i in species b is to be found by Euclidean distance. Out: how often
it is among the 1, 5 and 10 nearest; from the model's mean vectors, from v(i, a) alone ("add nothing"), and from
amino-acid composition. Source: papers.md 3, row d (Rives et al., Figure S1).

Read along species, the query is v(i, a) moved from a to b; read along genes, it is v(j, b) moved from j to i: one and
the same vector. So there are three rankings of it: of all proteins; along species, of the proteins of gene i alone (is
it the right species?); and along genes, of the proteins of species b alone (is it the right gene?).

Letters of shapes: N distinct sequences, Q queries.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Float, Int64

from proteinlm.datasets.annotations import OrthologousProtein, read_orthologs
from proteinlm.errors import InputError
from proteinlm.metrics import sum_by_group
from proteinlm.models.encodings import RESIDUES, one_hot_table
from proteinlm.tasks.base import GroupScores, Question, Reply, Result, Task, Wanted

RECOVERED = (1, 5, 10)
QUICK_GROUPS = 12
BLOCK = 2048
"""Queries whose distances are held together."""

RANKINGS = ("all proteins", "along species", "along genes")


@dataclass(frozen=True)
class Queries:
    """Every query there is; numbers of distinct sequences, in four arrays of shape (Q,), and names.

    Args:
        start_Q: gene i in species a. plus_Q: gene j in species b. minus_Q: gene j in species a.
        target_Q: gene i in species b. gene_Q, species_Q: numbers of gene i and species b.
    """

    start_Q: Int64[np.ndarray, " Q"]
    plus_Q: Int64[np.ndarray, " Q"]
    minus_Q: Int64[np.ndarray, " Q"]
    target_Q: Int64[np.ndarray, " Q"]
    gene_Q: Int64[np.ndarray, " Q"]
    species_Q: Int64[np.ndarray, " Q"]

    def __len__(self) -> int:
        return len(self.start_Q)


def single_copies(proteins: Sequence[OrthologousProtein]) -> dict[str, dict[str, OrthologousProtein]]:
    """Of each orthogroup, the protein of each species that has exactly one of it.

    >>> rows = (("1", "g", "a", "M"), ("2", "g", "b", "K"), ("3", "g", "b", "T"))
    >>> proteins = [OrthologousProtein(*row) for row in rows]
    >>> {group: list(found) for group, found in single_copies(proteins).items()}
    {'g': ['a']}
    """
    copies = Counter((protein.group, protein.species) for protein in proteins)
    found: dict[str, dict[str, OrthologousProtein]] = {protein.group: {} for protein in proteins}
    for protein in proteins:
        if copies[protein.group, protein.species] == 1:
            found[protein.group][protein.species] = protein
    return found


def find_queries(proteins: Sequence[OrthologousProtein], number_of: Mapping[str, int]) -> Queries:
    """All queries of single copies whose four sequences differ.

    Args:
        proteins: of all orthogroups. number_of: number of each distinct sequence.

    Raises:
        InputError: there is none.
    """
    single = single_copies(proteins)
    genes = {name: number for number, name in enumerate(sorted(single))}
    species = {name: number for number, name in enumerate(sorted({protein.species for protein in proteins}))}
    rows = []
    for i, j in permutations(sorted(single), 2):
        shared = sorted(single[i].keys() & single[j].keys())
        for a, b in permutations(shared, 2):
            four = [number_of[single[gene][where].residues] for gene, where in ((i, a), (j, b), (j, a), (i, b))]
            if len(set(four)) == len(four):
                rows.append((*four, genes[i], species[b]))
    if not rows:
        raise InputError("no two orthogroups have single copies in the same two species; more proteins are needed")
    return Queries(*np.array(rows, np.int64).T)


def ranks(
    gram_NN: Float[np.ndarray, "N N"],
    queries: Queries,
    candidates_QN: np.ndarray,
    moved: bool,
) -> Int64[np.ndarray, " Q"]:
    """How many candidates are as near to each query as its target is; the target itself is not counted.

    Args:
        gram_NN: inner products of the vectors. queries: what is asked.
        candidates_QN: which sequences each query ranks, bool; its own terms and its target are left out here.
        moved: whether anything is added to v(i, a).

    >>> vectors = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.1]])
    >>> query = Queries(*(np.array([number]) for number in (0, 1, 2, 3, 0, 0)))
    >>> ranks(vectors @ vectors.T, query, np.ones((1, 4), bool), moved=True).tolist()
    [0]
    """
    squares_N, rows = np.diagonal(gram_NN), np.arange(len(queries))
    inner_QN = gram_NN[queries.start_Q]
    if moved:
        inner_QN = inner_QN + gram_NN[queries.plus_Q] - gram_NN[queries.minus_Q]
    # Squared distance to the query, less the query's own square, which all candidates share.
    distance_QN = squares_N - 2 * inner_QN
    ranked_QN = candidates_QN.copy()
    for own_Q in (queries.start_Q, queries.plus_Q, queries.minus_Q, queries.target_Q):
        ranked_QN[rows, own_Q] = False
    nearer_QN = distance_QN <= distance_QN[rows, queries.target_Q][:, None]
    found: np.ndarray = (nearer_QN & ranked_QN).sum(axis=1)
    return found


def compositions(sequences: Sequence[str]) -> Float[np.ndarray, "N 20"]:
    """Amino-acid composition of each sequence: the mean of its one-hot vectors, fp64.

    >>> compositions(["AAC"])[0, :2].round(3).tolist()
    [0.667, 0.333]
    """
    table_VD = one_hot_table().astype(np.float64)
    return np.stack([table_VD[RESIDUES.residue_ids(residues)].mean(axis=0) for residues in sequences])


class OrthologArithmetic(Task):
    """Recovery of orthologs by adding and subtracting vectors."""

    name = "orthologs"
    version = 1
    title = "Ortholog vector arithmetic"
    source = "Rives et al. 2021, Figure S1"
    needs = frozenset(("residues",))
    sources = ("orthobench",)

    def questions(self) -> Iterator[Question]:
        """The mean vector of each distinct sequence."""
        self.proteins = list(read_orthologs(self.options.data))
        if self.options.quick:
            single = single_copies(self.proteins)
            most = sorted(single, key=lambda group: (-len(single[group]), group))[:QUICK_GROUPS]
            self.proteins = [protein for protein in self.proteins if protein.group in most]
        self.sequences = list(dict.fromkeys(protein.residues for protein in self.proteins))
        self.vectors: dict[int, np.ndarray] = {}
        for residues in self.sequences:
            yield Question(residues, Wanted(mean=True, layer=self.options.layer))

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the vector."""
        assert reply.mean is not None, "the mean was wanted"
        self.vectors[number] = reply.mean

    def finish(self) -> list[Result]:
        """Rank; intervals draw again the orthogroups of the proteins that are to be found."""
        number_of = {residues: number for number, residues in enumerate(self.sequences)}
        queries = find_queries(self.proteins, number_of)
        vectors_ND = np.stack([self.vectors[number] for number in range(len(self.sequences))]).astype(np.float64)
        baseline_ND = compositions(self.sequences)
        grams = {"arithmetic": vectors_ND @ vectors_ND.T, "composition": baseline_ND @ baseline_ND.T}
        grams["add nothing"] = grams["arithmetic"]
        found = []
        for ranking in RANKINGS:
            for what, gram_NN in grams.items():
                rank_Q = self._ranks(gram_NN, queries, ranking, moved=what != "add nothing")
                found += [self._result(f"{ranking}, recovery@{k}, {what}", rank_Q < k, queries) for k in RECOVERED]
        return found

    def _ranks(self, gram_NN: np.ndarray, queries: Queries, ranking: str, moved: bool) -> np.ndarray:
        """Ranks in one of `RANKINGS`, some queries at a time."""
        of_gene_GN, of_species_SN = self._members("group"), self._members("species")
        parts = []
        for start in range(0, len(queries), BLOCK):
            rows = slice(start, start + BLOCK)
            part = Queries(*(values[rows] for values in vars(queries).values()))
            if ranking == "along species":
                candidates_QN = of_gene_GN[part.gene_Q]
            elif ranking == "along genes":
                candidates_QN = of_species_SN[part.species_Q]
            else:
                candidates_QN = np.ones((len(part), len(gram_NN)), bool)
            parts.append(ranks(gram_NN, part, candidates_QN, moved))
        return np.concatenate(parts)

    def _members(self, of: str) -> np.ndarray:
        """Which sequences each orthogroup or species has, bool, in the order of their names."""
        labels = [protein.group if of == "group" else protein.species for protein in self.proteins]
        names, number_P = np.unique(labels, return_inverse=True)
        number_of = {residues: number for number, residues in enumerate(self.sequences)}
        members = np.zeros((len(names), len(self.sequences)), bool)
        members[number_P, [number_of[protein.residues] for protein in self.proteins]] = True
        return members

    def _result(self, measure: str, right_Q: np.ndarray, queries: Queries) -> Result:
        groups = sorted({protein.group for protein in self.proteins})
        names = [groups[number] for number in np.unique(queries.gene_Q)]
        sums_G = sum_by_group(right_Q.astype(np.float64), queries.gene_Q)
        counts_G = sum_by_group(np.ones(len(queries)), queries.gene_Q)
        species = len({protein.species for protein in self.proteins})
        notes = (
            f"{len(queries):,} queries from {len(names)} of {len(groups)} orthogroups in {species} species: every pair "
            "of genes and of species in which both genes have exactly one protein, and whose four sequences differ",
            f"all {len(self.sequences)} distinct sequences are ranked, those of species with several copies, too, but "
            "not the query's own terms; a protein that is as near as the wanted one counts as nearer",
            "reference orthogroups of Open OrthoBench, not the paper's genes and species, which were not told, nor was "
            "its formula",
            *((f"a quick run: {QUICK_GROUPS} orthogroups, those with the most single copies",) * self.options.quick),
        )
        return self.result(measure, GroupScores(names, sums_G, counts_G), notes=notes)
