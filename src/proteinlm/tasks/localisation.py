"""Localisation: where in the cell a protein is, and whether it sits in a membrane, told from frozen vectors.

In: DeepLoc's proteins. Out: Q10, the share of right answers among ten locations, and Q2, membrane or soluble, of a
small network and of a linear probe on mean vectors, and of light attention on residue vectors. Proteins of two places
have no class in Q10, those whose membrane label is unknown none in Q2. Source: papers.md 7.1 to 7.3.
"""

import abc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from proteinlm.datasets.localisation import LOCATIONS, LocalisedProtein, localisation_splits
from proteinlm.datasets.relatives import hold_out
from proteinlm.heads import fitting, linear
from proteinlm.heads.batches import BatchSize, Examples
from proteinlm.heads.layers import Head
from proteinlm.heads.network import FnnConfig, LightAttention, LightAttentionConfig, PooledFnn, build
from proteinlm.heads.rows import UNLABELLED, Block
from proteinlm.heads.scores import right_by_group
from proteinlm.tasks.base import GroupScores, Question, Reply, Result, Task, Wanted

OUTPUTS = {"Q10": len(LOCATIONS), "Q2": 2}
"""Measure -> classes, in the order of the columns of `labels_of`."""

VALIDATION_SHARE = 0.1
"""Of the training proteins, of each location: what decides when training stops."""

QUICK_TRAINING, QUICK_TESTS = 400, 200
ATTENDED_TRAINING, QUICK_ATTENDED_TRAINING, QUICK_ATTENDED_TESTS = 1_000, 120, 80
"""Proteins that light attention is trained and, in a quick run, tested on: its convolutions are wide, and with more a
CPU would need a quarter of an hour."""

LONGEST_ATTENDED = 1_000
"""Residues of a protein that light attention is trained on; it is tested on all lengths."""

WIDEST_ATTENDED = 256
"""Channels of its input: its work grows with their square. Wider vectors are reduced to their first principal
components."""

ATTENDED_RATE = 3e-4
"""Learning rate of light attention. With 1e-3 and the vectors of a weak model, the loss of the validation proteins was
lowest after the first epoch and rose from there; with 3e-4 it rises for two epochs and then falls, so that training
runs to its end, whatever happens on the way. The authors have 5e-5 for many more steps."""

ATTENDED_STEPS, QUICK_ATTENDED_STEPS = 400, 100
"""Batches that it is trained on, about."""

MEASURED = 200
"""Proteins that principal components are taken from."""


def labels_of(protein: LocalisedProtein) -> np.ndarray:
    """Class of the location and of the membrane, -1 where there is none, shape (2,)."""
    classes = (protein.location_class, protein.membrane_class)
    return np.array([UNLABELLED if one is None else one for one in classes])


@dataclass(frozen=True)
class Reduced(Sequence[np.ndarray]):
    """Residue vectors by their principal components, reduced when they are read.

    Args:
        features: of each protein, shape (L, D). components_DC: orthonormal directions, those of most variance first.
    """

    features: Sequence[np.ndarray]
    components_DC: Float[np.ndarray, "D C"]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # an int; slices are not needed
        return np.asarray(self.features[index], np.float32) @ self.components_DC


def principal_components(features: Sequence[np.ndarray], most: int) -> Float[np.ndarray, "D C"]:
    """The directions in which the residue vectors of some proteins vary most, fp32.

    >>> directions = principal_components([np.array([[0.0, 0], [0, 2], [0, 4]])], 1)
    >>> np.abs(directions).round(6).tolist()
    [[0.0], [1.0]]
    """
    rows = np.concatenate([np.asarray(one, np.float32) for one in features])
    covariance_DD = np.cov(rows, rowvar=False)
    _, directions_DD = np.linalg.eigh(covariance_DD)
    return directions_DD[:, ::-1][:, :most].astype(np.float32)


