"""What the tests of training share: a small corpus, small recipes, and runs in processes of their own.

A server process imports the package once and forks for each run, so that a run starts at once, can be killed, and can
be one of many that speak with each other as under torchrun.
"""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus_tools import built
from forked import PRELOADED, Death, await_death
from safetensors.torch import load_file

from proteinlm.corpora.build import BuildOptions
from proteinlm.corpora.store import Store
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import STANDARD
from proteinlm.training.engine import Engine, engine_of
from proteinlm.training.loop import MODEL, Made, Trainer, pretrain
from proteinlm.training.recipe import Recipe, recipe_of
from proteinlm.training.records import read_table

SECONDS = 120.0
"""Nothing here takes longer than a few seconds on an idle machine; a run that hangs fails its test."""

ESM2 = {"architecture": "esm2", "num_layers": 2, "width": 16, "num_heads": 2, "inner": 32}
SHAPE = {"num_layers": 2, "width": 16, "num_heads": 2, "inner": 32}
PAIR = {"generator_layers": 1, "generator_width": 8, "generator_heads": 1, "generator_inner": 16, "max_positions": 64}
SEGMENTS = {"segment": 24, "memory": 16}
EVERY: dict[str, tuple[dict[str, Any], str]] = {
    "esm2": (ESM2, "masked"),
    "esm2-convolved": ({**ESM2, "reach": 2}, "masked"),
    "esm1": ({"architecture": "esm1", **SHAPE}, "masked"),
    "esm1b": ({"architecture": "esm1b", **SHAPE, "max_positions": 64}, "masked"),
    "lstm": ({"architecture": "lstm", "num_layers": 2, "width": 8}, "masked"),
    "bert": ({"architecture": "bert", **SHAPE, "max_positions": 64}, "masked"),
    "albert": ({"architecture": "albert", **SHAPE, "embedding_width": 8, "max_positions": 64}, "masked"),
    "electra-generator": ({"architecture": "electra-generator", **SHAPE, "max_positions": 64}, "masked"),
    "electra": ({"architecture": "electra", **SHAPE, **PAIR}, "replaced"),
    "t5": ({"architecture": "t5", **SHAPE, "decoder_layers": 2, "head_width": 8}, "denoising"),
    "xlnet": ({"architecture": "xlnet", **SHAPE, **SEGMENTS}, "permutation"),
    "xlnet-masked": ({"architecture": "xlnet", **SHAPE}, "masked"),
    "transformer-xl": ({"architecture": "transformer-xl", **SHAPE, **SEGMENTS, "head_width": 8}, "autoregressive"),
    "unirep": ({"architecture": "unirep", "num_layers": 2, "width": 8, "embedding_width": 4}, "autoregressive"),
}
"""Every architecture at a size that takes no time, with each objective that trains it."""

CPU = torch.device("cpu")


def random_proteins(count: int, seed: int = 0, longest: int = 60) -> list[tuple[str, str]]:
    """(header, residues): names p0, p1 ..., three in a cluster, 5 to `longest` residues."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, longest + 1, count)
    return [
        (f"p{number} c{number // 3}", "".join(random.choice(list(STANDARD), length)))
        for number, length in enumerate(lengths)
    ]


def small_corpus(folder: Path) -> Store:
    """Sixty proteins in clusters at `folder`/store, and three held out in `folder`/held_out.fasta."""
    lines = [f">{header}\n{residues}\n" for header, residues in random_proteins(3, seed=1)]
    (folder / "held_out.fasta").write_text("".join(lines))
    return built(folder / "store", BuildOptions(clusters="header"), *random_proteins(60))


def small_recipe(folder: Path, *settings: tuple[str, Any], model: dict[str, Any] = ESM2) -> Recipe:
    """A recipe over `small_corpus` with ("section.key", value) put over it."""
    values: dict[str, dict[str, Any]] = {
        "model": dict(model),
        "data": {"store": str(folder / "store"), "validation": str(folder / "held_out.fasta"), "crop": 40},
        "batch": {"tokens": 400, "tokens_per_part": 150},
        "schedule": {"warmup": 2},
        "run": {"steps": 10, "precision": "fp32", "log_every": 1, "validate_every": 5, "checkpoint_every": 5},
    }
    for name, value in settings:
        section, key = name.split(".")
        values.setdefault(section, {})[key] = value
    return recipe_of(values, "recipe")


def train(recipe: Recipe, folder: Path) -> list[str]:
    """Run a recipe in this process; what it said."""
    said: list[str] = []
    pretrain(recipe, folder, CPU, said.append)
    return said


def trainer(recipe: Recipe, folder: Path) -> Trainer:
    """A trainer in this process, before its first step."""
    return Trainer(recipe, folder, engine_of(recipe, CPU), lambda line: None)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that a finished run has written."""
    return load_file(folder / MODEL)


