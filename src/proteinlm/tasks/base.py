"""What a task is: it asks questions about proteins, collects the answers and scores them. It never calls a model.

In: `TaskOptions` and the `ModelFacts` of the model under test. Out of `questions()`: `Question`s, each a residue
string, the positions that the model is not to see, and what is wanted. Into `collect()`: a `Reply` for each of them, in
any order. Out of `finish()`: `Result`s, figures with intervals and what it takes to compare two models pair by pair.

The machine (`evaluation.run`) gathers the questions of all tasks, answers each distinct one once and hands the replies
out while they stream, so a task keeps what it needs and lets go of the rest. Letters of shapes: L residues, D width,
P places, N layers, H heads, G groups (proteins, queries or clusters: what is drawn again for an interval).
"""

import abc
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from proteinlm.errors import InputError
from proteinlm.metrics import Bootstrap, bootstrap_interval

Ability = Literal["residues", "logits", "mask", "attentions", "contacts"]
"""What a model may be able to do: vectors of its own for each residue, log probabilities of residues, being shown a
mask in their place, attention maps, contact probabilities."""

LACKING: dict[Ability, str] = {
    "residues": "it has no vectors of residues",
    "logits": "it has no language-model head that speaks of every residue",
    "mask": "it has no mask token",
    "attentions": "it has no attention",
    "contacts": "it has no contact head",
}
"""Why a model cannot take part, in words."""

RESAMPLES, QUICK_RESAMPLES = 2000, 500


@dataclass(frozen=True)
class Wanted:
    """What a question is after; whatever is not named is not computed.

    Args:
        mean: the mean of the residue vectors. residues: the residue vectors, in fp32; let go of them in `collect`.
        kept: the residue vectors in fp16, in a file that is mapped into memory until `finish` has returned: for tasks
            that read the vectors of all proteins several times.
        log_probabilities: of every letter at the question's places.
        contacts, attentions: of every pair of residues.
        layer: of the vectors; -1 is the last, counted from the end where negative.
    """

    mean: bool = False
    residues: bool = False
    kept: bool = False
    log_probabilities: bool = False
    contacts: bool = False
    attentions: bool = False
    layer: int = -1


@dataclass(frozen=True)
class Question:
    """A protein, and what is wanted of it.

    Args:
        residues: upper-case letters. wanted: what the reply is to hold.
        masked: positions from 0 that the model sees as its mask token, ascending; the letters there are not seen.
        places: positions from 0 whose log probabilities are wanted; None for every residue.

    >>> Question("MKTV", Wanted(log_probabilities=True), masked=(2,), places=(2,)).masked
    (2,)
    """

    residues: str
    wanted: Wanted
    masked: tuple[int, ...] = ()
    places: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, positions in (("masked", self.masked), ("places", self.places or ())):
            if any(not 0 <= position < len(self.residues) for position in positions):
                raise InputError(f"{name} positions {positions} leave {len(self.residues)} residues; count from 0")
        if not self.residues:
            raise InputError("a question without residues; leave empty proteins out")


@dataclass(frozen=True)
class Reply:
    """What the model said to a question: fp32 and residue-indexed, without BOS and EOS. What was not wanted is None.

    Attributes:
        mean: shape (D,). residues: shape (L, D). kept: fp16, memory-mapped, shape (L, D).
        log_probabilities: in nats, over the model's whole alphabet, columns as `sequences.alphabet.LETTERS`, shape
            (P, 26). A letter that the model reads as another has that one's column; a letter that it cannot read has
            minus infinity. They are about the residue that stands at the place: models that predict what comes next
            are asked one token before.
        contacts: probabilities, NaN where no window held both residues, shape (L, L).
        attentions: shape (N, H, L, L); NaN where no window held both residues.
        windows: how many stretches the protein was cut into; 1 is the whole protein at once.
    """

    mean: Float[np.ndarray, "D"] | None = None
    residues: Float[np.ndarray, "L D"] | None = None
    kept: Float[np.ndarray, "L D"] | None = None
    log_probabilities: Float[np.ndarray, "P 26"] | None = None
    contacts: Float[np.ndarray, "L L"] | None = None
    attentions: Float[np.ndarray, "N H L L"] | None = None
    windows: int = 1


@dataclass(frozen=True)
class ModelFacts:
    """What a task may know of the model under test.

    Args:
        name, digest: whose answers these are. num_layers, width: shape of the hidden states.
        abilities: see `Ability`. max_residues: longer proteins are cut into windows; None where there is no limit.
    """

    name: str
    digest: str
    num_layers: int
    width: int
    abilities: frozenset[Ability]
    max_residues: int | None = None


@dataclass(frozen=True)
class TaskOptions:
    """How tasks are run.

    Args:
        data: folder of the data sets. quick: a fixed small part of the data, for minutes instead of an hour.
        seed: of every random choice. layer: whose vectors are judged; -1 is the last.
    """

    data: Path
    quick: bool = False
    seed: int = 0
    layer: int = -1


