"""Many processes train as one does; what they save loads at any number of them; what cannot be is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_tools import (
    CPU,
    EVERY,
    SECONDS,
    Job,
    Mishap,
    losses,
    output,
    rows_without_speed,
    run,
    small_corpus,
    small_recipe,
    start,
    train,
    trainer,
    weights,
)

from proteinlm.errors import InputError
from proteinlm.training.engine import NEED_WHOLE_MATRICES, engine_of
from proteinlm.training.loop import CHECKPOINT, MODEL
from proteinlm.training.recipe import Recipe
from proteinlm.training.records import read_table

BOUND = 2e-7
"""Largest difference of a weight (they are of order 1) after ten steps of learning rate 4e-4. Sums over other parts in
another order differ by some 1e-7 of their size. AdamW divides by the size of the gradient, so `epsilon` is set to
1e-4 here: a gradient that is nothing but rounding (a bias of all keys, which softmax does not see) must not become a
whole step."""

SLOW_DDP, SLOW_FSDP = (pytest.param(engine, marks=pytest.mark.slow) for engine in ("ddp", "fsdp"))
"""What one engine has shown is left to the slow run for the other."""

DIGITS = 1e-5
"""Tables hold six digits; a number on the border between two may be rounded either way."""

CALM = (("optimiser.epsilon", 1e-4), ("schedule.shape", "constant"))
AVERAGED = ("optimiser.averaging", 0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    small_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    """The run of one process that the others are compared with."""
    train(small_recipe(folder, *CALM, AVERAGED), folder / "single")
    return folder / "single"


def parallel(folder: Path, engine: str, *more: tuple[str, object]) -> Recipe:
    return small_recipe(folder, *CALM, AVERAGED, ("run.engine", engine), *more)


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys() and len(left) > 10
    return max((tensor - right[name]).abs().max().item() for name, tensor in left.items())


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_train_as_one(folder: Path, single: Path, engine: str) -> None:
    job = Job(parallel(folder, engine), folder / engine, world=2)
    assert run(job) == [0, 0], output(job) + output(job, 1)
    assert losses(job.folder) == pytest.approx(losses(single), rel=DIGITS)
    assert len(losses(single)) == 10
    for ours, theirs in zip(*(read_table(path / "validation.csv") for path in (job.folder, single)), strict=True):
        assert {name: float(value) for name, value in ours.items()} == pytest.approx(
            {name: float(value) for name, value in theirs.items()}, rel=DIGITS
        )
    assert largest_difference(weights(job.folder), weights(single)) < BOUND
    assert not output(job, 1), "only the first process speaks"


def test_the_bound_means_something(folder: Path, single: Path) -> None:
    """Ten steps move the weights a thousand times as far as the bound on differences."""
    before = trainer(small_recipe(folder), folder / "untrained").model.state_dict()
    assert largest_difference(weights(single), before) > 1e3 * BOUND


@pytest.mark.parametrize("engine", ["ddp", SLOW_FSDP])
def test_three_processes_killed_and_taken_up_again(folder: Path, single: Path, engine: str) -> None:
    """One of three is killed in step 7; all three go on from step 5 and end where a run without mishap ends."""
    recipe = parallel(folder, engine)
    processes = start(Job(recipe, folder / f"{engine}3", world=3, mishap=Mishap(kill_at=7, rank=2)))
    processes[2].join(SECONDS)
    assert processes[2].exitcode == -9
    for process in processes:  # as torchrun does when it loses one
        process.kill()
        process.join()
    job = Job(recipe, folder / f"{engine}3", world=3)
    assert run(job) == [0, 0, 0], output(job)
    assert "going on from step 5" in output(job)
    assert largest_difference(weights(job.folder), weights(single)) < BOUND


@pytest.mark.parametrize("world", [1, 3])
def test_shards_load_at_another_number_of_processes(folder: Path, single: Path, world: int) -> None:
    """Five steps on two processes and five on one, or on three, are ten on one."""
    target = folder / f"from2to{world}"
    assert run(Job(parallel(folder, "fsdp", ("run.steps", 5)), target, world=2)) == [0, 0]
    (shards,) = (target / CHECKPOINT).iterdir()
    assert sorted(file.suffix for file in shards.iterdir()) == [".pt", ".safetensors", ".safetensors"]
    job = Job(parallel(folder, "fsdp"), target, world=world)
    assert run(job) == [0] * world, output(job)
    assert "going on from step 5" in output(job)
    assert losses(target)[5:] == pytest.approx(losses(single)[5:], rel=DIGITS)
    (shards,) = (target / CHECKPOINT).iterdir()
    assert len(list(shards.glob("*.safetensors"))) == world


def test_whole_checkpoints_go_from_one_to_many_and_back(folder: Path, single: Path) -> None:
    """Three steps alone, four under ddp, three alone."""
    target = folder / "to_and_fro"
    train(parallel(folder, "single", ("run.steps", 3)), target)
    job = Job(parallel(folder, "ddp", ("run.steps", 7)), target, world=2)
    assert run(job) == [0, 0], output(job)
    train(parallel(folder, "single"), target)
    assert losses(target) == pytest.approx(losses(single), rel=DIGITS)
    assert len(rows_without_speed(target)) == 10 + 4


def test_engines_do_not_take_each_others_files(folder: Path) -> None:
    sharded, whole = folder / "sharded", folder / "whole"
    few = ("run.steps", 2)
    assert run(Job(parallel(folder, "fsdp", few), sharded, world=2)) == [0, 0]
    train(parallel(folder, "single", few), whole)
    with pytest.raises(InputError, match=r"was written with run.engine = fsdp; go on with it"):
        train(parallel(folder, "single"), sharded)
    job = Job(parallel(folder, "fsdp"), whole, world=2)
    assert run(job) == [2, 2]
    assert "was written with run.engine = single or ddp" in output(job)
    assert output(job, 1) == output(job), "each process knows why it ends"


def test_a_shard_that_is_missing_is_told(folder: Path) -> None:
    target = folder / "missing"
    assert run(Job(parallel(folder, "fsdp", ("run.steps", 1)), target, world=2)) == [0, 0]
    next(target.rglob("shard-00002*")).unlink()
    job = Job(parallel(folder, "fsdp"), target, world=2)
    assert run(job) == [2, 2]
    assert "every process must see the whole folder" in output(job)


@pytest.mark.parametrize("engine", [SLOW_DDP, "fsdp"])
def test_another_recipe_is_refused_by_all(folder: Path, engine: str) -> None:
    target = folder / f"other_{engine}"
    assert run(Job(parallel(folder, engine, ("run.steps", 1)), target, world=2)) == [0, 0]
    job = Job(parallel(folder, engine, ("model.width", 24)), target, world=2)
    assert run(job) == [2, 2]
    assert "model.width was 16 and is now 24" in output(job)


@pytest.mark.parametrize(
    ("engine", "rank"),
    [("ddp", 0), pytest.param("fsdp", 0, marks=pytest.mark.slow), pytest.param("fsdp", 1, marks=pytest.mark.slow)],
)
def test_a_full_disk_of_one_process_ends_all(folder: Path, engine: str, rank: int) -> None:
    """One line on each, and the older checkpoint takes the run to its end."""
    target = folder / f"full_{engine}{rank}"
    wide = ("model.width", 32)
    job = Job(parallel(folder, engine, wide), target, world=2, mishap=Mishap(full_disk_at=7, rank=rank))
    assert run(job) == [2, 2], output(job) + output(job, 1)
    for number in range(2):
        assert output(job, number).strip().splitlines()[-1].startswith("error: no checkpoint could be saved in ")
        assert "Traceback" not in output(job, number)
    job = Job(parallel(folder, engine, wide), target, world=2)
    assert run(job) == [0, 0]
    assert "going on from step 5" in output(job)


@pytest.mark.parametrize("engine", ["ddp", SLOW_FSDP])
def test_a_signal_to_one_ends_all_after_the_same_step(folder: Path, engine: str) -> None:
    target = folder / f"signal_{engine}"
    job = Job(parallel(folder, engine), target, world=2, mishap=Mishap(stop_at=4, rank=1))
    assert run(job) == [0, 0], output(job)
    assert len(losses(target)) == 4
    assert run(Job(parallel(folder, engine), target, world=2)) == [0, 0]
    assert "going on from step 4" in output(job)


@pytest.mark.parametrize(
    ("engine", "environment", "told"),
    [
        ("ddp", {}, r"run.engine = ddp needs torchrun: `torchrun --nproc-per-node 2 -m proteinlm.cli pretrain"),
        ("fsdp", {}, r"run.engine = fsdp needs torchrun"),
        ("single", {"WORLD_SIZE": "2"}, r"torchrun started 2 processes, and run.engine is single"),
    ],
)
def test_engine_and_launcher_must_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, engine: str, environment: dict[str, str], told: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=told):
        engine_of(parallel(folder, engine), CPU)


@pytest.mark.parametrize("name", NEED_WHOLE_MATRICES)
def test_some_optimisers_are_not_sharded(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(InputError, match=rf"{name} works on whole matrices, and run.engine = fsdp cuts them up; set"):
        engine_of(parallel(folder, "fsdp", ("optimiser.name", name)), CPU)


def test_muon_has_whole_matrices_under_ddp(folder: Path) -> None:
    muon = ("optimiser.name", "muon")
    train(parallel(folder, "single", muon, ("run.steps", 3)), folder / "muon1")
    assert run(Job(parallel(folder, "ddp", muon, ("run.steps", 3)), folder / "muon2", world=2)) == [0, 0]
    # Newton-Schulz runs in bf16, where a last bit of the gradient may turn into 2^-8 of an update (1.6e-4 here).
    assert largest_difference(weights(folder / "muon1"), weights(folder / "muon2")) < 5e-6


@pytest.mark.parametrize(
    ("name", "engine"), [("lamb", "ddp"), ("lamb", "fsdp"), ("adafactor", "ddp"), ("adafactor", "fsdp")]
)
def test_norms_of_weights_are_those_of_whole_ones(folder: Path, engine: str, name: str) -> None:
    """LAMB and AdaFactor scale by norms of weights and updates, of which sharded processes have a part each."""
    settings = (*CALM, ("optimiser.name", name), ("optimiser.learning_rate", 1e-2), ("run.steps", 4))
    often = ("run.checkpoint_every", 2)
    train(small_recipe(folder, *settings), folder / f"{name}_{engine}1")
    target = folder / f"{name}_{engine}2"
    recipe = small_recipe(folder, *settings, often, ("run.engine", engine))
    assert run(Job(replace(recipe, run=replace(recipe.run, steps=2)), target, world=2)) == [0, 0], output(
        Job(recipe, target)
    )
    job = Job(recipe, target, world=3)
    assert run(job) == [0, 0, 0], output(job)
    assert "going on from step 2" in output(job)
    # Rates are 25 times those of the other tests. AdaFactor has no floor as epsilon is for the others: a gradient that
    # is nothing but rounding (a bias of all keys) becomes a whole step.
    left, right = weights(target), weights(folder / f"{name}_{engine}1")
    rounding = [tensor for tensor in left if name == "adafactor" and tensor.endswith("key.bias")]
    assert len(rounding) < 4
    for tensor in rounding:
        left[tensor] = right[tensor]
    assert largest_difference(left, right) < 25 * BOUND


@pytest.mark.slow
def test_torchrun(folder: Path, single: Path) -> None:
    """The launcher itself, as the page on pretraining shows it, with a recipe in a file."""
    values = parallel(folder, "fsdp").as_dict()
    lines = []
    assert values.pop("phase") == [], "tables of a list are written another way"
    for section, keys in values.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None]
    (folder / "recipe.toml").write_text("\n".join(lines))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "proteinlm.cli", "pretrain", str(folder / "recipe.toml"), "-o", str(folder / "torchrun")),
        *("--device", "cpu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "torchrun" / MODEL), "one process tells where the model is"
    assert largest_difference(weights(folder / "torchrun"), weights(single)) < BOUND


def test_too_small_a_batch_for_the_processes(folder: Path) -> None:
    job = Job(parallel(folder, "ddp", ("batch.tokens", 80)), folder / "small", world=2)
    assert run(job) == [2, 2]
    assert "a batch of 80 tokens may hold only 1 stretches of 42, and there are 2 processes" in output(job)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_bf16(folder: Path, engine: str) -> None:
    """Products of the weights' gradients are rounded to 2^-9 in every part, and other processes have other parts."""
    bf16 = (*CALM, ("run.steps", 3), ("run.precision", "bf16"))
    train(small_recipe(folder, *bf16), folder / f"bf16_{engine}1")
    job = Job(small_recipe(folder, *bf16, ("run.engine", engine)), folder / f"bf16_{engine}2", world=2)
    assert run(job) == [0, 0], output(job)
    assert losses(job.folder) == pytest.approx(losses(folder / f"bf16_{engine}1"), rel=1e-3)


