"""Labelled sets: what is wrong in a table is told with file and line, a missing file with the way to get it."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from datasets_tools import write_coordinates, write_table, write_text

from proteinlm.cli.data import data
from proteinlm.datasets.chains import contact_map, read_chains, read_coordinates
from proteinlm.datasets.check import CHECKS
from proteinlm.datasets.domains import EXCLUDED_FOLDS, read_cath, read_scop, without_excluded_folds
from proteinlm.datasets.localisation import LOCATIONS, for_q2, for_q10, localisation_splits, read_deeploc
from proteinlm.datasets.secondary_structure import (
    SS3_OF_SS8,
    SS8,
    disagreement,
    read_netsurfp,
    secondary_structure_splits,
    three_states,
)
from proteinlm.datasets.sources import SOURCES, VARIABLE, data_folder, digest, locate, missing
from proteinlm.datasets.tables import read_rows, text_lines
from proteinlm.datasets.variants import read_assay
from proteinlm.errors import InputError

SS_COLUMNS = "chain split sequence ss3 mask ss8"
SCOP_COLUMNS = "sid sccs source tape_split cov_of_domain sequence"
CATH_COLUMNS = "domain cath cluster30 cov_of_domain_range sequence"
CHAIN_COLUMNS = "chain start length cluster30 cath scop_sid scop_sccs ec_class384 ec_number sequence ss8"
DEEPLOC_COLUMNS = "accession split location membrane sequence_source sequence"
GOOD_CHAIN = ["1ABC_A", "1", "3", "1ABC_A", "3.40.50.720", "d1abca_", "c.2.1.3", "7", "1.1.1.1,1.1.1.-", "MKT", "CHH"]
INDEX = ["name\twt_len\tn_variants\tscore_columns\tsource\tnote", "toy\t4\t2\tscore;other\tme\t"]


def changed(row: list[str], **values: str) -> list[str]:
    """A row with some values changed: `c3="x"` changes column 3."""
    return [values.get(f"c{number}", value) for number, value in enumerate(row)]


def write_assay(folder: Path, variants: list[str], index: list[str] = INDEX, wild_type: str = "MKTA") -> Path:
    place = folder / SOURCES["dms"].path
    write_text(place / "index.tsv", index)
    write_text(place / "wildtypes.fasta", [">toy", wild_type[:2], wild_type[2:]])
    write_text(place / "toy.tsv.gz", ["mutant\tn_mut\tscore\tother", *variants])
    return folder


def test_missing_file_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, source in SOURCES.items():
        with pytest.raises(InputError, match="missing file") as error:
            locate(tmp_path, key)
        message = str(error.value)
        assert source.path in message and source.how in message and str(tmp_path) in message and "\n" not in message
    assert set(missing(tmp_path)) == set(SOURCES) and len(SOURCES) == 17
    (tmp_path / "dms").mkdir()
    assert "dms" not in missing(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(InputError, match="--data FOLDER"):
        data_folder()
    with pytest.raises(InputError, match="not a folder"):
        data_folder(tmp_path / "nowhere")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert data_folder() == tmp_path and data_folder(tmp_path / "dms") == tmp_path / "dms"


def test_data_command(tmp_path: Path) -> None:
    write_table(tmp_path, "scop", SCOP_COLUMNS, [["d1", "c.2.1.3", "x", "", "1.0", "MKT"]])
    write_table(tmp_path, "cath", CATH_COLUMNS, [["1abcA00", "3.40.50", "1ABC_A", "1.0", "MK"]])
    plain = CliRunner().invoke(data, ["--data", str(tmp_path)], catch_exceptions=False)
    lines = dict(line.split(None, 1) for line in plain.output.splitlines())
    assert list(lines) == list(SOURCES) and set(SOURCES) == set(CHECKS) and plain.exit_code == 0
    assert lines["scop"].startswith("2,225 domains") and lines["dms"].startswith("missing file: dms in")
    checked = CliRunner().invoke(data, ["--data", str(tmp_path), "--check"], catch_exceptions=False)
    lines = dict(line.split(None, 1) for line in checked.output.splitlines())
    assert lines["scop"] == "1 domains, 3 residues; 0 without the excluded folds"
    assert lines["cath"].startswith("cannot be used: cath_chains.tsv.gz, line 2: cath is '3.40.50'")
    assert checked.exit_code == 1


def test_digest_depends_on_every_byte(tmp_path: Path) -> None:
    one, two = write_text(tmp_path / "d" / "a", ["x"]), write_text(tmp_path / "d" / "b", ["y"])
    before = digest(tmp_path / "d")
    assert digest(one) != digest(two) and len(before) == 64
    two.rename(tmp_path / "d" / "c")
    assert digest(tmp_path / "d") != before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b\x08\x00\x00\x00", "damaged"),
        (b"a\tb\n\xff\xfe\xfd\t1\n", "not UTF-8"),
        (b"a\tb\n1\n", "line 2: 1 values for 2 columns"),
        (b"a\tc\n1\t2\n", "has no column b"),
        (b"a\tb\ta\n1\t2\t3\n", "names a column twice"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "table.tsv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=why):
        list(read_rows(path, ("a", "b")))


def test_lines_of_every_kind_of_file(tmp_path: Path) -> None:
    plain, packed = write_text(tmp_path / "a.txt", ["x", "", "y"]), write_text(tmp_path / "a.gz", ["x", "", "y"])
    dos = tmp_path / "dos.txt"
    dos.write_bytes(b"x\r\n\r\ny")
    assert list(text_lines(plain)) == list(text_lines(packed)) == list(text_lines(dos)) == ["x", "", "y"]


def test_secondary_structure(tmp_path: Path) -> None:
    rows = [["a", "train", "MKT", "HEC", "110", "GB."], ["b", "val", "MKV", "CCC", "111", "STC"]]
    write_table(tmp_path, "netsurfp", SS_COLUMNS, [*rows, ["c", "train", "MXU", "CCC", "111", "CCC"]])
    write_table(tmp_path, "cb513", SS_COLUMNS, [["CB513_0", "CB513", "MXU", "CCC", "111", "CCC"]])
    first = read_netsurfp(tmp_path)[0]
    assert (first.id, first.split, first.residues) == ("a", "train", "MKT")
    assert first.ss3_classes().tolist() == [0, 1, -1] and first.ss8_classes().tolist() == [0, 3, -1]
    splits = secondary_structure_splits(tmp_path)
    names = [[chain.id for chain in part] for part in (splits.train, splits.validation, splits.test, splits.removed)]
    assert names == [["a"], ["b"], ["CB513_0"], ["c"]], "the chain that CB513 holds too is left out and listed"
    assert three_states(SS8) == "".join(SS3_OF_SS8[letter] for letter in SS8) == "HHHEECCC"
    assert disagreement(read_netsurfp(tmp_path)) == (0, 8)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (["a", "test", "MKT", "HEC", "111", "HEC"], "line 3: split is 'test'"),
        (["a", "train", "", "HEC", "111", "HEC"], "line 3: column 'sequence' is empty"),
        (["a", "train", "MkT", "HEC", "111", "HEC"], "sequence has 'k' at position 2"),
        (["a", "train", "MKT", "HE", "111", "HEC"], "ss3 has 2 labels for 3 residues"),
        (["a", "train", "MKT", "HEX", "111", "HEC"], "ss3 has 'X' at position 3"),
        (["a", "train", "MKT", "HEC", "112", "HEC"], "mask has '2' at position 3"),
        (["a", "train", "MKT", "HEC", "111", "HE-"], "ss8 has '-' at position 3"),
        (["good", "train", "MKT", "HEC", "111", "HEC"], "'good' stands on line 2 already"),
        (["a", "train", "MKT", "EHH", "111", "HEC"], "ss3 is not that of ss8 at 3 of 6"),
    ],
)
def test_secondary_structure_refusals(tmp_path: Path, row: list[str], why: str) -> None:
    write_table(tmp_path, "netsurfp", SS_COLUMNS, [["good", "train", "MKT", "HEC", "111", "HEC"], row])
    with pytest.raises(InputError, match=why):
        read_netsurfp(tmp_path)


def test_training_and_validation_may_not_overlap(tmp_path: Path) -> None:
    rows = [["a", "train", "MKT", "HEC", "111", "HEC"], ["b", "val", "MKT", "HEC", "111", "HEC"]]
    write_table(tmp_path, "netsurfp", SS_COLUMNS, rows)
    write_table(tmp_path, "cb513", SS_COLUMNS, [["CB513_0", "CB513", "MV", "CC", "11", "CC"]])
    with pytest.raises(InputError, match="in the validation set too"):
        secondary_structure_splits(tmp_path)
    with pytest.raises(InputError, match="none of the eight states"):
        three_states("HQ")


def test_domains(tmp_path: Path) -> None:
    scop = [["d1", "c.2.1.3", "x", "training", "1.0", "MKT"], ["d2", "a.1.1.2", "x", "", "0.9", "MK"]]
    write_table(tmp_path, "scop", SCOP_COLUMNS, scop)
    write_table(tmp_path, "cath", CATH_COLUMNS, [["1abcA00", "3.40.50.720", "1ABC_A", "1.01", "MKV"]])
    first, second = read_scop(tmp_path)
    assert (first.fold, first.superfamily, first.family, first.tape_split) == ("c.2", "c.2.1", "c.2.1.3", "training")
    assert second.tape_split is None and without_excluded_folds([first, second]) == (second,)
    assert len(EXCLUDED_FOLDS) == 13
    (domain,) = read_cath(tmp_path)
    assert (domain.fold, domain.superfamily, domain.family) == ("3.40.50", "3.40.50.720", "3.40.50.720/1ABC_A")


@pytest.mark.parametrize(
    ("key", "columns", "row", "why"),
    [
        ("scop", SCOP_COLUMNS, ["d1", "c.2.1", "x", "", "1.0", "MKT"], "class.fold.superfamily.family"),
        ("scop", SCOP_COLUMNS, ["d1", "c.2.1.3", "x", "tests", "1.0", "MKT"], "tape_split is 'tests'"),
        ("scop", SCOP_COLUMNS, ["d1", "c.2.1.3", "x", "", "much", "MKT"], "cov_of_domain is 'much'; it must be a num"),
        ("scop", SCOP_COLUMNS, ["d1", "c.2.1.3", "x", "", "inf", "MKT"], "must be finite"),
        ("cath", CATH_COLUMNS, ["1abcA00", "3.40.50", "1ABC_A", "1.0", "MK"], "cath is '3.40.50'"),
        ("cath", CATH_COLUMNS, ["1abcA00", "3.40.50.720", "", "1.0", "MK"], "'cluster30' is empty"),
    ],
)
def test_domain_refusals(tmp_path: Path, key: str, columns: str, row: list[str], why: str) -> None:
    write_table(tmp_path, key, columns, [row])
    with pytest.raises(InputError, match=why):
        {"scop": read_scop, "cath": read_cath}[key](tmp_path)


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    write_table(tmp_path, "scop", SCOP_COLUMNS, [])
    with pytest.raises(InputError, match="has no rows"):
        read_scop(tmp_path)


def test_chains_and_coordinates(tmp_path: Path) -> None:
    write_table(tmp_path, "chains", CHAIN_COLUMNS, [GOOD_CHAIN, changed(GOOD_CHAIN, c0="2ABC_A", c3="", c4="", c6="")])
    first, second = read_chains(tmp_path)
    assert (
        first.ec_numbers == ("1.1.1.1", "1.1.1.-") and first.ec_class == 7 and first.ss8_classes().tolist() == [7, 1, 1]
    )
    assert first.keys("superfamily") == ("cluster 1ABC_A", "SCOP c.2.1", "CATH 3.40.50.720")
    assert second.cluster is None and second.keys("fold") == ()
    points = np.array([[0.0, 0, 0], [7.98, 0, 0], [8.0, 0, 0]])
    write_coordinates(tmp_path, {"0ABC_A": points[:2] + 1, "1ABC_A": points})
    coordinates = read_coordinates(tmp_path, (first, second))
    assert len(coordinates) == 2 and "1ABC_A" in coordinates and "2ABC_A" not in coordinates
    assert np.allclose(coordinates.of("1ABC_A"), points, atol=1e-5)
    assert coordinates.contacts("1ABC_A").tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    with pytest.raises(InputError, match="no coordinates"):
        coordinates.of("2ABC_A")
    with pytest.raises(InputError, match="has 2 residues of chain 1ABC_A"):
        write_coordinates(tmp_path, {"1ABC_A": points[:2]})
        read_coordinates(tmp_path, (first,))


def test_contact_maps_against_the_plain_loop() -> None:
    points = np.random.default_rng(5).normal(scale=8, size=(40, 3))
    points[7] = np.nan
    found = contact_map(points)
    for i in range(40):
        for j in range(40):
            apart = sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True)) ** 0.5
            assert found[i, j] == (-1 if 7 in (i, j) else int(apart < 8)), (i, j)
    assert (found == 1).sum() > 100 and (found == 0).sum() > 100


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"c2": "4"}, "length is 4, but the sequence has 3"),
        ({"c1": "one"}, "start is 'one'; it must be a whole number"),
        ({"c4": "3.40"}, "cath is '3.40'"),
        ({"c6": "c.2"}, "scop_sccs is 'c.2'"),
        ({"c10": "CH"}, "ss8 has 2 labels for 3"),
        ({"c10": "CH."}, "ss8 has '.' at position 3"),
        ({"c9": "MK-"}, "sequence has '-' at position 3"),
    ],
)
def test_chain_refusals(tmp_path: Path, change: dict[str, str], why: str) -> None:
    write_table(tmp_path, "chains", CHAIN_COLUMNS, [changed(GOOD_CHAIN, **change)])
    with pytest.raises(InputError, match=why):
        read_chains(tmp_path)


def test_coordinate_refusals(tmp_path: Path) -> None:
    path = write_coordinates(tmp_path, {"a": np.zeros((2, 3)), "b": np.zeros((1, 3))})
    good = dict(np.load(path))
    for change, why in (
        ({"ids": np.array(["a", "a"])}, "holds a chain twice"),
        ({"offsets": np.array([0, 2, 4])}, "do not divide 3 residues among 2"),
        ({"xyz": np.zeros((3, 2), np.int16)}, "do not divide"),
    ):
        np.savez(path, **(good | change))
        with pytest.raises(InputError, match=why):
            read_coordinates(tmp_path)
    np.savez(path, ids=good["ids"])
    with pytest.raises(InputError, match="cannot be read"):
        read_coordinates(tmp_path)
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match="cannot be read"):
        read_coordinates(tmp_path)


def test_localisation(tmp_path: Path) -> None:
    rows = [
        ["P1", "train", "Nucleus", "s", "x", "MKT"],
        ["P2", "train", "Extracellular", "?", "x", "MKTA"],
        ["P3", "val", "Cytoplasm-Nucleus", "M", "x", "MKV"],
        ["P4", "val", "Cell.membrane", "U", "x", "MKT"],
        ["P5", "train", "Cell.membrane", "m", "x", "MKW"],
    ]
    write_table(tmp_path, "deeploc", DEEPLOC_COLUMNS, rows)
    splits = localisation_splits(tmp_path)
    assert [protein.id for protein in splits.train] == ["P2", "P5"]
    assert [protein.id for protein in splits.removed] == ["P1"], "its sequence is that of P4"
    proteins = read_deeploc(tmp_path)
    assert [protein.location_class for protein in proteins] == [6, 9, None, 0, 0]
    assert [protein.membrane_class for protein in proteins] == [0, None, 1, None, 1]
    assert [protein.membrane_is_weak for protein in proteins] == [True, False, False, False, True]
    assert [protein.id for protein in for_q10(splits.test)] == ["P4"]
    assert [protein.id for protein in for_q2(splits.test)] == ["P3"]
    assert len(set(LOCATIONS)) == 10


@pytest.mark.parametrize(("column", "value"), [(1, "dev"), (2, "Nucleolus"), (3, "X"), (5, "MK7")])
def test_localisation_refusals(tmp_path: Path, column: int, value: str) -> None:
    row = changed(["P1", "train", "Nucleus", "s", "x", "MKT"], **{f"c{column}": value})
    write_table(tmp_path, "deeploc", DEEPLOC_COLUMNS, [row])
    with pytest.raises(InputError, match=r"deeploc_train_val.tsv.gz, line 2: .*(one of|allowed)"):
        read_deeploc(tmp_path)


def test_assays(tmp_path: Path) -> None:
    write_assay(tmp_path, ["K2R\t1\t0.5\t", "M1A:A4*\t2\t-1\t3"])
    assay = read_assay(tmp_path, "toy")
    assert (assay.wild_type, assay.main_score, len(assay)) == ("MKTA", "score", 2)
    assert assay.scores["score"].tolist() == [0.5, -1] and np.isnan(assay.scores["other"][0])
    assert assay.num_substitutions().tolist() == [1, 2] and str(assay.substitutions()[1][1]) == "A4*"
    assert assay.without_stops().mutants == ("K2R",) and assay.without_stops().scores["score"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ("K3R\t1\t0\t0", "toy.tsv.gz, line 3: K3R does not fit the wild type, which has T"),
        ("A5R\t1\t0\t0", "A5R lies beyond the wild type, which has 4"),
        ("K2\t1\t0\t0", "'K2' is not a substitution"),
        ("K02R\t1\t0\t0", "'K02R' is not a substitution"),
        ("K2X\t1\t0\t0", "'K2X' is not a substitution"),
        ("K2R:K2A\t2\t0\t0", "names a position twice"),
        ("M1A:K2R\t1\t0\t0", "n_mut is 1, but M1A:K2R has 2"),
        ("M1A\t1\t0\t0", "M1A stands on line 2 already"),
        ("K2R\t1\tx\t0", "score is 'x'; it must be a number"),
    ],
)
def test_assay_refusals(tmp_path: Path, second: str, why: str) -> None:
    write_assay(tmp_path, ["M1A\t1\t0\t0", second])
    with pytest.raises(InputError, match=why):
        read_assay(tmp_path, "toy")


def test_assays_that_do_not_fit_their_index(tmp_path: Path) -> None:
    lines = ["M1A\t1\t0\t0"]
    with pytest.raises(InputError, match=r"n_variants is 2, but toy\.tsv\.gz has 1"):
        read_assay(write_assay(tmp_path, lines), "toy")
    with pytest.raises(InputError, match="wt_len is 4, but the wild type has 3"):
        read_assay(write_assay(tmp_path, lines, wild_type="MKT"), "toy")
    with pytest.raises(InputError, match="assay 'other' is unknown; there are toy"):
        read_assay(tmp_path, "other")
    (tmp_path / "dms" / "toy.tsv.gz").unlink()
    write_text(tmp_path / "dms" / "wildtypes.fasta", [">toy", "MKTA"])
    with pytest.raises(InputError, match=r"missing file: toy.tsv.gz"):
        read_assay(tmp_path, "toy")
    write_text(tmp_path / "dms" / "wildtypes.fasta", [">toy", "MKTA", ">toy", "MK"])
    with pytest.raises(InputError, match="holds 'toy' twice"):
        read_assay(tmp_path, "toy")
    write_text(tmp_path / "dms" / "wildtypes.fasta", [">else", "MKTA"])
    with pytest.raises(InputError, match="has no record 'toy'"):
        read_assay(tmp_path, "toy")
    (tmp_path / "dms" / "wildtypes.fasta").unlink()
    with pytest.raises(InputError, match=r"missing file: wildtypes.fasta"):
        read_assay(tmp_path, "toy")
