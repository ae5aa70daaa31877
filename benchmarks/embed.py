"""Speed of embedding against other programs, as ratios measured in one run at equal outputs.

    python benchmarks/embed.py                      sizes 8m, 35m and 150m; about 20 minutes on two cores
    python benchmarks/embed.py --sizes 35m --quick  a minute, to see that everything works
    python benchmarks/embed.py --show               prints the table of the stored results of this version

In: nothing but installed packages; what is not installed is named in the table and left out. Out: one table, and one
JSON file per version and machine in `benchmarks/results`. See `benchmarks/README.md` for what is measured and how.
"""

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
sys.path[:0] = [str(HERE), str(SOURCE)]

import compare  # noqa: E402
import machine  # noqa: E402
import numpy as np  # noqa: E402
import report  # noqa: E402
import startup  # noqa: E402
from subjects import OURS_FP32, REFERENCE, SUBJECTS  # noqa: E402
from workload import SHAPES, floor, proteins  # noqa: E402

from proteinlm import __version__  # noqa: E402

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc keeps freed memory instead of giving it back. Half of fair-esm's time is page faults otherwise."""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Args:
        folder: for weights and vectors, gone afterwards. subjects: contestants by name. threads: cores for everyone.
        proteins: how many, or None for the number that `SHAPES` names. rounds: how often everyone has a turn.
        passes: timed passes per turn.
    """

    folder: Path
    subjects: tuple[str, ...]
    threads: int = 2
    proteins: int | None = None
    rounds: int = 2
    passes: int = 2

    def environment(self, compiled: bool = False, tuned: bool = False) -> dict[str, str]:
        """Environment of a measuring process. Our compiled attention is found through the cache folder, or not."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        return {
            **kept,
            **(TUNED if tuned else {}),
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "PYTHONPATH": os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "XDG_CACHE_HOME": str(self.folder / ("cache-compiled" if compiled else "cache")),
            "HF_HUB_OFFLINE": "1",
        }


class WorkerError(RuntimeError):
    """A measuring process failed; the message is the last line it wrote."""


