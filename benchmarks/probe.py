"""The linear probe: time and memory over residues on disk, and scikit-learn on the same rows where it can follow.

    python benchmarks/probe.py                                    small; about a minute on two cores
    python benchmarks/probe.py --residues 2000000 --width 1900    the size that is claimed; a file of 7.6 GB

In: nothing but installed packages. Out: a few lines on standard output. Features are fp16 in a file, read block by
block, so that the memory of a process is its own and not the file's. Fits run in processes of their own. The comparison
is at one given strength, as scikit-learn fits it; both stop at the same gradient, and a time counts only if the
probabilities agree.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

import numpy as np  # noqa: E402
from worker import peak_mib  # noqa: E402

CLASSES, PER_PROTEIN, PER_BLOCK, FACTORS = 8, 250, 20_000, 16
STRENGTH, TOLERANCE, AGREE = 10.0, 1e-6, 1e-3
"""Of the comparison: the strength, the gradient at which both stop, and how far any two probabilities may be apart."""


@dataclass(frozen=True)
class OnDisk:
    """Rows in a file of fp16 features; labels and proteins in memory."""

    folder: Path
    rows: int
    width: int

    def __iter__(self) -> Iterator[Any]:
        from proteinlm.heads.rows import Block

        labels = np.load(self.folder / "labels.npy")
        with open(self.folder / "features.fp16", "rb") as file:
            for start in range(0, self.rows, PER_BLOCK):
                end = min(self.rows, start + PER_BLOCK)
                features = np.fromfile(file, np.float16, (end - start) * self.width).reshape(-1, self.width)
                yield Block(features, labels[start:end], np.arange(start, end) // PER_PROTEIN)


def write(folder: Path, rows: int, width: int) -> None:
    """Features with shared factors and unequal scales; classes drawn by a softmax of a linear map of them."""
    random = np.random.default_rng(0)
    shared = random.standard_normal((FACTORS, width), dtype=np.float32)
    scale = random.uniform(0.1, 3, width).astype(np.float32)
    offset = random.uniform(-2, 2, width).astype(np.float32)
    weight = random.standard_normal((width, CLASSES), dtype=np.float32) * 2 / np.sqrt(width)
    labels = np.empty(rows, np.int64)
    with open(folder / "features.fp16", "wb") as file:
        for start in range(0, rows, PER_BLOCK):
            count = min(PER_BLOCK, rows - start)
            own = random.standard_normal((count, width), dtype=np.float32)
            labels[start : start + count] = (own @ weight + random.gumbel(size=(count, CLASSES))).argmax(1)
            factors = random.standard_normal((count, FACTORS), dtype=np.float32)
            ((own + factors @ shared) * scale + offset).astype(np.float16).tofile(file)
    np.save(folder / "labels.npy", labels)


def ours(folder: Path, rows: int, width: int, fixed: bool) -> dict[str, Any]:
    """Fit the probe; time, memory, and the probabilities of the first rows."""
    from proteinlm.heads.linear import ProbeOptions, fit

    options = ProbeOptions(CLASSES, (STRENGTH,), tolerance=TOLERANCE) if fixed else ProbeOptions(CLASSES)
    began, busy = time.perf_counter(), time.process_time()
    probe = fit(OnDisk(folder, rows, width), options)
    seconds, core_seconds = time.perf_counter() - began, time.process_time() - busy
    first = next(iter(OnDisk(folder, rows, width)))
    np.save(folder / "ours.npy", probe.predict_proba(first.features_ND))
    return {"seconds": seconds, "core_seconds": core_seconds, "peak_mib": peak_mib(), **probe.record}


def theirs(folder: Path, rows: int, width: int) -> dict[str, Any]:
    """The same with scikit-learn, all rows in memory and in fp64: in fp32 it stops at 1e-3 of the optimum."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    blocks = list(OnDisk(folder, rows, width))
    features = np.concatenate([block.features_ND for block in blocks]).astype(np.float64)
    labels = np.concatenate([block.targets_N for block in blocks])
    began, busy = time.perf_counter(), time.process_time()
    scaler = StandardScaler()
    model = LogisticRegression(C=1 / STRENGTH, tol=TOLERANCE, max_iter=5000)
    model.fit(scaler.fit_transform(features), labels)
    seconds, core_seconds = time.perf_counter() - began, time.process_time() - busy
    np.save(folder / "theirs.npy", model.predict_proba(scaler.transform(features[:PER_BLOCK])))
    return {"seconds": seconds, "core_seconds": core_seconds, "peak_mib": peak_mib(), "passes": int(model.n_iter_[0])}


def in_own_process(folder: Path, what: str, rows: int, width: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", what, "--folder", str(folder)]
    command += ["--residues", str(rows), "--width", str(width)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def report(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        began = time.perf_counter()
        write(folder, args.residues, args.width)
        print(f"{args.residues:,} residues x {args.width} fp16 features, {CLASSES} classes", end="; ")
        print(f"written in {time.perf_counter() - began:.0f} s; {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
        found = in_own_process(folder, "ours", args.residues, args.width)
        print(
            f"proteinlm: {found['seconds']:.1f} s ({found['core_seconds']:.1f} core seconds), peak "
            f"{found['peak_mib']:,.0f} MiB; strength {found['strength']:g} chosen on {found['rows_chosen_on']:,} "
            f"rows; {found['passes']} passes, largest gradient {found['gradient']:.1e}"
        )
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        rows = min(args.residues, args.judge_residues)
        write(folder, rows, args.width)
        mine, judge = (in_own_process(folder, what, rows, args.width) for what in ("fixed", "theirs"))
        apart = float(np.abs(np.load(folder / "ours.npy") - np.load(folder / "theirs.npy")).max())
        if apart > AGREE:
            raise SystemExit(f"probabilities differ by {apart:.1e}; nothing can be said of speed")
        print(f"at strength {STRENGTH:g} on {rows:,} of such residues, probabilities within {apart:.1e}:")
        for who, one in (("proteinlm", mine), ("scikit-learn", judge)):
            print(
                f"  {who}: {one['seconds']:.1f} s ({one['core_seconds']:.1f} core seconds), {one['passes']} passes, "
                f"peak {one['peak_mib']:,.0f} MiB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--residues", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--judge-residues", type=int, default=20_000, help="rows of the comparison")
    parser.add_argument("--folder", type=Path, help="where the features are written; the system's temporary folder")
    parser.add_argument("--measure", choices=["ours", "fixed", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is None:
        report(args)
    elif args.measure == "theirs":
        print(json.dumps(theirs(args.folder, args.residues, args.width)))
    else:
        print(json.dumps(ours(args.folder, args.residues, args.width, args.measure == "fixed")))


if __name__ == "__main__":
    main()
