"""Secondary structure: how much of it can be read off frozen residue vectors, by a linear map and by small networks.

In: PDB chains with DSSP states, divided five-fold at the level of families, superfamilies and folds (linear probe); or
NetSurfP-2.0 to train and choose on and CB513 to test on (ProtTrans' convolutional network, NetSurfP-2.0's recurrent
one). Out: Q8 and Q3 over residues, with intervals over families or chains. Source: papers.md 4.2, 4.3, 7.2.
"""

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain as joined
from itertools import pairwise

import numpy as np
from jaxtyping import Int8

from proteinlm.datasets.chains import PdbChain, read_chains
from proteinlm.datasets.secondary_structure import (
    SS3,
    SS3_OF_SS8,
    SS8,
    SecondaryStructureChain,
    secondary_structure_splits,
)
from proteinlm.datasets.splits import Folds, structural_folds
from proteinlm.heads import fitting, linear
from proteinlm.heads.batches import Examples
from proteinlm.heads.layers import Head
from proteinlm.heads.network import CnnConfig, LstmConfig, ResidueCnn, ResidueLstm, build
from proteinlm.heads.rows import UNLABELLED, Block
from proteinlm.heads.scores import right_by_group
from proteinlm.metrics import sum_by_group
from proteinlm.tasks.base import GroupScores, Question, Reply, Result, Task, Wanted

LEVELS = ("family", "superfamily", "fold")
FOLDS = 5
QUICK_CHAINS = 250
QUICK_TRAINING_CHAINS = 600
RECURRENT_TRAINING_CHAINS, QUICK_RECURRENT_CHAINS = 2_500, 200
"""A recurrent network reads residues one after the other; more would take a CPU half an hour, or minutes."""

TOGETHER = 20_000
"""Residues of a block: few enough to hold in fp32, enough that a pass over the chains is matrix products."""

THREE_OF_EIGHT = np.array([SS3.index(SS3_OF_SS8[state]) for state in SS8])
"""Class in `SS3` of each class in `SS8`."""


def three_of_eight(classes_L: np.ndarray) -> np.ndarray:
    """Classes of eight states as classes of three; unknown stays unknown.

    >>> three_of_eight(np.array([0, 4, 7, -1])).tolist()
    [0, 1, 2, -1]
    """
    return np.where(classes_L == UNLABELLED, UNLABELLED, THREE_OF_EIGHT[classes_L])


@dataclass(frozen=True)
class ChainBlocks:
    """Residues of many chains as blocks for a probe; gone through again for every pass, and only then read.

    Args:
        vectors: of the residues of each chain, (L, D). classes: of the residues of each chain, (L,).
        groups: of each chain; relatives share one.
    """

    vectors: Sequence[np.ndarray]
    classes: Sequence[np.ndarray]
    groups: Sequence[int]

    def __iter__(self) -> Iterator[Block]:
        start = 0
        while start < len(self.vectors):
            end, rows = start, 0
            while end < len(self.vectors) and (end == start or rows < TOGETHER):
                rows, end = rows + len(self.classes[end]), end + 1
            lengths = [len(self.classes[chain]) for chain in range(start, end)]
            yield Block(
                np.concatenate(self.vectors[start:end]),
                np.concatenate(self.classes[start:end]),
                np.repeat(self.groups[start:end], lengths),
            )
            start = end


