"""What a run tells while it goes on: tables, TensorBoard, the progress bar, parts of a loss, the learning curve."""

import io
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_tools import CPU, Job, output, run, small_corpus, small_recipe, train, trainer

from proteinlm.cli.common import TrainingBar
from proteinlm.models.base import ProteinModel
from proteinlm.objectives import OBJECTIVES, ObjectiveKind
from proteinlm.objectives.base import Example, Loss, Objective, TargetLosses
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.batch import PackedBatch
from proteinlm.training.curves import draw
from proteinlm.training.loop import pretrain
from proteinlm.training.records import read_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_corpus(tmp_path)
    return tmp_path


def test_tensorboard_has_the_rows_of_the_tables(folder: Path) -> None:
    """Every number of both tables, of a run in two pieces, under the step it belongs to; tables hold six digits."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = (("run.tensorboard", True), ("run.validate_every", 2))
    train(small_recipe(folder, *settings, ("run.steps", 5)), folder / "run")
    train(small_recipe(folder, *settings, ("run.steps", 8)), folder / "run")
    events = EventAccumulator(str(folder / "run" / "tensorboard"))
    events.Reload()
    compared = 0
    for name, rows in (("training", 8), ("validation", 5)):
        table = read_table(folder / "run" / f"{name}.csv")
        assert len(table) == rows
        for column in set(table[0]) - {"step"}:
            points = events.Scalars(f"{name}/{column}")
            assert [point.step for point in points] == [int(row["step"]) for row in table]
            assert [point.value for point in points] == pytest.approx([float(row[column]) for row in table], rel=1e-5)
            compared += len(points)
    assert compared == 8 * 5 + 5 * 6


def test_every_step_is_told(folder: Path) -> None:
    seen: list[tuple[int, int, float, float]] = []
    recipe = small_recipe(folder, ("run.log_every", 2))
    pretrain(recipe, folder / "run", CPU, lambda line: None, lambda *told: seen.append(told))
    assert [told[:2] for told in seen] == [(step, 10) for step in range(1, 11)]
    rows = read_table(folder / "run" / "training.csv")
    assert [seen[int(row["step"]) - 1][2] for row in rows] == pytest.approx(
        [float(row["loss"]) for row in rows], rel=1e-5
    )
    assert [f"{seen[int(row['step']) - 1][3]:.6g}" for row in rows] == [row["tokens_per_second"] for row in rows]
    assert len(rows) == 5


def test_lines_where_there_is_no_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    bar = TrainingBar()
    pretrain(small_recipe(folder), folder / "run", CPU, bar.say, bar.step)
    bar.end()
    lines = told.getvalue().splitlines()
    steps = [line for line in lines if re.fullmatch(r"step [\d,]+ of 10: loss \d\.\d{3}, [\d,]+ tokens/s", line)]
    assert steps[0].startswith("step 1 of") and steps[-1].startswith("step 10 of"), lines
    assert len(steps) < 10, "a line now and then, not for every step of a fast run"
    assert sum("ECE" in line for line in lines) == 2
    assert len(lines) == len(steps) + 2


def test_a_bar_where_there_is_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    told = Terminal()
    monkeypatch.setattr(sys, "stderr", told)
    recipe = small_recipe(folder)
    for steps in (4, 10):
        bar = TrainingBar()
        pretrain(replace(recipe, run=replace(recipe.run, steps=steps)), folder / "run", CPU, bar.say, bar.step)
        bar.end()
    shown = told.getvalue()
    assert "4/4" in shown and "10/10" in shown, "what was done before counts as done"
    assert re.search(r"loss \d\.\d{3}, [\d,]+ tokens/s", shown)
    assert "going on from step 4" in shown and shown.count("ECE") == 3


@dataclass(frozen=True)
class Halves(Masking):
    """Of `InHalves`."""


class InHalves(Objective[Example]):
    """Masked language modelling, whose loss is told in two parts: of residues at even and at odd positions."""

    scores = ("perplexity",)
    parts = ("even", "odd")

    def __init__(self, alphabet: Alphabet, masking: Halves) -> None:
        self.masked = MaskedLanguageModel(alphabet, masking)
        self.alphabet, self.share = alphabet, masking.chosen

    def prepare(self, batch: PackedBatch, keys_B: np.ndarray) -> Example:
        return self.masked.prepare(batch, keys_B)

    def loss(self, model: ProteinModel, example: Example) -> Loss:
        losses_M = self.masked.score(model, example)["ece_chosen"].losses_M
        odd_M = example.batch.positions_T()[example.places_M] % 2 == 1
        parts = {name: (losses_M[of].detach().sum(), int(of.sum())) for name, of in (("even", ~odd_M), ("odd", odd_M))}
        return Loss(losses_M.sum(), len(losses_M), parts)

    def score(self, model: ProteinModel, example: Example) -> dict[str, TargetLosses]:
        return {"perplexity": self.masked.score(model, example)["ece_chosen"]}


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    from proteinlm.models import ARCHITECTURES

    monkeypatch.setitem(OBJECTIVES, "halves", ObjectiveKind(Halves, InHalves))
    monkeypatch.setitem(ARCHITECTURES, "esm2", replace(ARCHITECTURES["esm2"], objectives=("masked", "halves")))


@pytest.mark.usefixtures("halves")
def test_an_objective_of_ones_own(folder: Path) -> None:
    """One line in the table: its parts and scores are columns, and it trains as masked language modelling does."""
    recipe = small_recipe(folder, ("objective.name", "halves"), ("objective.chosen", 0.3))
    train(recipe, folder / "halves")
    train(small_recipe(folder, ("objective.chosen", 0.3)), folder / "masked")
    ours, theirs = (read_table(folder / name / "training.csv") for name in ("halves", "masked"))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs] and len(ours) == 10
    assert list(ours[0])[:5] == ["step", "tokens", "loss", "even", "odd"]
    between = [
        min(float(row["even"]), float(row["odd"])) <= float(row["loss"]) <= max(float(row["even"]), float(row["odd"]))
        for row in ours
    ]
    assert all(between)
    ours, theirs = (read_table(folder / name / "validation.csv") for name in ("halves", "masked"))
    assert [row["perplexity"] for row in ours] == [row["ece_chosen"] for row in theirs] and len(ours) == 2
    assert list(ours[0]) == ["step", "tokens", "perplexity", "low", "high", "proteins"]
    pytest.importorskip("matplotlib")
    assert draw(folder / "halves").stat().st_size > 1000


def test_parts_are_means_over_their_own_targets(folder: Path, halves: None) -> None:
    """However the batch is cut: the sums and counts of the parts are brought together before they divide."""
    made = [
        trainer(small_recipe(folder, ("objective.name", "halves"), ("batch.tokens_per_part", room)), folder / str(room))
        for room in (400, 60)
    ]
    steps = [run.step() for run in made]
    assert steps[0].parts.keys() == {"even", "odd"}
    assert steps[0].parts == pytest.approx(steps[1].parts, rel=1e-6)
    crops, _ = made[0].stream.draw(0)
    (whole,) = made[0].stream.parts(crops, 0, 1, 400)
    untrained = trainer(small_recipe(folder, ("objective.name", "halves")), folder / "untrained")
    with torch.no_grad():
        loss = untrained.objective.loss(untrained.model, untrained.objective.prepare(whole.batch, whole.keys_B))
    assert sum(count for _, count in loss.parts.values()) == loss.count
    by_hand = {name: total.item() / count for name, (total, count) in loss.parts.items()}
    assert steps[0].parts == pytest.approx(by_hand, rel=1e-6)


def test_validation_is_shared_out_and_counted_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven batches of held-out proteins on one process and on three: the same numbers."""
    import proteinlm.training.loop as loop

    random = np.random.default_rng(3)
    proteins = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), 60)) for _ in range(7)]
    (folder / "held_out.fasta").write_text("".join(f">{number}\n{one}\n" for number, one in enumerate(proteins)))
    monkeypatch.setattr(loop, "VALIDATION_TOKENS", 62)
    train(small_recipe(folder, ("run.steps", 1)), folder / "apart")
    monkeypatch.undo()
    train(small_recipe(folder, ("run.steps", 1)), folder / "together")
    for engine in ("ddp", "fsdp"):
        job = Job(
            small_recipe(folder, ("run.steps", 1), ("run.engine", engine)), folder / engine, world=3, work=_narrow
        )
        assert run(job) == [0, 0, 0], output(job)
    rows = [read_table(folder / name / "validation.csv") for name in ("apart", "together", "ddp", "fsdp")]
    assert [len(one) for one in rows] == [1] * 4 and rows[0][0]["proteins"] == "7"
    for (row,) in rows[1:]:
        assert {name: float(value) for name, value in row.items()} == pytest.approx(
            {name: float(value) for name, value in rows[0][0].items()}, rel=1e-5
        )


def _narrow(engine: object, job: Job) -> None:
    """A run whose held-out proteins are scored one at a time."""
    import proteinlm.training.loop as loop

    loop.VALIDATION_TOKENS = 62
    loop.Trainer(job.recipe, job.folder, engine, print).run()  # type: ignore[arg-type]
