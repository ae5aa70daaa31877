"""A gradient that is not finite changes nothing; five in a row end the run with the last checkpoint whole."""

from pathlib import Path

import pytest
import torch
from training_tools import CPU, small_corpus, small_recipe, train, trainer, weights

from proteinlm.errors import InputError
from proteinlm.training.engine import engine_of
from proteinlm.training.loop import CHECKPOINT, Trainer
from proteinlm.training.recipe import Recipe
from proteinlm.training.records import read_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_corpus(tmp_path)
    return tmp_path


def spoilt(recipe: Recipe, folder: Path, steps: set[int], value: float, said: list[str]) -> Trainer:
    """A trainer whose gradient of one weight has one such value in it at these steps."""
    run = Trainer(recipe, folder, engine_of(recipe, CPU), said.append)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        if run.progress.step + 1 not in steps:
            return gradient
        gradient = gradient.clone()
        gradient[0, 0] = value
        return gradient

    run.model.layers[1].feed_forward.up.weight.register_hook(spoil)  # type: ignore[union-attr, index]
    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_bad_step_changes_nothing(folder: Path, value: float, optimiser: str) -> None:
    said: list[str] = []
    recipe = small_recipe(folder, ("optimiser.name", optimiser), ("optimiser.averaging", 0.9))
    run = spoilt(recipe, folder / "run", {3}, value, said)
    run.step()
    run.step()
    weights_before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    average_before = {name: tensor.clone() for name, tensor in run.average.tensors.items()}  # type: ignore[union-attr]
    states_before = [str(one.state_dict()["state"]) for one in run.optimisers]
    made = run.step()
    assert not made.norm < float("inf") and made.loss < 10
    assert said == ["step 3: the gradient is not finite; its update was left out"]
    assert run.progress.step == 3 and run.progress.bad_steps == 1
    assert all(torch.equal(tensor, weights_before[name]) for name, tensor in run.model.state_dict().items())
    assert all(torch.equal(tensor, average_before[name]) for name, tensor in run.average.tensors.items())  # type: ignore[union-attr]
    assert [str(one.state_dict()["state"]) for one in run.optimisers] == states_before
    run.step()
    assert run.progress.bad_steps == 0
    assert not torch.equal(run.model.state_dict()["embed_tokens.weight"], weights_before["embed_tokens.weight"])


def test_five_in_a_row_end_the_run(folder: Path) -> None:
    said: list[str] = []
    constant = ("schedule.shape", "constant")
    recipe = small_recipe(folder, constant, ("run.steps", 20))
    with pytest.raises(InputError, match=r"5 steps in a row, up to 11, had no finite gradient; the last checkpoint"):
        spoilt(recipe, folder / "run", set(range(7, 21)), float("nan"), said).run()
    assert sum("not finite" in line for line in said) == 5
    train(small_recipe(folder, constant, ("run.steps", 6)), folder / "six")
    left, right = (torch.load(folder / name / CHECKPOINT / "state.pt", weights_only=True) for name in ("run", "six"))
    # Step 10 was bad too: its checkpoint holds the weights of step 6, which are as good as ever.
    assert left["rest"]["progress"]["step"] == 10 and left["rest"]["progress"]["bad_steps"] == 4
    assert left["model"].keys() == right["model"].keys()
    assert all(torch.equal(tensor, right["model"][name]) for name, tensor in left["model"].items())


def test_four_in_a_row_are_forgiven(folder: Path) -> None:
    said: list[str] = []
    run = spoilt(small_recipe(folder), folder / "run", {2, 3, 4, 5, 7, 8, 9, 10}, float("nan"), said)
    run.run()
    assert run.progress.step == 10
    assert sum("not finite" in line for line in said) == 8
    assert all(torch.isfinite(tensor).all() for tensor in weights(folder / "run").values())
    rows = read_table(folder / "run" / "training.csv")
    assert [row["gradient_norm"] == "nan" for row in rows] == [
        step in {2, 3, 4, 5, 7, 8, 9, 10} for step in range(1, 11)
    ]


def test_bad_steps_are_counted_over_a_restart(folder: Path) -> None:
    """Three before the checkpoint and two after it are five in a row."""
    said: list[str] = []
    few = small_recipe(folder, ("run.steps", 5), ("schedule.shape", "constant"))
    spoilt(few, folder / "run", {3, 4, 5}, float("nan"), said).run()
    more = small_recipe(folder, ("run.steps", 20), ("schedule.shape", "constant"))
    with pytest.raises(InputError, match="5 steps in a row, up to 7"):
        spoilt(more, folder / "run", {6, 7}, float("nan"), said).run()


def test_an_untouched_run_is_not_disturbed(folder: Path) -> None:
    run = trainer(small_recipe(folder), folder / "run")
    for _ in range(3):
        run.step()
    assert run.progress.bad_steps == 0
