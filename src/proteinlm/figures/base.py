"""What a figure is: it asks questions about proteins, makes a table of the replies, and draws that table.

In: `FigureOptions`, and the facts of the model. Out of `questions()`: `tasks.base.Question`s; into `collect()`: what a
model said to each, for every panel (the model, its untrained twin, amino-acid composition). Out of `finish()`: a
`Table`; out of `draw()`: a matplotlib figure of that table and nothing else.
"""

import abc
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from proteinlm.checkpoints.files import atomic_file
from proteinlm.models.base import ProteinModel
from proteinlm.tasks.base import Ability, ModelFacts, Question, Reply

Panel = Literal["model", "untrained", "composition"]


@dataclass(frozen=True)
class FigureOptions:
    """How figures are made.

    Args:
        data: folder of the data sets; None where none was given. seed: of every random choice.
        layer: whose vectors are shown; -1 is the last. quick: fewer proteins.
    """

    data: Path | None
    seed: int = 0
    layer: int = -1
    quick: bool = False


@dataclass(frozen=True)
class Table:
    """What is plotted.

    Args:
        columns: of equal length, numbers or words. notes: what to know of it, in sentences.
    """

    columns: Mapping[str, list[Any]]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def numbers(self, column: str) -> np.ndarray:
        """A column as fp64."""
        return np.array(self.columns[column], np.float64)

    def where(self, column: str, value: object) -> "Table":
        """The rows whose entry in a column is a value.

        >>> Table({"x": [1, 2, 3], "of": ["a", "b", "a"]}).where("of", "a").columns["x"]
        [1, 3]
        """
        rows = [row for row, entry in enumerate(self.columns[column]) if entry == value]
        return Table({name: [entries[row] for row in rows] for name, entries in self.columns.items()}, self.notes)

    def distinct(self, column: str) -> list[Any]:
        """The entries of a column, each once, in the order of the rows."""
        return list(dict.fromkeys(self.columns[column]))

    def write(self, path: Path) -> None:
        """As CSV, numbers to six digits; whole or not at all."""
        with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows([_text(entry) for entry in row] for row in zip(*self.columns.values(), strict=True))


def _text(entry: object) -> str:
    return f"{entry:.6g}" if isinstance(entry, float) else str(entry)


class Columns:
    """Rows on their way into a `Table`.

    Args:
        names: of the columns.

    >>> columns = Columns("x", "y")
    >>> columns.add(1, 2)
    >>> columns.table().columns
    {'x': [1], 'y': [2]}
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self.rows: list[tuple[Any, ...]] = []

    def add(self, *entries: Any) -> None:
        """One more row."""
        assert len(entries) == len(self.names), "an entry for each column"
        self.rows.append(entries)

    def table(self, *notes: str) -> Table:
        """All rows."""
        found = {name: [row[place] for row in self.rows] for place, name in enumerate(self.names)}
        return Table(found, tuple(note for note in notes if note))


class Figure(abc.ABC):
    """A figure. Subclasses are final and set the class attributes; their `__init__` reads no data.

    Attributes:
        name: as `plm figures --figures` takes it. title: above the picture. source: paper and figure.
        needs: a model that has all abilities of any one of these sets can serve.
        sources: keys of `datasets.sources.SOURCES` that it reads. panels: whose replies it shows.
    """

    name: str
    title: str
    source: str
    needs: tuple[frozenset[Ability], ...] = (frozenset(("residues",)),)
    sources: tuple[str, ...] = ()
    panels: tuple[Panel, ...] = ("model", "untrained")

    def __init__(self, options: FigureOptions, model: ModelFacts) -> None:
        self.options, self.model = options, model

    @abc.abstractmethod
    def questions(self) -> Iterator[Question]:
        """Read the data and ask; every panel is asked the same."""

    @abc.abstractmethod
    def collect(self, panel: Panel, number: int, reply: Reply) -> None:
        """Take a panel's reply to question `number`, counted from 0; called once for each, in any order."""

    @abc.abstractmethod
    def finish(self) -> Table:
        """What is to be drawn."""

    @abc.abstractmethod
    def draw(self, table: Table) -> Any:
        """A matplotlib figure of the table."""

    def label(self, panel: Panel) -> str:
        """What a panel is called: the name of the model, untrained, composition."""
        return self.model.name if panel == "model" else panel

    def random(self) -> np.random.Generator:
        """A generator that depends on the seed and the figure alone."""
        return np.random.default_rng([self.options.seed, *self.name.encode()])


class WeightsFigure(Figure, abc.ABC):
    """A figure of a model's weights, which it reads itself. Subclasses are final."""

    @abc.abstractmethod
    def read(self, panel: Panel, model: ProteinModel) -> None:
        """Take what is needed of a panel's model.

        Raises:
            InputError: this model has no such weights.
        """
