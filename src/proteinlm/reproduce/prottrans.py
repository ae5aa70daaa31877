"""ProtTrans' architectures at a scale of one's choice: trained on equal tokens, then told apart by what they learnt.

In: a store, held-out proteins, the labelled sets, a scale. Out: `prottrans.json` and `prottrans.md` in a folder: for
each model its loss on held-out proteins, linear Q3 and Q10 beside the paper's figures and beside its own untrained
network, parameters, speed and memory; and which of the paper's orderings hold, are reversed, or cannot be told. Each
model is trained in a process of its own; rows that are finished are not run again.

Source: papers.md 6 and 7.3. The paper's models are a hundred times larger, saw four orders of magnitude more tokens and
were judged by a convolutional network (Q3) and a small feed-forward network (Q10), so only orderings compare.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proteinlm import checkpoints
from proteinlm.config import to_dict
from proteinlm.corpora.sampling import Order
from proteinlm.corpora.store import Store
from proteinlm.datasets.sources import digest, locate
from proteinlm.errors import InputError
from proteinlm.inference import Runner, RunOptions
from proteinlm.metrics import Totals, bootstrap_interval
from proteinlm.models import on_meta
from proteinlm.models.base import ProteinModel
from proteinlm.models.electra import ElectraPair
from proteinlm.models.encodings import build_encoding
from proteinlm.objectives import OBJECTIVES, ObjectiveConfig
from proteinlm.objectives.autoregressive import NextToken
from proteinlm.objectives.denoising import Denoising
from proteinlm.objectives.masked import Masking
from proteinlm.objectives.permutation import Permuting
from proteinlm.objectives.perplexity import target_losses
from proteinlm.objectives.replaced import Replacing
from proteinlm.reproduce.common import (
    EXPONENTIAL,
    RATIO,
    as_lists,
    as_totals,
    compared,
    finished,
    folder_name,
    keep,
    train_apart,
    write_text,
)
from proteinlm.reproduce.probes import MEASURES, Labelled, Sizes, probe, read_labelled
from proteinlm.reproduce.prottrans_report import markdown
from proteinlm.training.loop import MODEL, claimed, first_model, read_proteins
from proteinlm.training.recipe import Batch, Data, Optimiser, Recipe, Run, Schedule, recipe_of
from proteinlm.training.records import read_table

LABELLED = ("netsurfp", "cb513", "deeploc")
SPEEDS, TIMED_STEPS = "speeds", 20
"""Of each model so many steps are timed, one model after the other, so that all meet the machine in the same state."""

COMPOSITION = "one-hot / composition"
"""The row without a model: a residue's identity for Q3, the mean of that over a protein for Q10."""


@dataclass(frozen=True)
class Training:
    """A model that is trained: `[model]` and `[objective]` of a recipe, and the residues of a crop."""

    model: dict[str, Any]
    objective: ObjectiveConfig
    crop: int = 254


_SHAPE = {"num_layers": 5, "width": 256, "num_heads": 4, "inner": 1024}
_POSITIONS = {"max_positions": 1024}
_GENERATOR = {"generator_layers": 4, "generator_width": 64, "generator_heads": 1, "generator_inner": 256}
_WIDE = {"num_layers": 6, "width": 512, "num_heads": 8, "inner": 2048, "embedding_width": 128}
_MEMORY = {"segment": 128, "memory": 128}

TRAININGS: dict[str, Training] = {
    "t5": Training(
        {"architecture": "t5", **_SHAPE, "num_layers": 2, "decoder_layers": 2, "head_width": 64}, Denoising(), crop=255
    ),
    "bert": Training({"architecture": "bert", **_SHAPE, **_POSITIONS}, Masking(different=True)),
    "albert": Training({"architecture": "albert", **_WIDE, **_POSITIONS}, Masking()),
    "electra": Training(
        {"architecture": "electra", **_SHAPE, "num_layers": 4, **_GENERATOR, **_POSITIONS}, Replacing()
    ),
    "xlnet": Training({"architecture": "xlnet", **_SHAPE, "text_segments": True, **_MEMORY}, Permuting()),
    "transformer-xl": Training({"architecture": "transformer-xl", **_SHAPE, "head_width": 64, **_MEMORY}, NextToken()),
    "esm2": Training({"architecture": "esm2", **_SHAPE, "max_residues": 1022}, Masking()),
    "lstm": Training({"architecture": "lstm", "num_layers": 3, "width": 288}, Masking()),
}
"""The small scale, some four million parameters each: what `recipes/small-*.toml` state (the LSTM has none there)."""


