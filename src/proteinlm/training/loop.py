"""The one loop that trains a model.

In: a recipe and a folder. Out: in the folder, a checkpoint from which the same command goes on, tables of what
happened, and at the end `model.safetensors`. A step is a function of recipe, corpus and step number alone, so that a
run that was stopped anywhere and taken up again ends with the same weights.
"""

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from proteinlm import checkpoints
from proteinlm.corpora.sampling import Order
from proteinlm.corpora.store import Store
from proteinlm.corpora.stream import Stream
from proteinlm.errors import InputError
from proteinlm.inference import return_freed_memory
from proteinlm.metrics import Bootstrap, Interval, Totals, bootstrap_interval
from proteinlm.models import ARCHITECTURES, on_meta
from proteinlm.models.base import ProteinModel
from proteinlm.models.contacts import ContactHead
from proteinlm.objectives.base import Loss
from proteinlm.objectives.perplexity import add_up, fixed_example, length_batches
from proteinlm.sequences.fasta import Refused, read_fasta
from proteinlm.training.averaging import Average
from proteinlm.training.engine import Engine, State, Trainee, engine_of
from proteinlm.training.growth import grow
from proteinlm.training.optimisers import build_optimisers, rate_at
from proteinlm.training.phases import Stage
from proteinlm.training.recipe import Recipe, recipe_of
from proteinlm.training.records import Board, Table, training_columns, validation_columns

Watch = Callable[[int, int, float, float], None]
"""What is told after every step: steps done, steps to do in all, the loss, and tokens per second of late."""

MOST_BAD_STEPS = 5
"""Steps in a row whose gradient is not finite, after which the run stops."""

TIDY_EVERY = 16
"""Steps after which freed memory is given back to the system, at no cost that could be measured."""

VALIDATION_TOKENS = 16384
"""About how many tokens are scored at a time."""

MODEL = "model.safetensors"
CHECKPOINT = "checkpoint"


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    position: int = 0
    tokens: int = 0
    bad_steps: int = 0


@dataclass(frozen=True)
class Made:
    """What a step was.

    Args:
        loss: mean over its targets, in nats. norm: of its gradient before clipping.
        parts: means of what the loss consists of, as the objective names them.
    """

    loss: float
    norm: float
    parts: dict[str, float]


