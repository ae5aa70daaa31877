"""Memory does not grow with the number of proteins: ten times as many take the same, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from embedding_tools import save_model

FEW, MANY = 50_000, 500_000

PEAK = 60
"""MiB by which the two peaks may differ: buffers of libraries, and blocks that are filled at other times.

Measured: 30. Results in memory would be ten times the bound: 450,000 more proteins with an id, a header, and 16 numbers
in Python objects and tensors (about 1.5 kB each) are 650 MiB.
"""

PROGRAM = """
import json, resource, sys
from proteinlm.cli import main
try:
    main()
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak": peak}), file=sys.stderr)
"""


def write_many(path: Path, count: int) -> None:
    letters = "ACDEFGHIKLMNPQRSTVWY"
    with open(path, "w", encoding="ascii") as file:
        for n in range(count):
            file.write(f">protein_{n} number {n}\n{letters[n % 20]}{letters[n // 20 % 20]}{letters[n // 400 % 20]}\n")


def peak_of(folder: Path, count: int, model: str) -> float:
    """MiB at the highest point of a run over so many short proteins."""
    source, out = folder / f"{count}.fasta", folder / f"{count}.h5"
    write_many(source, count)
    command = [sys.executable, "-c", PROGRAM, "embed", str(source), "-o", str(out), "--model", model, "--device", "cpu"]
    ended = subprocess.run([*command, "--precision", "fp32"], capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout == f"{count} in, {count} embedded, 0 refused\n", ended.stderr[-2000:]
    with h5py.File(out) as file:
        assert len(file) == count
    kilobytes = json.loads(ended.stderr.splitlines()[-1])["peak"]
    return kilobytes / (1024 if sys.platform == "linux" else 1024**2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_times_as_many_proteins_take_the_same_memory(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    model = save_model(tmp_path)
    few, many = (peak_of(tmp_path, count, model) for count in (FEW, MANY))
    print(f"peak {few:.0f} MiB for {FEW:,} proteins, {many:.0f} MiB for {MANY:,}")
    assert many - few < PEAK
