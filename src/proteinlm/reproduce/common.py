"""What the reproductions share: rows kept on disk, orderings with a verdict, training in a process of its own.

In: scores per protein of many models. Out: files from which a run that was stopped goes on, and for each ordering of a
paper whether it holds here, is reversed, or cannot be told.
"""

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from proteinlm.checkpoints.files import atomic_file
from proteinlm.errors import InputError
from proteinlm.inference import choose_device, keep_freed_memory
from proteinlm.metrics import Bootstrap, Totals, bootstrap_difference
from proteinlm.training.loop import pretrain
from proteinlm.training.recipe import Recipe

EXPONENTIAL = Bootstrap(exponential=True)
RATIO = Bootstrap()
INTERRUPTED = (-signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a process that a signal ended before it could finish its step."""

NOT_FINISHED = 3
REFUSED = 4


def write_text(path: Path, text: str) -> None:
    """A whole file or none."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def folder_name(row: str) -> str:
    """The folder of a row.

    >>> folder_name("Transformer-34 0.1 %"), folder_name("Transformer-34 UR50/S")
    ('Transformer-34-0.1-percent', 'Transformer-34-UR50S')
    """
    return row.replace(" ", "-").replace("/", "").replace("%", "percent")


def finished(path: Path, stated: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `keep` has written for the same job, or None.

    Raises:
        InputError: it was written for another job.
    """
    if not path.exists():
        return None
    saved: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if saved["job"] != stated:
        raise InputError(f"{str(path)!r} belongs to another job ({saved['job']}); choose another folder")
    return saved


def keep(path: Path, stated: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write what a row has found, with the job that it belongs to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"job": stated, **content}))


def as_lists(totals: Totals) -> dict[str, list[float]]:
    """Sums and counts as JSON holds them; `as_totals` is the way back."""
    return {"sums": totals[0].tolist(), "counts": totals[1].tolist()}


def as_totals(saved: Mapping[str, list[float]]) -> Totals:
    """Sums and counts as arrays."""
    return np.array(saved["sums"]), np.array(saved["counts"])


def compared(better: Totals, worse: Totals, options: Bootstrap, higher: bool) -> dict[str, Any]:
    """The difference of two models on the same proteins, and what it says of an ordering.

    Args:
        better, worse: as the paper has them; element g is the same protein in both.
        options: of the bootstrap. higher: whether the better figure is the higher one.

    Returns:
        value, low, high and groups of better - worse, and the verdict: holds, reversed or not resolved.

    >>> counts = np.ones(50)
    >>> compared((counts, counts), (0 * counts, counts), RATIO, higher=True)["verdict"]
    'holds'
    """
    gap = bootstrap_difference(better, worse, np.random.default_rng(0), options)
    above, below = gap.low > 0, gap.high < 0
    verdict = "holds" if (above if higher else below) else "reversed" if (below if higher else above) else None
    return {**asdict(gap), "verdict": verdict or "not resolved"}


def peak_memory() -> int:
    """Most memory that this process has held so far, in bytes."""
    import resource  # not on every system, and only needed here

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def train_apart(recipe: Recipe, folder: Path, device: str) -> None:
    """Run a recipe in a process of its own, so that the memory measured is that of this training alone.

    Besides what `pretrain` writes, `memory.json` in the folder holds `before`, what the process had before the first
    step (Python and its libraries), and `peak`, both in bytes; of a run that was stopped and taken up again, the most.

    Args:
        recipe, folder: as for `pretrain`. device: its name.

    Raises:
        InputError: as `pretrain`. KeyboardInterrupt: a signal stopped the run, after a checkpoint.
    """
    # On Linux a server process imports the package once and forks; elsewhere every process starts anew.
    process: BaseProcess
    if "forkserver" in multiprocessing.get_all_start_methods():
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload([__name__])
        process = server.Process(target=_train, args=(recipe, folder, device))
    else:
        process = multiprocessing.get_context("spawn").Process(target=_train, args=(recipe, folder, device))
    process.start()
    _wait(process)
    code = process.exitcode
    if code in (*INTERRUPTED, NOT_FINISHED):
        raise KeyboardInterrupt
    if code == REFUSED:
        raise InputError((folder / "refused.txt").read_text("utf-8"))
    if code:
        raise InputError(
            f"training in {str(folder)!r} ended with exit code {code}; see what it printed, and run the same command "
            "again: it goes on from the last checkpoint"
        )


def _wait(process: BaseProcess) -> None:
    """Wait for a process; SIGINT and SIGTERM are handed on to it, which ends it after the step at hand."""
    before = {
        number: signal.signal(number, lambda *_: process.terminate()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        process.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(recipe: Recipe, folder: Path, device: str) -> None:
    """What the process does; ends it with an exit code where the run did not finish."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hands it on; training itself listens again
    keep_freed_memory()
    path, held = folder / "memory.json", peak_memory()
    refused = folder / "refused.txt"
    try:
        done = pretrain(recipe, folder, choose_device(device), lambda line: None)
    except InputError as error:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(refused, str(error))
        sys.exit(REFUSED)
    found = {"before": held, "peak": peak_memory()}
    if path.exists():
        found = {name: max(value, found[name]) for name, value in json.loads(path.read_text("utf-8")).items()}
    write_text(path, json.dumps(found))
    if not done:
        sys.exit(NOT_FINISHED)


def _end_with_parent() -> None:
    """Stop this process, as a signal would, once the one that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was started by another"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
