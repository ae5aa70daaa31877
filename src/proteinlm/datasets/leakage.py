"""Leakage: for each test protein its nearest training protein, how similar it is, and what that does to scores.

In: training and test proteins. Out: for each test protein the training protein with the best local alignment, with
identity, coverage and E-value, or that there is none. MMseqs2 does it where it is installed; else pyopal aligns (Smith
and Waterman, BLOSUM62, gaps of 11 + 1 a residue), all pairs where that is a matter of minutes, the most promising ones
(`words`) where it is not. Which of them was done is part of the result.
"""

import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proteinlm.corpora.build import LETTERS
from proteinlm.corpora.linclust import HOW_TO_GET_IT, MESSAGE_LINES
from proteinlm.datasets.tables import Row, Sequenced, check_unique, read_records, write_lines
from proteinlm.datasets.words import most_promising
from proteinlm.errors import InputError
from proteinlm.sequences.fasta import Record, read_fasta
from proteinlm.sequences.source import Source

if TYPE_CHECKING:
    from pyopal import FullResult

METHODS = ("auto", "mmseqs", "exact", "words")

GAP_OPEN, GAP_EXTEND = 12, 1
"""What the first and each further residue of a gap cost: BLAST's 11 + 1 a residue."""

LAMBDA, K = 0.267, 0.041
"""Karlin and Altschul's parameters of BLOSUM62 with these gap costs, as in BLAST."""

EXACT_CELLS = 2e12
"""Pairs of residues up to which `auto` aligns all; 500 x 10,000 proteins are 4e11. A core with AVX2 does up to 9e9 a
second, so this is some minutes."""

CANDIDATES = 1000
"""Training proteins that are aligned with each test protein, where not all are."""

COLUMNS = ("id", "nearest", "identity", "coverage", "e_value", "bits")

MMSEQS_SENSITIVITY = 7.5
MMSEQS_FORMAT = "query,target,fident,qcov,evalue,bits"

_AS_STANDARD = str.maketrans("UOJ", "CKX")
"""BLOSUM62 has no place for these."""


@dataclass(frozen=True)
class Nearest:
    """The nearest training protein of a test protein.

    Attributes:
        id: of the test protein. nearest: id of the training protein; None where no alignment is significant.
        identity: identical residues for each column of the alignment, gaps included; NaN where there is none.
        coverage: share of the test protein that the alignment spans; 0 where there is none.
        e_value: alignments as good that chance would give against this training set. bits: bit score.
    """

    id: str
    nearest: str | None
    identity: float
    coverage: float
    e_value: float
    bits: float


@dataclass(frozen=True)
class LeakageOptions:
    """How to look for relatives.

    Args:
        method: `mmseqs`; `exact` aligns all pairs; `words` aligns the most promising; `auto` takes MMseqs2 where it is
            installed, else `exact` where that takes minutes, else `words`.
        e_value: largest E-value of a relative. candidates: training proteins aligned with each test protein by `words`.
        threads: at a time. program: name or path of MMseqs2.
    """

    method: str = "auto"
    e_value: float = 1e-3
    candidates: int = CANDIDATES
    threads: int = 1
    program: str = "mmseqs"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method {self.method!r} is unknown; there are {', '.join(METHODS)}")
        if not self.e_value > 0:
            raise InputError(f"the E-value is {self.e_value}; it must lie above 0")
        for name, value in (("candidates", self.candidates), ("threads", self.threads)):
            if value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")


@dataclass(frozen=True)
class LeakageReport:
    """What was found and how.

    Attributes:
        rows: one for each test protein, in the order given. method: what was done, in words.
    """

    rows: tuple[Nearest, ...]
    method: str

    def above(self, identity: float, coverage: float = 0.5) -> int:
        """How many test proteins have a training relative of at least this identity and coverage."""
        return sum(row.identity >= identity and row.coverage >= coverage for row in self.rows)


@dataclass(frozen=True)
class IdentityBin:
    """Scores of test proteins that are about as similar to the training set.

    Attributes:
        lowest, highest: identities from `lowest` to below `highest`; both 0 for proteins without a relative.
        count: test proteins. mean: of their scores; NaN where there are none.
    """

    lowest: float
    highest: float
    count: int
    mean: float


