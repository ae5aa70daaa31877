"""What a run writes about itself: rows of numbers in CSV files, which outlive a kill and continue after it.

In: one dictionary per logged step or validation. Out: `training.csv` and `validation.csv` in the run's folder, and
the same rows as TensorBoard events in `tensorboard/` where the recipe asks for them.
"""

import csv
from pathlib import Path

from proteinlm.checkpoints.files import atomic_file
from proteinlm.errors import InputError


def training_columns(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Columns of `training.csv`, where a loss consists of these parts.

    >>> training_columns(())
    ('step', 'tokens', 'loss', 'learning_rate', 'gradient_norm', 'tokens_per_second')
    """
    return ("step", "tokens", "loss", *parts, "learning_rate", "gradient_norm", "tokens_per_second")


def validation_columns(scores: tuple[str, ...]) -> tuple[str, ...]:
    """Columns of `validation.csv`, where an objective has these scores; `low` and `high` enclose the first.

    >>> validation_columns(("ece", "ece_chosen"))
    ('step', 'tokens', 'ece', 'low', 'high', 'ece_chosen', 'proteins')
    """
    first, *others = scores
    return ("step", "tokens", first, "low", "high", *others, "proteins")


class Board:
    """TensorBoard events.

    Args:
        folder: of the run. step: where it stands; what was written beyond it is hidden.

    Raises:
        InputError: the tensorboard package is missing.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "run.tensorboard needs tensorboard; install it with: pip install 'proteinlm[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, name: str, row: dict[str, float]) -> None:
        """One point for each column of a row, as `name/column`."""
        for column, value in row.items():
            if column != "step":
                self._writer.add_scalar(f"{name}/{column}", value, int(row["step"]))
        self._writer.flush()


class Table:
    """Rows of one CSV file. Rows after the step that a run goes on from are dropped: they will come again.

    Args:
        path: the file. columns: its header. step: where the run stands. board: also gets the rows.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], step: int, board: Board | None = None) -> None:
        self._path, self._columns, self._board = path, columns, board
        kept = [row for row in read_table(path) if int(row["step"]) <= step] if path.exists() else []
        with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(kept)

    def add(self, row: dict[str, float]) -> None:
        """Append one row, to six digits.

        Raises:
            InputError: the file cannot be written.
        """
        if self._board is not None:
            self._board.add(self._path.stem, row)
        shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(shown)
        except OSError as error:
            raise InputError(
                f"cannot write {str(self._path)!r}: {error.strerror}; make room, and run the same command again: it "
                "goes on from the last checkpoint"
            ) from error


def read_table(path: Path) -> list[dict[str, str]]:
    """All rows; a last line that was cut off is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if all(value not in (None, "") for value in row.values())]
