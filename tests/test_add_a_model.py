"""The model that `docs/add-a-model.md` builds keeps every promise that the table of models is tested for."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import test_cli_architectures as commands
import test_model_table as suite
import torch
from test_docs import ROOT, Block, blocks
from tiny_models import TINY, tiny
from training_tools import EVERY, small_corpus, small_recipe, train, weights

from proteinlm import checkpoints
from proteinlm.models import ARCHITECTURES

PAGE, NAME = "docs/add-a-model.md", "gated-convolution"

CHECKS = (
    suite.test_every_parameter_gets_a_gradient,
    suite.test_a_prepared_model_says_the_same,
    suite.test_an_output_holds_what_was_wanted_and_nothing_else,
    suite.test_layers_that_do_not_exist_are_refused,
)


@pytest.fixture
def registered() -> Iterator[None]:
    """The page up to the line in the table, and a tiny size of its model."""
    found = blocks(PAGE)
    last = next(number for number, block in enumerate(found) if f'ARCHITECTURES["{NAME}"]' in block.body)
    namespace: dict = {"__name__": "page"}
    with patch.dict(ARCHITECTURES), patch.dict(TINY):
        for block in found[: last + 1]:
            _run(block, namespace)
        TINY[NAME] = (NAME, namespace["GatedConvolutionConfig"](num_layers=4, width=16, reach=2))
        yield


def _run(block: Block, namespace: dict) -> None:
    assert block.language == "python"
    exec(compile(block.body, str(ROOT / PAGE), "exec"), namespace)


@pytest.mark.usefixtures("registered")
def test_the_suite_of_the_table(tmp_path: Path) -> None:
    for check in CHECKS:
        check(NAME)
    suite.test_a_saved_model_says_the_same(NAME, tmp_path)
    for precision in (None, torch.float32, torch.bfloat16):
        suite.test_alone_equals_batched_equals_reordered(NAME, precision)


@pytest.mark.usefixtures("registered")
def test_the_four_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    model, path = tiny(NAME), tmp_path / f"{NAME}.safetensors"
    checkpoints.save(model, path)
    case = commands.Case(NAME, model, path, tmp_path)
    monkeypatch.setitem(commands.LAYOUT, NAME, (commands.NO_PORT.format(NAME), "native"))
    commands.test_embed_and_convert(case, monkeypatch, capsys)
    commands.test_evaluate(case, monkeypatch)
    commands.test_pretrain(case, monkeypatch, capsys)


@pytest.mark.usefixtures("registered")
def test_a_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    small_corpus(tmp_path)
    model = {"architecture": NAME, "num_layers": 2, "width": 8}
    constant = ("schedule.shape", "constant")
    whole = small_recipe(tmp_path, constant, model=model)
    stopped = small_recipe(tmp_path, constant, ("run.steps", 5), model=model)
    again = small_recipe(tmp_path, constant, ("run.gradient_checkpointing", True), model=model)
    train(whole, tmp_path / "whole")
    train(stopped, tmp_path / "parts")
    train(whole, tmp_path / "parts")
    train(again, tmp_path / "again")
    ours, parts, saving = (weights(tmp_path / name) for name in ("whole", "parts", "again"))
    assert len(ours) >= 10 and all(torch.equal(ours[name], parts[name]) for name in ours)
    assert all(torch.equal(ours[name], saving[name]) for name in ours)


def test_the_page_names_the_tables_that_there_are() -> None:
    text = (ROOT / PAGE).read_text("utf-8")
    assert NAME not in ARCHITECTURES and NAME not in TINY and NAME not in EVERY
    for file in ("tests/tiny_models.py", "tests/training_tools.py", "tests/test_parity_bert.py"):
        assert file in text and (ROOT / file).is_file()