class LinearSecondaryStructure(Task):
    """Eight states from residue vectors by multinomial logistic regression, five-fold at three levels (Table 3)."""

    name = "secondary-structure-linear"
    version = 1
    title = "Secondary structure, linear probe"
    source = "Rives et al. 2021, Table 3"
    needs = frozenset(("residues",))
    sources = ("chains",)

    def questions(self) -> Iterator[Question]:
        """The residue vectors of each chain that is classified and stands for its cluster."""
        chains = [chain for chain in read_chains(self.options.data) if _is_classified(chain)]
        if self.options.quick:
            chosen = self.random().permutation(len(chains))[:QUICK_CHAINS]
            chains = [chains[number] for number in sorted(chosen)]
        self.chains = chains
        self.vectors: dict[int, np.ndarray] = {}
        for chain in chains:
            yield Question(chain.residues, Wanted(kept=True, layer=self.options.layer))

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the vectors, which lie in a file."""
        assert reply.kept is not None, "kept vectors were wanted"
        self.vectors[number] = reply.kept

    def finish(self) -> list[Result]:
        """Fit on four parts, test on the fifth, at each level; intervals draw the groups of the split again."""
        vectors = [self.vectors[number] for number in range(len(self.chains))]
        classes = [chain.ss8_classes() for chain in self.chains]
        found = []
        for level in ("superfamily",) if self.options.quick else LEVELS:
            folds = structural_folds(self.chains, level, FOLDS, self.options.seed)
            predicted, strengths = self._cross_validated(vectors, classes, folds)
            for measure, of_state in (("Q8", lambda x: x), ("Q3", three_of_eight)):
                pairs = [(of_state(guess), of_state(truth)) for guess, truth in zip(predicted, classes, strict=True)]
                found.append(self._result(f"{measure}, {level}", pairs, folds, strengths))
        return found

    def _cross_validated(
        self, vectors: list[np.ndarray], classes: list[np.ndarray], folds: Folds
    ) -> tuple[list[np.ndarray], list[float]]:
        """Predicted classes of every chain from the probe that has not seen its relatives; the strengths chosen."""
        predicted: list[np.ndarray] = [np.empty(0)] * len(vectors)
        strengths: list[float] = []
        for fold in range(folds.num_folds):
            train = np.flatnonzero(folds.train(fold))
            blocks = ChainBlocks(
                [vectors[chain] for chain in train],
                [classes[chain] for chain in train],
                folds.groups[train].tolist(),
            )
            # What the first fold's training chains chose is kept for the others: it hardly differs between them.
            choice = (strengths[0],) if strengths else linear.ProbeOptions(2).strengths
            probe = linear.fit(blocks, linear.ProbeOptions(len(SS8), choice, seed=self.options.seed))
            strengths.append(float(str(probe.record["strength"])))
            for chain in np.flatnonzero(folds.test(fold)):
                predicted[chain] = probe.logits(np.asarray(vectors[chain])).argmax(1)
        return predicted, strengths

    def _result(
        self, measure: str, pairs: list[tuple[np.ndarray, np.ndarray]], folds: Folds, strengths: list[float]
    ) -> Result:
        right_N, counted_N = _right_by_chain(pairs)
        sums_G, counts_G = sum_by_group(right_N, folds.groups), sum_by_group(counted_N, folds.groups)
        names = [self.chains[int(np.argmax(folds.groups == group))].id for group in np.unique(folds.groups)]
        by_fold = [
            float(right_N[folds.test(fold)].sum() / counted_N[folds.test(fold)].sum())
            for fold in range(folds.num_folds)
        ]
        notes = (
            f"{len(pairs)} chains of PDB, one for each cluster of 30 % identity, with a class in SCOP or CATH; not the "
            "paper's split of SCOPe 2.07",
            f"five parts: {np.mean(by_fold):.3f} with a standard deviation of {np.std(by_fold, ddof=1):.3f}",
            f"penalty strength {strengths[0]:g}, chosen on held-out groups of the first part's training chains",
            *((f"a quick run: {len(pairs)} chains drawn at random",) if self.options.quick else ()),
        )
        return self.result(measure, GroupScores(names, sums_G, counts_G), notes=notes, table={"parts": by_fold})


class DeepSecondaryStructure(Task, abc.ABC):
    """A network trained on NetSurfP-2.0 and tested on CB513. Subclasses are final and make the network."""

    version = 1
    needs = frozenset(("residues",))
    sources = ("netsurfp", "cb513")
    deviation: str
    training_limits: tuple[int | None, int] = (None, QUICK_TRAINING_CHAINS)
    """Most chains of a whole and of a quick run."""

    @abc.abstractmethod
    def head(self) -> Head:
        """A new network for the model's width, with outputs `q8` and `q3`."""

    def questions(self) -> Iterator[Question]:
        """The residue vectors of training, validation and test chains."""
        splits = secondary_structure_splits(self.options.data)
        fewer = QUICK_CHAINS // 2 if self.options.quick else None
        most = (self.training_limits[self.options.quick], fewer, fewer)
        random = self.random()
        self.splits = tuple(
            [chains[number] for number in np.sort(random.permutation(len(chains))[:at_most])]
            for chains, at_most in zip((splits.train, splits.validation, splits.test), most, strict=True)
        )
        self.removed = len(splits.removed)
        self.vectors: dict[int, np.ndarray] = {}
        for chain in joined(*self.splits):
            yield Question(chain.residues, Wanted(kept=True, layer=self.options.layer))

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the vectors, which lie in a file."""
        assert reply.kept is not None, "kept vectors were wanted"
        self.vectors[number] = reply.kept

    def finish(self) -> list[Result]:
        """Train, stop by the validation chains, and score CB513 once; intervals draw its chains again."""
        starts = np.cumsum([0, *map(len, self.splits)])
        vectors = [[self.vectors[number] for number in range(first, last)] for first, last in pairwise(starts)]
        train, validation = (
            Examples(one, [_labels(chain) for chain in chains])
            for one, chains in zip(vectors[:2], self.splits[:2], strict=True)
        )
        head = self.head()
        options = fitting.TrainOptions(
            epochs=6 if self.options.quick else 30,
            patience=3,
            seed=self.options.seed,
            bf16=fitting.bf16_pays(),
        )
        history = fitting.fit(head, train, validation, options)
        logits = list(fitting.predict_logits(head, vectors[2]))
        test = self.splits[2]
        notes = (
            f"{len(self.splits[0])} chains to train on, {len(self.splits[1])} to choose on, drawn where that is not "
            f"all; {self.removed} of NetSurfP's left out because CB513 holds the same sequence",
            f"{self.deviation}; one seed, where the paper has several; epoch {history.best_epoch} was the best",
            "over residues whose mask is 1",
        )
        names = [f"{number} {chain.id}" for number, chain in enumerate(test)]
        found = []
        for place, (measure, truth) in enumerate((("Q8", _ss8), ("Q3", _ss3))):
            pairs = [(one[place].argmax(1), truth(chain)) for one, chain in zip(logits, test, strict=True)]
            scores = GroupScores(names, *_right_by_chain(pairs))
            found.append(self.result(f"CB513, {measure}", scores, notes=notes))
        return found


class ConvolutionalSecondaryStructure(DeepSecondaryStructure):
    """ProtTrans' network: two convolutions over residues (papers.md 7.2)."""

    name = "secondary-structure-cnn"
    title = "Secondary structure, convolutional network"
    source = "Elnaggar et al. 2021, secondary structure"
    deviation = "eight and three states are trained together, without disorder"

    def head(self) -> Head:
        """ProtTrans' shape."""
        config = CnnConfig(self.model.width, {"q8": len(SS8), "q3": len(SS3)})
        return build(ResidueCnn, config, self.options.seed)


