"""Sets as their authors distribute them: read right, and refused with the file and what is wrong."""

from pathlib import Path

import numpy as np
import pytest
from datasets_tools import write_text

from proteinlm.datasets.published import (
    NPZ_CHANNELS,
    NPZ_EVALUATED,
    NPZ_IN_SEQUENCE,
    NPZ_ORDERED,
    read_astral,
    read_deeploc_fasta,
    read_netsurfp_csv,
    read_netsurfp_npz,
    read_proteingym,
)
from proteinlm.datasets.secondary_structure import SS8
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import STANDARD

# ProtTrans' files have a blank in front of all column names but the first.
CSV_HEADER = "input, dssp3, dssp8, disorder, cb513_mask"


def test_astral(tmp_path: Path) -> None:
    path = write_text(
        tmp_path / "astral-40.fa.gz",
        [">d1dlwa_ a.1.1.1 (A:) Protein hemoglobin {Paramecium}", "slfeq", "lgx", ">e1a0h.1a g.14.1.1 (A:) x", "mk"],
    )
    first, second = read_astral(path)
    assert (first.id, first.superfamily, first.residues, first.source) == (
        "d1dlwa_",
        "a.1.1",
        "SLFEQLGX",
        "astral-40.fa.gz",
    )
    assert (second.id, second.fold, second.tape_split) == ("e1a0h.1a", "g.14", None)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([">d1dlwa_", "mk"], "must begin with a domain and its class"),
        ([">d1dlwa_ a.1.1 x", "mk"], "must begin with a domain and its class"),
        ([">d1dlwa_ a.1.1.1 x", "m-"], "d1dlwa_ has '-'"),
        ([">d1dlwa_ a.1.1.1 x"], "has no residues"),
        ([">d a.1.1.1", "mk", ">d a.1.1.1", "mk"], "id 'd' stands there twice"),
        (["mk"], "before the first '>'"),
        ([">", "mk"], "without a header"),
        ([""], "has no records"),
    ],
)
def test_astral_refusals(tmp_path: Path, lines: list[str], why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_astral(write_text(tmp_path / "a.fa", lines))


def test_deeploc(tmp_path: Path) -> None:
    lines = [">Q9H400 Cell.membrane-M test", "MK", "T", ">P1 Cytoplasm-Nucleus-U", "MX", ">P2 Lysosome/Vacuole-S", "MA"]
    found = read_deeploc_fasta(write_text(tmp_path / "deeploc_data.fasta", lines))
    assert [(protein.id, protein.split, protein.location, protein.membrane) for protein in found] == [
        ("Q9H400", "test", "Cell.membrane", "M"),
        ("P1", "train", "Cytoplasm-Nucleus", "U"),
        ("P2", "train", "Lysosome/Vacuole", "S"),
    ]
    assert [protein.location_class for protein in found] == [0, None, 4]
    assert found[0].residues == "MKT"


@pytest.mark.parametrize("header", ["P1", "P1 Cytoplasm", "P1 Nowhere-M", "P1 Cytoplasm-X", "P1 Cytoplasm-M valid"])
def test_deeploc_refusals(tmp_path: Path, header: str) -> None:
    with pytest.raises(InputError, match="must be like '>Q9H400"):
        read_deeploc_fasta(write_text(tmp_path / "a.fasta", [">" + header, "MK"]))


def test_netsurfp_csv(tmp_path: Path) -> None:
    row = "M K T V,C H E C,S G B C,1.0 0.0 1.0 1.0,1.0 1.0 0 1"
    (chain,) = read_netsurfp_csv(write_text(tmp_path / "CB513_HHblits.csv", [CSV_HEADER, row]), "test")
    assert (chain.id, chain.split, chain.residues) == ("CB513_HHblits 1", "test", "MKTV")
    assert (chain.ss3, chain.ss8, chain.mask) == ("CHEC", "SGBC", "1001")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("M K,C H,S,1 1,1 1", "dssp8 has 1 labels for 2"),
        ("M K,C H,S G,1,1 1", "disorder must have 0 or 1 for each of 2 residues; it has 1"),
        ("M K,C H,S G,1 1,1 0.5", "cb513_mask must have 0 or 1"),
        ("M J1,C H,S G,1 1,1 1", "disorder must"),
        ("M 1,C H,S G,1 1,1 1", "input has '1' at position 2"),
        ("M K,C H,S G,1 1", "4 values for 5 columns"),
    ],
)
def test_netsurfp_csv_refusals(tmp_path: Path, row: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_netsurfp_csv(write_text(tmp_path / "a.csv", [CSV_HEADER, row]), "train")


def npz_chain(residues: str, ss8: str, ordered: str, evaluated: str, length: int) -> np.ndarray:
    """The features of a chain as NetSurfP stores them, written out one by one."""
    data = np.zeros((length, NPZ_CHANNELS), np.float32)
    for index, letter in enumerate(residues):
        data[index, NPZ_IN_SEQUENCE] = 1
        if letter in STANDARD:
            data[index, STANDARD.index(letter)] = 1
        if ss8[index] in SS8:
            data[index, 57 + SS8.index(ss8[index])] = 1
        data[index, NPZ_ORDERED] = int(ordered[index])
        data[index, NPZ_EVALUATED] = int(evaluated[index])
    return data


def test_netsurfp_npz(tmp_path: Path) -> None:
    data = np.stack([npz_chain("MKXV", "GEC.", "1111", "1101", 6), npz_chain("WY", "SI", "01", "11", 6)])
    path = tmp_path / "Train_HHblits.npz"
    np.savez(path, pdbids=np.array(["1abc-A", "2abc-B"]), data=data)
    first, second = read_netsurfp_npz(path, "train")
    assert (first.id, first.residues, first.ss8, first.ss3, first.mask) == ("1abc-A", "MKXV", "GEC.", "HECC", "1100")
    assert (second.residues, second.ss8, second.ss3, second.mask) == ("WY", "SI", "CH", "01")
    assert first.ss3_classes().tolist() == [0, 1, -1, -1]
    for change, why in (
        ({"pdbids": np.array(["a", "a"])}, "'a' stands there twice"),
        ({"pdbids": np.array(["a"])}, r"data has shape \(2, 6, 68\)"),
        ({"data": data[:, :, :57]}, r"data has shape \(2, 6, 57\)"),
        ({"data": data * 0}, "chain 1abc-A has no residues"),
    ):
        np.savez(path, **({"pdbids": np.array(["1abc-A", "2abc-B"]), "data": data} | change))
        with pytest.raises(InputError, match=why):
            read_netsurfp_npz(path, "train")
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="cannot be read as NetSurfP's data"):
        read_netsurfp_npz(path, "train")


