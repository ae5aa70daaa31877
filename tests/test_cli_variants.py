"""`plm variants` as a user meets it: tables, lists of variants, refusals, heat maps."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from embedding_tools import LONGEST, plm, save_model, tiny_model, tiny_unirep, write_fasta

from proteinlm import checkpoints
from proteinlm.api import LanguageModel
from proteinlm.checkpoints import Checkpoint
from proteinlm.cli.variants import METHODS
from proteinlm.datasets.variants import mutate
from proteinlm.errors import InputError
from proteinlm.variants import scoring
from proteinlm.variants.changes import Variants, all_substitutions
from proteinlm.variants.files import renumbered

FIRST, SECOND = "MKTAYIAK", "MSILVTRPSPAG" * 4
EXACT = ("--device", "cpu", "--precision", "fp32")

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`plm variants` on a file, into out.csv, with a tiny model."""
    model = save_model(tmp_path)

    def call(source: str, *more: object, weights: str = model) -> int:
        return plm(monkeypatch, "variants", source, "-o", tmp_path / "out.csv", "--model", weights, *EXACT, *more)

    return call


def rows(path: Path, separator: str = ",") -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter=separator))


def direct(residues: str, mutants: list[str], method: str = "auto") -> np.ndarray:
    """Through the Python API, with a model of its own."""
    model = LanguageModel(Checkpoint(tiny_model(), "tiny", "", "", ""), device="cpu", precision="fp32")
    return model.variants(residues, mutants, method).scores


