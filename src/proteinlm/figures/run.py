"""`plm figures` from beginning to end: which figures a model can serve, one pass for all they ask, the files.

In: a `FiguresJob`. Out: for each figure a CSV file of what is plotted, a picture in each format, and a `Drawn` that
says what became of it. A figure whose data are missing, or that the model cannot serve, is told why; the others go on.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from proteinlm.checkpoints import Checkpoint, load, untrained
from proteinlm.config import nearest
from proteinlm.datasets.sources import missing
from proteinlm.embedding.progress import Progress
from proteinlm.errors import InputError
from proteinlm.evaluation import results
from proteinlm.evaluation.cache import kept_or_temporary
from proteinlm.evaluation.machine import Machine, Unanswered, facts_of
from proteinlm.evaluation.results import Status
from proteinlm.figures import FIGURES, precision
from proteinlm.figures.base import Figure, FigureOptions, Panel, Table, WeightsFigure
from proteinlm.figures.style import FORMATS, require_libraries, save
from proteinlm.inference import Runner, RunOptions
from proteinlm.tasks.base import LACKING, ModelFacts, Question

PANELS: tuple[Panel, ...] = ("model", "untrained", "composition")


@dataclass(frozen=True)
class FiguresJob:
    """What to draw, and where to.

    Args:
        model: name or path. out: folder of the files; made if needed. options: of the figures.
        figures: names; all of them if empty. formats: of the pictures, see `style.FORMATS`.
        untrained: seed of the random weights beside the model's. run: how models are run.
        download: fetch the weights if they are not on this machine.
    """

    model: str
    out: Path
    options: FigureOptions
    figures: tuple[str, ...] = ()
    formats: tuple[str, ...] = FORMATS
    untrained: int = 0
    run: RunOptions = field(default_factory=RunOptions)
    download: bool = False


@dataclass
class Drawn:
    """What became of a figure.

    Attributes:
        name: of the figure. status: as of a task. reason: why it is not done. files: table and pictures.
        notes: what to know of it. figure, questions: while it is on its way.
    """

    name: str
    status: Status = "done"
    reason: str = ""
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    figure: Figure | None = None
    questions: list[Question] = field(default_factory=list)

    def stop(self, status: Status, reason: str) -> None:
        """Give up."""
        self.status, self.reason, self.figure, self.questions = status, reason, None, []


def chosen_figures(names: tuple[str, ...]) -> list[str]:
    """Names of figures in the order of the table; all of them where none is given.

    Raises:
        InputError: a name is unknown.

    >>> chosen_figures(("kingdom", "amino-acids"))
    ['amino-acids', 'kingdom']
    """
    for name in names:
        if name not in FIGURES:
            raise InputError(f"figure {name!r} is unknown{nearest(name, FIGURES) or '; known: ' + ', '.join(FIGURES)}")
    return [name for name in FIGURES if not names or name in names]


def draw_figures(job: FiguresJob, progress: Progress) -> list[Drawn]:
    """Make the figures of a model.

    Args:
        job: what to do. progress: where to report.

    Raises:
        InputError: a name is unknown, a library is missing, or the model cannot be loaded.
    """
    names = chosen_figures(job.figures)
    _check_formats(job.formats)
    checkpoint = load(job.model, job.download)
    facts = facts_of(checkpoint)
    progress.say(f"model    {checkpoint.name}, digest {checkpoint.digest[:12]}")
    drawn = [_prepared(name, job.options, facts) for name in names]
    job.out.mkdir(parents=True, exist_ok=True)
    with kept_or_temporary(None, job.out) as cache:
        for panel in PANELS:
            asked = [one for one in drawn if one.figure is not None and panel in one.figure.panels]
            if asked:
                _ask(panel, asked, _checkpoint(panel, checkpoint, job), _Place(job, cache, progress))
        for one in drawn:
            _finish(one, job)
            progress.say(f"{one.name}: " + (one.status if one.status == "done" else f"{one.status}: {one.reason}"))
    return drawn


def draw_precision(runs: tuple[Path, Path], measure: str | None, out: Path, formats: tuple[str, ...]) -> Drawn:
    """Draw one measure of two runs, group by group.

    Args:
        runs: results of `plm evaluate`. measure: see `precision.precision_table`. out: folder; made if needed.
        formats: of the pictures.

    Raises:
        InputError: a file cannot be read, or the runs have no such measure in common.
    """
    _check_formats(formats)
    table = precision.precision_table(results.read(runs[0]), results.read(runs[1]), measure)
    out.mkdir(parents=True, exist_ok=True)
    return Drawn(precision.NAME, files=_write(precision.NAME, table, precision.draw(table), out, formats))


def _check_formats(formats: tuple[str, ...]) -> None:
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"format {name!r} is unknown; known: {', '.join(FORMATS)}")
    require_libraries()


def _prepared(name: str, options: FigureOptions, facts: ModelFacts) -> Drawn:
    """A figure with its questions, or the reason why not."""
    kind, one = FIGURES[name], Drawn(name)
    if not any(needs <= facts.abilities for needs in kind.needs):
        lacking = sorted({ability for needs in kind.needs for ability in needs} - facts.abilities)
        one.stop("not applicable", f"of {facts.name}, " + " and ".join(LACKING[ability] for ability in lacking))
        return one
    absent = missing(options.data, kind.sources)
    if absent:
        one.stop("not run", "; ".join(dict.fromkeys(absent.values())))
        return one
    one.figure = kind(options, facts)
    try:
        one.questions = list(one.figure.questions())
    except InputError as error:
        one.stop("not run", str(error))
    return one


def _checkpoint(panel: Panel, checkpoint: Checkpoint, job: FiguresJob) -> Checkpoint | None:
    """The model of a panel; None where there is no such model."""
    if panel == "model":
        return checkpoint
    if panel == "composition":
        return load("composition")
    if not any(True for _ in checkpoint.model.parameters()):
        return None
    return untrained(job.model, job.untrained)


@dataclass(frozen=True)
class _Place:
    """Where a panel's model is run."""

    job: FiguresJob
    cache: Path
    progress: Progress


