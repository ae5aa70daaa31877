"""A run that was stopped anywhere and taken up again ends as if nothing had happened; what cannot go on is refused."""

from pathlib import Path

import pytest
import torch
from forked import Death
from training_tools import (
    EVERY,
    Job,
    Mishap,
    output,
    rows_without_speed,
    run,
    small_corpus,
    small_recipe,
    train,
    weights,
)

from proteinlm.errors import InputError
from proteinlm.models import ARCHITECTURES
from proteinlm.objectives import OBJECTIVES
from proteinlm.training.loop import CHECKPOINT, MODEL

ENDED, KILLED, REFUSED = 0, -9, 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_corpus(tmp_path)
    return tmp_path


def flat(value: object, name: str = "") -> dict[str, object]:
    """Everything in a checkpoint, by a path of names."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def assert_same_state(one: Path, other: Path) -> None:
    """Checkpoints and models of two runs agree to the bit."""
    left, right = (flat(torch.load(path / CHECKPOINT / "state.pt", weights_only=True)) for path in (one, other))
    assert left.keys() == right.keys()
    tensors = 0
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, right[name]), name  # type: ignore[arg-type]
            tensors += 1
        else:
            assert value == right[name], name
    assert tensors > 100, "almost nothing was compared"
    assert weights(one).keys() == weights(other).keys()
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


@pytest.mark.parametrize("optimiser", ["adamw", "muon", "lamb", "adafactor"])
def test_killed_and_taken_up_again(folder: Path, optimiser: str) -> None:
    """Ten steps are five, two that are lost with kill -9, and five again: weights, optimiser, average and tables."""
    recipe = small_recipe(folder, ("optimiser.name", optimiser), ("optimiser.averaging", 0.9))
    train(recipe, folder / "straight")
    job = Job(recipe, folder / "run", mishap=Mishap(kill_at=7))
    assert run(job) == [KILLED]
    assert not (folder / "run" / MODEL).exists()
    assert len(rows_without_speed(folder / "run")) == 6 + 1
    job = Job(recipe, folder / "run")
    assert run(job) == [ENDED]
    assert "going on from step 5" in output(job)
    assert rows_without_speed(folder / "run") == rows_without_speed(folder / "straight")
    assert len(rows_without_speed(folder / "run")) == 10 + 2
    assert_same_state(folder / "run", folder / "straight")


def test_all_that_can_be_trained_is_trained_here() -> None:
    """A new architecture or objective gets its line in `EVERY`, and with it these tests and those of many processes."""
    expected = {(name, one) for name, kind in ARCHITECTURES.items() for one in kind.objectives}
    assert {(model["architecture"], objective) for model, objective in EVERY.values()} == expected
    assert {objective for _, objective in expected} == set(OBJECTIVES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("electra", "xlnet") else pytest.mark.slow) for name in EVERY]
)
def test_every_architecture_goes_on(folder: Path, name: str) -> None:
    """Four steps are two and two, to the bit: what is drawn in a step depends on nothing that is lost."""
    model, objective = EVERY[name]
    constant = ("schedule.shape", "constant")
    settings = (("objective.name", objective), ("run.steps", 4), ("run.validate_every", 2), constant)
    train(small_recipe(folder, *settings, model=model), folder / "straight")
    train(small_recipe(folder, *settings, ("run.steps", 2), model=model), folder / "run")
    assert "going on from step 2" in train(small_recipe(folder, *settings, model=model), folder / "run")
    ours, theirs = weights(folder / "run"), weights(folder / "straight")
    assert ours.keys() == theirs.keys() and len(ours) > 5
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    rows = rows_without_speed(folder / "run")
    assert rows == rows_without_speed(folder / "straight") and len(rows) == 4 + 2


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_any_file_operation(folder: Path, stride: int) -> None:
    """Whatever was being written, the next run goes on, and nothing of the broken-off file is left."""
    recipe = small_recipe(folder, ("run.steps", 2), ("run.checkpoint_every", 1), ("run.validate_every", 1))
    train(recipe, folder / "straight")
    number = 1 - stride
    while True:
        number += stride
        job = Job(recipe, folder / f"run{number}", mishap=Mishap(death=Death(number, folder / f"run{number}")))
        if run(job) == [ENDED]:
            break
        assert run(Job(recipe, job.folder)) == [ENDED], f"killed before file operation {number}"
        assert_same_state(job.folder, folder / "straight")
        assert rows_without_speed(job.folder) == rows_without_speed(folder / "straight")
        assert not list(job.folder.rglob(".*.tmp")), f"killed before file operation {number}"
    assert number > 10, "almost nothing was tried"


def test_a_signal_ends_the_run_after_its_step(folder: Path) -> None:
    recipe = small_recipe(folder)
    assert run(Job(recipe, folder / "run", mishap=Mishap(stop_at=3))) == [ENDED]
    assert len(rows_without_speed(folder / "run")) == 3
    said = train(recipe, folder / "run")
    assert said[0] == "going on from step 3"
    train(recipe, folder / "straight")
    assert_same_state(folder / "run", folder / "straight")


def test_more_steps(folder: Path) -> None:
    """A finished run goes on where it ended when it is given more steps; the schedule looks at the new number."""
    constant = ("schedule.shape", "constant")
    train(small_recipe(folder, constant, ("run.steps", 5)), folder / "run")
    train(small_recipe(folder, constant), folder / "run")
    train(small_recipe(folder, constant), folder / "straight")
    assert_same_state(folder / "run", folder / "straight")
    with pytest.raises(InputError, match=r"at step 10, beyond run.steps = 7"):
        train(small_recipe(folder, constant, ("run.steps", 7)), folder / "run")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("optimiser.learning_rate", 1e-3, r"optimiser.learning_rate was 0.0004 and is now 0.001"),
        ("model.width", 24, r"model.width was 16 and is now 24"),
        ("data.sampling", "all", r"data.sampling was 'clusters' and is now 'all'"),
        ("run.seed", 1, r"run.seed was 0 and is now 1"),
        ("optimiser.name", "muon", r"optimiser.name was 'adamw' and is now 'muon'"),
        ("optimiser.averaging", 0.9, r"optimiser.averaging was 0.0 and is now 0.9"),
        ("batch.tokens", 500, r"batch.tokens was 400 and is now 500"),
    ],
)
def test_another_recipe_is_refused(folder: Path, name: str, value: object, told: str) -> None:
    train(small_recipe(folder, ("run.steps", 1)), folder / "run")
    before = (folder / "run" / CHECKPOINT / "state.pt").read_bytes()
    with pytest.raises(InputError, match=told):
        train(small_recipe(folder, (name, value)), folder / "run")
    assert (folder / "run" / CHECKPOINT / "state.pt").read_bytes() == before


def test_another_corpus_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from corpus_tools import built
    from training_tools import random_proteins

    from proteinlm.corpora.build import BuildOptions

    train(small_recipe(folder, ("run.steps", 1)), folder / "run")
    built(folder / "other", BuildOptions(clusters="header"), *random_proteins(60, seed=9))
    with pytest.raises(InputError, match="was trained on another corpus"):
        train(small_recipe(folder, ("data.store", str(folder / "other"))), folder / "run")


def test_a_second_run_in_the_same_folder_is_refused(folder: Path) -> None:
    from filelock import FileLock

    recipe = small_recipe(folder, ("run.steps", 1))
    train(recipe, folder / "run")
    with FileLock(folder / "run" / ".lock"), pytest.raises(InputError, match="another run is under way"):
        train(recipe, folder / "run")


def test_a_full_disk_keeps_the_older_checkpoint(folder: Path) -> None:
    """The checkpoint of step 10 cannot be written: one line, and the one of step 5 takes the run to its end."""
    recipe = small_recipe(folder)
    job = Job(recipe, folder / "run", mishap=Mishap(full_disk_at=7))
    assert run(job) == [REFUSED]
    lines = output(job).strip().splitlines()
    assert lines[-1].startswith("error: no checkpoint could be saved in "), lines
    assert len(lines) == 3, "two validations and one line"
    assert train(recipe, folder / "run")[0] == "going on from step 5"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 704 vs 598")])
def test_no_room_for_a_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    recipe = small_recipe(folder)
    train(small_recipe(folder, ("run.steps", 5)), folder / "run")
    before = (folder / "run" / CHECKPOINT / "state.pt").read_bytes()

    def no_room(value: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise error

    with monkeypatch.context() as patched, pytest.raises(InputError, match="no checkpoint could be saved") as told:
        patched.setattr(torch, "save", no_room)
        train(recipe, folder / "run")
    assert "\n" not in str(told.value) and "run the same command again" in str(told.value)
    assert (folder / "run" / CHECKPOINT / "state.pt").read_bytes() == before
    assert [file.name for file in (folder / "run" / CHECKPOINT).iterdir()] == ["state.pt"]
    assert train(recipe, folder / "run")[0] == "going on from step 5"
