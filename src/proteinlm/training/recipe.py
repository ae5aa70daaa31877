"""A recipe: one TOML file that states a pretraining run, and what may be changed from the command line.

In: the file, and `section.key=value` settings. Out: a `Recipe`, every key of which is known and of its type.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proteinlm.checkpoints.contents import meta_model
from proteinlm.config import from_dict, nearest, to_dict
from proteinlm.corpora.sampling import MODES
from proteinlm.errors import InputError
from proteinlm.models import ARCHITECTURES, PRESETS, ModelConfig
from proteinlm.objectives import OBJECTIVES, Objective, ObjectiveConfig
from proteinlm.objectives.masked import Masking
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.training.phases import Phase, Stage, stages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Data:
    """What is trained on.

    Args:
        store: folder that `plm corpus build` wrote.
        validation: FASTA file of held-out proteins, or empty for none.
        sampling: all, representatives or clusters (UR100, UR50/S, UR50/D).
        fraction: part of the corpus that is used.
        crop: longest stretch of a protein, in residues.
    """

    store: str
    validation: str = ""
    sampling: str = "clusters"
    fraction: float = 1.0
    crop: int = 1022


@dataclass(frozen=True)
class Batch:
    """How much at a time.

    Args:
        tokens: of one step, all processes together, BOS and EOS included.
        tokens_per_part: most tokens in one forward and backward pass; more are accumulated.
    """

    tokens: int = 131072
    tokens_per_part: int = 16384


@dataclass(frozen=True)
class Optimiser:
    """How weights are updated.

    Args:
        name: adamw, lamb, adafactor, or muon (orthogonalised updates for matrices inside the layers, adamw for the
            rest). Adam is adamw with a weight_decay of 0.
        learning_rate: its peak.
        beta1, beta2, epsilon: of AdamW and LAMB. momentum: of Muon.
        weight_decay: decoupled; matrices only.
        clip: largest norm of the gradient; 0 for no limit.
        averaging: decay of the exponential average of the weights that is validated and kept; 0 for none.
    """

    name: str = "adamw"
    learning_rate: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.01
    clip: float = 1.0
    averaging: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves.

    Args:
        shape: constant, inverse-square-root, linear, cosine, or warmup-stable-decay.
        warmup: steps from 0 to the peak.
        decay: last steps over which warmup-stable-decay falls to 0; unused by the other shapes.
    """

    shape: str = "linear"
    warmup: int = 1000
    decay: int = 0


@dataclass(frozen=True)
class Run:
    """How long, where, and what is written how often.

    Args:
        steps: updates of the weights.
        seed: of the initial weights, the order, the crops and the masks.
        precision: fp32, or bf16 (matrix products in bf16; weights, sums and updates in fp32).
        engine: single, ddp or fsdp; the last two under torchrun.
        gradient_checkpointing: keep only what enters each layer, and compute the rest again in the backward pass.
        log_every, validate_every, checkpoint_every: in steps.
        tensorboard: write TensorBoard events besides the tables.
    """

    steps: int
    seed: int = 0
    precision: str = "bf16"
    engine: str = "single"
    gradient_checkpointing: bool = False
    log_every: int = 10
    validate_every: int = 500
    checkpoint_every: int = 500
    tensorboard: bool = False


BEGINNINGS = ("weights", "grown_from")
"""Keys of `model` that name a checkpoint to begin with, of the same shape or of a smaller one (`growth`)."""


