"""Memory does not grow with the corpus: the peak of a build in a process of its own, at two sizes."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

SMALL, LARGE = 4_000, 40_000
LENGTH = 250
"""One million and ten million residues; the larger store takes 13 MB, 11 MB more than the smaller one."""

MEGABYTE = 2**20

CODE = """
import sys
from pathlib import Path
from proteinlm.corpora import buckets, build, columns, grouping, leaks, split

# As large against these corpora as the real ones are against a quarter of a billion sequences.
buckets.RANGE_ROWS = grouping.RANGE_ROWS = split.RANGE_ROWS = 1 << 11
buckets.BUFFER_ROWS = columns.BLOCK_ROWS = leaks.SEEDS = leaks.PAIRS = split.CLUSTER_BLOCK = 1 << 11
build.BLOCK_RESIDUES = columns.BLOCK_RESIDUES = 1 << 18


def high_water():
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))


fasta, out = sys.argv[1], Path(sys.argv[2])
build.build(fasta, out, build.BuildOptions(clusters="header"))
print(high_water())
split.split(out, out.with_name(out.name + "-split"), split.SplitOptions(fraction=0.2))
print(high_water())
"""


def write_fasta(path: Path, records: int) -> None:
    generator = random.Random(7)
    with path.open("w") as file:
        for number in range(records):
            lead = number if number % 3 == 0 else generator.randrange(0, number, 1) // 3 * 3
            residues = "".join(generator.choices("ACDEFGHIKLMNPQRSTVWY", k=LENGTH))
            file.write(f">p{number} p{lead}\n{residues}\n")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc (Linux)")
def test_memory_of_build_and_split(tmp_path: Path) -> None:
    peaks = {}
    for records in (SMALL, LARGE):
        fasta = tmp_path / f"{records}.fasta"
        write_fasta(fasta, records)
        run = subprocess.run(
            [sys.executable, "-c", CODE, str(fasta), str(tmp_path / str(records))],
            check=True,
            capture_output=True,
            text=True,
        )
        peaks[records] = [int(line) for line in run.stdout.split()]
    for small, large in zip(peaks[SMALL], peaks[LARGE], strict=True):
        # What grows is what the allocator keeps; everything that the store holds would be 11 MB.
        assert large - small < 5 * MEGABYTE, f"{small / MEGABYTE:.1f} MB at {SMALL}, {large / MEGABYTE:.1f} at {LARGE}"
