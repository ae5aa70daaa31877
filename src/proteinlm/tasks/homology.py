"""Remote homology: does a protein's vector lie nearest to those of its distant relatives?

In: SCOP or CATH domains. Out: Hit-10 and AUC at fold and superfamily level, by cosine and by Euclidean distance. Every
domain queries all others. At fold level, domains of the same fold are positive, those of the same superfamily are taken
out of the ranking, and those of other folds are negative; at superfamily level the same with family, superfamily and
superfamily. Queries without a positive are left out. Source: papers.md 3.1 (Rives et al., Table 2).
"""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from proteinlm.datasets.domains import CathDomain, ScopDomain, read_cath, read_scop, without_excluded_folds
from proteinlm.errors import InputError
from proteinlm.metrics import area_under_roc, sum_by_group
from proteinlm.tasks.base import GroupScores, Question, Reply, Result, Task, Wanted

HITS = 10
QUICK_DOMAINS = 600
BLOCK = 256
"""Queries whose distances are held together."""

Distance = Literal["cosine", "Euclidean"]
Domain = ScopDomain | CathDomain

LEVELS: dict[str, tuple[Callable[[Domain], str], Callable[[Domain], str]]] = {
    "fold": (lambda domain: domain.fold, lambda domain: domain.superfamily),
    "superfamily": (lambda domain: domain.superfamily, lambda domain: domain.family),
}
"""Level -> (what positives share, what takes a domain out of the ranking)."""


def score_query(
    distance_N: Float[np.ndarray, "N"], positive_N: Bool[np.ndarray, "N"], negative_N: Bool[np.ndarray, "N"]
) -> tuple[float, float]:
    """How well one query's distances put positives before negatives.

    Args:
        distance_N: to every other domain. positive_N, negative_N: what each is; one that is neither is not ranked.

    Returns:
        AUC, the chance that a positive is nearer than a negative (half if equal), and whether one of the positives is
        among the ten nearest (1 or 0; a negative that is as near as the nearest positive counts as nearer).

    >>> score_query(np.array([0.1, 0.2, 0.3]), np.array([False, True, False]), np.array([True, False, True]))
    (0.5, 1.0)
    """
    positives, negatives = distance_N[positive_N], distance_N[negative_N]
    auc = area_under_roc(-positives, -negatives)
    ahead = np.count_nonzero(negatives <= positives.min())
    return auc, float(ahead < HITS)


def distances(vectors_ND: Float[np.ndarray, "N D"], rows: slice, kind: Distance) -> Float[np.ndarray, "R N"]:
    """Distances of some vectors to all: 1 - cosine, or squared Euclidean (which ranks alike)."""
    if kind == "cosine":
        return 1 - vectors_ND[rows] @ vectors_ND.T
    squares_N = (vectors_ND**2).sum(axis=1)
    distance_RN: np.ndarray = squares_N[rows, None] + squares_N[None] - 2 * vectors_ND[rows] @ vectors_ND.T
    return distance_RN