@dataclass(frozen=True)
class Recipe:
    """A whole run. `model` is either `{preset = NAME}`, or `architecture` with the fields of its configuration; in it
    `weights` names a checkpoint to begin with, or `grown_from` a smaller one.

    `objective` is the configuration of one in `OBJECTIVES`; the file's section holds its name and its fields.

    >>> recipe = Recipe({"preset": "esm2-8m"}, Data("store"), Run(steps=10))
    >>> recipe.architecture()[0]
    'esm2'
    """

    model: dict[str, Any]
    data: Data
    run: Run
    batch: Batch = field(default_factory=Batch)
    objective: ObjectiveConfig = field(default_factory=Masking)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    phases: tuple[Phase, ...] = ()

    def architecture(self) -> tuple[str, ModelConfig]:
        """The architecture's name and its configuration.

        Raises:
            InputError: the architecture, the preset or a key is unknown.
        """
        fields = {key: value for key, value in self.model.items() if key not in BEGINNINGS}
        if "preset" in fields:
            from proteinlm.checkpoints.catalogue import require_preset

            _, preset = require_preset(str(fields.pop("preset")))
            merged = {**to_dict(preset.config), **fields}
            return preset.architecture, from_dict(type(preset.config), merged, "recipe, [model]")
        name = fields.pop("architecture", None)
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise InputError(
                f"recipe, [model]: architecture {name!r} is unknown{nearest(str(name), ARCHITECTURES)}; "
                f"choose one of {known}, or give preset = one of {', '.join(list(PRESETS)[:3])} ..."
            )
        kind = ARCHITECTURES[name].config
        return name, from_dict(kind, fields, "recipe, [model]")

    @property
    def beginning(self) -> tuple[str, str] | None:
        """How the run begins with a checkpoint, one of `BEGINNINGS`, and its name or path; None for random weights."""
        return next(((how, str(self.model[how])) for how in BEGINNINGS if self.model.get(how)), None)

    @property
    def objective_name(self) -> str:
        """The objective's name in `OBJECTIVES`."""
        return next(name for name, kind in OBJECTIVES.items() if kind.config is type(self.objective))

    def objective_of(self, alphabet: Alphabet) -> Objective[Any]:
        """The objective, for a model with this alphabet."""
        return OBJECTIVES[self.objective_name].objective(alphabet, self.objective)

    def as_dict(self) -> dict[str, Any]:
        """Nested dictionaries, as in the file."""
        values = dataclasses.asdict(self)
        objective = {"name": self.objective_name, **values.pop("objective")}
        return {"phase": list(values.pop("phases")), **values, "objective": objective}

    def stages(self) -> tuple[Stage, ...]:
        """What the run does when."""
        first = Stage(
            start=0,
            end=self.run.steps,
            crop=self.data.crop,
            tokens=self.batch.tokens,
            learning_rate=self.optimiser.learning_rate,
            warmup=self.schedule.warmup,
            schedule_start=0,
            schedule_end=self.run.steps,
        )
        return stages(first, self.phases)

    def same_run(self, other: "Recipe", done: int) -> str | None:
        """What stands against going on with `other` after `done` steps of `self`: what differs first and must not.

        Steps, the decay at the end, and what is written how often may change; so may the engine, the parts, and the
        phases that are still to come.
        """
        ours, theirs = self.as_dict(), other.as_dict()
        before, now = ([phase for phase in one.pop("phase") if phase["after"] < done] for one in (ours, theirs))
        if before != now:
            return f"the phases of its first {done} steps were {before} and are now {now}"
        for section, keys in ours.items():
            for key in sorted(set(keys) | set(theirs[section])):
                name = f"{section}.{key}"
                if name not in MAY_CHANGE and keys.get(key) != theirs[section].get(key):
                    return f"{name} was {keys.get(key)!r} and is now {theirs[section].get(key)!r}"
        return None


MAY_CHANGE = {
    "run.steps",
    "run.engine",
    "run.gradient_checkpointing",
    "run.log_every",
    "run.validate_every",
    "run.checkpoint_every",
    "run.tensorboard",
    "schedule.decay",
    "batch.tokens_per_part",
    "data.store",
    "data.validation",
}
"""What a resumed run may state otherwise; the store's content is compared by its digest."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "data.sampling": MODES,
    "optimiser.name": ("adamw", "muon", "lamb", "adafactor"),
    "schedule.shape": ("constant", "inverse-square-root", "linear", "cosine", "warmup-stable-decay"),
    "run.precision": ("fp32", "bf16"),
    "run.engine": ("single", "ddp", "fsdp"),
}

_RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "a number above 0": (
        lambda value: 0 < value < math.inf,
        ("data.crop", "batch.tokens", "batch.tokens_per_part", "optimiser.learning_rate", "optimiser.epsilon",
         "run.steps", "run.log_every", "run.validate_every", "run.checkpoint_every"),
    ),
    "0 or a number above it": (
        lambda value: 0 <= value < math.inf,
        ("optimiser.weight_decay", "optimiser.clip", "schedule.warmup", "schedule.decay"),
    ),
    "0 or a number between 0 and 1": (
        lambda value: 0 <= value < 1,
        ("optimiser.beta1", "optimiser.beta2", "optimiser.momentum", "optimiser.averaging"),
    ),
}  # fmt: skip
"""What numbers must be, in words and as a test; for the rest, what they go into says it."""


def read_recipe(path: str | Path, settings: tuple[str, ...] = ()) -> Recipe:
    """The recipe of a file, with settings from the command line put over it.

    Args:
        path: a TOML file.
        settings: `section.key=value`; values are written as in TOML, words may go without quotes.

    Raises:
        InputError: the file cannot be read, or a key or a value is not one that a recipe has.
    """
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"recipe {str(path)!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {str(path)!r} is not TOML: {error}") from error
    for setting in settings:
        _put(values, setting)
    return recipe_of(values, f"recipe {str(path)!r}")


def _put(values: dict[str, Any], setting: str) -> None:
    name, equals, text = setting.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot):
        raise InputError(f"setting {setting!r} is not of the form section.key=value, such as run.steps=1000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    if not isinstance(content := values.setdefault(section, {}), dict):
        raise InputError(f"{section!r} stands outside every section of the recipe; put it below one before {setting!r}")
    content[key] = value


def recipe_of(values: dict[str, Any], where: str) -> Recipe:
    """A recipe from nested dictionaries; `where` names them in messages.

    Raises:
        InputError: an unknown section or key, a value of another type, or one out of its range.
    """
    values = dict(values)
    sections: dict[str, Any] = {"phases": _phases(values.pop("phase", []), where)}
    for name, content in values.items():
        if not isinstance(content, dict):
            raise InputError(f"{where}: {name!r} stands outside every section; put it below the one that it belongs to")
        if name not in _SECTIONS:
            raise InputError(
                f"{where}: section [{name}] is unknown{nearest(name, _SECTIONS) or '; known: ' + ', '.join(_SECTIONS)}"
            )
        sections[name] = _SECTIONS[name](content, f"{where}, [{name}]")
    for name in ("model", "data", "run"):
        if name not in sections:
            raise InputError(f"{where}: section [{name}] is missing")
    recipe = Recipe(**sections)
    _check(recipe, where)
    return recipe


def _objective(content: dict[str, Any], where: str) -> ObjectiveConfig:
    """The configuration of the objective that the section names."""
    fields = dict(content)
    name = fields.pop("name", "masked")
    if name not in OBJECTIVES:
        raise InputError(
            f"{where}: name {name!r} is unknown{nearest(str(name), OBJECTIVES)}; choose one of {', '.join(OBJECTIVES)}"
        )
    config: ObjectiveConfig = from_dict(OBJECTIVES[name].config, fields, where)
    return config


def _phases(entries: object, where: str) -> tuple[Phase, ...]:
    """The `[[phase]]` entries."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f"{where}: phases are written as [[phase]], each with the steps it comes after and what changes"
        )
    return tuple(from_dict(Phase, entry, f"{where}, [[phase]] {number + 1}") for number, entry in enumerate(entries))