def read_proteins(source: Source) -> tuple[Record, ...]:
    """All records of a FASTA file; here a record that cannot be used is an error, for it could be the one that leaks.

    Raises:
        InputError: the file or a record cannot be used, or an id stands there twice.
    """
    records = []
    for item in read_fasta(source, LETTERS):
        if not isinstance(item, Record):
            raise InputError(f"{source}: record {item.index + 1} ({item.id}) cannot be used: {item.reason}")
        records.append(item)
    check_unique(records, str(source))
    return tuple(records)


def nearest_training(
    train: Sequence[Sequenced],
    test: Sequence[Sequenced],
    options: LeakageOptions | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> LeakageReport:
    """The nearest training protein of each test protein.

    Args:
        train, test: anything with an id and residues, ids unique in each. options: how to look.
        advance: told how many test proteins have been done, from time to time.

    Raises:
        InputError: a set is empty, or what the method needs is not installed.
    """
    options = options or LeakageOptions()
    if not train or not test:
        raise InputError(f"there are {len(train)} training and {len(test)} test proteins; both sets need at least one")
    check_unique(train, "the training set")
    check_unique(test, "the test set")
    method = options.method
    if method == "auto":
        cells = sum(len(record.residues) for record in train) * sum(len(record.residues) for record in test)
        installed = shutil.which(options.program) is not None
        method = "mmseqs" if installed else "exact" if cells <= EXACT_CELLS else "words"
    if method == "mmseqs":
        rows = _by_mmseqs(train, test, options)
        advance(len(test))
        return LeakageReport(rows, f"MMseqs2 at sensitivity {MMSEQS_SENSITIVITY}")
    rows = _by_pyopal(train, test, method == "exact", options, advance)
    if method == "exact":
        return LeakageReport(rows, "all pairs aligned (Smith-Waterman, BLOSUM62)")
    sharing = (
        f"{options.candidates:,} training proteins aligned, those sharing most words: distant relatives are missed"
    )
    return LeakageReport(rows, sharing)


def score_by_identity(
    rows: Sequence[Nearest], scores: Mapping[str, float], edges: Sequence[float] = (0.0, 0.3, 0.5, 0.7, 0.9)
) -> tuple[IdentityBin, ...]:
    """Mean score of test proteins against their identity to the training set.

    Args:
        rows: of a report. scores: of each test protein by its id. edges: lower ends of the bins, ascending; the last
            bin ends at 1.

    Returns:
        Proteins without a relative first, then a bin for each edge.

    Raises:
        InputError: a score is missing, or the edges do not ascend.

    >>> rows = [Nearest("a", "t", 0.95, 1.0, 1e-9, 80.0), Nearest("b", None, math.nan, 0.0, math.inf, 0.0)]
    >>> [(found.lowest, found.count, found.mean) for found in score_by_identity(rows, {"a": 0.8, "b": 0.6}, (0.0, 0.9))]
    [(0.0, 1, 0.6), (0.0, 0, nan), (0.9, 1, 0.8)]
    """
    if list(edges) != sorted(set(edges)) or not edges:
        raise InputError(f"edges {tuple(edges)} must ascend")
    if absent := [row.id for row in rows if row.id not in scores]:
        raise InputError(f"{len(absent)} test proteins have no score, such as {absent[0]!r}; score all of them")
    lonely = [scores[row.id] for row in rows if row.nearest is None]
    bins = [IdentityBin(0.0, 0.0, len(lonely), _mean(lonely))]
    for lowest, highest in zip(edges, (*edges[1:], math.inf), strict=True):
        values = [scores[row.id] for row in rows if row.nearest is not None and lowest <= row.identity < highest]
        bins.append(IdentityBin(lowest, min(highest, 1.0), len(values), _mean(values)))
    return tuple(bins)


def write_report(path: Path, report: LeakageReport) -> None:
    """Write a report as a table, whole or not at all; what does not exist (no relative) is empty.

    Raises:
        InputError: the file cannot be written.
    """
    lines = ["\t".join(COLUMNS)]
    for row in report.rows:
        found = row.nearest is not None
        values = (f"{row.identity:.4f}", f"{row.coverage:.4f}", f"{row.e_value:.2e}", f"{row.bits:.1f}")
        lines.append("\t".join((row.id, row.nearest or "", *(values if found else ("",) * 4))))
    write_lines(path, lines)


def read_report(path: Path) -> tuple[Nearest, ...]:
    """The rows of a report that was written before.

    Raises:
        InputError: it is no such table.
    """
    return read_records(path, COLUMNS, _row)


def _row(row: Row) -> Nearest:
    nearest = row.optional("nearest")
    if nearest is None:
        return _nobody(row.text("id"))
    identity, coverage, e_value, bits = (row.number(column) for column in COLUMNS[2:])
    return Nearest(row.text("id"), nearest, identity, coverage, e_value, bits)


def _nobody(name: str) -> Nearest:
    return Nearest(name, None, math.nan, 0.0, math.inf, 0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _by_pyopal(
    train: Sequence[Sequenced],
    test: Sequence[Sequenced],
    exact: bool,
    options: LeakageOptions,
    advance: Callable[[int], None],
) -> tuple[Nearest, ...]:
    """Alignments by pyopal, with all training proteins or with the promising ones."""
    try:
        from pyopal import Aligner, Database
        from scoring_matrices import ScoringMatrix
    except ImportError as error:
        raise InputError(
            f'aligning needs pyopal (pip install "proteinlm[leakage]") or MMseqs2 ({HOW_TO_GET_IT})'
        ) from error
    aligner = Aligner(ScoringMatrix.from_name("BLOSUM62"), gap_open=GAP_OPEN, gap_extend=GAP_EXTEND)
    targets = [record.residues.translate(_AS_STANDARD) for record in train]
    queries = [record.residues.translate(_AS_STANDARD) for record in test]
    database = Database(targets)
    everybody = np.arange(len(targets))
    chosen = [everybody] * len(queries) if exact else most_promising(queries, targets, options.candidates)
    size = sum(map(len, targets))

    def search(number: int) -> Nearest:
        name, query, among = test[number].id, queries[number], chosen[number]
        if not len(among):
            return _nobody(name)
        subset = database if len(among) == len(targets) else database.extract(among.tolist())
        scores = np.array([hit.score for hit in aligner.align(query, subset)])
        best = int(among[int(np.argmax(scores))])
        e_value = K * len(query) * size * math.exp(-LAMBDA * float(scores.max()))
        if e_value > options.e_value:
            return _nobody(name)
        hit: FullResult = aligner.align(query, Database([targets[best]]), mode="full")[0]
        bits = (LAMBDA * hit.score - math.log(K)) / math.log(2)
        identity = hit.alignment.count("M") / len(hit.alignment)
        coverage = (hit.query_end - hit.query_start + 1) / len(query)
        return Nearest(name, train[best].id, identity, coverage, e_value, bits)

    rows = []
    with ThreadPoolExecutor(options.threads) as pool:
        for row in pool.map(search, range(len(queries))):
            rows.append(row)
            advance(1)
    return tuple(rows)


def _by_mmseqs(train: Sequence[Sequenced], test: Sequence[Sequenced], options: LeakageOptions) -> tuple[Nearest, ...]:
    """Alignments by the program MMseqs2; of each test protein the one with the best score."""
    program = shutil.which(options.program)
    if program is None:
        raise InputError(f"the program {options.program!r} is not installed; get MMseqs2: {HOW_TO_GET_IT}")
    with tempfile.TemporaryDirectory(prefix="plm-leakage-") as made:
        folder = Path(made)
        # Numbers instead of ids: MMseqs2 makes ids of its own out of headers such as `sp|P12345|NAME`.
        for name, records in (("train.fasta", train), ("test.fasta", test)):
            lines = (f">{number}\n{record.residues}\n" for number, record in enumerate(records))
            (folder / name).write_text("".join(lines), encoding="ascii")
        names = ("test.fasta", "train.fasta", "hits.tsv", "tmp")
        command = [program, "easy-search", *(str(folder / name) for name in names), "--format-output", MMSEQS_FORMAT]
        command += ["-s", str(MMSEQS_SENSITIVITY), "-e", str(options.e_value), "--threads", str(options.threads)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        hits = folder / "hits.tsv"
        if run.returncode or not hits.exists():
            last = " / ".join((run.stderr + run.stdout).strip().splitlines()[-MESSAGE_LINES:])
            raise InputError(f"{options.program} ended with code {run.returncode}: {last}")
        best: dict[int, Nearest] = {}
        for line in hits.read_text(encoding="ascii").splitlines():
            query, target, *numbers = line.split("\t")
            identity, coverage, e_value, bits = map(float, numbers)
            found = Nearest(test[int(query)].id, train[int(target)].id, identity, coverage, e_value, bits)
            if int(query) not in best or bits > best[int(query)].bits:
                best[int(query)] = found
    return tuple(best.get(number, _nobody(record.id)) for number, record in enumerate(test))