def unit(vectors_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Vectors of length 1; a vector of zeros stays.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    lengths_N1 = np.sqrt((vectors_ND**2).sum(axis=1, keepdims=True))
    return vectors_ND / np.where(lengths_N1 == 0, 1, lengths_N1)


def score_all(
    vectors_ND: Float[np.ndarray, "N D"], same_N: np.ndarray, removed_N: np.ndarray, kind: Distance
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC and Hit-10 of every query that has a positive and a negative.

    Args:
        vectors_ND: of each domain. same_N: label that makes a positive. removed_N: label that takes out of the ranking.
        kind: of distance.

    Returns:
        AUC and Hit-10, shape (Q,), and the index of each query.
    """
    vectors_ND = vectors_ND.astype(np.float64)
    if kind == "cosine":
        vectors_ND = unit(vectors_ND)
    scores, queries = [], []
    for start in range(0, len(vectors_ND), BLOCK):
        distance_RN = distances(vectors_ND, slice(start, start + BLOCK), kind)
        for query, distance_N in enumerate(distance_RN, start):
            negative_N = same_N != same_N[query]
            positive_N = ~negative_N & (removed_N != removed_N[query])
            if positive_N.any() and negative_N.any():
                scores.append(score_query(distance_N, positive_N, negative_N))
                queries.append(query)
    if not queries:
        raise InputError("no domain has a relative to be found; more domains of one fold are needed")
    found = np.array(scores)
    return found[:, 0], found[:, 1], np.array(queries)


class Homology(Task, abc.ABC):
    """Remote homology within one classification. Subclasses are final and read their domains."""

    needs = frozenset(("residues",))
    title = "Remote homology"
    source = "Rives et al. 2021, Table 2"
    limits: tuple[str, ...]

    @abc.abstractmethod
    def domains(self) -> Sequence[Domain]:
        """The domains, with their place in the classification."""

    def questions(self) -> Iterator[Question]:
        """The mean vector of each domain."""
        self.chosen = self._chosen(self.domains())
        self.vectors: dict[int, np.ndarray] = {}
        for domain in self.chosen:
            yield Question(domain.residues, Wanted(mean=True, layer=self.options.layer))

    def _chosen(self, domains: Sequence[Domain]) -> list[Domain]:
        """All domains; whole folds up to 600 domains in a quick run, so that there is something to be found."""
        if not self.options.quick or len(domains) <= QUICK_DOMAINS:
            return list(domains)
        folds: dict[str, list[Domain]] = {}
        for domain in domains:
            folds.setdefault(domain.fold, []).append(domain)
        names = sorted(folds)
        chosen: list[Domain] = []
        for number in self.random().permutation(len(names)):
            if len(chosen) + len(folds[names[number]]) <= QUICK_DOMAINS:
                chosen += folds[names[number]]
        return chosen

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the vector."""
        assert reply.mean is not None, "the mean was wanted"
        self.vectors[number] = reply.mean

    def finish(self) -> list[Result]:
        """Rank, and average over queries; intervals draw folds again, since relatives are not independent."""
        vectors_ND = np.stack([self.vectors[number] for number in range(len(self.chosen))])
        folds_N = np.array([domain.fold for domain in self.chosen])
        kinds: tuple[Distance, ...] = ("cosine", "Euclidean")
        found = []
        for level, (same, removed) in LEVELS.items():
            same_N, removed_N = (np.array([label(domain) for domain in self.chosen]) for label in (same, removed))
            for kind in kinds:
                auc_Q, hit_Q, queries = score_all(vectors_ND, same_N, removed_N, kind)
                groups_Q = folds_N[queries]
                counts_G = sum_by_group(np.ones(len(queries)), groups_Q)
                for name, values_Q in (("Hit-10", hit_Q), ("AUC", auc_Q)):
                    scores = GroupScores(np.unique(groups_Q).tolist(), sum_by_group(values_Q, groups_Q), counts_G)
                    found.append(self.result(f"{level}, {name}, {kind}", scores, notes=self._notes(len(queries))))
        return found

    def _notes(self, queries: int) -> tuple[str, ...]:
        part = f"a quick run: {len(self.chosen)} domains of whole folds drawn at random" if self.options.quick else ""
        return (
            f"{queries} of {len(self.chosen)} domains have a relative to be found and are queries",
            *self.limits,
            *((part,) if part else ()),
        )


class ScopHomology(Homology):
    """Remote homology in SCOP, without the folds that the paper leaves out."""

    name = "homology-scop"
    version = 1
    sources = ("scop",)
    title = "Remote homology, SCOP"
    limits = (
        "domains that are whole chains, from SCOP 1.75 and SCOPe 2.01, not the paper's 40 % set of SCOPe: fewer "
        "negatives, other queries; figures are not those of the paper's set",
        "the paper does not say which distance it uses, nor how it averages: both distances here, mean over queries",
    )

    def domains(self) -> Sequence[Domain]:
        """SCOP domains without Rossmann-like folds and beta-propellers."""
        return without_excluded_folds(read_scop(self.options.data))


class CathHomology(Homology):
    """Remote homology in CATH: topologies stand for folds, clusters of 30 % identity for families."""

    name = "homology-cath"
    version = 1
    sources = ("cath",)
    title = "Remote homology, CATH"
    limits = (
        "not in the paper: CATH topologies stand for folds, and clusters of 30 % identity for families",
        "the related topologies that the paper leaves out of SCOP are not left out of CATH",
    )

    def domains(self) -> Sequence[Domain]:
        """CATH domains."""
        return read_cath(self.options.data)