def test_proteingym(tmp_path: Path) -> None:
    rows = ["mutant,mutated_sequence,DMS_score,DMS_score_bin", "K2R:A4G,MRTG,-0.5,0", '"M1A","AKTA",1.5,1']
    assay = read_proteingym(write_text(tmp_path / "TOY_2020.csv", rows))
    assert (assay.name, assay.wild_type, assay.mutants) == ("TOY_2020", "MKTA", ("K2R:A4G", "M1A"))
    assert {name: values.tolist() for name, values in assay.scores.items()} == {
        "DMS_score": [-0.5, 1.5],
        "DMS_score_bin": [0, 1],
    }
    plain = write_text(tmp_path / "b.csv", ["mutant,mutated_sequence,DMS_score", "K2R,MRTA,1"])
    assert list(read_proteingym(plain, "MKTA").scores) == ["DMS_score"]
    with pytest.raises(InputError, match="is no CSV file"):
        read_proteingym(write_text(tmp_path / "c.csv", ["mutant,mutated_sequence,DMS_score", '"K2R,MRTA,1']))
    with pytest.raises(InputError, match=r"cannot open .*give the path of a readable file"):
        read_proteingym(tmp_path / "absent.csv")
    with pytest.raises(InputError, match=r"line 2: K2R does not fit the wild type, which has V"):
        read_proteingym(plain, "MVTA")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("K2R,MKTA,1", "K2R is not what mutated_sequence has at position 2"),
        ("K9R,MRTA,1", "K9R is not what"),
        ("T3A,MKTA,1", "T3A of the wild type does not give"),
        ("M1A,AKTA,high", "DMS_score is 'high'"),
        ("M1A,AKTA,1\nM1A,AKTA,1", "line 4: variant M1A stands there twice"),
        ("del2,MTA,1", "'del2' is not a substitution"),
    ],
)
def test_proteingym_refusals(tmp_path: Path, row: str, why: str) -> None:
    first = [] if row.startswith("K") else ["K2R,MRTA,0"]
    with pytest.raises(InputError, match=why):
        read_proteingym(write_text(tmp_path / "a.csv", ["mutant,mutated_sequence,DMS_score", *first, *row.split("\n")]))
    with pytest.raises(InputError, match="has no rows"):
        read_proteingym(write_text(tmp_path / "b.csv", ["mutant,mutated_sequence,DMS_score"]))
