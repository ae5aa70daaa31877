"""One evaluation from beginning to end: the model, the tasks that apply, their questions, scores, `results.json`.

In: an `EvaluateJob`. Out: the folder with the results, written anew after each task. A task that cannot be run (data
missing, nothing the model can answer) is listed with the reason; the others go on. What the folder holds already of the
same model, options, data and software is not run again.
"""

import dataclasses
import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from proteinlm.checkpoints import Checkpoint, load, untrained
from proteinlm.config import nearest
from proteinlm.datasets.sources import SOURCES, digest, missing
from proteinlm.embedding.progress import Progress
from proteinlm.embedding.settings import versions
from proteinlm.errors import InputError
from proteinlm.evaluation import results
from proteinlm.evaluation.cache import Storage, kept_or_temporary
from proteinlm.evaluation.machine import Machine, Unanswered, facts_of
from proteinlm.evaluation.results import Run, Status, TaskRun
from proteinlm.inference import Runner, RunOptions, return_freed_memory
from proteinlm.tasks import TASKS
from proteinlm.tasks.base import LACKING, Entry, ModelFacts, Question, Result, Task, TaskOptions, TwoRoundTask


@dataclass(frozen=True)
class EvaluateJob:
    """What to evaluate, and how.

    Args:
        model: name or path. out: folder for `results.json`; made if needed.
        options: of the tasks. tasks: names; all of them if empty.
        run: how the model is run. cache: folder in which residue vectors are kept for later runs; None for a temporary
            one in `out`. storage: number format of kept vectors.
        untrained: seed of random weights to put in place of the model's; None for the model as it is.
        download: fetch the weights if they are not on this machine.
    """

    model: str
    out: Path
    options: TaskOptions
    tasks: tuple[str, ...] = ()
    run: RunOptions = field(default_factory=RunOptions)
    cache: Path | None = None
    storage: Storage = "fp16"
    untrained: int | None = None
    download: bool = False


@dataclass
class Running:
    """A task on its way."""

    name: str
    entry: Entry
    data: dict[str, str] = field(default_factory=dict)
    task: Task | None = None
    status: Status = "done"
    reason: str = ""
    asked: int = 0
    seconds: float = 0.0
    results: tuple[Result, ...] = ()

    def stop(self, status: Status, reason: str) -> None:
        """Give up, and let go of what was collected."""
        self.status, self.reason, self.task = status, reason, None

    def is_done(self, done: Mapping[str, TaskRun]) -> bool:
        """Whether an earlier run has answered it, in the same version and on the same data."""
        found = done.get(self.name)
        return found is not None and (found.version, found.data) == (self.entry.task.version, self.data)

    def finished(self) -> TaskRun:
        """For the file."""
        kind = self.entry.task
        return TaskRun(
            name=self.name,
            title=kind.title,
            version=kind.version,
            source=kind.source,
            status=self.status,
            reason=self.reason,
            data=self.data,
            seconds=round(self.seconds, 2),
            results=self.results,
            published=self.entry.published,
        )


def chosen_tasks(names: tuple[str, ...], table: dict[str, Entry]) -> list[Running]:
    """The tasks of these names in the order of the table; all of them where no name is given.

    Raises:
        InputError: a name is unknown.
    """
    for name in names:
        if name not in table:
            raise InputError(f"task {name!r} is unknown{nearest(name, table) or '; known: ' + ', '.join(table)}")
    return [Running(name, entry) for name, entry in table.items() if not names or name in names]


