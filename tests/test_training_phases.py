"""Phases: other stretches, batches and rates from a step on, with weights and optimiser state carried over."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_tools import (
    Job,
    Mishap,
    output,
    rows_without_speed,
    run,
    small_corpus,
    small_recipe,
    train,
    trainer,
    weights,
)

from proteinlm.errors import InputError
from proteinlm.training.loop import CHECKPOINT
from proteinlm.training.optimisers import rate_at, rate_factor
from proteinlm.training.phases import Phase, Stage, stages
from proteinlm.training.recipe import Recipe, Schedule, read_recipe, recipe_of
from proteinlm.training.records import read_table

LONGER = Phase(after=6, crop=50, tokens=300, learning_rate=2e-4, warmup=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_corpus(tmp_path)
    return tmp_path


def phased(folder: Path, *phases: Phase, steps: int = 10) -> Recipe:
    # The crops that are drawn are those of proteins of up to 60 residues.
    return replace(small_recipe(folder, ("run.steps", steps), ("data.crop", 20)), phases=phases)


def rates(recipe: Recipe) -> list[float]:
    found = recipe.stages()
    return [rate_at(recipe.schedule, stage, step) for stage in found for step in range(stage.start, stage.end)]


def test_stages_by_hand() -> None:
    """What is not said stays; a phase without a warm-up is in the schedule of the one before."""
    first = Stage(0, 100, 510, 4096, 1e-3, 10, 0, 100)
    found = stages(first, [Phase(20, tokens=2048), Phase(50, crop=1022, warmup=5), Phase(70, learning_rate=1e-4)])
    assert found == (
        Stage(0, 20, 510, 4096, 1e-3, 10, 0, 50),
        Stage(20, 50, 510, 2048, 1e-3, 10, 0, 50),
        Stage(50, 70, 1022, 2048, 1e-3, 5, 50, 100),
        Stage(70, 100, 1022, 2048, 1e-4, 5, 50, 100),
    )
    assert stages(first, []) == (first,)


def test_the_rate_begins_anew_or_goes_on(folder: Path) -> None:
    linear = Schedule("linear", warmup=2)
    one = [4e-4 * rate_factor(linear, step, 10) for step in range(10)]
    assert rates(phased(folder)) == rates(phased(folder, Phase(6, crop=50))) == pytest.approx(one)
    halved = rates(phased(folder, Phase(6, learning_rate=2e-4)))
    assert halved == pytest.approx(one[:6] + [rate / 2 for rate in one[6:]])
    anew = rates(phased(folder, LONGER))
    before = [4e-4 * rate_factor(linear, step, 6) for step in range(6)]
    assert anew == pytest.approx(before + [2e-4 * rate_factor(linear, step, 4) for step in range(4)])
    train(phased(folder, LONGER), folder / "run")
    logged = [float(row["learning_rate"]) for row in read_table(folder / "run" / "training.csv")]
    assert logged == pytest.approx(anew, rel=1e-5)


def test_each_phase_draws_its_own_stretches_and_batches(folder: Path) -> None:
    """No stretch comes twice or is left out at the switch, and the optimiser goes on with what it had."""
    made = trainer(phased(folder, LONGER), folder / "run")
    drawn, longest, tokens = [], [], []
    for _ in range(10):
        crops, _ = made.stream.draw(made.progress.position)
        drawn += [crop.position for crop in crops]
        longest.append(max(crop.length for crop in crops))
        tokens.append(sum(crop.tokens for crop in crops))
        made.step()
    assert drawn == list(range(len(drawn)))
    assert max(longest[:6]) == 20 and 40 < max(longest[6:]) <= 50
    assert 378 < min(tokens[:6]) <= max(tokens[:6]) <= 400
    assert 248 < min(tokens[6:]) <= max(tokens[6:]) <= 300
    (optimiser,) = made.optimisers
    assert {int(state["step"]) for state in optimiser.state.values()} == {10}


@pytest.mark.parametrize("kill_at", [6, 7])
def test_killed_at_the_switch_and_taken_up_again(folder: Path, kill_at: int) -> None:
    """The last checkpoint before the kill is of the first phase, or the step of the switch itself."""
    recipe = phased(folder, LONGER)
    recipe = replace(recipe, run=replace(recipe.run, checkpoint_every=3))
    train(recipe, folder / "straight")
    assert run(Job(recipe, folder / "run", mishap=Mishap(kill_at=kill_at))) == [-9]
    job = Job(recipe, folder / "run")
    assert run(job) == [0]
    assert f"going on from step {3 if kill_at == 6 else 6}" in output(job)
    assert rows_without_speed(folder / "run") == rows_without_speed(folder / "straight")
    ours, theirs = weights(folder / "run"), weights(folder / "straight")
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    moments = [
        torch.load(path / CHECKPOINT / "state.pt", weights_only=True)["optimisers"][0]["state"]
        for path in (folder / "run", folder / "straight")
    ]
    assert len(moments[0]) > 10
    assert all(torch.equal(moments[0][key]["exp_avg_sq"], moments[1][key]["exp_avg_sq"]) for key in moments[0])


def test_a_finished_run_goes_on_in_a_new_phase(folder: Path) -> None:
    """Six steps, then four with longer stretches, are the run that stated both from the start."""
    train(phased(folder, LONGER), folder / "straight")
    train(phased(folder, steps=6), folder / "run")
    said = train(phased(folder, LONGER), folder / "run")
    assert "going on from step 6" in said
    assert all(
        torch.equal(tensor, weights(folder / "straight")[name]) for name, tensor in weights(folder / "run").items()
    )
    with pytest.raises(InputError, match=r"the phases of its first 10 steps were \[.*'after': 6.*\] and are now \[\];"):
        train(phased(folder, steps=12), folder / "run")


def test_what_a_phase_says_changes_the_run(folder: Path) -> None:
    plain = trained(phased(folder), folder / "plain")
    for number, phase in enumerate(
        [Phase(6, crop=50), Phase(6, tokens=300), Phase(6, learning_rate=1e-3), Phase(6, warmup=1)]
    ):
        assert trained(phased(folder, phase), folder / str(number)) != plain, phase


def trained(recipe: Recipe, folder: Path) -> float:
    train(recipe, folder)
    return sum(float(tensor.double().sum()) for tensor in weights(folder).values())


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ("[[phase]]\nafter = 0", "[[phase]] 1: after is 0; give a number of steps from 1, below run.steps = 10"),
        ("[[phase]]\nafter = 10", "[[phase]] 1: after is 10"),
        ("[[phase]]\nafter = 5\n[[phase]]\nafter = 5", "[[phase]] 2: after is 5; give a number of steps from 6"),
        ("[[phase]]\nafter = 5\ncrop = 0", "[[phase]] 1: crop is 0; give a number above 0"),
        ("[[phase]]\nafter = 5\nwarmup = -1", "[[phase]] 1: warmup is -1; give a number above 0 or 0"),
        ("[[phase]]\nafter = 5\nlearning_rate = nan", "[[phase]] 1: learning_rate is nan"),
        ("[[phase]]\nafter = 5\ncrops = 3", "[[phase]] 1: key 'crops' is unknown; did you mean 'crop'?"),
        ("[[phase]]\ncrop = 3", "[[phase]] 1: key 'after' is missing"),
        ("[[phase]]\nafter = 5\ncrop = 2000", "crop of a phase is 2000, and the model has positions for 1022"),
        ("[phase]\nafter = 5", "phases are written as [[phase]], each with the steps it comes after"),
    ],
)
def test_a_bad_phase_is_told(tmp_path: Path, phases: str, told: str) -> None:
    good = '[model]\npreset = "esm2-8m"\n[data]\nstore = "store"\n[run]\nsteps = 10\n'
    (tmp_path / "recipe.toml").write_text(good + phases)
    with pytest.raises(InputError, match=re.escape(told)):
        read_recipe(tmp_path / "recipe.toml")
    (tmp_path / "recipe.toml").write_text(good + "[[phase]]\nafter = 5\ncrop = 100")
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.phases == (Phase(5, crop=100),)
    assert recipe_of(recipe.as_dict(), "again") == recipe


def test_a_batch_of_a_later_phase_must_hold_a_stretch(folder: Path) -> None:
    with pytest.raises(InputError, match="a batch of 40 tokens does not hold one stretch of 52"):
        trainer(phased(folder, Phase(6, crop=50, tokens=40)), folder / "run")
