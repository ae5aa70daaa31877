"""Table 1 of Rives et al. at a scale of one's choice: n-gram, LSTM and Transformer language models compared by ECE.

In: a store with clusters, held-out proteins, a scale. Out: `table1.json` and `table1.md` in a folder: ours, the paper's
and the difference for each row, and for each ordering of the paper whether it holds, is reversed, or cannot be told
apart. Every neural model sees the same number of tokens. Rows that are finished are not run again.

Source: papers.md 2.6. The paper's rows on data use 34 layers; at the small scales 12 layers stand for them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proteinlm import checkpoints
from proteinlm.checkpoints.ngram import save_ngram
from proteinlm.corpora.sampling import Order
from proteinlm.corpora.split import SplitOptions, is_held_out
from proteinlm.corpora.store import Store
from proteinlm.errors import InputError
from proteinlm.metrics import Interval, Totals, bootstrap_interval
from proteinlm.models import on_meta
from proteinlm.models.esm import Esm1bConfig
from proteinlm.models.ngram import NGram, search_grid
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.objectives.perplexity import hidden_positions, protein_losses
from proteinlm.reproduce.common import (
    EXPONENTIAL,
    as_lists,
    as_totals,
    compared,
    finished,
    folder_name,
    keep,
    write_text,
)
from proteinlm.sequences.alphabet import ESM1B
from proteinlm.training.loop import MODEL, claimed, pretrain, read_proteins
from proteinlm.training.recipe import Batch, Data, Optimiser, Recipe, Run, Schedule


@dataclass(frozen=True)
class Scale:
    """How large the models are and how much they see.

    Args:
        width, heads: of the 6-layer and 12-layer Transformers. deep: preset or shape that stands for 34 layers.
        lstm_small, lstm_large: channels of one direction; parameters relate to those of the 6-layer Transformer about
            as in the paper.
        tokens: that every neural model sees. batch: tokens of a step. crop: residues.
        learning_rate: of AdamW, peak. contexts: of the n-gram's grid.
    """

    width: int
    heads: int
    deep: dict[str, Any]
    lstm_small: int
    lstm_large: int
    tokens: int
    batch: int
    crop: int
    learning_rate: float
    contexts: tuple[int, ...]


def _esm1(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {"architecture": "esm1", "num_layers": layers, "width": width, "num_heads": heads, "inner": 4 * width}


SCALES = {
    "tiny": Scale(32, 2, _esm1(12, 32, 2), 32, 64, 400_000, 2048, 128, 3e-3, (1, 2, 3)),
    "small": Scale(128, 4, _esm1(12, 128, 4), 128, 256, 8_000_000, 16384, 256, 1e-3, (1, 2, 3, 4, 5)),
    "full": Scale(
        768, 12, {"preset": "esm1_t34_670M_UR50S"}, 768, 1536, 65_536_000_000, 131072, 1022, 1e-4, tuple(range(1, 9))
    ),
}
ALPHAS = (0.001, 0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Row:
    """A line of the table: the paper's name and ECE, our model (None for the n-gram), and its data."""

    name: str
    paper: float
    model: Callable[[Scale], dict[str, Any]] | None
    sampling: str = "representatives"
    fraction: float = 1.0


def _lstm(width: int) -> dict[str, Any]:
    return {"architecture": "lstm", "num_layers": 3, "width": width}


NGRAM, DEEP = "n-gram", "Transformer-34 UR50/S"
ROWS = (
    Row(NGRAM, 17.18, None),
    Row("LSTM S", 14.42, lambda scale: _lstm(scale.lstm_small)),
    Row("LSTM L", 13.54, lambda scale: _lstm(scale.lstm_large)),
    Row("Transformer-6", 11.79, lambda scale: _esm1(6, scale.width, scale.heads)),
    Row("Transformer-12", 10.45, lambda scale: _esm1(12, scale.width, scale.heads)),
    Row("Transformer-34 UR100", 10.32, lambda scale: scale.deep, "all"),
    Row(DEEP, 8.54, lambda scale: scale.deep),
    Row("Transformer-34 UR50/D", 8.46, lambda scale: scale.deep, "clusters"),
    Row("Transformer-34 10 %", 10.99, lambda scale: scale.deep, fraction=0.1),
    Row("Transformer-34 1 %", 15.01, lambda scale: scale.deep, fraction=0.01),
    Row("Transformer-34 0.1 %", 17.50, lambda scale: scale.deep, fraction=0.001),
)

