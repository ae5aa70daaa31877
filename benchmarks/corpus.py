"""What a corpus store costs as it grows: time, disk and memory of building, splitting and reading at random.

In: sizes, in sequences. Out: lines on standard output, and a JSON file in `results/`. The sequences are random, 60 to
80 residues long, one in a hundred a copy, four to a cluster, clusters scattered over the file; they come through a
pipe, so that no FASTA file is written. Each step runs in a process of its own, whose peak memory is its own. A build
counts only if it accounts for every sequence.

    python benchmarks/corpus.py --sizes 100000 1000000
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import numpy as np

ROWS = 10_000
"""Sequences made at a time; those of one block have one length."""

SHORTEST, LENGTHS = 60, 21
CLUSTER_SIZE, COPIES = 4, 100
DIGITS = 10
FRACTION = 0.05
READS = 200_000
RESIDUES = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)


def lead_of(index: np.ndarray, total: int) -> np.ndarray:
    """The representative of the cluster of each sequence: one of the first quarter, which represent themselves."""
    clusters = total // CLUSTER_SIZE
    return np.where(index < clusters, index, index * 7919 % clusters)


def block_of_fasta(first: int, total: int) -> bytes:
    """`ROWS` records from number `first` on."""
    generator = np.random.default_rng(first)
    length = SHORTEST + first // ROWS % LENGTHS
    index = np.arange(first, first + ROWS)
    rows = np.full((ROWS, 2 * DIGITS + 6 + length), ord("\n"), np.uint8)
    rows[:, 0], rows[:, 1], rows[:, DIGITS + 2], rows[:, DIGITS + 3] = b">p p"
    power = 10 ** np.arange(DIGITS - 1, -1, -1)
    rows[:, 2 : DIGITS + 2] = index[:, None] // power % 10 + ord("0")
    rows[:, DIGITS + 4 : 2 * DIGITS + 4] = lead_of(index, total)[:, None] // power % 10 + ord("0")
    residues = RESIDUES[generator.integers(0, 20, (ROWS, length))]
    residues[COPIES - 1 :: COPIES] = residues[COPIES - 2 :: COPIES]
    rows[:, 2 * DIGITS + 5 : -1] = residues
    return rows.tobytes()


def write(total: int) -> None:
    """The FASTA file of `total` sequences, to standard output."""
    for first in range(0, total, ROWS):
        sys.stdout.buffer.write(block_of_fasta(first, total))


def memory_bytes() -> int:
    """The memory of this process, but for mapped files, which the system takes back when it needs the room."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon"))


@contextmanager
def watched(look: Callable[[], int], seconds: float) -> Iterator[list[int]]:
    """What `look` sees every so often until the block ends; the list holds the most."""
    most, done = [look()], threading.Event()

    def watch() -> None:
        while not done.wait(seconds):
            most[0] = max(most[0], look())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()
        most[0] = max(most[0], look())


def step(name: str, store: Path) -> dict[str, Any]:
    """One step, timed; this is a process of its own."""
    began, began_cpu = time.perf_counter(), time.process_time()
    with watched(memory_bytes, 0.02) as most:
        found = work(name, store)
    seconds = time.perf_counter() - began
    return {**found, "seconds": seconds, "cpu_seconds": time.process_time() - began_cpu, "peak_bytes": most[0]}


def work(name: str, store: Path) -> dict[str, Any]:
    """What a step does, and what came of it."""
    from proteinlm.corpora.build import BuildOptions, build
    from proteinlm.corpora.split import SplitOptions, split
    from proteinlm.corpora.store import Store

    if name == "build":
        manifest = build("-", store, BuildOptions(clusters="header"))
        return {field: getattr(manifest, field) for field in ("records", "sequences", "merged", "clusters", "residues")}
    if name == "split":
        train, heldout = split(store, store.with_name("split"), SplitOptions(FRACTION))
        return {"heldout_sequences": heldout.sequences, "train_sequences": train.sequences}
    opened = Store.open(store)
    order = np.random.default_rng(0).integers(0, len(opened), READS)
    return {"reads": READS, "residues_read": sum(len(opened.letters(index)) for index in order.tolist())}


def disk_bytes(folder: Path) -> int:
    """What the files of a folder hold; files may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def run(name: str, store: Path, total: int) -> dict[str, Any]:
    """Run a step, and watch how much disk it takes."""
    command = [sys.executable, __file__, "--step", name, "--store", str(store)]
    source = subprocess.Popen([sys.executable, __file__, "--write", str(total)], stdout=subprocess.PIPE)
    worker = subprocess.Popen(command, stdin=source.stdout, stdout=subprocess.PIPE, text=True)
    assert source.stdout is not None
    source.stdout.close()
    with watched(lambda: disk_bytes(store.parent), 0.5) as most:
        output, _ = worker.communicate()
    source.wait()
    if worker.returncode:
        raise SystemExit(f"{name} at {total} ended with code {worker.returncode}")
    return {**json.loads(output), "peak_disk_bytes": most[0]}


def measure(total: int, split_up_to: int) -> dict[str, Any]:
    """Every step at one size."""
    with tempfile.TemporaryDirectory(prefix="plm-corpus-") as folder:
        store = Path(folder, "store")
        found: dict[str, Any] = {"sequences": total, "build": run("build", store, total)}
        built = found["build"]
        copies = total // COPIES
        expected = {"records": total, "merged": copies, "sequences": total - copies}
        if any(built[name] != count for name, count in expected.items()):
            raise SystemExit(f"the build of {total} does not account for every sequence: {built}")
        found["store_bytes"] = disk_bytes(store)
        found["read"] = run("read", store, ROWS)
        if total <= split_up_to:
            found["split"] = run("split", store, ROWS)
        shutil.rmtree(store)
    return found


def report(found: dict[str, Any]) -> None:
    """A line for each step."""
    built, read = found["build"], found["read"]
    rate = built["residues"] / built["seconds"] / 1e6
    disk = f"{found['store_bytes'] / 2**20:.0f} MiB on disk, {built['peak_disk_bytes'] / 2**20:.0f} meanwhile"
    print(f"{found['sequences']:,} sequences")
    print(f"  build {_cost(built)}, {rate:.1f} M residues/s, {disk}")
    print(f"  read  {read['reads'] / read['seconds'] / 1e3:.0f} k sequences/s at random", flush=True)
    if "split" in found:
        print(f"  split {_cost(found['split'])}", flush=True)


def _cost(found: dict[str, Any]) -> str:
    memory = found["peak_bytes"] / 2**20
    return f"{found['seconds']:.1f} s ({found['cpu_seconds']:.1f} s of CPU), {memory:.0f} MiB of memory"


def main() -> None:
    """Measure, print, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="multiples of 10,000")
    parser.add_argument("--split-up-to", type=int, default=1_000_000, help="largest size that is split too")
    parser.add_argument("--out", type=Path, help="where the JSON goes; else results/")
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=("build", "split", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write)
    elif arguments.step:
        print(json.dumps(step(arguments.step, arguments.store)))
    else:
        description = machine.describe()
        rows = []
        for total in arguments.sizes:
            rows.append(measure(total, arguments.split_up_to))
            report(rows[-1])
        results = Path(__file__).parent / "results"
        out = arguments.out or results / f"corpus-{machine.slug(description)}.json"
        out.write_text(json.dumps({"machine": description, "sizes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
