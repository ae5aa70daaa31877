"""How long the program takes before it does anything: `plm --help`, and ten proteins from start to file.

In: the folder of one size. Out: seconds, best of several, each in a fresh process.
"""

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workload import proteins

PLM = (sys.executable, "-c", "from proteinlm.cli import main; main()")
"""The command `plm` of this checkout, without the wrapper script of an installation."""


def _best(command: list[str], environment: dict[str, str], times: int) -> float:
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        best = min(best, time.perf_counter() - began)
    return best


def measure(folder: Path, size: str, environment: dict[str, str], times: int) -> dict[str, Any]:
    """Time the start.

    Args:
        folder: of the size, with weights. times: how often each is tried; the best counts.

    Returns:
        seconds by name; "missing" says what could not be measured.
    """
    found: dict[str, Any] = {}
    worker = str(Path(__file__).with_name("worker.py"))
    if find_spec("esm") is None:
        found["fair_esm_missing"] = "fair-esm is not installed"
    else:
        command = [sys.executable, worker, "ten", str(folder), size, str(folder / "ten")]
        found["fair_esm_ten_seconds"] = _best(command, environment, times)
    if find_spec("proteinlm.cli") is None:
        found["plm_missing"] = "this version has no command line"
        return found
    found["help_seconds"] = _best([*PLM, "--help"], environment, times + 2)
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", *PLM[1:], "--help"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    found["help_imports_torch"] = any(line.rsplit("|", 1)[-1].strip() == "torch" for line in listing.splitlines())
    fasta = folder / "ten.fasta"
    fasta.write_text("".join(f">{i}\n{residues}\n" for i, residues in enumerate(proteins(10))))
    found["plm_ten_seconds"] = min(_embed_ten(folder, fasta, environment, attempt) for attempt in range(times))
    return found


def _embed_ten(folder: Path, fasta: Path, environment: dict[str, str], attempt: int) -> float:
    out = folder / f"ten-{attempt}.h5"
    command = [*PLM, "embed", str(fasta), "-o", str(out), "--model", str(folder / "native.safetensors")]
    return _best(command, environment, 1)