ORDERINGS = (
    ("LSTM S", NGRAM),
    ("LSTM L", "LSTM S"),
    ("Transformer-6", "LSTM L"),
    ("Transformer-12", "Transformer-6"),
    (DEEP, "Transformer-34 UR100"),
    ("Transformer-34 UR50/D", DEEP),
    (DEEP, "Transformer-34 10 %"),
    ("Transformer-34 10 %", "Transformer-34 1 %"),
    ("Transformer-34 1 %", "Transformer-34 0.1 %"),
)
"""(better, worse) in the paper."""


@dataclass(frozen=True)
class Job:
    """One reproduction.

    Args:
        store: folder of a corpus store with clusters. validation: FASTA of held-out proteins.
        scale: a name in `SCALES`. folder: for the results. seed: of every random choice.
    """

    store: str
    validation: str
    scale: str
    folder: Path
    seed: int = 0


def reproduce(job: Job, device: torch.device, say: Callable[[str], None] = print) -> Path:
    """Run what is not finished yet, and write the table.

    Returns:
        the Markdown file.

    Raises:
        InputError: the scale is unknown, the folder holds results of another job, or the store has no clusters.
    """
    if job.scale not in SCALES:
        raise InputError(f"scale {job.scale!r} is unknown; choose one of {', '.join(SCALES)}")
    store = Store.open(job.store)
    Order(store, "clusters")  # refuses a store without clusters before anything is run
    proteins = read_proteins(job.validation, on_meta("esm1b", Esm1bConfig()))
    losses: dict[str, Totals] = {}
    with claimed(job.folder):
        for row in ROWS:
            say(f"{row.name} ...")
            twin = _twin(row, job)
            losses[row.name] = losses[twin] if twin else _losses(row, job, proteins, device, say)
            say(f"{row.name}: ECE {_ece(losses[row.name])}" + (f", the same run as {twin}" if twin else ""))
        results = _results(job, store, losses)
        write_text(job.folder / "table1.json", json.dumps(results, indent=1))
        write_text(job.folder / "table1.md", markdown(results))
    return job.folder / "table1.md"


def _twin(row: Row, job: Job) -> str | None:
    """An earlier row that is the same run at this scale: where 12 layers stand for 34, two rows are."""
    if row.model is None:
        return None
    earlier = (one for one in ROWS[: ROWS.index(row)] if one.model is not None)
    return next((one.name for one in earlier if recipe_of_row(one, job) == recipe_of_row(row, job)), None)


