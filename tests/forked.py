"""Runs in processes of their own that start at once, so that tests can kill them: at a moment, or at a file operation.

A server process imports the package once and forks for each run. A run is an `EmbedJob` or a `plm` command line.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from proteinlm.cli import main
from proteinlm.embedding.progress import Silent
from proteinlm.embedding.run import EmbedJob, embed_file

FILE_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "sqlite3.connect")
"""Events that CPython announces before it changes a file (https://docs.python.org/3/library/audit_events.html)."""

PRELOADED = (
    "proteinlm.cli",
    "proteinlm.embedding.workers",
    "proteinlm.training.loop",
    "proteinlm.training.distributed",
    "forked",
)
"""What the server imports; whoever starts it first, it serves all."""

SECONDS = 60.0
"""Nothing here takes longer than a second; a run that hangs fails its test."""


@dataclass(frozen=True)
class Death:
    """When a run is to be killed: before its `number`-th file operation on a path that begins with `under`."""

    number: int
    under: Path


def await_death(death: Death) -> None:
    """End this process as kill -9 does when the moment has come."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in FILE_OPERATIONS or not str(arguments[0]).startswith(str(death.under)):
            return
        if event == "open" and arguments[1] in ("r", "rb"):
            return
        seen += 1
        if seen == death.number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _embed(job: EmbedJob, death: Death | None) -> None:
    torch.set_num_threads(1)
    if death is not None:
        await_death(death)
    embed_file(job, Silent())


def _plm(arguments: tuple[str, ...], output: Path) -> None:
    torch.set_num_threads(1)
    # A shell ignores Ctrl-C for what it runs in the background, and a test run may be that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["plm", *arguments]
    with open(output, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        main()


def start(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """A function of a module that can be imported, under way in a process of its own."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork a server, nor kill -9")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def ended(process: ForkServerProcess) -> int:
    """The exit code of a process, once it has one."""
    process.join(SECONDS)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def embed_in_a_process(job: EmbedJob, death: Death | None = None) -> bool:
    """Run a job, to be killed at that moment; whether it came to its end before."""
    code = ended(start(_embed, job, death))
    assert code in (0, -signal.SIGKILL), f"the run ended with {code}"
    return code == 0


@contextmanager
def plm_in_a_process(arguments: tuple[object, ...], output: Path) -> Iterator[ForkServerProcess]:
    """A `plm` command under way; what it prints goes to `output`. Killed at the end if it still runs."""
    process = start(_plm, tuple(map(str, arguments)), output)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def wait_until(condition: Callable[[], bool], process: ForkServerProcess) -> bool:
    """Look again and again until a condition holds; False where the process ends before."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "the run hangs"
        if not process.is_alive():
            return False
        time.sleep(0.0005)
    return True
