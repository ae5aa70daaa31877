"""How each head is fitted, calibrated and measured; they ask questions and collect replies, as tasks do.

In: labelled sets, and what the model says of their proteins. Out of `finish`: a `FittedHead` and its figures. Weights
come from training proteins; when to stop and the temperatures from validation proteins; the test proteins are scored
once, at the end. Sources: papers.md 7.2 (networks), 8.1 (contacts); Guo et al. 2017 (temperatures).
"""

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from proteinlm.datasets.chains import PdbChain
from proteinlm.datasets.localisation import LOCATIONS, LocalisedProtein, localisation_splits
from proteinlm.datasets.relatives import hold_out
from proteinlm.datasets.secondary_structure import SS3, SS8, SecondaryStructureChain, secondary_structure_splits
from proteinlm.errors import InputError
from proteinlm.heads import fitting
from proteinlm.heads.batches import BatchSize, Examples
from proteinlm.heads.calibration import fit_temperature, reliability, softmax
from proteinlm.heads.contact import (
    MINIMUM_SEPARATION,
    ContactRows,
    contact_labels,
    contact_rows,
    fit_contact_rows,
)
from proteinlm.heads.network import CnnConfig, FnnConfig, PooledFnn, ResidueCnn, build
from proteinlm.heads.scores import contact_precision, right_by_group
from proteinlm.heads.store import Features, FittedHead
from proteinlm.metrics import Bootstrap, Interval, bootstrap_interval
from proteinlm.prediction.bundle import CONTACTS, LOCALISATION, MEMBRANE, SECONDARY_STRUCTURE, Figure
from proteinlm.prediction.maps import CLASSES, TASK, as_probe, pair_logits
from proteinlm.tasks.base import ModelFacts, Question, Reply, Wanted
from proteinlm.tasks.contacts import draw_chains

RESAMPLES = 1000
HELD_OUT = 0.1
"""Share of DeepLoc's training proteins of every class that decide when to stop and give the temperature."""

LEAST_STEPS = 50
"""Steps of an epoch over few chains, which take smaller batches for it."""

CALIBRATION_CHAINS, TEST_CHAINS = 60, 100
LONGEST_CHAIN = 300
"""Residues of chains that contacts are calibrated and tested on: their maps take seconds rather than minutes."""

QUICK = {"chains": 300, "proteins": 400, "longest": 500}
"""What `quick` takes: training chains, training proteins (a third of it to choose and to test on), residues."""


@dataclass(frozen=True)
class TrainerOptions:
    """What all heads have in common.

    Args:
        data: the data folder. facts: of the model. layer: of the vectors, from 0. quick: a small part of the data.
        seed: of every draw.
    """

    data: Path
    facts: ModelFacts
    layer: int
    quick: bool = False
    seed: int = 0

    def random(self, what: str) -> np.random.Generator:
        """A generator of its own for each purpose."""
        return np.random.default_rng([self.seed, *what.encode()])

    def features(self, pooled: bool) -> Features:
        """What a head is fitted on."""
        return Features(self.facts.name, self.facts.digest, self.layer, self.facts.width, pooled)


@dataclass
class Trained:
    """A head as it is going to be used.

    Attributes:
        fitted: the head, calibrated. figures: what was measured. notes: what else to know, a sentence each.
    """

    fitted: FittedHead
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Trainer(abc.ABC):
    """Fits one head. Subclasses are final.

    Args:
        name: of the head. options: see there.

    Attributes:
        asked_before: questions of earlier rounds; those of this one count on from there.
    """

    def __init__(self, name: str, options: TrainerOptions) -> None:
        self.name, self.options = name, options
        self.asked_before = 0

    @abc.abstractmethod
    def questions(self) -> Iterator[Question]:
        """What to ask the model."""

    @abc.abstractmethod
    def collect(self, number: int, reply: Reply) -> None:
        """Take the reply to a question."""

    @abc.abstractmethod
    def second_questions(self) -> Iterator[Question]:
        """What to ask once every reply to `questions` is there; numbers go on from where they ended."""

    @abc.abstractmethod
    def finish(self) -> Trained:
        """Fit, calibrate, measure."""

    def figure(self, measure: str, data: str, interval: Interval) -> Figure:
        """A figure of this head."""
        return Figure(self.name, measure, data, interval.value, interval.low, interval.high, interval.groups)

    def calibration(self, measure: str, data: str, rows: "Rows", temperature: float) -> Figure:
        """The expected calibration error at a temperature."""
        probabilities = softmax(rows.logits_NK / temperature)
        random = self.options.random(f"{measure} {data}")
        found = reliability(probabilities, rows.known_N, rows.protein_N, random, Bootstrap(RESAMPLES))
        return self.figure(f"{measure} calibration error", data, found.error)

    def accuracy(self, measure: str, data: str, rows: "Rows") -> Figure:
        """The share of right answers."""
        right_G, count_G = right_by_group(rows.logits_NK.argmax(1), rows.known_N, rows.protein_N)
        random = self.options.random(f"{measure} {data}")
        return self.figure(measure, data, bootstrap_interval(right_G, count_G, random, Bootstrap(RESAMPLES)))