def recipe_of_row(row: Row, job: Job) -> Recipe:
    """The run behind a neural row: the same tokens, batch and schedule for all of them."""
    scale = SCALES[job.scale]
    assert row.model is not None
    steps = -(-scale.tokens // scale.batch)
    return Recipe(
        model=row.model(scale),
        data=Data(job.store, "", row.sampling, row.fraction, scale.crop),
        run=Run(steps=steps, seed=job.seed, log_every=20, checkpoint_every=200),
        batch=Batch(scale.batch, min(scale.batch, 16384)),
        objective=Masking(),
        optimiser=Optimiser(learning_rate=scale.learning_rate),
        schedule=Schedule("linear", warmup=max(1, steps // 20)),
    )


def _losses(row: Row, job: Job, proteins: list[str], device: torch.device, say: Callable[[str], None]) -> Totals:
    """Per-protein losses of a row over the hidden residues: from its file, or by running it."""
    folder = job.folder / folder_name(row.name)
    path = folder / "losses.json"
    stated = {"row": row.name, **{name: str(value) for name, value in asdict(job).items() if name != "folder"}}
    if (saved := finished(path, stated)) is not None:
        return as_totals(saved)
    if row.model is None:
        losses = _ngram(job, proteins, folder, say)
    else:
        if not pretrain(recipe_of_row(row, job), folder, device, say):
            raise KeyboardInterrupt
        model = checkpoints.load(folder / MODEL).model.to(device)
        objective = MaskedLanguageModel(model.alphabet, Masking())
        losses = protein_losses(model, objective, proteins, job.seed).hidden
    keep(path, stated, as_lists(losses))
    return losses


def _ngram(job: Job, proteins: list[str], folder: Path, say: Callable[[str], None]) -> Totals:
    """The best n-gram of the grid, chosen on training clusters left out of the counts; it is kept in `folder`."""
    store = Store.open(job.store)
    left_out = SplitOptions(fraction=0.02, seed=job.seed)
    representatives = store.members[store.cluster_starts[:-1]]
    held = np.array([is_held_out(store.identifier(int(index)), left_out) for index in representatives])

    def letters(indices: np.ndarray) -> Iterator[np.ndarray]:
        return (store.letters(int(index)) for index in indices)

    contexts = [(left, 0) for left in SCALES[job.scale].contexts]
    trials = search_grid(
        lambda: letters(representatives[~held]), list(letters(representatives[held])), contexts, ALPHAS
    )
    best = min(trials, key=lambda trial: trial.cross_entropy).config
    say(f"n-gram: context {best.context}, alpha {best.alpha}, chosen on {held.sum()} training clusters left out")
    places = hidden_positions(MaskedLanguageModel(ESM1B, Masking()), proteins, job.seed)
    arrays = [np.frombuffer(residues.encode("ascii"), np.uint8) for residues in proteins]
    model = NGram.fit(letters(representatives), best)
    folder.mkdir(parents=True, exist_ok=True)
    save_ngram(model, folder / f"{folder.name}.safetensors")
    return model.cross_entropy(arrays, places)


def _ece(losses: Totals) -> Interval:
    return bootstrap_interval(*losses, np.random.default_rng(0), EXPONENTIAL)


def _results(job: Job, store: Store, losses: dict[str, Totals]) -> dict[str, Any]:
    """Everything that the table shows."""
    rows = [{"row": row.name, "paper": row.paper, **asdict(_ece(losses[row.name]))} for row in ROWS]
    orderings = []
    for better, worse in ORDERINGS:
        gap = compared(losses[better], losses[worse], EXPONENTIAL, higher=False)
        orderings.append({"better": better, "worse": worse, **gap})
    scale = asdict(SCALES[job.scale])
    stated = {name: value for name, value in asdict(job).items() if name not in ("folder", "store", "validation")}
    return {
        "job": stated,
        "corpus": store.manifest.content_sha256,
        "scale": scale,
        "rows": rows,
        "orderings": orderings,
    }


def markdown(results: dict[str, Any]) -> str:
    """The table, for people."""
    scale = results["scale"]
    lines = [
        f"# Table 1 at scale `{results['job']['scale']}`",
        "",
        f"ECE over hidden residues of {results['rows'][0]['groups']} held-out proteins, 95 % bootstrap intervals over "
        f"proteins. Every neural model saw {scale['tokens']:,} tokens. The paper's models are larger, saw far more "
        "of a far larger corpus, and were scored on UniRef50, so differences in level say little: the orderings are "
        "the point. Rows named Transformer-34 are "
        + ("the paper's model." if "preset" in scale["deep"] else f"{scale['deep']['num_layers']} layers deep here."),
        "",
        "| model | ours | paper | ours - paper |",
        "| --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        ours = Interval(row["value"], row["low"], row["high"], row["groups"])
        lines.append(f"| {row['row']} | {ours} | {row['paper']:.2f} | {row['value'] - row['paper']:+.2f} |")
    lines += ["", "| the paper's ordering | ECE difference | here |", "| --- | --- | --- |"]
    for one in results["orderings"]:
        gap = Interval(one["value"], one["low"], one["high"], one["groups"])
        lines.append(f"| {one['better']} below {one['worse']} | {gap} | {one['verdict']} |")
    return "\n".join(lines) + "\n"