def _ask(panel: Panel, asked: list[Drawn], checkpoint: Checkpoint | None, place: _Place) -> None:
    """Every question of a panel, answered once."""
    if checkpoint is None:
        return
    for one in asked:
        if isinstance(one.figure, WeightsFigure):
            try:
                one.figure.read(panel, checkpoint.model)
            except InputError as error:
                one.stop("not applicable", str(error))
    questions = {one.name: list(_of_panel(panel, one.questions)) for one in asked if one.questions}
    if not questions:
        return
    # Encodings are exact tables, and have one layer.
    run = place.job.run if panel != "composition" else replace(place.job.run, precision="fp32")
    runner = Runner(checkpoint.model, run)
    by_name = {one.name: one for one in asked}
    with closing(Machine(checkpoint.digest, runner, place.cache, "fp16", place.progress)) as machine:
        for name, number, reply in machine.answers(questions):
            one = by_name[name]
            if one.figure is None:
                continue
            if isinstance(reply, Unanswered):
                one.stop("not run", f"{panel}, question {number}: {reply.reason}")
                continue
            try:
                one.figure.collect(panel, number, reply)
            except InputError as error:
                one.stop("not run", str(error))


def _of_panel(panel: Panel, questions: list[Question]) -> Iterator[Question]:
    for question in questions:
        layer = -1 if panel == "composition" else question.wanted.layer
        yield replace(question, wanted=replace(question.wanted, layer=layer))


def _finish(one: Drawn, job: FiguresJob) -> None:
    """Table and pictures."""
    if one.figure is None:
        return
    try:
        table = one.figure.finish()
    except InputError as error:
        one.stop("not run", str(error))
        return
    one.files = _write(one.name, table, one.figure.draw(table), job.out, job.formats)
    one.notes, one.figure = table.notes, None


def _write(name: str, table: Table, picture: Any, out: Path, formats: tuple[str, ...]) -> tuple[Path, ...]:
    files = [out / f"{name}.csv"]
    table.write(files[0])
    for ending in formats:
        files.append(out / f"{name}.{ending}")
        save(picture, files[-1])
    return tuple(files)