class Trainer:
    """Everything that a run is made of, from a recipe.

    Args:
        recipe: the run. folder: where it lives; made if needed. engine: on which processes.
        say: takes lines for the user. watch: is told of every step.

    Raises:
        InputError: the recipe does not fit the corpus or the number of processes, or the folder holds another run.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, engine: Engine, say: Callable[[str], None], watch: Watch | None = None
    ) -> None:
        self.recipe, self.folder, self.engine = recipe, folder, engine
        self.say, self._watch = (_say_nothing, None) if engine.rank else (say, watch)
        self.store = Store.open(recipe.data.store)
        is_saved = engine.saved(folder / CHECKPOINT)
        self.model = first_model(recipe, with_weights=not is_saved)
        for module in self.model.modules():
            if isinstance(module, ContactHead):
                # It is fitted to a trained model (papers.md 2.5), and nothing here would give it a gradient.
                module.requires_grad_(False)
        self.model.recompute_layers = recipe.run.gradient_checkpointing
        self.objective = recipe.objective_of(self.model.alphabet)
        order = Order(self.store, recipe.data.sampling, recipe.data.fraction, recipe.run.seed)
        self.stages = recipe.stages()
        self._streams = [Stream(order, self.model.alphabet, stage.tokens, stage.crop) for stage in self.stages]
        for stream in self._streams:
            stream.check_world(engine.world)
        self.held_out = read_proteins(recipe.data.validation, self.model)
        self.wrapped = engine.wrap(Trainee(self.model.train(), self.objective))
        self.optimisers = build_optimisers(self.model, recipe.optimiser)
        decay = recipe.optimiser.averaging
        self.average = Average(self.model, decay) if decay else None
        self.progress, self._stop = Progress(), _StopOnSignal()
        self._random = torch.Generator().manual_seed(recipe.run.seed).get_state()
        folder.mkdir(parents=True, exist_ok=True)
        if is_saved:
            self._resume()
        self.tables: tuple[Table, Table] | None = None
        if not engine.rank:
            done = self.progress.step
            board = Board(folder, done) if recipe.run.tensorboard else None
            self.tables = (
                Table(folder / "training.csv", training_columns(self.objective.parts), done, board),
                Table(folder / "validation.csv", validation_columns(self.objective.scores), done, board),
            )

    def run(self) -> None:
        """Train to the last step, or until SIGINT or SIGTERM, which end the run after the step at hand."""
        since, tokens = time.monotonic(), self.progress.tokens
        with self._stop, torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            while self.progress.step < self.recipe.run.steps and not self._stop.agreed:
                made = self.step()
                done, run = self.progress.step, self.recipe.run
                now = time.monotonic()
                speed = (self.progress.tokens - tokens) / (now - since)
                if done % TIDY_EVERY == 0:
                    return_freed_memory()
                if self._watch is not None:
                    self._watch(done, run.steps, made.loss, speed)
                if done % run.log_every == 0:
                    self._log(made, speed)
                    since, tokens = now, self.progress.tokens
                last = done == run.steps
                if done % run.validate_every == 0 or last:
                    self.validate()
                if done % run.checkpoint_every == 0 or last or self._stop.agreed:
                    self.save()
        if self.progress.step == self.recipe.run.steps:
            self.finish()

    @property
    def stage(self) -> Stage:
        """The stage that the next step is in."""
        return next(stage for stage in reversed(self.stages) if stage.start <= self.progress.step)

    @property
    def stream(self) -> Stream:
        """The batches of that stage."""
        return self._streams[self.stages.index(self.stage)]

    def step(self) -> Made:
        """One update of the weights."""
        recipe, engine, progress = self.recipe, self.engine, self.progress
        crops, position = self.stream.draw(progress.position)
        parts = self.stream.parts(crops, engine.rank, engine.world, recipe.batch.tokens_per_part)
        # A constant of the right size keeps gradients near one; the exact count comes after all of them are in.
        expected = self.objective.share * self.stream.tokens
        names = self.objective.parts
        sums = torch.zeros(1 + len(names), dtype=torch.float64, device=engine.device)
        counts = np.zeros(1 + len(names))
        for number, part in enumerate(parts):
            example = self.objective.prepare(part.batch, part.keys_B).to(engine.device)
            with engine.accumulating(self.wrapped, last=number == len(parts) - 1):
                with self._autocast():
                    loss: Loss = self.wrapped(example)
                (loss.sum * (engine.gradient_scale / expected)).backward()
            pieces = [(loss.sum.detach(), loss.count), *(loss.parts[name] for name in names)]
            sums = sums + torch.stack([piece.double() for piece, _ in pieces])
            counts += [count for _, count in pieces]
        # Processes hear of a signal at different moments; all stop after the step in which one of them did.
        *totals, asked = engine.total((*sums.tolist(), *counts.tolist(), self._stop.asked))
        self._stop.agreed = asked > 0
        targets = max(totals[1 + len(names)], 1)
        norm = self._update(expected / targets)
        progress.step, progress.position = progress.step + 1, position
        progress.tokens += sum(crop.tokens for crop in crops)
        means = [total / max(count, 1) for total, count in zip(totals, totals[1 + len(names) :], strict=False)]
        return Made(means[0], norm, dict(zip(names, means[1:], strict=True)))

    def _autocast(self) -> torch.autocast:
        bf16 = self.recipe.run.precision == "bf16"
        # A weight is cast once in a pass; to keep all casts until its end would undo what fsdp saves.
        return torch.autocast(self.engine.device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False)

    def _update(self, scale: float) -> float:
        """Scale, clip and apply the gradients; a gradient that is not finite is dropped."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, scale)
        norm = self.engine.clip(self.model.parameters(), self.recipe.optimiser.clip or float("inf"))
        rate = rate_at(self.recipe.schedule, self.stage, self.progress.step)
        if norm < float("inf"):
            self.progress.bad_steps = 0
            for optimiser in self.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = rate
                optimiser.step()
            if self.average is not None:
                self.average.update(first=self.progress.step == 0)
        else:
            self._bad_step()
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        return norm

    def _bad_step(self) -> None:
        self.progress.bad_steps += 1
        self.say(f"step {self.progress.step + 1}: the gradient is not finite; its update was left out")
        if self.progress.bad_steps >= MOST_BAD_STEPS:
            raise InputError(
                f"{MOST_BAD_STEPS} steps in a row, up to {self.progress.step + 1}, had no finite gradient; the last "
                f"checkpoint in {str(self.folder)!r} is from before them: lower optimiser.learning_rate in a new run, "
                "or set run.precision = fp32"
            )

    def _log(self, made: Made, speed: float) -> None:
        if self.tables is None:
            return
        rate = self.optimisers[0].param_groups[0]["lr"]
        values = (self.progress.step, self.progress.tokens, made.loss, *made.parts.values(), rate, made.norm, speed)
        self.tables[0].add(dict(zip(training_columns(self.objective.parts), values, strict=True)))

    @contextlib.contextmanager
    def kept(self) -> Iterator[ProteinModel]:
        """The model with the weights that count: their average where the recipe asks for one."""
        with self.average.applied() if self.average is not None else contextlib.nullcontext():
            yield self.model

    def validate(self) -> Interval | None:
        """The first of the objective's scores over the held-out proteins, with fixed masks; None where there are none.

        For masked language modelling it is the ECE over hidden residues.
        """
        if not self.held_out:
            return None
        first, *others = self._scores().values()
        shown = bootstrap_interval(*first, np.random.default_rng(0), Bootstrap(exponential=True))
        rest = [float(np.exp(sums.sum() / counts.sum())) for sums, counts in others]
        progress = self.progress
        values = (progress.step, progress.tokens, shown.value, shown.low, shown.high, *rest, len(self.held_out))
        if self.tables is not None:
            self.tables[1].add(dict(zip(validation_columns(self.objective.scores), values, strict=True)))
        name = "ECE" if self.objective.scores[0] == "ece" else self.objective.scores[0]
        self.say(f"step {progress.step}: {name} {shown.value:.3f} [{shown.low:.3f}, {shown.high:.3f}]")
        return shown

    def _scores(self) -> dict[str, Totals]:
        """Sums and counts of each score for each held-out protein; processes share the batches out."""
        shape, engine = (len(self.objective.scores), 2, len(self.held_out)), self.engine
        totals = np.zeros(shape)
        batches = length_batches(self.held_out, VALIDATION_TOKENS)
        with self.kept() as model, self._autocast(), torch.no_grad():
            model.eval()
            for start in range(0, len(batches), engine.world):
                # All processes run the model equally often, as sharded ones must; a spare run counts for nothing.
                number = start + engine.rank
                rows = batches[number % len(batches)]
                example = fixed_example(self.objective, [self.held_out[row] for row in rows], seed=0)
                scores = self.wrapped(example.to(engine.device), score=True)
                for name, (sums, counts) in zip(self.objective.scores, totals, strict=True):
                    if number < len(batches):
                        add_up(scores[name], rows, (sums, counts))
            model.train()
        # A protein's sum comes from one process, and the others add zeros to it.
        summed = np.array(engine.total(totals.reshape(-1).tolist())).reshape(shape)
        return {name: (sums, counts) for name, (sums, counts) in zip(self.objective.scores, summed, strict=True)}

    def _state(self) -> State:
        return State(self.model, self.optimisers, None if self.average is None else self.average.tensors)

    def save(self) -> None:
        """Write the checkpoint."""
        rest: dict[str, Any] = {
            "recipe": self.recipe.as_dict(),
            "corpus": self.store.manifest.content_sha256,
            "progress": vars(self.progress),
            "random": torch.get_rng_state(),
        }
        self.engine.save(self.folder / CHECKPOINT, self._state(), rest)

    def _resume(self) -> None:
        rest = self.engine.load(self.folder / CHECKPOINT, self._state(), self._accept)
        self.progress = Progress(**rest["progress"])
        self._random = rest["random"]
        self.say(f"going on from step {self.progress.step}")

    def _accept(self, rest: dict[str, Any]) -> None:
        """Refuse the checkpoint of another run."""
        before = recipe_of(rest["recipe"], str(self.folder / CHECKPOINT))
        done = rest["progress"]["step"]
        if (difference := before.same_run(self.recipe, done)) is not None:
            raise InputError(f"{str(self.folder)!r} holds another run: {difference}; choose another folder")
        if done > self.recipe.run.steps:
            raise InputError(f"{str(self.folder)!r} is at step {done}, beyond run.steps = {self.recipe.run.steps}")
        if rest["corpus"] != self.store.manifest.content_sha256:
            raise InputError(
                f"{str(self.folder)!r} was trained on another corpus than {self.recipe.data.store!r}; "
                "choose another folder"
            )

    def finish(self) -> None:
        """Write the model in the package's own layout."""
        with self.kept() as model:
            weights = self.engine.weights(model)
            if not self.engine.rank:
                whole = on_meta(*self.recipe.architecture())
                whole.load_state_dict(weights, assign=True)
                checkpoints.save(whole.eval(), self.folder / MODEL, name=self.folder.name)


