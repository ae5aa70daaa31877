"""`plm corpus` as a user meets it: what it prints, what it writes, how it exits."""

import json
import random
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from corpus_tools import clusters

from proteinlm.cli import cli
from proteinlm.cli.corpus import FETCHED, SHARD_RESIDUES
from proteinlm.corpora import columns
from proteinlm.corpora.fetch import FILES
from proteinlm.corpora.store import Store
from proteinlm.errors import InputError

FASTA = ">a a\nMKTAYIAKQR\n>b a\nMKV\n>c c\nGGSGLL\n>d d\nLLLLKK\n>e d\nMKV\n>f c\nM1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.fasta").write_text(FASTA)
    return tmp_path


def run(line: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["corpus", *line.split()])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_build_and_stats(folder: Path) -> None:
    built = run("build in.fasta -o store --clusters header --max-length 9", code=1).stdout
    assert "store: 6 records: 3 in the store, 1 refused, 1 too long, 1 copies, merged" in built
    assert "3 clusters" in built and "1 sequences had copies in other clusters" in built
    shown = run("stats store --verify").stdout
    assert "3 sequences, 15 residues" in shown and "composition, %: L 40.00" in shown
    assert "3 clusters, the largest of 1" in shown
    found = json.loads(run("stats store --json").stdout)
    assert found["sequences"] == 3 and found["length_histogram"] == {"1-32": 3}
    assert found["content_sha256"] == Store.open("store").manifest.content_sha256


def test_build_from_a_pipe(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["corpus", "build", "-", "-o", "store"], input=b">a\nMKT\n")
    assert result.exit_code == 0 and len(Store.open("store")) == 1


def test_cluster_then_build(folder: Path) -> None:
    fake = folder / "mmseqs"
    fake.write_text("#!/bin/sh\ngrep '>' \"$2\" | tr -d '>' | sed 's/.*/&\\t&/' > \"$3\"_cluster.tsv\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    assert "5 records clustered, 1 cannot be used" in run(f"cluster in.fasta -o t.tsv --program {fake}").stdout
    assert "1 of 5 rows of the table name no record" not in run("build in.fasta -o s --clusters t.tsv", code=1).stdout
    assert clusters(Store.open("s")) == [["a"], ["b"], ["c"], ["d"]]
    with pytest.raises(InputError, match="mmseqs2"):
        run("cluster in.fasta -o u.tsv --program absent-program")


def test_split_leaks_exclude(folder: Path) -> None:
    generator = random.Random(2)
    residues = ["".join(generator.choices("ACDEFGHIKLMNPQRSTVWY", k=30)) for _ in range(30)]
    text = "".join(f">p{number} p{number}\n{sequence}\n" for number, sequence in enumerate(residues))
    (folder / "more.fasta").write_text(text)
    run("build more.fasta -o store --clusters header")
    out = run("split store -o out --fraction 0.3 --seed 4").stdout
    assert "out/train: " in out and "out/heldout: " in out
    assert run("leaks out/train out/heldout").stdout == "0 leaks\n"
    found = run("leaks store out/heldout", code=1).stdout.splitlines()
    held = len(Store.open("out/heldout"))
    assert sum("same identifier" in line for line in found) == held and found[-1].startswith(f"{3 * held} leaks")
    assert f"{30 - held} of 30 sequences; {held} left out" in run("exclude store out/heldout -o clean").stdout
    run("leaks clean out/heldout")


def test_options_are_those_of_the_functions() -> None:
    """The command line names them again, because it imports nothing heavy."""
    assert tuple(FILES) == FETCHED and SHARD_RESIDUES == columns.SHARD_RESIDUES


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("build absent.fasta -o store", "cannot open"),
        ("build in.fasta -o store --min-length 5 --max-length 4", "below the least"),
        ("stats in.fasta", "not a corpus store"),
        ("fetch swissprot --base http://127.0.0.1:9", "cannot read"),
    ],
)
def test_errors(folder: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(line)
    assert not (folder / "store").exists()
