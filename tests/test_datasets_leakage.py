"""Leakage: nearest training proteins against plain dynamic programming; planted relatives are found, noise is not."""

import math
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from datasets_tools import write_text

from proteinlm.cli.data import leakage, split
from proteinlm.datasets.leakage import (
    GAP_EXTEND,
    GAP_OPEN,
    LAMBDA,
    K,
    LeakageOptions,
    Nearest,
    nearest_training,
    read_proteins,
    read_report,
    score_by_identity,
)
from proteinlm.datasets.tables import write_lines
from proteinlm.datasets.words import BAND, GROUPS, WORD, most_promising
from proteinlm.errors import InputError
from proteinlm.sequences.fasta import Record

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")
FREQUENT = list("LAGVESIKRDTPNQFYHMCW")


def random_protein(generator: np.random.Generator, length: int) -> str:
    return "".join(generator.choice(FREQUENT, length))


def mutated(generator: np.random.Generator, residues: str, identity: float) -> str:
    """A copy with the given share of residues unchanged, the others changed for certain."""
    letters = list(residues)
    for place in generator.choice(len(letters), round(len(letters) * (1 - identity)), replace=False):
        letters[place] = str(generator.choice([letter for letter in LETTERS if letter != letters[place]]))
    return "".join(letters)


def records(proteins: dict[str, str]) -> list[Record]:
    return [Record(index, name, name, residues) for index, (name, residues) in enumerate(proteins.items())]


def best_local_score(query: str, target: str, matrix: dict[tuple[str, str], int]) -> int:
    """Smith and Waterman with affine gaps, cell by cell."""
    previous, up = [0] * (len(target) + 1), [-math.inf] * (len(target) + 1)
    best = 0
    for a in query:
        row, left = [0], -math.inf
        for column, b in enumerate(target, 1):
            up[column] = max(up[column] - GAP_EXTEND, previous[column] - GAP_OPEN)
            left = max(left - GAP_EXTEND, row[column - 1] - GAP_OPEN)
            row.append(max(0, previous[column - 1] + matrix[a, b], up[column], left))
        previous, best = row, max(best, max(row))
    return int(best)


def test_exact_against_dynamic_programming() -> None:
    pytest.importorskip("pyopal", reason="pyopal is not installed (extra `leakage`)")
    from scoring_matrices import ScoringMatrix

    blosum = ScoringMatrix.from_name("BLOSUM62")
    matrix = {(a, b): int(blosum[i][j]) for i, a in enumerate(blosum.alphabet) for j, b in enumerate(blosum.alphabet)}
    generator = np.random.default_rng(11)
    train = {f"t{number}": random_protein(generator, 60) for number in range(12)}
    test = {f"q{number}": mutated(generator, train[f"t{number}"][5:55], 0.7) for number in range(6)}
    # A residue missing in the middle, and one too many: the gaps are priced.
    test["gap"] = train["t7"][:28] + train["t7"][31:]
    test["more"] = train["t8"][:30] + "WW" + train["t8"][30:]
    report = nearest_training(records(train), records(test), LeakageOptions(method="exact", e_value=1e9))
    size = sum(map(len, train.values()))
    for row in report.rows:
        scores = {name: best_local_score(test[row.id], residues, matrix) for name, residues in train.items()}
        score = max(scores.values())
        assert row.nearest is not None and scores[row.nearest] == score
        assert row.bits == pytest.approx((LAMBDA * score - math.log(K)) / math.log(2))
        assert row.e_value == pytest.approx(K * len(test[row.id]) * size * math.exp(-LAMBDA * score))
    by_id = {row.id: row for row in report.rows}
    assert [by_id[f"q{number}"].nearest for number in range(6)] == [f"t{number}" for number in range(6)]
    assert (by_id["gap"].identity, by_id["gap"].coverage) == (57 / 60, 1), "three columns of gap among sixty"
    assert (by_id["more"].identity, by_id["more"].coverage) == (60 / 62, 1)


@pytest.mark.parametrize("method", ["exact", "words"])
def test_planted_relatives_are_found_and_noise_is_not(method: str) -> None:
    pytest.importorskip("pyopal", reason="pyopal is not installed (extra `leakage`)")
    generator = np.random.default_rng(4)
    train = {f"t{number}": random_protein(generator, 200) for number in range(200)}
    identities = (1.0, 0.9, 0.7, 0.5)
    test = {f"q{identity}": mutated(generator, train["t5"], identity) for identity in identities}
    test |= {f"noise{number}": random_protein(generator, 200) for number in range(20)}
    test["odd"] = train["t9"].replace("K", "O").replace("C", "U")
    options = LeakageOptions(method=method, candidates=20, threads=2)
    done: list[int] = []
    report = nearest_training(records(train), records(test), options, done.append)
    rows = {row.id: row for row in report.rows}
    assert list(rows) == list(test) and sum(done) == len(test)
    for identity in identities:
        row = rows[f"q{identity}"]
        assert row.nearest == "t5" and row.identity == pytest.approx(identity, abs=0.03) and row.coverage > 0.9
    # At an E-value of 0.001 chance gives one alignment in a thousand searches.
    assert sum(rows[f"noise{number}"].nearest is not None for number in range(20)) == 0
    assert rows["odd"].nearest == "t9" and rows["odd"].identity == 1
    assert (report.above(0.9), report.above(0.6), report.above(0.3)) == (3, 4, 5)