QUICK = {("esm1b", "ddp"), ("lstm", "fsdp"), ("electra", "ddp"), ("electra", "fsdp"), ("t5", "fsdp"), ("xlnet", "fsdp")}


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param(name, engine, marks=[] if (name, engine) in QUICK else pytest.mark.slow)
        for name in EVERY
        for engine in ("ddp", "fsdp")
    ],
)
def test_every_architecture(folder: Path, name: str, engine: str) -> None:
    """With its objective, and gradient checkpointing, which must get along with both engines."""
    model, objective = EVERY[name]
    few = (*CALM, ("run.steps", 3), ("run.gradient_checkpointing", True), ("objective.name", objective))
    train(small_recipe(folder, *few, model=model), folder / f"{name}_{engine}")
    job = Job(small_recipe(folder, *few, ("run.engine", engine), model=model), folder / f"{name}_{engine}2", world=2)
    assert run(job) == [0, 0], output(job)
    assert largest_difference(weights(job.folder), weights(folder / f"{name}_{engine}")) < BOUND
    ours, theirs = (read_table(path / "validation.csv") for path in (job.folder, folder / f"{name}_{engine}"))
    for left, right in zip(ours, theirs, strict=True):
        assert {key: float(value) for key, value in left.items()} == pytest.approx(
            {key: float(value) for key, value in right.items()}, rel=DIGITS
        )
