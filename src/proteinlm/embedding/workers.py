"""Several processes on one machine: each does a shard of the blocks, and the parent puts the parts together.

In: an `EmbedJob`, and how many processes or which devices. Out: a `Summary`, as from one process. A worker is this
module run as a program. It gets its job as one line on standard input and tells its progress on standard output; when
its standard input ends, its parent is gone, and it ends too.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Queue
from typing import IO, Any

import torch

from proteinlm.embedding.merge import Summary, assemble, finished_before
from proteinlm.embedding.parts import Shard, locked
from proteinlm.embedding.progress import Progress
from proteinlm.embedding.run import (
    EmbedJob,
    Prepared,
    embed_file,
    load_checked,
    open_folder,
    prepared,
    remove_leftovers,
)
from proteinlm.embedding.settings import EmbedSettings
from proteinlm.errors import InputError
from proteinlm.inference import RunOptions


@dataclass(frozen=True)
class Team:
    """The worker processes: one for each device; a device can stand there several times.

    >>> Team.of(workers=2, devices=(), device="cpu").devices
    ('cpu', 'cpu')
    """

    devices: tuple[str, ...]

    @classmethod
    def of(cls, workers: int, devices: Sequence[str], device: str) -> "Team":
        """The team that `--workers` or `--devices` names.

        Raises:
            InputError: both are named, or there is to be no worker.
        """
        if devices and workers != 1:
            raise InputError("--workers and --devices exclude each other; --devices starts one process per device")
        if workers < 1:
            raise InputError(f"{workers} workers cannot do anything; use --workers 1 or more")
        return cls(tuple(devices) or (device,) * workers)


def embed_with_team(job: EmbedJob, team: Team, progress: Progress) -> Summary:
    """Embed a FASTA file in several processes.

    Args:
        job: without a shard. team: the processes. progress: where to report.

    Raises:
        InputError: as `embed_file`, and when a worker dies.
    """
    if job.shard.count > 1:
        raise InputError("--shard and --workers exclude each other; run one shard per task of an array job")
    kinds = sorted({device.partition(":")[0] for device in team.devices})
    if len(kinds) > 1:
        raise InputError(f"devices of several kinds ({', '.join(kinds)}) give different numbers; name one kind")
    job = replace(job, options=replace(job.options, device=team.devices[0]))
    checkpoint = load_checked(job)
    with prepared(job, checkpoint) as ready:
        del checkpoint  # each worker has its own
        for line in (*ready.header, f"workers  {len(team.devices)}: {', '.join(team.devices)}"):
            progress.say(line)
        if (found := finished_before(job.out, ready.provenance)) is not None:
            remove_leftovers(ready)
            return found
        folder = open_folder(ready)
        with locked(folder.path / "team.lock"):
            finished = folder.finished()
            progress.begin(sum(block.residues for block in ready.plan.blocks if block.number not in finished))
            try:
                _run_team(ready, team, progress)
            finally:
                progress.end()
            return assemble(job.out, folder, folder.finished())


def _run_team(ready: Prepared, team: Team, progress: Progress) -> None:
    """Start the workers and wait for them; at the first one that fails, stop the others."""
    threads = max(1, torch.get_num_threads() // len(team.devices))
    events: Queue[tuple[int, str | None]] = Queue()
    workers: list[subprocess.Popen[str]] = []
    try:
        for number, device in enumerate(team.devices, 1):
            workers.append(_start(ready, Shard(number, len(team.devices)), device, threads))
            stdout = workers[-1].stdout
            assert stdout is not None, "it was opened as a pipe"
            threading.Thread(target=_listen, args=(number, stdout, events), daemon=True).start()
        running = len(workers)
        while running:
            number, line = events.get()
            if line is not None:
                progress.advance(int(line))
                continue
            running -= 1
            if status := workers[number - 1].wait():
                raise InputError(
                    f"worker {number} of {len(workers)} ended {_how(status)}; finished blocks are kept, "
                    "and the same command goes on with the others"
                )
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _start(ready: Prepared, shard: Shard, device: str, threads: int) -> "subprocess.Popen[str]":
    """Start one worker and hand it its job."""
    options = replace(ready.job.options, device=device)
    job = replace(ready.job, source=str(ready.source), shard=shard, options=options)
    package_folder = str(Path(__file__).resolve().parents[2])
    paths = [package_folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    worker = subprocess.Popen(
        [sys.executable, "-m", "proteinlm.embedding.workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert worker.stdin is not None, "it was opened as a pipe"
    # Left open: its end tells the worker that we are gone. One that has died already is noticed by its status.
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(json.dumps(job_as_json(job)) + "\n")
        worker.stdin.flush()
    return worker


def _listen(number: int, stdout: IO[str], events: "Queue[tuple[int, str | None]]") -> None:
    """Pass on what a worker writes; None when it is done."""
    for line in stdout:
        events.put((number, line))
    events.put((number, None))


def _how(status: int) -> str:
    """The end of a process in words.

    >>> _how(-9), _how(2)
    ('by signal SIGKILL (out of memory?)', 'with status 2')
    """
    if status >= 0:
        return f"with status {status}"
    name = signal.Signals(-status).name
    return f"by signal {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def job_as_json(job: EmbedJob) -> dict[str, Any]:
    """A job as JSON values; `job_from_json` reads them."""
    return {**asdict(job), "out": str(job.out)}


def job_from_json(values: dict[str, Any]) -> EmbedJob:
    """The job that `job_as_json` wrote.

    >>> job = EmbedJob("x.fasta", Path("x.h5"), "unirep-64", shard=Shard(2, 3))
    >>> job_from_json(json.loads(json.dumps(job_as_json(job)))) == job
    True
    """
    return EmbedJob(
        **{
            **values,
            "out": Path(values["out"]),
            "settings": EmbedSettings.from_provenance(values["settings"]),
            "options": RunOptions(**values["options"]),
            "shard": Shard(**values["shard"]),
        }
    )


class _Pipe(Progress):
    """Writes the residues that are done, a number a line, for the parent."""

    def say(self, line: str) -> None:
        """Nothing: the parent has said it."""

    def begin(self, residues: int) -> None:
        """Nothing: the parent knows the sum."""

    def advance(self, residues: int) -> None:
        """One number."""
        print(residues, flush=True)

    def end(self) -> None:
        """Nothing."""


def _end_with_parent() -> None:
    """Wait for the end of standard input, then end this process as a kill would."""
    # Not through sys.stdin, whose lock would be held when the interpreter ends.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def work() -> None:
    """What a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent answers for all
    job = job_from_json(json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        embed_file(job, _Pipe())
    except InputError as error:
        sys.exit(f"plm: error: {error}")


if __name__ == "__main__":
    work()