@dataclass(frozen=True)
class Scored:
    """A loss on held-out proteins: what it is of, in words; the objective that makes it; its name in the scores."""

    of: str
    objective: ObjectiveConfig
    score: str


MASKED = Scored("ECE: a residue behind a mask, 15 % of residues chosen", Masking(), "ece")
"""The same residues are hidden from every model, however it was trained: these rows compare with each other."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        name: ours. training: key of `TRAININGS`. loss: what is scored on held-out proteins.
        paper: the paper's model, and its Q3 on CB513 and Q10 in percent; empty where it has none.
        part: 0 or 1 of a pair that is trained together, None for the whole.
    """

    name: str
    training: str
    loss: Scored
    paper: tuple[str, float, float] | None = None
    part: int | None = None


ROWS = (
    Row(
        "T5 encoder",
        "t5",
        Scored("perplexity: a corrupted residue, all residues before it known", Denoising(), "hidden_perplexity"),
        ("ProtT5-XL-U50", 86, 81),
    ),
    Row("BERT", "bert", MASKED, ("ProtBert", 81, 74)),
    Row("ALBERT", "albert", MASKED, ("ProtAlbert", 79, 74)),
    Row(
        "ELECTRA discriminator",
        "electra",
        Scored("perplexity: replaced or not, of two answers", Replacing(), "discriminator_perplexity"),
        ("ProtElectra-Disc", 79, 70),
        part=1,
    ),
    Row("ELECTRA generator", "electra", MASKED, ("ProtElectra-Gen", 76, 59), part=0),
    Row(
        "XLNet",
        "xlnet",
        Scored("perplexity: a residue in random order, 5 of 6 and earlier ones known", Permuting(), "perplexity"),
        ("ProtXLNet", 78, 68),
    ),
    Row(
        "Transformer-XL",
        "transformer-xl",
        Scored("perplexity: the next token", NextToken(), "perplexity"),
        ("ProtTXL", 74, 66),
    ),
    Row("ESM-2", "esm2", MASKED),
    Row("LSTM", "lstm", MASKED),
)


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Args:
        shrink: put over the fields of a model that has them. steps, tokens, crop: of training; every model sees the
            same tokens. validation: held-out proteins scored. sizes: of the labelled sets.
    """

    shrink: dict[str, int] = field(default_factory=dict)
    steps: int = 2000
    tokens: int = 16384
    crop: int = 255
    validation: int = 670
    sizes: Sizes = field(default_factory=lambda: Sizes(800, 511, 3000, 1678))


_SHRUNK = {
    "num_layers": 2, "decoder_layers": 2, "width": 32, "num_heads": 2, "head_width": 16, "inner": 64,
    "embedding_width": 16, "generator_layers": 2, "generator_width": 16, "generator_heads": 1, "generator_inner": 32,
    "segment": 64, "memory": 32,
}  # fmt: skip

SCALES = {
    "tiny": Scale(_SHRUNK, steps=100, tokens=2048, crop=64, validation=60, sizes=Sizes(60, 40, 600, 300, longest=400)),
    "short": Scale(steps=500),
    "small": Scale(),
}


@dataclass(frozen=True)
class Job:
    """One reproduction.

    Args:
        store: folder of a corpus store. validation: FASTA of held-out proteins. data: folder of the labelled sets;
            None for what PROTEINLM_DATA names. scale: a name in `SCALES`. folder: for the results. seed: of every
            random choice.
    """

    store: str
    validation: str
    data: Path | None
    scale: str
    folder: Path
    seed: int = 0


@dataclass(frozen=True)
class Inputs:
    """What a job reads, checked: held-out proteins, labelled sets, and what of the job its results depend on."""

    proteins: list[str]
    labelled: Labelled
    stated: dict[str, Any]


def recipe_of_training(name: str, job: Job) -> Recipe:
    """The run behind a row: the same corpus, tokens, batches and schedule for all of them."""
    training, scale = TRAININGS[name], SCALES[job.scale]
    steps = scale.steps
    model = {key: min(value, scale.shrink.get(key, value)) if type(value) is int else value
             for key, value in training.model.items()}  # fmt: skip
    recipe = Recipe(
        model=model,
        data=Data(job.store, "", "all", 1.0, min(training.crop, scale.crop)),
        run=Run(steps=steps, seed=job.seed, log_every=max(1, steps // 100), checkpoint_every=max(1, steps // 8)),
        batch=Batch(scale.tokens, min(scale.tokens, 8192)),
        objective=training.objective,
        optimiser=Optimiser(learning_rate=1e-3),
        schedule=Schedule("cosine", warmup=max(1, steps // 20)),
    )
    values = recipe.as_dict()
    return recipe_of({**values, "phase": []}, f"row {name}")


def check(job: Job) -> Inputs:
    """Read everything that a job needs.

    Raises:
        InputError: something is wrong with the scale, the store, the proteins or the labelled sets, or the folder holds
            results of another job.
    """
    if job.scale not in SCALES:
        raise InputError(f"scale {job.scale!r} is unknown; choose one of {', '.join(SCALES)}")
    scale, store = SCALES[job.scale], Store.open(job.store)
    Order(store, "all")
    proteins = []
    for name in TRAININGS:
        proteins = read_proteins(job.validation, on_meta(*recipe_of_training(name, job).architecture()))
    if not proteins:
        raise InputError(f"validation {job.validation!r} holds no protein; give one or more that are held out")
    labelled = read_labelled(job.data, scale.sizes, job.seed)
    stated = {
        "scale": job.scale,
        "seed": job.seed,
        "sizes": json.loads(json.dumps(asdict(scale))),
        "corpus": store.manifest.content_sha256,
        "validation": digest(Path(job.validation)),
        **{key: digest(locate(job.data, key)) for key in LABELLED},
    }
    for row in (*(row.name for row in ROWS), COMPOSITION, SPEEDS):
        finished(_path(job, row), stated)
    chosen = np.sort(np.random.default_rng(job.seed).permutation(len(proteins))[: scale.validation])
    return Inputs([proteins[number] for number in chosen], labelled, stated)


def _path(job: Job, row: str) -> Path:
    return job.folder / "rows" / f"{folder_name(row)}.json"


def reproduce(job: Job, device: torch.device, say: Callable[[str], None] = print) -> Path:
    """Run what is not finished yet, and write the table.

    Returns:
        the Markdown file.

    Raises:
        InputError: as `check`, before anything is run; or as training.
    """
    inputs = check(job)
    found: dict[str, dict[str, Any]] = {}
    with claimed(job.folder):
        for row in ROWS:
            say(f"{row.name} ...")
            found[row.name] = finished(_path(job, row.name), inputs.stated) or _run(row, job, inputs, device)
            shown = "  ".join(f"{name} {100 * _share(found[row.name][name]):.1f}" for name in MEASURES)
            say(f"{row.name}: {shown}")
        found[COMPOSITION] = finished(_path(job, COMPOSITION), inputs.stated) or _encoded(job, inputs, device)
        speeds = finished(_path(job, SPEEDS), inputs.stated) or _timed(job, inputs, device)
        results = _results(inputs, found, speeds)
        write_text(job.folder / "prottrans.json", json.dumps(results, indent=1))
        write_text(job.folder / "prottrans.md", markdown(results))
    return job.folder / "prottrans.md"


def _share(saved: dict[str, list[float]]) -> float:
    sums, counts = as_totals(saved)
    return float(sums.sum() / counts.sum())


def _run(row: Row, job: Job, inputs: Inputs, device: torch.device) -> dict[str, Any]:
    """Train a row's model if no other row has, and score it."""
    recipe, folder = recipe_of_training(row.training, job), job.folder / "runs" / row.training
    train_apart(recipe, folder, str(device))  # at once, where another row has trained it
    model = checkpoints.load(folder / MODEL).model
    # The discriminator is scored on what the generator puts in, so that losses are those of the pair.
    objective = OBJECTIVES[_objective_name(row.loss.objective)].objective(model.alphabet, row.loss.objective)
    losses = target_losses(model.to(device), objective, inputs.proteins, job.seed)[row.loss.score]
    trained, untrained = _part(model, row), _part(first_model(recipe), row)
    content = {
        "parameters": sum(parameter.numel() for parameter in trained.parameters()),
        "shape": to_dict(trained.config),
        "tokens": int(read_table(folder / "training.csv")[-1]["tokens"]),
        "loss": as_lists(losses),
        **_probed(trained, job, inputs, device),
        "untrained": _probed(untrained, job, inputs, device),
    }
    keep(_path(job, row.name), inputs.stated, content)
    return content