@dataclass(frozen=True)
class GroupScores:
    """A sum and a number of terms for each group that an interval draws again.

    Args:
        names: of the groups (proteins, queries, clusters), unique; they say which groups two models are paired over.
        sums_G, counts_G: shape (G,). The figure is total sum over total count, or the exponential of that.
    """

    names: Sequence[str]
    sums_G: np.ndarray
    counts_G: np.ndarray

    def digest(self) -> str:
        """sha256 of names and order: figures may be paired only where it is the same."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()


@dataclass(frozen=True)
class Result:
    """A figure.

    Args:
        task, version: which task measured it. measure: what, in words that are unique within the task.
        value, low, high: the figure and its 95 % interval. n: what it is over (terms). groups: what was drawn again.
        seed: of the task's and the interval's random choices.
        better: whether higher or lower figures are better; "" where neither is (a control, a count).
        exponential: the figure is exp(sum / count) instead of sum / count.
        pairing: digest of the groups (`GroupScores.digest`). sums, counts: of each group; empty without pairing.
        notes: deviations from the paper's protocol, limits of the data, what was left out and why.
        table: columns of equal length for plots and tables, or other plain values; small.
    """

    task: str
    version: int
    measure: str
    value: float
    low: float
    high: float
    n: int
    groups: int
    seed: int
    better: Literal["higher", "lower", ""] = "higher"
    exponential: bool = False
    pairing: str = ""
    sums: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    table: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Result":
        """What `to_dict` gave."""
        lists = {name: tuple(values[name]) for name in ("sums", "counts", "notes")}
        return cls(**{**values, **lists})


class Task(abc.ABC):
    """A task. Subclasses are final; they set the class attributes, and their `__init__` reads no data.

    Attributes:
        name: as `plm evaluate --tasks` takes it. version: raised whenever the figures of the same model would change.
        title: a line for people. source: paper and section.
        needs: abilities without which the task does not apply to a model.
        sources: keys of `datasets.sources.SOURCES` that it reads; the machine looks for them and takes digests.
    """

    name: str
    version: int
    title: str
    source: str
    needs: frozenset[Ability] = frozenset()
    sources: tuple[str, ...] = ()

    def __init__(self, options: TaskOptions, model: ModelFacts) -> None:
        self.options, self.model = options, model

    @abc.abstractmethod
    def questions(self) -> Iterator[Question]:
        """Read the data and ask; the n-th question that is yielded has number n, counted from 0."""

    @abc.abstractmethod
    def collect(self, number: int, reply: Reply) -> None:
        """Take the reply to question `number`; called once for each, in any order."""

    @abc.abstractmethod
    def finish(self) -> list[Result]:
        """Score what was collected."""

    def random(self) -> np.random.Generator:
        """A generator that depends on the seed and the task alone."""
        return np.random.default_rng([self.options.seed, *self.name.encode()])

    def result(
        self,
        measure: str,
        scores: GroupScores,
        better: Literal["higher", "lower", ""] = "higher",
        exponential: bool = False,
        notes: Sequence[str] = (),
        table: Mapping[str, Any] | None = None,
    ) -> Result:
        """A figure that is a ratio of sums over groups, with its interval and what pairing needs.

        Args:
            measure: unique within the task. scores: of each group. better, exponential, notes, table: see `Result`.

        Raises:
            InputError: names that are not unique, or sums and counts that cannot be (`metrics.bootstrap_interval`).
        """
        if len(set(scores.names)) != len(scores.names) or len(scores.names) != len(scores.sums_G):
            raise InputError(f"{self.name}: {measure}: {len(scores.sums_G)} groups need as many names, each once")
        resamples = QUICK_RESAMPLES if self.options.quick else RESAMPLES
        options = Bootstrap(resamples=resamples, exponential=exponential)
        random = np.random.default_rng(self.options.seed)
        found = bootstrap_interval(scores.sums_G, scores.counts_G, random, options)
        return Result(
            task=self.name,
            version=self.version,
            measure=measure,
            value=found.value,
            low=found.low,
            high=found.high,
            n=int(np.sum(scores.counts_G)),
            groups=found.groups,
            seed=self.options.seed,
            better=better,
            exponential=exponential,
            pairing=scores.digest(),
            sums=tuple(np.asarray(scores.sums_G, np.float64).tolist()),
            counts=tuple(np.asarray(scores.counts_G, np.float64).tolist()),
            notes=tuple(notes),
            table=dict(table or {}),
        )


class TwoRoundTask(Task, abc.ABC):
    """A task that asks again once it knows the first replies, for example to fit on some proteins what it reads others
    with. Numbers go on where the first round ended. Subclasses are final."""

    @abc.abstractmethod
    def second_questions(self) -> Iterator[Question]:
        """Ask again; called when every reply to `questions()` has been collected."""


@dataclass(frozen=True)
class Published:
    """A figure of a paper to set beside ours.

    Args:
        measure: that of our `Result`. model: as the paper calls it. value: in the unit of our measure.
        source: paper and table.
    """

    measure: str
    model: str
    value: float
    source: str


@dataclass(frozen=True)
class Entry:
    """A line of the table of tasks: the class, and what the papers found."""

    task: type[Task]
    published: tuple[Published, ...] = ()