def _section(kind: type) -> Callable[[dict[str, Any], str], Any]:
    return lambda content, where: from_dict(kind, content, where)


_SECTIONS: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "model": lambda content, where: content,
    "data": _section(Data),
    "run": _section(Run),
    "batch": _section(Batch),
    "objective": _objective,
    "optimiser": _section(Optimiser),
    "schedule": _section(Schedule),
}
"""What makes each section of a recipe from its dictionary."""


def _check(recipe: Recipe, where: str) -> None:
    """Raise `InputError` for a value out of its range."""
    values = recipe.as_dict()
    for name, choices in _CHOICES.items():
        section, key = name.split(".")
        if (value := values[section][key]) not in choices:
            raise InputError(
                f"{where}: {name} is {value!r}{nearest(value, choices)}; choose one of {', '.join(choices)}"
            )
    for words, (within, names) in _RANGES.items():
        for name in names:
            section, key = name.split(".")
            if not within(values[section][key]):
                raise InputError(f"{where}: {name} is {values[section][key]}; give {words}")
    if recipe.schedule.decay > recipe.run.steps:
        raise InputError(
            f"{where}: schedule.decay is {recipe.schedule.decay}, more than run.steps = {recipe.run.steps}; lower it"
        )
    _check_phases(recipe, where)
    if all(how in recipe.model for how in BEGINNINGS):
        raise InputError(f"{where}, [model]: weights and grown_from are both given; keep one of them")
    architecture, config = recipe.architecture()
    if recipe.objective_name not in (trained_by := ARCHITECTURES[architecture].objectives):
        raise InputError(
            f"{where}: objective {recipe.objective_name!r} does not train architecture {architecture!r}; "
            + (
                f"set objective.name to {' or '.join(trained_by)}"
                if trained_by
                else "it is part of another model, or has no head"
            )
        )
    model = meta_model(architecture, config, f"{where}, [model]")
    for name, crop in [("data.crop", recipe.data.crop), *(("crop of a phase", one.crop or 0) for one in recipe.phases)]:
        if model.max_residues is not None and crop > model.max_residues:
            raise InputError(
                f"{where}: {name} is {crop}, and the model has positions for {model.max_residues} residues; lower it"
            )


def _check_phases(recipe: Recipe, where: str) -> None:
    """Raise `InputError` for phases out of order, or with a number out of its range."""
    earliest = 1
    for number, phase in enumerate(recipe.phases):
        name = f"{where}, [[phase]] {number + 1}"
        if not earliest <= phase.after < recipe.run.steps:
            raise InputError(
                f"{name}: after is {phase.after}; give a number of steps from {earliest}, below run.steps = "
                f"{recipe.run.steps}"
            )
        earliest = phase.after + 1
        for key, value in to_dict(phase).items():
            least = 0 if key == "warmup" else 1e-300
            if value is not None and not least <= value < math.inf:
                raise InputError(f"{name}: {key} is {value}; give a number above 0" + (" or 0" if not least else ""))