def losses(folder: Path) -> list[float]:
    """The losses that a run has logged."""
    return [float(row["loss"]) for row in read_table(folder / "training.csv")]


def rows_without_speed(folder: Path) -> list[dict[str, str]]:
    """Everything that a run has logged but the time it took."""
    rows = read_table(folder / "training.csv")
    timeless = [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]
    return timeless + read_table(folder / "validation.csv")


@dataclass(frozen=True)
class Mishap:
    """What befalls a run.

    Args:
        kill_at, stop_at: step that ends with SIGKILL, or with SIGTERM, on process `rank`.
        full_disk_at: step from whose end on process `rank` can write no file of more than 20 kB.
        death: kill before a file operation.
    """

    kill_at: int | None = None
    stop_at: int | None = None
    full_disk_at: int | None = None
    death: Death | None = None
    rank: int = 0


@dataclass
class Job:
    """A run that is to go on in processes of its own.

    Args:
        recipe, folder: as for `pretrain`. world: processes; 0 for one without torchrun.
        mishap: what befalls it. work: done with the engine instead of training, if given.
    """

    recipe: Recipe
    folder: Path
    world: int = 0
    mishap: Mishap = field(default_factory=Mishap)
    work: Callable[[Engine, "Job"], None] | None = None


def _befall(mishap: Mishap, rank: int) -> None:
    """Arrange for the mishap in this process."""
    if rank != mishap.rank:
        return
    if mishap.death is not None:
        await_death(mishap.death)
    step = Trainer.step

    def watched(self: Trainer) -> Made:
        # A signal comes in the middle of a step; that step still counts.
        number = self.progress.step + 1
        if number == mishap.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        result = step(self)
        if number == mishap.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == mishap.full_disk_at:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return result

    Trainer.step = watched  # type: ignore[method-assign]


def _run(job: Job, rank: int, port: int) -> None:
    torch.set_num_threads(1)
    with (job.folder.parent / f"{job.folder.name}.{rank}.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if job.world:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job.world), MASTER_ADDR="localhost",
            MASTER_PORT=str(port),
        )  # fmt: skip
    _befall(job.mishap, rank)
    try:
        if job.work is None:
            pretrain(job.recipe, job.folder, CPU)
            return
        engine = engine_of(job.recipe, CPU)
        job.work(engine, job)
        engine.close()
    except InputError as error:
        print(f"error: {error}")
        sys.exit(2)


def start(job: Job) -> list[ForkServerProcess]:
    """The processes of a job, started."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork a server, nor kill -9")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    processes = [context.Process(target=_run, args=(job, rank, port), daemon=True) for rank in range(job.world or 1)]
    for process in processes:
        process.start()
    return processes


def ended(processes: list[ForkServerProcess]) -> list[int | None]:
    """Exit codes; fails where a process hangs."""
    for process in processes:
        process.join(SECONDS)
        hangs = process.exitcode is None
        process.kill()
        assert not hangs, "a process hangs"
    return [process.exitcode for process in processes]


def run(job: Job) -> list[int | None]:
    """Run a job to its end; the exit codes of its processes."""
    return ended(start(job))


def output(job: Job, rank: int = 0) -> str:
    """What a process of a job has printed."""
    return (job.folder.parent / f"{job.folder.name}.{rank}.txt").read_text()