class LocalisationTask(Task, abc.ABC):
    """DeepLoc's training proteins, part of which says when to stop, and its validation proteins, which are scored.

    Subclasses are final. Attributes: `training_limits`, `test_limits`: most proteins of a whole and of a quick run.
    """

    needs = frozenset(("residues",))
    sources = ("deeploc",)
    training_limits: tuple[int | None, int]
    test_limits: tuple[int | None, int]
    longest_training: int | None = None

    @abc.abstractmethod
    def wanted(self) -> Wanted:
        """What is asked of the model for each protein."""

    @abc.abstractmethod
    def vectors_of(self, reply: Reply) -> np.ndarray:
        """What of a reply is kept."""

    def questions(self) -> Iterator[Question]:
        """The vectors of training and test proteins."""
        splits, random = localisation_splits(self.options.data), self.random()
        usable = [protein for protein in splits.train if (labels_of(protein) != UNLABELLED).any()]
        if self.longest_training is not None:
            usable = [protein for protein in usable if len(protein.residues) <= self.longest_training]
        self.available, self.removed = len(usable), len(splits.removed)
        self.train, self.test = (
            [proteins[number] for number in np.sort(random.permutation(len(proteins))[: limits[self.options.quick]])]
            for proteins, limits in ((usable, self.training_limits), (splits.test, self.test_limits))
        )
        self.vectors: dict[int, np.ndarray] = {}
        for protein in (*self.train, *self.test):
            yield Question(protein.residues, self.wanted())

    def collect(self, number: int, reply: Reply) -> None:
        """Keep what the head is trained on."""
        self.vectors[number] = self.vectors_of(reply)

    def train_head(self, head: Head, features: Sequence[np.ndarray], options: fitting.TrainOptions) -> fitting.History:
        """Train a network on nine tenths of each location; the rest, no close relatives of them, says when to stop."""
        labels = [labels_of(protein) for protein in self.train]
        places_N = (
            np.array([one[0] for one in labels]) - UNLABELLED
        )  # proteins of no or several places are a class, too
        held_N = hold_out([one.residues for one in self.train], places_N, VALIDATION_SHARE, self.random())
        train, validation = (
            Examples([features[number] for number in part], [labels[number] for number in part])
            for part in (np.flatnonzero(~held_N), np.flatnonzero(held_N))
        )
        return fitting.fit(head, train, validation, options)

    def results_of(
        self, predicted: dict[str, np.ndarray], ending: str, notes: tuple[str, ...], seen: int
    ) -> list[Result]:
        """Shares of right answers over the test proteins that have a label; intervals draw proteins again.

        Args:
            predicted: classes of the test proteins of each measure. ending: of the measures' names.
            notes: on the head. seen: proteins that it was trained on.
        """
        labels = np.stack([labels_of(protein) for protein in self.test])
        names = [f"{number} {protein.id}" for number, protein in enumerate(self.test)]
        found = []
        for place, (measure, classes) in enumerate(OUTPUTS.items()):
            known_N = labels[:, place]
            sums_N, counts_N = right_by_group(predicted[measure], known_N, np.arange(len(names)))
            counts_K = np.bincount(known_N[known_N != UNLABELLED], minlength=classes)
            table = {
                "class": list(LOCATIONS) if measure == "Q10" else ["soluble", "membrane"],
                "proteins": counts_K.tolist(),
                "right": [int(sums_N[known_N == one].sum()) for one in range(classes)],
            }
            told = (*notes, f"the commonest class alone would score {counts_K.max() / counts_K.sum():.3f}")
            scores = GroupScores(names, sums_N, counts_N)
            notes_of = (*told, *self._notes(measure, seen))
            found.append(self.result(f"{measure}{ending}", scores, notes=notes_of, table=table))
        return found

    def _notes(self, measure: str, seen: int) -> tuple[str, ...]:
        of_measure = {
            "Q10": f"{sum(p.location_class is None for p in self.test)} test proteins of two places are left out",
            "Q2": "membrane labels of the training proteins are weak, taken from GO; the test proteins have DeepLoc's, "
            f"and {sum(p.membrane_class is None for p in self.test)} that it calls unknown are left out",
        }
        return (
            f"trained on {seen:,} proteins of the {self.available:,} of DeepLoc's training set, scored on "
            f"{len(self.test):,} of its validation set, since its test set is not here; {self.removed} training "
            "proteins are left out because the validation set holds the same sequence",
            of_measure[measure],
            *(("a quick run: fewer proteins",) if self.options.quick else ()),
        )