def run_worker(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run `worker.py` and read what it found."""
    command = [sys.executable, str(HERE / "worker.py"), *arguments]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise WorkerError((outcome.stderr.strip().splitlines() or [f"exit status {outcome.returncode}"])[-1])
    found: dict[str, Any] = json.loads(outcome.stdout.strip().splitlines()[-1])
    return found


def turns(subjects: tuple[str, ...], rounds: int) -> list[tuple[str, str]]:
    """Who runs when: everyone once per round, every other round backwards, so that drift meets all alike.

    Peers run as their users run them and tuned; ours tune themselves.
    """
    one = [(name, column) for name in subjects for column in report.COLUMNS[: 1 if SUBJECTS[name].ours else 2]]
    return [turn for number in range(rounds) for turn in (one if number % 2 == 0 else one[::-1])]


def measure_size(size: str, plan: Plan) -> dict[str, Any]:
    """Measure every contestant on one size and compare their vectors.

    Raises:
        compare.UnequalOutputs: a contestant did not compute the same.
    """
    shape = SHAPES[size]
    count = plan.proteins or shape.proteins
    folder = plan.folder / size
    folder.mkdir()
    lengths = sorted(len(residues) for residues in proteins(count))
    say(f"{size}: weights")
    run_worker(["prepare", str(folder), size], plan.environment())
    result: dict[str, Any] = {
        "shape": f"{shape.num_layers} layers x {shape.width}, {shape.num_heads} heads",
        "date": datetime.date.today().isoformat(),
        "proteins": count,
        "residues": sum(lengths),
        "median": lengths[count // 2],
        "shortest": lengths[0],
        "longest": lengths[-1],
        "threads": plan.threads,
        "passes": plan.rounds * plan.passes,
        "floor": dataclasses.asdict(floor(shape, lengths)),
        "rates": run_worker(["rates", size], plan.environment()),
        "subjects": _measure_subjects(size, count, plan),
    }
    _compare(folder, result["subjects"])
    result["verdicts"] = report.verdicts(size, result)
    shutil.rmtree(folder / "vectors")
    return result


def _measure_subjects(size: str, count: int, plan: Plan) -> dict[str, Any]:
    """Everyone's passes. A peer that cannot run is told in one line; ours may not fail."""
    entries: dict[str, Any] = {name: {"columns": {}} for name in plan.subjects}
    folder = plan.folder / size
    (folder / "vectors").mkdir()
    for name, column in turns(plan.subjects, plan.rounds):
        subject, entry = SUBJECTS[name], entries[name]
        if "unavailable" in entry:
            continue
        environment = plan.environment(subject.compiled, tuned=column == "tuned")
        vectors = folder / "vectors" / f"{name}.npy"
        try:
            if subject.compiled:
                run_worker(["compile"], environment)
            found = run_worker(
                ["embed", str(folder), size, name, str(count), str(plan.passes), str(vectors)], environment
            )
        except WorkerError as error:
            if subject.ours and not subject.compiled:
                raise
            entries[name] = {"unavailable": str(error)}
            continue
        say(f"{size}: {subject.title}, {column}: {min(found['pass_seconds']):.2f} s")
        _add(entry["columns"].setdefault(column, {"pass_seconds": [], "cores_of_others": [], "peak_mib": 0.0}), found)
    return entries


def _add(column: dict[str, Any], found: dict[str, Any]) -> None:
    """Add a turn to what is known of a contestant in one column."""
    column["pass_seconds"] += found["pass_seconds"]
    column["cores_of_others"] += found["cores_of_others"]
    column["peak_mib"] = max(column["peak_mib"], found["peak_mib"])
    column["cores_of_others_in_best"] = column["cores_of_others"][int(np.argmin(column["pass_seconds"]))]
    for name in ("load_seconds", "first_pass_seconds"):
        column[name] = min(column.get(name, float("inf")), found[name])


def _compare(folder: Path, entries: dict[str, Any]) -> None:
    """Every contestant's vectors with the original's in fp32, or with ours in fp32 where that is not installed."""
    measured = [name for name, entry in entries.items() if "unavailable" not in entry]
    reference = next((name for name in (REFERENCE, OURS_FP32) if name in measured), None)
    if reference is None:
        raise WorkerError(f"neither {REFERENCE} nor {OURS_FP32} was measured, so there is nothing to compare with")
    vectors = {name: np.load(folder / "vectors" / f"{name}.npy") for name in measured}
    for name in measured:
        subject = SUBJECTS[name]
        agreement = compare.check(name, vectors[reference], vectors[name], subject.must)
        entries[name]["agreement"] = {
            **dataclasses.asdict(agreement),
            "reference": reference,
            "is_reference": name == reference,
            "equal": agreement.least_cosine > subject.equal,
        }


def say(line: str) -> None:
    """Progress, beside the table."""
    print(line, file=sys.stderr, flush=True)


def store(path: Path, sizes: dict[str, Any], start: dict[str, Any] | None) -> dict[str, Any]:
    """Put sizes into the JSON file of this version and machine; sizes measured earlier stay."""
    whole: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"sizes": {}}
    whole |= {"version": __version__, "machine": machine.describe()}
    whole["sizes"] = {name: {**whole["sizes"], **sizes}[name] for name in SHAPES if name in {**whole["sizes"], **sizes}}
    if start is not None:
        whole["startup"] = start
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return whole


def show(whole: dict[str, Any]) -> None:
    """Print the table."""
    about = whole["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    print(f"proteinlm {whole['version']} on {about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB")
    print(f"{about['system']}, Python {about['python']}, {packages}\n")
    for size, result in whole["sizes"].items():
        print("\n".join(report.size_lines(size, result)), end="\n\n")
    if "startup" in whole:
        print("\n".join(report.startup_lines(whole["startup"]["size"], whole["startup"])))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of embedding against other programs, at equal outputs.")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["8m", "35m", "150m"])
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="who is measured")
    parser.add_argument("--quick", action="store_true", help="few proteins, one round; proves nothing about speed")
    parser.add_argument("--proteins", type=int, help="proteins per pass instead of the number of each size")
    parser.add_argument("--rounds", type=int, default=2, help="turns of everyone; the best pass of all counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-startup", action="store_true", help="leave the start-up block out")
    parser.add_argument(
        "--output", type=Path, help="JSON file; else that of this version and machine (none with --quick)"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing, print what is stored")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, store, print."""
    options = parse(arguments)
    path = options.output or HERE / "results" / f"{__version__}-{machine.slug(machine.describe())}.json"
    if options.show:
        show(json.loads(path.read_text()))
        return
    with tempfile.TemporaryDirectory() as temporary:
        plan = Plan(
            folder=Path(temporary),
            subjects=tuple(name for name in SUBJECTS if name in options.subjects),
            threads=options.threads,
            proteins=options.proteins or (8 if options.quick else None),
            rounds=1 if options.quick else options.rounds,
        )
        sizes = {size: measure_size(size, plan) for size in options.sizes}
        start = None
        if not options.no_startup:
            size = "35m" if "35m" in sizes else options.sizes[0]
            found = startup.measure(plan.folder / size, size, plan.environment(), times=1 if options.quick else 3)
            start = {"size": size, **found}
        if options.quick and options.output is None:
            path = plan.folder / "quick.json"
        show(store(path, sizes, start))


if __name__ == "__main__":
    main()