def first_model(recipe: Recipe, with_weights: bool = True) -> ProteinModel:
    """The model before the first step: random weights of the recipe's seed, or those of the checkpoint that it names.

    Args:
        recipe: the run. with_weights: whether to read that checkpoint.

    Raises:
        InputError: the checkpoint holds another model, or one that the recipe's cannot grow from.
    """
    architecture, config = recipe.architecture()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.run.seed)
        model: ProteinModel = ARCHITECTURES[architecture].model(config)
    if recipe.beginning is None or not with_weights:
        return model
    how, name = recipe.beginning
    source = checkpoints.load(name).model
    if how == "grown_from":
        grow(model, source)
    else:
        _take(model, source.state_dict(), name)
    return model


def _take(model: ProteinModel, weights: dict[str, Tensor], where: str) -> None:
    """Load the weights of a model of the same shape.

    Raises:
        InputError: they are those of another one.
    """
    ours, theirs = ({name: tuple(one.shape) for name, one in of.items()} for of in (model.state_dict(), weights))
    if different := sorted(set(ours.items()) ^ set(theirs.items())):
        name, shape = different[0]
        raise InputError(
            f"model.weights = {where!r} holds another model than the recipe's: {len(different)} tensors are in one of "
            f"them only, such as {name} of shape {shape}; state the model that it holds"
        )
    model.load_state_dict(weights)