class Localisation(LocalisationTask):
    """ProtTrans' small network on mean vectors, and a linear probe on the same (papers.md 7.2)."""

    name = "localisation"
    version = 1
    title = "Localisation and membrane, mean vectors"
    source = "Elnaggar et al. 2021, localisation"
    training_limits = (None, QUICK_TRAINING)
    test_limits = (None, QUICK_TESTS)

    def wanted(self) -> Wanted:
        """The mean vector."""
        return Wanted(mean=True, layer=self.options.layer)

    def vectors_of(self, reply: Reply) -> np.ndarray:
        """The mean as a single row."""
        assert reply.mean is not None, "the mean was wanted"
        return reply.mean[None]

    def finish(self) -> list[Result]:
        """Train both on the training proteins and score the test proteins."""
        rows = [self.vectors[number] for number in range(len(self.vectors))]
        train, test = rows[: len(self.train)], rows[len(self.train) :]
        head = build(PooledFnn, FnnConfig(train[0].shape[1], OUTPUTS), self.options.seed)
        options = fitting.TrainOptions(epochs=100, patience=10, size=BatchSize(proteins=256), seed=self.options.seed)
        history = self.train_head(head, train, options)
        logits = list(fitting.predict_logits(head, test))
        by_network = {
            measure: np.array([one[place].argmax() for one in logits]) for place, measure in enumerate(OUTPUTS)
        }
        told = (
            "both measures are trained together; a tenth of the proteins of each location says when to stop, relatives "
            f"not kept apart (epoch {history.best_epoch} was the best); one seed",
        )
        found = self.results_of(by_network, ", network", told, len(train))
        by_line, strengths = self._linear(np.concatenate(train), np.concatenate(test))
        told = (
            "multinomial logistic regression on mean vectors, which is not in the paper; penalty strengths "
            f"{', '.join(strengths)}, chosen on parts of the training proteins",
        )
        return found + self.results_of(by_line, ", linear", told, len(train))

    def _linear(self, train_ND: np.ndarray, test_ND: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
        """Predicted classes of each measure by a linear probe, and the penalties that were chosen."""
        labels_NM = np.stack([labels_of(protein) for protein in self.train])
        predicted, strengths = {}, []
        for place, (measure, classes) in enumerate(OUTPUTS.items()):
            block = Block(train_ND, labels_NM[:, place], np.arange(len(train_ND)))
            probe = linear.fit([block], linear.ProbeOptions(classes, seed=self.options.seed))
            predicted[measure] = probe.logits(test_ND).argmax(1)
            strengths.append(f"{probe.record['strength']:g}")
        return predicted, strengths


class AttendedLocalisation(LocalisationTask):
    """Light attention on residue vectors (papers.md 7.2)."""

    name = "localisation-attention"
    version = 2
    title = "Localisation and membrane, light attention"
    source = "Stärk et al. 2021, light attention"
    training_limits = (ATTENDED_TRAINING, QUICK_ATTENDED_TRAINING)
    test_limits = (None, QUICK_ATTENDED_TESTS)
    longest_training = LONGEST_ATTENDED

    def wanted(self) -> Wanted:
        """The residue vectors, in a file."""
        return Wanted(kept=True, layer=self.options.layer)

    def vectors_of(self, reply: Reply) -> np.ndarray:
        """The vectors, which lie in a file."""
        assert reply.kept is not None, "kept vectors were wanted"
        return reply.kept

    def finish(self) -> list[Result]:
        """Train on the training proteins and score the test proteins."""
        features, width = [self.vectors[number] for number in range(len(self.vectors))], self.vectors[0].shape[1]
        told = "as it comes"
        seen: Sequence[np.ndarray] = features
        if width > WIDEST_ATTENDED:
            some = self.random().permutation(len(self.train))[:MEASURED]
            seen = Reduced(features, principal_components([features[number] for number in some], WIDEST_ATTENDED))
            told, width = f"reduced from {width} to {WIDEST_ATTENDED} principal components", WIDEST_ATTENDED
        head = build(LightAttention, LightAttentionConfig(width, OUTPUTS), self.options.seed)
        steps = QUICK_ATTENDED_STEPS if self.options.quick else ATTENDED_STEPS
        residues = sum(len(protein.residues) for protein in self.train)
        batches = max(residues / BatchSize.residues, len(self.train) / BatchSize.proteins)
        epochs = math.ceil(steps / batches)
        options = fitting.TrainOptions(
            epochs=epochs,
            patience=epochs,
            learning_rate=ATTENDED_RATE,
            seed=self.options.seed,
            bf16=fitting.bf16_pays(),
        )
        history = self.train_head(head, seen, options)
        tests = range(len(self.train), len(features))
        logits = [next(fitting.predict_logits(head, [seen[number]])) for number in tests]
        predicted = {
            measure: np.array([one[place].argmax() for one in logits]) for place, measure in enumerate(OUTPUTS)
        }
        notes = (
            f"at most {options.epochs} epochs, epoch {history.best_epoch} was the best; training proteins of at most "
            f"{LONGEST_ATTENDED:,} residues; input {told}; one seed, where the authors have ten, all proteins and a "
            "lower learning rate",
        )
        return self.results_of(predicted, "", notes, len(self.train))