@dataclass(frozen=True)
class Rows:
    """Logits of residues, proteins or pairs, their classes (-1 unknown), and the protein of each."""

    logits_NK: np.ndarray
    known_N: np.ndarray
    protein_N: np.ndarray

    @classmethod
    def of(cls, logits: Sequence[np.ndarray], known: Sequence[np.ndarray]) -> "Rows":
        """Of several proteins."""
        protein_N = np.repeat(np.arange(len(known)), [len(one) for one in known])
        return cls(np.concatenate(logits), np.concatenate(known), protein_N)


class SecondaryStructureTrainer(Trainer):
    """ProtTrans' convolutional network on residue vectors, eight and three states; NetSurfP-2.0, tested on CB513."""

    tasks = ("q8", "q3")

    def questions(self) -> Iterator[Question]:
        """The vectors of every chain, kept in a file."""
        splits = secondary_structure_splits(self.options.data)
        parts: list[Sequence[SecondaryStructureChain]] = [splits.train, splits.validation, splits.test]
        if self.options.quick:
            random, most = self.options.random("chains"), QUICK["chains"]
            sizes = (most, most // 3, most // 3)
            parts = [
                [part[number] for number in np.sort(random.permutation(len(part))[:size])]
                for part, size in zip(parts, sizes, strict=True)
            ]
        self.parts, self.removed = parts, len(splits.removed)
        self.vectors: dict[int, np.ndarray] = {}
        for part in parts:
            for chain in part:
                yield Question(chain.residues, Wanted(kept=True, layer=self.options.layer))

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the vectors, which lie in a file."""
        assert reply.kept is not None, "kept vectors were wanted"
        self.vectors[number] = reply.kept

    def second_questions(self) -> Iterator[Question]:
        """Nothing more."""
        return iter(())

    def finish(self) -> Trained:
        """Train until the validation chains gain no more; a temperature for each task from them."""
        starts = np.cumsum([0, *map(len, self.parts)])
        vectors = [[self.vectors[number] for number in range(first, last)] for first, last in pairwise(starts)]
        labels = [
            [np.stack([one.ss8_classes(), one.ss3_classes()], 1).astype(np.int64) for one in part]
            for part in self.parts
        ]
        seed = self.options.seed
        head = build(ResidueCnn, CnnConfig(self.options.facts.width, {"q8": len(SS8), "q3": len(SS3)}), seed)
        size = BatchSize(residues=min(max(sum(map(len, vectors[0])) // LEAST_STEPS, 512), BatchSize().residues))
        options = fitting.TrainOptions(epochs=30, patience=3, size=size, seed=seed, bf16=fitting.bf16_pays())
        train, validation = (Examples(vectors[part], labels[part]) for part in (0, 1))
        history = fitting.fit(head, train, validation, options)
        figures, temperatures = [], {}
        for part, data in ((1, "NetSurfP-2.0 validation"), (2, "CB513")):
            logits = list(fitting.predict_logits(head, vectors[part]))
            for place, task in enumerate(self.tasks):
                rows = Rows.of([one[place] for one in logits], [one[:, place] for one in labels[part]])
                if part == 1:
                    temperatures[task] = fit_temperature(rows.logits_NK, rows.known_N)
                    figures.append(self.calibration(f"{task.upper()} uncalibrated", data, rows, 1.0))
                figures.append(self.accuracy(task.upper(), data, rows))
                figures.append(self.calibration(task.upper(), data, rows, temperatures[task]))
        record: dict[str, object] = {"epochs": len(history.train_loss), "best_epoch": history.best_epoch, "seed": seed}
        classes = {"q8": list(SS8), "q3": list(SS3)}
        notes = [
            f"{self.name}: {len(self.parts[0]):,} chains to train on, {len(self.parts[1]):,} to stop and calibrate by, "
            f"{len(self.parts[2]):,} to test on; {self.removed} left out because CB513 holds the same sequence"
        ]
        return Trained(FittedHead(head, self.options.features(False), classes, temperatures, record), figures, notes)


class ProteinTrainer(Trainer):
    """ProtTrans' network on the mean vector of a protein; DeepLoc, an unrelated part of it to stop and calibrate by.

    Args:
        task: name of the output. measure: of its accuracy. classes: in order.
        class_of: number of a protein's class, None where it has none.
    """

    task: str
    measure: str
    classes: tuple[str, ...]
    class_of: Callable[[LocalisedProtein], int | None]

    def __init__(self, name: str, options: TrainerOptions) -> None:
        super().__init__(name, options)
        self.task, self.measure, self.classes, self.class_of = PROTEIN_HEADS[name]

    def questions(self) -> Iterator[Question]:
        """The mean vector of every protein."""
        splits = localisation_splits(self.options.data)
        parts: list[Sequence[LocalisedProtein]] = [splits.train, splits.test]
        if self.options.quick:
            # Drawn before labels are looked at: the same proteins for every head, so that the model runs on them once.
            random = self.options.random("proteins")
            short = [[one for one in part if len(one.residues) <= QUICK["longest"]] for part in parts]
            parts = [
                [part[number] for number in random.permutation(len(part))[:most]]
                for part, most in zip(short, (QUICK["proteins"], QUICK["proteins"] // 3), strict=True)
            ]
        parts = [[protein for protein in part if self.class_of(protein) is not None] for part in parts]
        if not all(parts):
            raise InputError(f"DeepLoc has no protein with a label for {self.name} in both of its parts")
        known_N = np.array([self.class_of(protein) for protein in parts[0]])
        sequences = [protein.residues for protein in parts[0]]
        held_out_N = hold_out(sequences, known_N, HELD_OUT, self.options.random("held out"))
        train, validation = (
            [protein for protein, out in zip(parts[0], held_out_N, strict=True) if out == wanted]
            for wanted in (False, True)
        )
        self.parts, self.removed = [train, validation, parts[1]], len(splits.removed)
        self.means: dict[int, np.ndarray] = {}
        for part in self.parts:
            for protein in part:
                yield Question(protein.residues, Wanted(mean=True, layer=self.options.layer))

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the mean."""
        assert reply.mean is not None, "means were wanted"
        self.means[number] = reply.mean[None]

    def second_questions(self) -> Iterator[Question]:
        """Nothing more."""
        return iter(())

    def finish(self) -> Trained:
        """Train until the held-out proteins gain no more; the temperature from them."""
        starts = np.cumsum([0, *map(len, self.parts)])
        means = [[self.means[number] for number in range(first, last)] for first, last in pairwise(starts)]
        labels = [[np.array([self.class_of(one)], np.int64) for one in part] for part in self.parts]
        seed, width = self.options.seed, self.options.facts.width
        head = build(PooledFnn, FnnConfig(width, {self.task: len(self.classes)}), seed)
        train, validation = (Examples(means[part], labels[part]) for part in (0, 1))
        history = fitting.fit(head, train, validation, fitting.TrainOptions(epochs=100, patience=10, seed=seed))
        figures, temperatures = [], {}
        for part, data in ((1, "held-out part of DeepLoc train"), (2, "DeepLoc validation")):
            logits = [one[0][None] for one in fitting.predict_logits(head, means[part])]
            rows = Rows.of(logits, labels[part])
            if part == 1:
                temperatures[self.task] = fit_temperature(rows.logits_NK, rows.known_N)
                figures.append(self.calibration(f"{self.measure} uncalibrated", data, rows, 1.0))
            figures.append(self.accuracy(self.measure, data, rows))
            figures.append(self.calibration(self.measure, data, rows, temperatures[self.task]))
        record: dict[str, object] = {"epochs": len(history.train_loss), "best_epoch": history.best_epoch, "seed": seed}
        fitted = FittedHead(head, self.options.features(True), {self.task: list(self.classes)}, temperatures, record)
        notes = [
            f"{self.name}: {len(self.parts[0]):,} proteins to train on, {len(self.parts[1]):,} to stop and calibrate "
            f"by (of every class, without close relatives among the others), {len(self.parts[2]):,} to test on"
        ]
        return Trained(fitted, figures, notes)


class ContactTrainer(Trainer):
    """A sparse regression on attention maps, fitted on 20 chains, calibrated on others, tested on others still."""

    def questions(self) -> Iterator[Question]:
        """The attention maps of the chains that it is fitted on."""
        longest = min(self.options.facts.max_residues or LONGEST_CHAIN, LONGEST_CHAIN)
        most, tests = (10, 10) if self.options.quick else (CALIBRATION_CHAINS, TEST_CHAINS)
        drawn = draw_chains(self.options.data, self.options.seed, most + tests, longest)
        self.fit, self.rest, self.coordinates = drawn.train, drawn.test, drawn.coordinates
        self.calibrating = min(most, len(self.rest) // 2)
        if len(self.rest) < 2:
            raise InputError(
                f"{len(self.fit) + len(self.rest)} chains with coordinates have at most {longest} residues; contacts "
                f"need {len(self.fit)} to fit, one or more to calibrate and one or more to test on"
            )
        self.rows: dict[int, ContactRows] = {}
        self.logits: dict[int, np.ndarray] = {}
        yield from (Question(chain.residues, Wanted(attentions=True)) for chain in self.fit)

    def second_questions(self) -> Iterator[Question]:
        """Once the regression is there: the maps of the other chains."""
        self.found = fit_contact_rows([self.rows.pop(number) for number in range(len(self.fit))])
        yield from (Question(chain.residues, Wanted(attentions=True)) for chain in self.rest)

    def collect(self, number: int, reply: Reply) -> None:
        """Keep what each pair has in every map, or the logits that come of it."""
        assert reply.attentions is not None, "attention maps were wanted"
        maps_NHLL = torch.from_numpy(reply.attentions)
        if number < len(self.fit):
            length = maps_NHLL.shape[-1]
            contacts_LL = self.coordinates.contacts(self.fit[number].id)
            self.rows[number] = contact_rows(maps_NHLL.reshape(-1, length, length), contacts_LL.astype(np.int64))
        else:
            logits_LL = pair_logits(maps_NHLL, self.found.weight_M, self.found.bias)
            self.logits[number - len(self.fit)] = logits_LL.numpy()

    def finish(self) -> Trained:
        """A temperature from some of the other chains, figures from the rest."""
        parts = np.split(np.arange(len(self.rest)), [self.calibrating])
        names = ("PDB chains to calibrate by", "PDB test chains")
        figures, temperature = [], 1.0
        for part, data in zip(parts, names, strict=True):
            pairs = [self._pairs(self.rest[number], self.logits[number]) for number in part]
            rows = Rows.of([one for one, _ in pairs], [known for _, known in pairs])
            if data == names[0]:
                temperature = fit_temperature(rows.logits_NK, rows.known_N)
                figures.append(self.calibration("contact uncalibrated", data, rows, 1.0))
            figures += self._precision(part, data)
            figures.append(self.calibration("contact", data, rows, temperature))
        probe = as_probe(self.found)
        features = Features(
            self.options.facts.name, self.options.facts.digest, self.options.facts.num_layers, len(probe.mean_D)
        )
        fitted = FittedHead(probe, features, {TASK: CLASSES}, {TASK: temperature}, probe.record)
        notes = [
            f"{self.name}: a regression on the attention maps, fitted on {len(self.fit)} chains, calibrated on "
            f"{len(parts[0])} others, tested on {len(parts[1])}; no two of one cluster at 30 % identity"
        ]
        return Trained(fitted, figures, notes)

    def _pairs(self, chain: PdbChain, logits_LL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits (P, 2) and classes (P,) of the pairs i < j that count."""
        upper = np.triu_indices(len(logits_LL), MINIMUM_SEPARATION)
        score_P = logits_LL[upper]
        known_P = contact_labels(self.coordinates.contacts(chain.id).astype(np.int64))[upper]
        return np.stack([np.zeros_like(score_P), score_P], axis=1), known_P

    def _precision(self, part: np.ndarray, data: str) -> list[Figure]:
        """The share of contacts among the L best long-range pairs, mean over chains."""
        found = [
            contact_precision(self.logits[number], self.coordinates.contacts(self.rest[number].id).astype(np.int64))
            for number in part
        ]
        hits, taken = (np.array([one["long", "L"][place] for one in found], float) for place in (0, 1))
        some = taken > 0
        if not some.any():
            return []
        share, random = hits[some] / taken[some], self.options.random(f"precision {data}")
        interval = bootstrap_interval(share, np.ones(len(share)), random, Bootstrap(RESAMPLES))
        return [self.figure("long-range P@L", data, interval)]


def _location(protein: LocalisedProtein) -> int | None:
    return protein.location_class


def _membrane(protein: LocalisedProtein) -> int | None:
    return protein.membrane_class


PROTEIN_HEADS: dict[str, tuple[str, str, tuple[str, ...], Callable[[LocalisedProtein], int | None]]] = {
    LOCALISATION: ("q10", "Q10", LOCATIONS, _location),
    MEMBRANE: ("q2", "Q2", ("soluble", "membrane"), _membrane),
}
"""Heads of whole proteins: output, measure, classes and where the label stands."""

SOURCES_OF = {
    SECONDARY_STRUCTURE: ("netsurfp", "cb513"),
    LOCALISATION: ("deeploc",),
    MEMBRANE: ("deeploc",),
    CONTACTS: ("chains", "coordinates"),
}
"""Labelled sets that a head is trained on."""

TRAINERS: dict[str, Callable[[str, TrainerOptions], Trainer]] = {
    SECONDARY_STRUCTURE: SecondaryStructureTrainer,
    LOCALISATION: ProteinTrainer,
    MEMBRANE: ProteinTrainer,
    CONTACTS: ContactTrainer,
}
"""Who fits which head."""