def _timed(job: Job, inputs: Inputs, device: torch.device) -> dict[str, Any]:
    """Tokens per second and memory of every training, over its first steps."""
    found: dict[str, Any] = {}
    for name in TRAININGS:
        values = recipe_of_training(name, job).as_dict()
        steps = min(TIMED_STEPS, values["run"]["steps"])
        values["run"] |= {"steps": steps, "log_every": 1, "checkpoint_every": steps}
        values["schedule"]["warmup"] = 0  # that of the whole run may be longer
        folder = job.folder / SPEEDS / name
        train_apart(recipe_of(values, f"speed of {name}"), folder, str(device))
        speeds = [float(line["tokens_per_second"]) for line in read_table(folder / "training.csv")]
        memory = json.loads((folder / "memory.json").read_text("utf-8"))
        # The first steps include what is set up once.
        found[name] = {"tokens_per_second": float(np.median(speeds[steps // 4 :])), "memory": memory}
    keep(_path(job, SPEEDS), inputs.stated, found)
    return found


def _objective_name(config: ObjectiveConfig) -> str:
    return next(name for name, kind in OBJECTIVES.items() if kind.config is type(config))


def _part(model: ProteinModel, row: Row) -> ProteinModel:
    if row.part is None:
        return model
    assert isinstance(model, ElectraPair), "only a pair has parts"
    return model.split()[row.part]


def _probed(model: ProteinModel, job: Job, inputs: Inputs, device: torch.device) -> dict[str, Any]:
    """Q3 and Q10 of the last layer; the model can be used no more."""
    runner = Runner(model.eval(), RunOptions(precision="fp32", device=str(device)))
    return {name: as_lists(totals) for name, totals in probe(runner, inputs.labelled, job.seed).items()}


def _encoded(job: Job, inputs: Inputs, device: torch.device) -> dict[str, Any]:
    content = _probed(build_encoding("one-hot")[0], job, inputs, device)
    keep(_path(job, COMPOSITION), inputs.stated, content)
    return content


def _results(inputs: Inputs, found: dict[str, dict[str, Any]], speeds: dict[str, Any]) -> dict[str, Any]:
    """Everything that the table shows; shares in percent."""
    rows = []
    for row in ROWS:
        one = found[row.name]
        kept = {**{name: one[name] for name in ("parameters", "shape", "tokens")}, **speeds[row.training]}
        loss = bootstrap_interval(*as_totals(one["loss"]), np.random.default_rng(0), EXPONENTIAL)
        scores = {name: _percent(one[name]) for name in MEASURES}
        untrained = {name: _percent(one["untrained"][name]) for name in MEASURES}
        paper = dict(zip(("model", *MEASURES), row.paper, strict=True)) if row.paper else None
        loss_of = {"of": row.loss.of, **asdict(loss)}
        rows.append({"row": row.name, **kept, "loss": loss_of, **scores, "untrained": untrained, "paper": paper})
    baseline = {"row": COMPOSITION, **{name: _percent(found[COMPOSITION][name]) for name in MEASURES}}
    return {
        "job": inputs.stated,
        "labelled": inputs.labelled.counts(),
        "rows": rows,
        "baseline": baseline,
        "orderings": _orderings(found),
        "learnt": _learnt(found),
    }


def _percent(saved: dict[str, list[float]]) -> dict[str, Any]:
    interval = bootstrap_interval(*_in_percent(saved), np.random.default_rng(0), RATIO)
    return asdict(interval)


def _in_percent(saved: dict[str, list[float]]) -> Totals:
    sums, counts = as_totals(saved)
    return 100 * sums, counts


def _orderings(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pair of models that the paper has apart, the better one first, by either measure."""
    published = [row for row in ROWS if row.paper is not None]
    orderings = []
    for place, measure in enumerate(MEASURES, 1):
        ranked = sorted(published, key=lambda row: -float((row.paper or ("", 0, 0))[place]))
        for better, worse in combinations(ranked, 2):
            assert better.paper is not None and worse.paper is not None
            if better.paper[place] == worse.paper[place]:
                continue
            paper = float(better.paper[place]) - float(worse.paper[place])
            first, second = found[better.name], found[worse.name]
            gap, untrained = (
                compared(_in_percent(one[measure]), _in_percent(other[measure]), RATIO, higher=True)
                for one, other in ((first, second), (first["untrained"], second["untrained"]))
            )
            names = {"measure": measure, "better": better.name, "worse": worse.name}
            orderings.append({**names, "paper": paper, **gap, "untrained": untrained})
    return orderings


def _learnt(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every trained model against its untrained network and against the encoding."""
    lines = []
    for row in ROWS:
        for measure in MEASURES:
            ours = _in_percent(found[row.name][measure])
            for other, saved in (("untrained", found[row.name]["untrained"]), (COMPOSITION, found[COMPOSITION])):
                gap = compared(ours, _in_percent(saved[measure]), RATIO, higher=True)
                lines.append({"measure": measure, "better": row.name, "worse": other, **gap})
    return lines