def test_words_against_the_plain_way() -> None:
    generator = np.random.default_rng(8)
    targets = [random_protein(generator, int(length)) for length in generator.integers(3, 150, 60)]
    queries = [random_protein(generator, 80), mutated(generator, targets[3] + targets[4], 0.8), "MK", "MX" * 20]
    letter = {residue: number for number, group in enumerate(GROUPS) for residue in group}

    def reduced(residues: str) -> list[tuple[int | None, ...]]:
        return [
            tuple(letter.get(residue) for residue in residues[at : at + WORD]) for at in range(len(residues) - WORD + 1)
        ]

    found_any = 0
    for query, found in zip(queries, most_promising(queries, targets, 10), strict=True):
        best = []
        for target in targets:
            bands: dict[int, int] = {}
            for i, word in enumerate(reduced(query)):
                for j, other in enumerate(reduced(target)):
                    if word == other and None not in word:
                        band = (j - i + max(len(query) - WORD + 1, 0)) // BAND
                        bands[band] = bands.get(band, 0) + 1
            best.append(max((count + bands.get(band + 1, 0) for band, count in bands.items()), default=0))
        expected = [number for number in np.argsort(-np.array(best), kind="stable")[:10] if best[number]]
        assert found.tolist() == sorted(expected)
        found_any += len(expected)
    assert found_any > 12


def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    targets = [random_protein(generator, 100) for _ in range(50)]
    queries = [mutated(generator, targets[number], 0.6) for number in range(5)]
    whole = [found.tolist() for found in most_promising(queries, targets, 7)]
    monkeypatch.setattr("proteinlm.datasets.words.BLOCK_RESIDUES", 350)
    assert [found.tolist() for found in most_promising(queries, targets, 7)] == whole
    assert all(number in found for number, found in enumerate(whole))