def pretrain(
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None] = print,
    watch: Watch | None = None,
) -> bool:
    """Train a model as the recipe says; run again, go on where the last run stopped.

    Args:
        recipe: the run. folder: where it lives. device: where to compute. say: takes lines for the user, from rank 0.
        watch: is told of every step, on rank 0.

    Returns:
        whether the last step was made; False where a signal ended the run before, after a checkpoint.

    Raises:
        InputError: the recipe does not fit the corpus, the machine or the folder; or the run cannot go on.
    """
    engine = engine_of(recipe, device)
    try:
        with contextlib.nullcontext() if engine.rank else claimed(folder):
            trainer = Trainer(recipe, folder, engine, say, watch)
            trainer.run()
            return trainer.progress.step == recipe.run.steps
    finally:
        engine.close()


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Inside, no other run may use the folder; a killed one lets go of it, and what it left half-written is removed.

    Raises:
        InputError: another run uses it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock").acquire(timeout=0)
        for half_written in folder.rglob(".*.tmp"):
            shutil.rmtree(half_written) if half_written.is_dir() else half_written.unlink()
    except Timeout as error:
        raise InputError(f"another run is under way in {str(folder)!r}; wait for it, or choose another") from error
    except OSError as error:
        raise InputError(f"cannot write in {str(folder)!r}: {error.strerror}; choose another folder") from error
    with lock:
        yield


def _say_nothing(line: str) -> None:
    """What processes other than the first have to say."""


class _StopOnSignal:
    """Inside, SIGINT and SIGTERM set `asked` instead of ending the program; `agreed` says that all processes know."""

    def __init__(self) -> None:
        self.asked = self.agreed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def read_proteins(path: str, model: ProteinModel) -> list[str]:
    """The residue strings of a FASTA file of held-out proteins.

    Raises:
        InputError: one of them cannot be read, or is longer than the model takes: scores would not be comparable.
    """
    if not path:
        return []
    proteins = []
    for record in read_fasta(path, model.alphabet):
        if isinstance(record, Refused):
            raise InputError(f"validation {path!r}: {record.id} cannot be used: {record.reason}")
        if model.max_residues is not None and len(record.residues) > model.max_residues:
            raise InputError(
                f"validation {path!r}: {record.id} has {len(record.residues)} residues, and the model takes "
                f"{model.max_residues}; leave it out"
            )
        proteins.append(record.residues)
    return proteins
