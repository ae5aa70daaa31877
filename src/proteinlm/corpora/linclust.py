"""Clusters from MMseqs2: the program is called where it is installed, and the way to it is told where it is not.

In: a FASTA file. Out: the two-column table that `build` takes. The defaults are those of UniRef50: 50 % identity over
80 % of both sequences (Suzek et al. 2015); linclust takes time linear in the corpus (Steinegger and Soeding 2018).
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from proteinlm.corpora.build import LETTERS
from proteinlm.errors import InputError
from proteinlm.sequences.fasta import Record, read_fasta
from proteinlm.sequences.source import Source

HOW_TO_GET_IT = (
    "`conda install -c bioconda mmseqs2`, `apt install mmseqs2`, `brew install mmseqs2`, or one of the binaries at "
    "https://mmseqs.com"
)

MESSAGE_LINES = 3


@dataclass(frozen=True)
class ClusterOptions:
    """How to cluster.

    Args:
        identity: least share of identical residues. coverage: least share of both sequences that is aligned.
        threads: None: all. program: name or path of MMseqs2.
        scratch: folder for the program's files, several times the size of the input; None: beside the table.
    """

    identity: float = 0.5
    coverage: float = 0.8
    threads: int | None = None
    program: str = "mmseqs"
    scratch: Path | None = None

    def __post_init__(self) -> None:
        for name, value in (("identity", self.identity), ("coverage", self.coverage)):
            if not 0 < value <= 1:
                raise InputError(f"the {name} is {value}; it must lie above 0 and not above 1")


def cluster(source: Source, table: Path, options: ClusterOptions | None = None) -> tuple[int, int]:
    """Cluster a FASTA file with MMseqs2 linclust.

    Args:
        source: as for `build`. table: where to write `representative TAB member`; must not exist.

    Returns:
        How many records were clustered, and how many could not be used (`build` refuses them too, and lists them).

    Raises:
        InputError: the program is not installed or fails, or `table` exists or cannot be written.
    """
    options = options or ClusterOptions()
    program = shutil.which(options.program)
    if program is None:
        raise InputError(f"the program {options.program!r} is not installed; get MMseqs2: {HOW_TO_GET_IT}")
    if table.exists():
        raise InputError(f"{str(table)!r} exists; remove it or choose another name")
    parent = options.scratch or table.absolute().parent
    if not parent.is_dir():
        raise InputError(f"there is no folder {str(parent)!r}; create it first")
    with tempfile.TemporaryDirectory(prefix=".plm-cluster-", dir=parent) as made:
        folder = Path(made)
        used, unused = _write_plain(source, folder / "records.fasta")
        if not used:
            raise InputError(f"none of the {unused} records can be used; there is nothing to cluster")
        command = [program, "easy-linclust", *(str(folder / name) for name in ("records.fasta", "clusters", "tmp"))]
        command += ["--min-seq-id", str(options.identity), "-c", str(options.coverage), "--cov-mode", "0"]
        command += [] if options.threads is None else ["--threads", str(options.threads)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        written = folder / "clusters_cluster.tsv"
        if run.returncode or not written.exists():
            last = " / ".join((run.stderr + run.stdout).strip().splitlines()[-MESSAGE_LINES:])
            raise InputError(f"{options.program} ended with code {run.returncode}: {last}")
        shutil.move(written, table)
    return used, unused


def _write_plain(source: Source, path: Path) -> tuple[int, int]:
    """Write what `build` would take, with nothing in the headers but identifiers; how many records, how many not."""
    used = unused = 0
    with path.open("w", encoding="utf-8") as file:
        for item in read_fasta(source, LETTERS):
            if isinstance(item, Record):
                file.write(f">{item.id}\n{item.residues}\n")
                used += 1
            else:
                unused += 1
    return used, unused