def test_mmseqs(tmp_path: Path) -> None:
    """The real program where it is installed, else a stand-in that answers in its format."""
    generator = np.random.default_rng(6)
    train = {f"sp|T{number}|X": random_protein(generator, 200) for number in range(30)}
    test = {"a": mutated(generator, train["sp|T3|X"], 0.8), "b": random_protein(generator, 200)}
    program = shutil.which("mmseqs")
    if program is None:
        script = tmp_path / "mmseqs"
        script.write_text(
            "#!/bin/sh\n[ $1 = easy-search ] || exit 9\ngrep -q '^>1$' $2 && grep -q '^>29$' $3 || exit 8\n"
            "printf '0\\t7\\t0.250\\t0.400\\t1E-04\\t40\\n0\\t3\\t0.800\\t1.000\\t1E-50\\t300\\n' > $4\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        program = str(script)
    report = nearest_training(records(train), records(test), LeakageOptions(method="mmseqs", program=program))
    first, second = report.rows
    assert first.nearest == "sp|T3|X" and first.identity == pytest.approx(0.8, abs=0.03) and first.coverage > 0.9
    assert second.nearest is None and math.isnan(second.identity) and "MMseqs2" in report.method
    (tmp_path / "broken").write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    (tmp_path / "broken").chmod(0o755)
    with pytest.raises(InputError, match="ended with code 3: out of luck"):
        options = LeakageOptions(method="mmseqs", program=str(tmp_path / "broken"))
        nearest_training(records(train), records(test), options)
    with pytest.raises(InputError, match="'no-such-program' is not installed"):
        nearest_training(records(train), records(test), LeakageOptions(method="mmseqs", program="no-such-program"))


def test_what_cannot_be_searched(tmp_path: Path) -> None:
    some = records({"a": "MKT"})
    with pytest.raises(InputError, match="0 training and 1 test proteins"):
        nearest_training([], some)
    with pytest.raises(InputError, match="the test set: id 'a' stands there twice"):
        nearest_training(some, some + some)
    for options, why in (
        ({"method": "blast"}, "method 'blast' is unknown"),
        ({"e_value": 0.0}, "must lie above 0"),
        ({"candidates": 0}, "candidates is 0"),
        ({"threads": 0}, "threads is 0"),
    ):
        with pytest.raises(InputError, match=why):
            LeakageOptions(**options)
    with pytest.raises(InputError, match=r"record 2 \(b\) cannot be used"):
        read_proteins(write_text(tmp_path / "a.fasta", [">a", "MK", ">b", "M7"]))
    with pytest.raises(InputError, match="'a' stands there twice"):
        read_proteins(write_text(tmp_path / "b.fasta", [">a", "MK", ">a", "MV"]))


def test_score_against_identity() -> None:
    def row(name: str, identity: float) -> Nearest:
        return Nearest(name, None if math.isnan(identity) else "t", identity, 1.0, 1e-9, 99.0)

    rows = [row("a", math.nan), row("b", 0.3), row("c", 0.49), row("d", 1.0), row("e", 0.29)]
    bins = score_by_identity(rows, {"a": 1, "b": 2, "c": 4, "d": 8, "e": 16})
    assert [(found.lowest, found.highest, found.count) for found in bins] == [
        (0, 0, 1),
        (0, 0.3, 1),
        (0.3, 0.5, 2),
        (0.5, 0.7, 0),
        (0.7, 0.9, 0),
        (0.9, 1, 1),
    ]
    assert [found.mean for found in bins if found.count] == [1, 16, 3, 8]
    with pytest.raises(InputError, match="1 test proteins have no score, such as 'e'"):
        score_by_identity(rows, {"a": 1, "b": 2, "c": 4, "d": 8})
    with pytest.raises(InputError, match="must ascend"):
        score_by_identity(rows, {}, (0.5, 0.3))


def test_leakage_command(tmp_path: Path) -> None:
    pytest.importorskip("pyopal", reason="pyopal is not installed (extra `leakage`)")
    generator = np.random.default_rng(1)
    train = {f"t{number}": random_protein(generator, 120) for number in range(10)}
    test = {"same": train["t4"], "noise": random_protein(generator, 120)}
    for name, proteins in (("train", train), ("test", test)):
        write_text(tmp_path / f"{name}.fasta", [line for item in proteins.items() for line in (">" + item[0], item[1])])
    out = tmp_path / "report.tsv"
    arguments = [str(tmp_path / "train.fasta"), str(tmp_path / "test.fasta"), "-o", str(out), "--method", "exact"]
    result = CliRunner().invoke(leakage, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "2 test proteins against 10 training proteins; all pairs aligned" in result.output
    assert "1 with a relative of 90% identity or more" in result.output
    assert "1 without a relative of E-value 0.001 or less" in result.output
    first, second = read_report(out)
    assert (first.id, first.nearest, first.identity, first.coverage) == ("same", "t4", 1, 1)
    assert (second.id, second.nearest, second.e_value) == ("noise", None, math.inf)


def test_split_command(tmp_path: Path) -> None:
    lines = ["id\tcluster\tsccs"]
    lines += [f"p{number}\tc{number // 2}\tc.{number % 7}.{number % 3}.1" for number in range(60)]
    table = write_text(tmp_path / "in.tsv", [*lines, "alone\t\tc.100.1.1"])
    out = tmp_path / "out.tsv"
    result = CliRunner().invoke(split, [str(table), "--by", "cluster", "-o", str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and "61 rows, 31 groups of relatives, folds of 1" in result.output
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert rows[0] == ["id", "cluster", "sccs", "fold"] and len(rows) == 62
    fold_of = {}
    for _, cluster, _, fold in rows[1:]:
        assert not cluster or fold_of.setdefault(cluster, fold) == fold
    assert {row[3] for row in rows[1:]} == set("01234")
    by_fold = [str(table), "--by", "sccs", "--level", "fold", "--folds", "2", "-o", str(out)]
    assert "8 groups of relatives" in CliRunner().invoke(split, by_fold, catch_exceptions=False).output
    for arguments, why in (
        (["--by", "cluster", "--level", "fold"], "line 2: 'c0' is no full SCOP code"),
        (["--by", "clan"], "has no column clan"),
        (["--by", "cluster", "--folds", "40"], "61 records are 31 groups of relatives, too few for 40 folds"),
    ):
        with pytest.raises(InputError, match=why):
            CliRunner().invoke(split, [str(table), *arguments, "-o", str(out)], catch_exceptions=False)
    with pytest.raises(InputError, match="has a column 'fold' already"):
        CliRunner().invoke(split, [str(out), "--by", "cluster", "-o", str(tmp_path / "x")], catch_exceptions=False)


def test_a_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*No such file"):
        write_lines(tmp_path / "nowhere" / "a.tsv", ["x"])

    def lines() -> Iterator[str]:
        yield "x"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_lines(tmp_path / "a.tsv", lines())
    assert not list(tmp_path.iterdir())
    write_lines(tmp_path / "a.tsv", ["x", "y"])
    assert (tmp_path / "a.tsv").read_text() == "x\ny\n"