def test_all_substitutions_of_several_proteins(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_fasta(
        tmp_path / "in.fasta",
        [("one x", FIRST), ("bad", "MK7T"), ("long", SECOND), ("one again", "MKV"), ("empty", ""), ("odd", "XX")],
    )
    assert run(source) == 1
    assert len(SECOND) > LONGEST, "the second is run in windows"
    found = rows(tmp_path / "out.csv")
    assert list(found[0]) == ["mutant", "mutated_sequence", "score", "protein"]
    for name, residues in (("one", FIRST), ("long", SECOND)):
        mine = [row for row in found if row["protein"] == name]
        assert [row["mutant"] for row in mine] == all_substitutions(residues) and len(mine) == 19 * len(residues)
        assert all(row["mutated_sequence"] == mutate(residues, row["mutant"]) for row in mine)
        expected = direct(residues, [row["mutant"] for row in mine])
        # Six decimals are written.
        np.testing.assert_allclose([float(row["score"]) for row in mine], expected, atol=2e-5)
    assert len(found) == 19 * (len(FIRST) + len(SECOND))
    refused = rows(tmp_path / "out.csv.refused.tsv", "\t")
    assert [(row["index"], row["id"]) for row in refused] == [("1", "bad"), ("3", "one"), ("4", "empty"), ("5", "odd")]
    assert refused[0]["position"] == "3" and "unique" in refused[1]["reason"] and "twenty" in refused[3]["reason"]
    output = capsys.readouterr()
    assert output.out == (
        f"6 in, 2 scored ({len(found):,} variants), 4 refused (listed in {tmp_path / 'out.csv.refused.tsv'})\n"
    )
    assert "masked-marginals" in output.err and "in windows" in output.err and "2 residues are not" in output.err
    told = json.loads((tmp_path / "out.csv.provenance.json").read_text())
    assert told["method"] == "masked-marginals" and len(told["model_digest"]) == 64
    assert told["counts"] == {"records": 6, "scored": 2, "refused": 4, "variants": len(found)}


@pytest.mark.parametrize("method", ["wt-marginals", "joint-masked-marginals", "pseudo-ppl"])
def test_methods_and_lists(method: str, run: Run, tmp_path: Path) -> None:
    source, listed = write_fasta(tmp_path / "in.fasta", [("one", FIRST)]), tmp_path / "list.txt"
    mutants = ["K2R", "K2R:A4G", "M1A:K8W"]
    listed.write_text("# a comment\n" + "\n\n".join(mutants) + "\n")
    assert run(source, "--mutations", listed, "--method", method) == 0
    found = rows(tmp_path / "out.csv")
    assert [row["mutant"] for row in found] == mutants
    scores = [float(row["score"]) for row in found]
    np.testing.assert_allclose(scores, direct(FIRST, mutants, method), atol=2e-5)
    assert not (tmp_path / "out.csv.refused.tsv").exists()


@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_table_for_several_proteins(separator: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_fasta(tmp_path / "in.fasta", [("one", FIRST), ("two", SECOND), ("bad", "MK7"), ("three", "MKV")])
    table = [("protein", "mutant", "DMS_score"), ("two", "S2A", "0.1"), ("one", "K2R", "3"), ("bad", "M1A", "")]
    (tmp_path / "list.csv").write_text("\n".join(separator.join(row) for row in table) + "\n")
    assert run(source, "--mutations", tmp_path / "list.csv") == 1
    assert [(row["protein"], row["mutant"]) for row in rows(tmp_path / "out.csv")] == [("one", "K2R"), ("two", "S2A")]
    told = capsys.readouterr().err
    assert "1 variants of refused proteins have no score" in told and "1 proteins have no variant in list.csv" in told


def test_numbering_that_begins_elsewhere(run: Run, tmp_path: Path) -> None:
    source, listed = write_fasta(tmp_path / "in.fasta", [("one", FIRST)]), tmp_path / "list.txt"
    listed.write_text("K25R\nK25R:A27G\n")
    assert run(source, "--mutations", listed, "--offset", 23) == 0
    found = rows(tmp_path / "out.csv")
    assert [row["mutant"] for row in found] == ["K25R", "K25R:A27G"] and found[0]["mutated_sequence"] == "MRTAYIAK"
    np.testing.assert_allclose([float(row["score"]) for row in found], direct(FIRST, ["K2R", "K2R:A4G"]), atol=2e-5)
    assert run(source, "--offset", 23) == 0
    assert rows(tmp_path / "out.csv")[0]["mutant"] == "M24A"
    with pytest.raises(InputError, match="offset is too large"):
        renumbered("A3G", -5)


@pytest.mark.parametrize(
    "content, why",
    [
        ("K2R\nT4G\n", "list.txt, line 2: T4G does not fit the wild type, which has A at position 4"),
        ("K2R\n\nK99R\n", "list.txt, line 3: K99R lies beyond the wild type, which has 8 residues"),
        ("# x\nK2B\n", "list.txt, line 2: variant 'K2B': 'K2B' is not a substitution"),
        ("K2*\n", "list.txt, line 1: variant 'K2*' holds a stop"),
        ("K2K\n", "list.txt, line 1: variant 'K2K': K2K changes nothing"),
        ("mutant,protein\nK2R,one\nK2R,onne\n", "list.txt, line 3: there is no protein 'onne'"),
        ("mutant,protein\nK2R\n", "list.txt, line 2: 1 values under 2 columns"),
        ("variant,score\nK2R,1\n", "list.txt, line 1: no column is called mutant, only variant, score"),
        ("# only a comment\n", "list.txt holds no variant"),
        ("mutant,protein\n", "list.txt holds a header and no variant"),
    ],
)
def test_a_wrong_line_is_named(content: str, why: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_fasta(tmp_path / "in.fasta", [("one", FIRST)])
    (tmp_path / "list.txt").write_text(content)
    assert run(source, "--mutations", tmp_path / "list.txt") == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_what_does_not_go_together(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_fasta(tmp_path / "in.fasta", [("one", FIRST), ("two", SECOND)])
    (tmp_path / "list.txt").write_text("K2R\n")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--mutations", tmp_path / "list.txt"), "which of the 2 proteins"),
        (("--mutations", tmp_path / "list.txt", "--all"), "both given"),
        (("--mutations", tmp_path / "none.txt"), "none.txt"),
        (("--method", "likelihood"), "left to right"),
        (("--heatmap", tmp_path / "map.jpg"), "must end in .png or .svg"),
    ]
    for more, why in cases:
        assert run(source, *more) == 2
        assert why in capsys.readouterr().err
    assert not list(tmp_path.glob("*out.csv*")), "nothing is left behind"


def test_a_model_without_a_mask(run: Run, tmp_path: Path) -> None:
    source, path = write_fasta(tmp_path / "in.fasta", [("one", FIRST)]), tmp_path / "unirep.safetensors"
    checkpoints.save(tiny_unirep(), path)
    assert run(source, weights=str(path)) == 0
    told = json.loads((tmp_path / "out.csv.provenance.json").read_text())
    assert told["method"] == "likelihood"
    model = LanguageModel(Checkpoint(tiny_unirep(), "tiny", "", "", ""), device="cpu", precision="fp32")
    expected = model.variants(FIRST)
    np.testing.assert_allclose([float(r["score"]) for r in rows(tmp_path / "out.csv")], expected.scores, atol=2e-5)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_heat_maps(ending: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    one = write_fasta(tmp_path / "one.fasta", [("one", FIRST)])
    assert run(one, "--heatmap", tmp_path / f"map.{ending}") == 0
    assert (tmp_path / f"map.{ending}").stat().st_size > 3000
    several = write_fasta(tmp_path / "two.fasta", [("a/b", FIRST), ("a_b", "MKTW"), ("long", SECOND * 3)])
    (tmp_path / "list.csv").write_text("mutant,protein\nK2R,a/b\nK2R,a_b\nM1A:S2T,long\n")
    assert run(several, "--heatmap", tmp_path / f"all.{ending}", "--mutations", tmp_path / "list.csv") == 0
    assert sorted(path.name for path in tmp_path.glob(f"all.*{ending}")) == [f"all.a_b.2.{ending}", f"all.a_b.{ending}"]
    assert "no heat map of long: only multiple mutants" in capsys.readouterr().err


def test_the_picture_shows_the_scores(run: Run, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    source = write_fasta(tmp_path / "in.fasta", [("one", FIRST)])
    pictures = []
    for method in ("masked-marginals", "masked-marginals", "wt-marginals"):
        assert run(source, "--method", method, "--heatmap", tmp_path / "map.png") == 0
        pictures.append(image.imread(tmp_path / "map.png"))
    assert np.array_equal(pictures[0], pictures[1]) and pictures[0].std() > 0.01
    assert pictures[0].shape != pictures[2].shape or not np.array_equal(pictures[0], pictures[2])


def test_python(tmp_path: Path) -> None:
    model = LanguageModel(Checkpoint(tiny_model(), "tiny", "", "", ""), device="cpu", precision="fp32")
    found = model.variants("mktayiak", ["K2R", "K2R:A4G"], method="wt-marginals")
    assert found.mutants == ("K2R", "K2R:A4G") and found.variants.wild_type == FIRST and found.runs == 1
    np.testing.assert_allclose(found.scores, direct(FIRST, ["K2R", "K2R:A4G"], "wt-marginals"), atol=1e-12)
    with pytest.raises(InputError, match="position 3"):
        model.variants(FIRST, ["A3G"])
    with pytest.raises(InputError, match="letter '7'"):
        model.variants("MK7", ["K2R"])


def test_names_of_methods_are_those_of_the_table() -> None:
    assert list(METHODS) == ["auto", *scoring.METHODS]
    assert len(Variants.of(FIRST, all_substitutions(FIRST))) == 19 * 8