def evaluate(job: EvaluateJob, progress: Progress, table: dict[str, Entry] | None = None) -> Run:
    """Evaluate a model and write `results.json`.

    Args:
        job: what to do. progress: where to report. table: of the tasks; `TASKS` if left out.

    Raises:
        InputError: a task is unknown, the model cannot be loaded, or no task could be run.
    """
    begin, table = time.monotonic(), TASKS if table is None else table
    chosen = chosen_tasks(job.tasks, table)
    checkpoint = load_model(job)
    facts = facts_of(checkpoint)
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    progress.say(f"model    {checkpoint.name}: {parameters:,} parameters, digest {checkpoint.digest[:12]}")
    runner = Runner(checkpoint.model, job.run)
    progress.say(f"running  on {runner.device} in {runner.precision} ({runner.precision_reason})")
    file = job.out / results.FILE
    run = results.begun(file, Run(_model(checkpoint, facts, parameters, job), versions(), "", _options(job, runner)))
    before, done = run.seconds, {task.name: task for task in run.tasks if task.name in table}
    for one in chosen:
        _prepare(one, job.options, facts)
    waiting = [one for one in chosen if not one.is_done(done)]
    if len(waiting) < len(chosen):
        progress.say(f"done     {', '.join(one.name for one in chosen if one not in waiting)}: in {file}")
    job.out.mkdir(parents=True, exist_ok=True)
    with (
        kept_or_temporary(job.cache, job.out) as cache,
        closing(Machine(checkpoint.digest, runner, cache, job.storage, progress)) as machine,
    ):
        model_seconds = _ask(machine, waiting, progress)
        for one in waiting:
            return_freed_memory()
            with _timed(one):
                _finish(one)
            figures = f"{len(one.results)} figures, {one.seconds:.0f} s without the model"
            progress.say(f"{one.name}: {figures if one.status == 'done' else _why(one)}")
            done[one.name] = one.finished()
            seconds = {"all": time.monotonic() - begin, "model": model_seconds}
            run = replace(
                run,
                date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                seconds={name: round(before[name] + value, 2) for name, value in seconds.items()},
                tasks=tuple(done[name] for name in table if name in done),
            )
            if run.is_any_done():
                results.write(run, file)
    if not run.is_any_done():
        raise InputError("no task could be run: " + "; ".join(f"{task.name}: {task.reason}" for task in run.tasks))
    return run


def load_model(job: EvaluateJob) -> Checkpoint:
    """The model of a job, with random weights if that is asked for."""
    if job.untrained is not None:
        return untrained(job.model, job.untrained, job.download)
    return load(job.model, job.download)


def _why(one: Running) -> str:
    return f"{one.status}: {one.reason}"


def _prepare(one: Running, options: TaskOptions, facts: ModelFacts) -> None:
    """See whether a task applies and its data are here."""
    kind = one.entry.task
    lacking = sorted(kind.needs - facts.abilities)
    if lacking:
        one.stop("not applicable", f"of {facts.name}, " + ", ".join(LACKING[ability] for ability in lacking))
        return
    absent = missing(options.data, kind.sources)
    if absent:
        one.stop("not run", "; ".join(absent.values()))
        return
    one.data = {key: digest(options.data / SOURCES[key].path) for key in kind.sources}
    one.task = kind(options, facts)


def _ask(machine: Machine, running: list[Running], progress: Progress) -> float:
    """Both rounds of questions; returns the seconds that were not spent by tasks."""
    begin, spent = time.monotonic(), sum(one.seconds for one in running)
    _round(machine, running, lambda task: task.questions())
    second = [one for one in running if isinstance(one.task, TwoRoundTask)]
    if second:
        progress.say(f"second round of {', '.join(one.name for one in second)}")
        _round(machine, second, lambda task: task.second_questions() if isinstance(task, TwoRoundTask) else iter(()))
    return time.monotonic() - begin - (sum(one.seconds for one in running) - spent)


def _round(machine: Machine, running: list[Running], ask: Callable[[Task], Iterator[Question]]) -> None:
    questions: dict[str, list[Question]] = {}
    by_name = {one.name: one for one in running}
    before = {one.name: one.asked for one in running}
    for one in running:
        if one.task is None:
            continue
        with _timed(one):
            try:
                questions[one.name] = list(ask(one.task))
            except InputError as error:
                one.stop("not run", str(error))
                continue
        one.asked += len(questions[one.name])
    for name, number, reply in machine.answers(questions):
        one = by_name[name]
        if one.task is None:
            continue
        with _timed(one):
            if isinstance(reply, Unanswered):
                one.stop("not run", f"question {before[name] + number}: {reply.reason}")
                continue
            try:
                one.task.collect(before[name] + number, reply)
            except InputError as error:
                one.stop("not run", str(error))


def _finish(one: Running) -> None:
    if one.task is None:
        return
    try:
        one.results = tuple(one.task.finish())
    except InputError as error:
        one.stop("not run", str(error))
    one.task = None


@contextmanager
def _timed(one: Running) -> Iterator[None]:
    begin = time.monotonic()
    yield
    one.seconds += time.monotonic() - begin


def _model(checkpoint: Checkpoint, facts: ModelFacts, parameters: int, job: EvaluateJob) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "digest": checkpoint.digest,
        "source": Path(checkpoint.source).name,
        "licence": checkpoint.licence,
        "parameters": parameters,
        "layers": facts.num_layers,
        "width": facts.width,
        "abilities": sorted(facts.abilities),
        "untrained": job.untrained,
    }


def _options(job: EvaluateJob, runner: Runner) -> dict[str, Any]:
    return {
        **{key: value for key, value in dataclasses.asdict(job.options).items() if key != "data"},
        "precision": runner.precision,
        "device": runner.device.type,
        "storage": job.storage,
    }
