"""The file `results.json`: what was measured, of which model, on which data, with which software; and nothing else is
needed to report or to compare.

In: a `Run`. Out: JSON, and the `Run` again. A file that is not one, or of another version, is refused in one line.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from proteinlm.checkpoints.files import atomic_file
from proteinlm.errors import InputError
from proteinlm.tasks.base import Published, Result

FORMAT = 1
FILE = "results.json"

Status = Literal["done", "not applicable", "not run"]


@dataclass(frozen=True)
class TaskRun:
    """What became of one task.

    Args:
        name, title, version, source: of the task. status: see `Status`. reason: why it is not done.
        data: sha256 of each data set by its key. seconds: spent on asking, collecting and scoring, without the model.
        results: the figures. published: those of the papers to set beside them.
    """

    name: str
    title: str
    version: int
    source: str
    status: Status
    reason: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    results: tuple[Result, ...] = ()
    published: tuple[Published, ...] = ()


@dataclass(frozen=True)
class Run:
    """One evaluation of one model.

    Args:
        model: name, digest, source, licence, parameters, layers, width; and the seed of an untrained one.
        software: versions. date: when the last task ended, ISO 8601, UTC. options: of the run.
        seconds: of the whole run, and of the model alone; summed where it was done in parts.
        tasks: in the order of the table of tasks.
    """

    model: Mapping[str, Any]
    software: Mapping[str, Any]
    date: str
    options: Mapping[str, Any]
    seconds: Mapping[str, float] = field(default_factory=lambda: {"all": 0.0, "model": 0.0})
    tasks: tuple[TaskRun, ...] = ()

    @property
    def name(self) -> str:
        """What the model is called in tables."""
        return str(self.model["name"])

    def is_any_done(self) -> bool:
        """Whether there is a figure."""
        return any(task.status == "done" for task in self.tasks)


def write(run: Run, path: Path) -> None:
    """Write a run, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(run)}, indent=1), "utf-8")


def read(path: Path) -> Run:
    """The run in a file, or in a folder that holds `results.json`.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    file = path / FILE if path.is_dir() else path
    try:
        values = json.loads(file.read_text("utf-8"))
        if values["format"] != FORMAT:
            raise InputError(f"{file} has format {values['format']}, and {FORMAT} is read; evaluate again")
        tasks = tuple(_task_run(task) for task in values["tasks"])
        names = ("model", "software", "date", "options", "seconds")
        return Run(**{name: values[name] for name in names}, tasks=tasks)
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}); `plm evaluate MODEL -o FOLDER` writes it"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is no file of results ({type(error).__name__}: {error}); evaluate again") from error


def begun(path: Path, run: Run) -> Run:
    """An evaluation to go on with: the tasks that the file at `path` holds of this model, options and software.

    Args:
        path: of `results.json`, which need not be there. run: the evaluation, without tasks.

    Returns:
        the run with the tasks that are done; as it was, where there are none or they are of another evaluation.
    """
    try:
        there = read(path)
    except InputError:
        return run
    if (there.model, there.options, there.software) != (run.model, run.options, run.software):
        return run
    return dataclasses.replace(there, tasks=tuple(task for task in there.tasks if task.status == "done"))


def _task_run(values: Mapping[str, Any]) -> TaskRun:
    results = tuple(Result.from_dict(result) for result in values["results"])
    published = tuple(Published(**line) for line in values["published"])
    return TaskRun(**{**values, "results": results, "published": published})
