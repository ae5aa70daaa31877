"""`plm heads train` from beginning to end: questions, answers, heads, figures, one folder.

In: a `HeadsJob`. Out: a folder of heads (`bundle`) and what was measured. Proteins that several heads ask about are run
once; residue vectors that are gone through again and again lie in a file.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from proteinlm.checkpoints import load
from proteinlm.config import nearest
from proteinlm.datasets.sources import SOURCES, digest, missing
from proteinlm.embedding.progress import Progress
from proteinlm.embedding.settings import versions
from proteinlm.errors import InputError
from proteinlm.evaluation.cache import kept_or_temporary
from proteinlm.evaluation.machine import Machine, Unanswered, facts_of, layer_number
from proteinlm.inference import Runner, RunOptions
from proteinlm.prediction.bundle import CONTACTS, HEADS, BundleCard, Figure, page, save_bundle
from proteinlm.prediction.trainers import SOURCES_OF, TRAINERS, Trained, Trainer, TrainerOptions
from proteinlm.tasks.base import ModelFacts, Question, Wanted


@dataclass(frozen=True)
class HeadsJob:
    """Which heads to train, for which model.

    Args:
        model: name or path. out: the folder to write, new or empty. data: the data folder.
        heads: names out of `HEADS`; none for all that the model can have. layer: of the vectors, -1 the last.
        quick: a small part of the data. seed: of every draw. options: how to run the model.
        cache: where to keep residue vectors for another run. download: fetch the weights if they are not here.
    """

    model: str
    out: Path
    data: Path
    heads: tuple[str, ...] = ()
    layer: int = -1
    quick: bool = False
    seed: int = 0
    options: RunOptions = field(default_factory=RunOptions)
    cache: Path | None = None
    download: bool = False


@dataclass(frozen=True)
class Report:
    """How a training ended.

    Attributes:
        card: what the folder says. figures: what was measured. notes: what else to know. seconds: by step.
    """

    card: BundleCard
    figures: list[Figure]
    notes: list[str]
    seconds: dict[str, float]


def train_heads(job: HeadsJob, progress: Progress) -> Report:
    """Train heads for a model and write them into a folder.

    Args:
        job: what to do. progress: where to report.

    Raises:
        InputError: a head is unknown or not for this model, data are missing or unusable, the folder is not empty.
    """
    _require_new(job.out)
    for name in job.heads:
        if name not in HEADS:
            raise InputError(f"head {name!r} is unknown{nearest(name, HEADS) or '; known: ' + ', '.join(HEADS)}")
    checkpoint = load(job.model, job.download)
    facts = facts_of(checkpoint)
    names, notes = _heads_of(job, facts)
    sources = list(dict.fromkeys(itertools.chain.from_iterable(SOURCES_OF[name] for name in names)))
    if absent := missing(job.data, tuple(sources)):
        raise InputError("; ".join(absent.values()))
    layer = layer_number(Wanted(layer=job.layer), checkpoint.model)
    options = TrainerOptions(job.data, facts, layer, job.quick, job.seed)
    trainers = {name: TRAINERS[name](name, options) for name in names}
    runner = Runner(checkpoint.model, job.options)
    progress.say(f"model    {facts.name}, digest {facts.digest[:12]}, layer {layer}")
    progress.say(f"running  on {runner.device} in {runner.precision} ({runner.precision_reason})")
    seconds: dict[str, float] = {}
    beside = job.out.absolute()
    with (
        kept_or_temporary(job.cache, beside.parent, f".{beside.name}.vectors-") as cache,
        closing(Machine(facts.digest, runner, cache, "fp16", progress)) as machine,
    ):
        with _timed(seconds, "model"):
            _ask(machine, trainers, lambda trainer: trainer.questions())
            _ask(machine, trainers, lambda trainer: trainer.second_questions())
        trained: dict[str, Trained] = {}
        for name, trainer in trainers.items():
            with _timed(seconds, name):
                trained[name] = trainer.finish()
            progress.say(f"{name}: fitted in {seconds[name]:.0f} s")
    figures = [figure for one in trained.values() for figure in one.figures]
    card = BundleCard(
        model=facts.name,
        digest=facts.digest,
        layer=layer,
        width=facts.width,
        heads=dict.fromkeys(names, ""),
        figures={
            f"{one.head}: {one.measure} on {one.data}": {
                key: getattr(one, key) for key in ("value", "low", "high", "proteins")
            }
            for one in figures
        },
        data={SOURCES[key].path: digest(job.data / SOURCES[key].path) for key in sources},
        seed=job.seed,
        quick=job.quick,
        software=versions(),
    )
    notes += [note for one in trained.values() for note in one.notes]
    save_bundle(job.out, {name: one.fitted for name, one in trained.items()}, card, page(card, figures, notes))
    return Report(card, figures, notes, seconds)


def _require_new(out: Path) -> None:
    """Refuse at once what could not be written hours later."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; remove it or choose another")
    if not out.absolute().parent.is_dir():
        raise InputError(f"cannot write {out}: there is no folder {out.parent}; create it first")


def _heads_of(job: HeadsJob, facts: ModelFacts) -> tuple[list[str], list[str]]:
    """The heads to train in their order, and a note on one that the model cannot have."""
    names = [name for name in HEADS if not job.heads or name in job.heads]
    if CONTACTS in names and "attentions" not in facts.abilities:
        if job.heads:
            raise InputError(f"head {CONTACTS} reads attention maps, which {facts.name} has not; leave it out")
        names.remove(CONTACTS)
        return names, [f"{CONTACTS}: none, because {facts.name} has no attention maps"]
    return names, []


def _ask(machine: Machine, trainers: dict[str, Trainer], ask: Callable[[Trainer], Iterator[Question]]) -> None:
    """Ask the model what the trainers want to know; numbers of later questions follow those of earlier ones."""
    questions = {name: list(ask(trainer)) for name, trainer in trainers.items()}
    for name, number, reply in machine.answers(questions):
        trainer = trainers[name]
        if isinstance(reply, Unanswered):
            raise InputError(f"{name}: a training protein cannot be run: {reply.reason}")
        trainer.collect(trainer.asked_before + number, reply)
    for name, asked in questions.items():
        trainers[name].asked_before += len(asked)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begin