class RecurrentSecondaryStructure(DeepSecondaryStructure):
    """NetSurfP-2.0's network in a small size: convolutions beside the features, two BiLSTMs (papers.md 4.3)."""

    name = "secondary-structure-lstm"
    title = "Secondary structure, recurrent network"
    source = "Rives et al. 2021, Table 4"
    deviation = "a sixteenth of the paper's hidden width and kernels of 9 and 17 instead of 129 and 257"
    training_limits = (RECURRENT_TRAINING_CHAINS, QUICK_RECURRENT_CHAINS)

    def head(self) -> Head:
        """A shape that a CPU trains in minutes."""
        config = LstmConfig(self.model.width, {"q8": len(SS8), "q3": len(SS3)})
        return build(ResidueLstm, config, self.options.seed)


def _is_classified(chain: PdbChain) -> bool:
    return chain.id == chain.cluster and (chain.cath is not None or chain.scop_sccs is not None)


def _ss8(chain: SecondaryStructureChain) -> Int8[np.ndarray, " L"]:
    return chain.ss8_classes()


def _ss3(chain: SecondaryStructureChain) -> Int8[np.ndarray, " L"]:
    return chain.ss3_classes()


def _labels(chain: SecondaryStructureChain) -> np.ndarray:
    """Eight and three states of each residue, (L, 2)."""
    return np.stack([chain.ss8_classes(), chain.ss3_classes()], axis=1).astype(np.int64)


def _right_by_chain(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and answers of each chain, shape (N,)."""
    chains = np.repeat(np.arange(len(pairs)), [len(truth) for _, truth in pairs])
    guesses, truths = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    return right_by_group(guesses, truths, chains)
