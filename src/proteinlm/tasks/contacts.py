"""Contacts: how well residues that touch in the folded protein can be told from frozen vectors and attention maps.

In: PDB chains with C-beta coordinates. Out: precision of the L, L/2 and L/5 best-scoring pairs at short, medium and
long range, averaged over chains: of two linear projections, five-fold at the level of families, superfamilies and
folds; of a sparse regression on attention maps, fitted on 20 chains; of the model's own contact head. Source: papers.md
4.1, 4.2, 4.4 and 8.1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from proteinlm.datasets.chains import Coordinates, PdbChain, read_chains, read_coordinates
from proteinlm.datasets.splits import Folds, structural_folds
from proteinlm.errors import InputError
from proteinlm.heads import fitting
from proteinlm.heads.batches import BatchSize, Examples
from proteinlm.heads.contact import (
    STRENGTH,
    ContactRegression,
    ContactRows,
    PairProjection,
    PairProjectionConfig,
    contact_labels,
    contact_rows,
    fit_contact_rows,
)
from proteinlm.heads.layers import Head
from proteinlm.heads.network import build
from proteinlm.heads.scores import FRACTIONS, RANGES, contact_precision
from proteinlm.metrics import sum_by_group
from proteinlm.models.contacts import average_product_correction
from proteinlm.tasks.base import GroupScores, Question, Reply, Result, Task, TwoRoundTask, Wanted

LEVELS = ("family", "superfamily", "fold")
FOLDS = 5
PROJECTED_CHAINS, QUICK_PROJECTED_CHAINS = 400, 120
"""Chains that are divided into five parts. Fifteen pairs of projections are trained on them; more would take a CPU more
than some minutes."""

EPOCHS, QUICK_EPOCHS = 8, 6
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1.0
FIRST_WEIGHTS = 0.1
"""Of the usual size: scores that random projections give to begin with are then too small to outlast the training, and
there are too few chains to unlearn them."""

VALIDATION_SHARE = 0.1
"""Of the training chains, by whole groups: what decides when training stops."""

TRAINING_CHAINS = 20
"""The attention regression is fitted on so few (papers.md 8.1)."""

LONGEST_TRAINING_CHAIN = 200
"""Residues: what 20 chains have in all maps of 33 layers of 20 heads then stays below 1 GB."""

TEST_CHAINS, QUICK_TEST_CHAINS = 500, 60
MAPS_AT_ONCE = 32
"""Of which several copies are held while they are summed up."""

Precisions = dict[tuple[str, str], tuple[int, int]]
"""(range, fraction) -> contacts and pairs taken, of one chain (`heads.scores.contact_precision`)."""


def weighted_map(maps_MLL: np.ndarray, weight_M: torch.Tensor) -> Float[np.ndarray, "L L"]:
    """What a fitted regression makes of a protein's attention maps: the logit of every pair, but for the bias.

    Args:
        maps_MLL: all layers and heads. weight_M: of each map; those of weight 0 are not looked at.

    >>> maps = np.random.default_rng(0).random((3, 5, 5), np.float32)
    >>> bool(np.abs(weighted_map(maps, torch.tensor([0.0, 0.0, 0.0]))).max() == 0)
    True
    """
    total_LL = torch.zeros(maps_MLL.shape[1:])
    for used in torch.nonzero(weight_M)[:, 0].split(MAPS_AT_ONCE):
        maps_ULL = torch.from_numpy(maps_MLL)[used].float()
        corrected_ULL = average_product_correction(maps_ULL + maps_ULL.transpose(1, 2))
        total_LL += torch.einsum("u,uij->ij", weight_M[used], corrected_ULL)
    return total_LL.numpy()


@dataclass(frozen=True)
class DrawnChains:
    """Chains to fit attention maps on, and others to test on; all are of different clusters at 30 % identity.

    Attributes:
        train, test: in the order of drawing. coordinates: of all.
    """

    train: list[PdbChain]
    test: list[PdbChain]
    coordinates: Coordinates


def draw_chains(folder: Path, seed: int, most_tests: int, longest: int | None) -> DrawnChains:
    """Training and test chains that depend on the data, the seed and the model's longest protein alone.

    Args:
        folder: the data folder. seed: of the order. most_tests: test chains.
        longest: residues that a model takes at once; longer chains are left out. None where there is no limit.

    Raises:
        InputError: data are missing, or fewer than 20 chains are short enough to be fitted on.
    """
    chains = read_chains(folder)
    coordinates = read_coordinates(folder, chains)
    limit = longest or max(len(chain.residues) for chain in chains)
    order = np.random.default_rng([seed, *b"contacts"]).permutation(len(chains))
    fit = [chain for chain in (chains[number] for number in order) if chain.id in coordinates]
    train = [chain for chain in fit if len(chain.residues) <= min(limit, LONGEST_TRAINING_CHAIN)][:TRAINING_CHAINS]
    if len(train) < TRAINING_CHAINS:
        raise InputError(
            f"{len(train)} chains with coordinates have at most {min(limit, LONGEST_TRAINING_CHAIN)} residues; the "
            f"regression on attention maps is fitted on {TRAINING_CHAINS}"
        )
    known = {chain.id for chain in train}
    test = [chain for chain in fit if len(chain.residues) <= limit and chain.id not in known][:most_tests]
    return DrawnChains(train, test, coordinates)


@dataclass(frozen=True)
class Scored:
    """How well the contacts of some chains were told.

    Args:
        precisions: of each chain. groups_N: of each chain, what an interval draws again.
        names: of the groups, in sorted order. ending: of the measures' names. notes: of every figure.
    """

    precisions: Sequence[Precisions]
    groups_N: np.ndarray
    names: Sequence[str]
    ending: str = ""
    notes: tuple[str, ...] = ()


def results_of(task: Task, scored: Scored) -> list[Result]:
    """A figure for each range and fraction: the mean precision over chains that have a pair in that range."""
    found = []
    for name in reversed(RANGES):
        for fraction in FRACTIONS:
            pairs = [one[name, fraction] for one in scored.precisions]
            precision_N = np.array([right / taken if taken else 0.0 for right, taken in pairs])
            counted_N = np.array([float(taken > 0) for _, taken in pairs])
            sums_G, counts_G = (sum_by_group(values, scored.groups_N) for values in (precision_N, counted_N))
            scores = GroupScores(scored.names, sums_G, counts_G)
            found.append(task.result(f"P@{fraction}, {name}{scored.ending}", scores, notes=scored.notes))
    return found


def new_projections(width: int, seed: int) -> Head:
    """Two projections that score next to nothing yet."""
    head = build(PairProjection, PairProjectionConfig(width), seed)
    with torch.no_grad():
        for name in ("left.weight", "right.weight"):
            head.get_parameter(name).mul_(FIRST_WEIGHTS)
    return head


class ProjectedContacts(Task):
    """Contacts from residue vectors by two linear maps, five-fold at three levels (Table 3)."""

    name = "contacts-linear"
    version = 1
    title = "Contacts, two linear projections"
    source = "Rives et al. 2021, Table 3"
    needs = frozenset(("residues",))
    sources = ("chains", "coordinates")

    def questions(self) -> Iterator[Question]:
        """The residue vectors of some of the chains that are classified, stand for a cluster and have coordinates."""
        chains = read_chains(self.options.data)
        self.coordinates = read_coordinates(self.options.data, chains)
        classified = [
            chain
            for chain in chains
            if chain.id in self.coordinates
            and chain.id == chain.cluster
            and (chain.cath is not None or chain.scop_sccs is not None)
        ]
        most = QUICK_PROJECTED_CHAINS if self.options.quick else PROJECTED_CHAINS
        chosen = np.sort(self.random().permutation(len(classified))[:most])
        self.chains, self.available = [classified[number] for number in chosen], len(classified)
        self.vectors: dict[int, np.ndarray] = {}
        for chain in self.chains:
            yield Question(chain.residues, Wanted(kept=True, layer=self.options.layer))

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the vectors, which lie in a file."""
        assert reply.kept is not None, "kept vectors were wanted"
        self.vectors[number] = reply.kept

    def finish(self) -> list[Result]:
        """Fit on four parts, test on the fifth, at each level; intervals draw the groups of the split again."""
        self.contacts = [self.coordinates.contacts(chain.id) for chain in self.chains]
        self.labels = [contact_labels(one) for one in self.contacts]
        found = []
        for level in ("superfamily",) if self.options.quick else LEVELS:
            folds = structural_folds(self.chains, level, FOLDS, self.options.seed)
            precisions: list[Precisions] = [{} for _ in self.chains]
            epochs = [self._fold(folds, fold, precisions) for fold in range(folds.num_folds)]
            names = [self.chains[int(np.argmax(folds.groups == group))].id for group in np.unique(folds.groups)]
            notes = self._notes(folds, precisions, epochs)
            found += results_of(self, Scored(precisions, folds.groups, names, f", {level}", notes))
        return found

    def _fold(self, folds: Folds, fold: int, precisions: list[Precisions]) -> int:
        """Write the precision of every chain of a part, from projections that have not seen its relatives."""
        train, validation = self._held_out(folds, fold)
        head = new_projections(self.model.width, self.options.seed)
        options = fitting.TrainOptions(
            epochs=QUICK_EPOCHS if self.options.quick else EPOCHS,
            patience=2,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            size=BatchSize(pairs=2**16),
            seed=self.options.seed,
        )
        history = fitting.fit(head, self._examples(train), self._examples(validation), options)
        test = np.flatnonzero(folds.test(fold))
        logits = fitting.predict_logits(head, [self.vectors[chain] for chain in test])
        for chain, (logits_LL2,) in zip(test, logits, strict=True):
            precisions[chain] = contact_precision(logits_LL2[..., 1], self.contacts[chain])
        return history.best_epoch

    def _held_out(self, folds: Folds, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """The chains of the other parts, divided by whole groups into those to fit and those to stop by."""
        others = np.flatnonzero(folds.train(fold))
        groups = np.random.default_rng([self.options.seed, fold]).permutation(np.unique(folds.groups[others]))
        sizes = np.array([np.count_nonzero(folds.groups[others] == group) for group in groups])
        # A very large group would leave nothing to train on: it is passed over.
        room, held = max(1.0, VALIDATION_SHARE * len(others)), []
        for group, size in zip(groups, sizes, strict=True):
            if size <= room:
                held.append(group)
                room -= size
        stops = np.isin(folds.groups[others], held)
        return others[~stops], others[stops]

    def _examples(self, chains: np.ndarray) -> Examples:
        return Examples([self.vectors[chain] for chain in chains], [self.labels[chain] for chain in chains])

    def _notes(self, folds: Folds, precisions: list[Precisions], epochs: list[int]) -> tuple[str, ...]:
        by_fold = []
        for fold in range(folds.num_folds):
            pairs = [precisions[chain]["long", "L"] for chain in np.flatnonzero(folds.test(fold))]
            by_fold.append(np.mean([right / max(taken, 1) for right, taken in pairs]))
        return (
            f"{len(self.chains)} chains drawn from the {self.available} of PDB that have coordinates, stand for a "
            "cluster at 30 % identity and are classified in SCOP or CATH; the paper has 15,297 domains of SCOPe 2.07",
            f"five parts: long-range P@L {np.mean(by_fold):.3f} with a standard deviation of "
            f"{np.std(by_fold, ddof=1):.3f}",
            f"projections to {PairProjectionConfig(1).projection}, trained for at most "
            f"{QUICK_EPOCHS if self.options.quick else EPOCHS} epochs on pairs six or more apart; a tenth of the "
            f"training chains says when to stop (best epochs {', '.join(map(str, epochs))}); the paper does not say",
            *(("a quick run: one level, fewer chains and epochs",) if self.options.quick else ()),
        )


class AttentionContacts(TwoRoundTask):
    """Contacts from attention maps by a sparse regression that is fitted on 20 chains (papers.md 8.1)."""

    name = "contacts-attention"
    version = 1
    title = "Contacts, attention maps"
    source = "Rao et al. 2021, attention maps with a regression fitted on 20 proteins"
    needs = frozenset(("attentions",))
    sources = ("chains", "coordinates")

    def questions(self) -> Iterator[Question]:
        """The attention maps of the chains that the regression is fitted on."""
        self.drawn = _drawn(self)
        self.rows: dict[int, ContactRows] = {}
        self.precisions: dict[int, Precisions] = {}
        self.fitted: ContactRegression | None = None
        for chain in self.drawn.train:
            yield Question(chain.residues, Wanted(attentions=True))

    def second_questions(self) -> Iterator[Question]:
        """Fit, and ask for the attention maps of the test chains."""
        self.fitted = fit_contact_rows([self.rows[number] for number in sorted(self.rows)])
        self.rows.clear()
        for chain in self.drawn.test:
            yield Question(chain.residues, Wanted(attentions=True))

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the pairs to fit on, or the precision; the maps themselves are let go of."""
        assert reply.attentions is not None, "attention maps were wanted"
        maps_MLL = reply.attentions.reshape(-1, *reply.attentions.shape[-2:])
        if self.fitted is None:
            contacts_LL = self.drawn.coordinates.contacts(self.drawn.train[number].id)
            self.rows[number] = contact_rows(torch.from_numpy(maps_MLL), contacts_LL)
            return
        test = number - len(self.drawn.train)
        contacts_LL = self.drawn.coordinates.contacts(self.drawn.test[test].id)
        self.precisions[test] = contact_precision(weighted_map(maps_MLL, self.fitted.weight_M), contacts_LL)

    def finish(self) -> list[Result]:
        """Average over the test chains; intervals draw them again."""
        assert self.fitted is not None, "the second round fits"
        weight_M = self.fitted.weight_M
        notes = (
            f"fitted on {self.fitted.pairs:,} pairs of {self.fitted.proteins} chains of at most "
            f"{LONGEST_TRAINING_CHAIN} residues with an L1 penalty of {STRENGTH}; {int((weight_M != 0).sum())} of "
            f"{len(weight_M)} maps have a weight",
            *_test_notes(self, self.drawn),
        )
        return results_of(self, _scored(self.drawn, self.precisions, notes))


class HeadContacts(Task):
    """Contacts as the model's own contact head tells them, on the test chains of `AttentionContacts`."""

    name = "contacts-head"
    version = 1
    title = "Contacts, the model's own head"
    source = "Rao et al. 2021, attention maps with a regression fitted on 20 proteins"
    needs = frozenset(("contacts",))
    sources = ("chains", "coordinates")

    def questions(self) -> Iterator[Question]:
        """The contact maps of the test chains."""
        self.drawn = _drawn(self)
        self.precisions: dict[int, Precisions] = {}
        for chain in self.drawn.test:
            yield Question(chain.residues, Wanted(contacts=True))

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the precision."""
        assert reply.contacts is not None, "contacts were wanted"
        contacts_LL = self.drawn.coordinates.contacts(self.drawn.test[number].id)
        self.precisions[number] = contact_precision(reply.contacts, contacts_LL)

    def finish(self) -> list[Result]:
        """Average over the test chains; intervals draw them again."""
        return results_of(self, _scored(self.drawn, self.precisions, _test_notes(self, self.drawn)))


def _drawn(task: Task) -> DrawnChains:
    most = QUICK_TEST_CHAINS if task.options.quick else TEST_CHAINS
    return draw_chains(task.options.data, task.options.seed, most, task.model.max_residues)


def _scored(drawn: DrawnChains, precisions: dict[int, Precisions], notes: tuple[str, ...]) -> Scored:
    numbers = range(len(drawn.test))
    return Scored([precisions[n] for n in numbers], np.arange(len(drawn.test)), [c.id for c in drawn.test], notes=notes)


def _test_notes(task: Task, drawn: DrawnChains) -> tuple[str, ...]:
    return (
        f"tested on {len(drawn.test)} other chains of PDB of at most {max(len(c.residues) for c in drawn.test)} "
        "residues, one for each cluster of 30 % identity, drawn at random; the published figures are over 14,842",
        *(("a quick run: fewer test chains",) if task.options.quick else ()),
    )
