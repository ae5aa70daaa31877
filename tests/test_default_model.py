"""The model that comes with the package: what its card says of it, and that it has learned something."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import shared_data
from embedding_tools import plm

import proteinlm
from proteinlm import checkpoints
from proteinlm.checkpoints.catalogue import PACKAGED
from proteinlm.models import DEFAULT, PRESETS
from proteinlm.tasks import TASKS
from proteinlm.training.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "docs" / "default-model.md"
MOST_BYTES = 40e6
QUICK = ("--quick", "--device", "cpu")


def evaluated(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Results of `plm evaluate default`, by task and measure; every task that was asked for is done."""
    data = shared_data("README.md").parent
    assert plm(monkeypatch, "evaluate", "default", "--data", data, "-o", out, *arguments) == 0
    tasks = json.loads((out / "results.json").read_text())["tasks"]
    assert {task["status"] for task in tasks} == {"done"}
    return {(task["name"], one["measure"]): one for task in tasks for one in task["results"]}


def test_it_comes_with_the_package_and_needs_no_name() -> None:
    found = checkpoints.load("default")
    assert found.name == DEFAULT and Path(found.source).parent == PACKAGED and found.stored == "bf16"
    assert found.licence == PRESETS[DEFAULT].licence == "CC BY 4.0"
    assert sum(path.stat().st_size for path in PACKAGED.rglob("*") if path.is_file()) <= MOST_BYTES
    assert proteinlm.load(device="cpu").digest == found.digest
    assert f"`{found.digest}`" in CARD.read_text(encoding="utf-8"), "the card is that of these weights"


def test_its_recipe_makes_a_model_of_its_shape() -> None:
    architecture, config = read_recipe(ROOT / "recipes" / "default.toml").architecture()
    assert (architecture, config) == (PRESETS[DEFAULT].architecture, PRESETS[DEFAULT].config)


def test_its_contact_head_was_fitted() -> None:
    """On attention maps with an L1 penalty: some weights are 0, which no random draw gives."""
    head = checkpoints.load("default").model.state_dict()["contact_head.weight"]
    assert 0 < int(torch.count_nonzero(head)) < head.numel()


@pytest.mark.slow
def test_its_ece_is_what_its_card_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = evaluated(monkeypatch, tmp_path, "--tasks", "language", "--precision", "fp32", "--device", "cpu")
    text = CARD.read_text(encoding="utf-8")
    for measure in ("ECE, hidden residues", "ECE, chosen residues"):
        row = re.search(rf"^\| {measure} \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| (\d+) proteins \|$", text, re.M)
        assert row is not None, measure
        one = found["language", measure]
        told = [float(row[1]), float(row[2]), float(row[3])]
        assert told == pytest.approx([one["value"], one["low"], one["high"]], abs=0.006)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_quick_run_of_every_task_and_better_than_untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained = evaluated(monkeypatch, tmp_path / "trained", *QUICK)
    assert {task for task, _ in trained} == set(TASKS)
    some = "secondary-structure-linear,contacts-linear"
    untrained = evaluated(monkeypatch, tmp_path / "untrained", "--untrained", "0", "--tasks", some, *QUICK)
    for key in (
        ("secondary-structure-linear", "Q3, superfamily"),
        ("secondary-structure-linear", "Q8, superfamily"),
        ("contacts-linear", "P@L, long, superfamily"),
    ):
        assert trained[key]["value"] > untrained[key]["value"], key
