"""Alignments in every format, residue by column; conservation, orthologs, kingdoms and enzymes."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from datasets_tools import write_archive, write_table, write_text

from proteinlm.datasets.alignments import (
    Alignment,
    aligned,
    read_a3m,
    read_balifam,
    read_chain_alignments,
    read_example_alignments,
    read_pfam,
    read_stockholm,
)
from proteinlm.datasets.annotations import read_enzymes, read_kingdoms, read_orthologs
from proteinlm.datasets.chains import PdbChain
from proteinlm.datasets.conservation import read_conservation
from proteinlm.datasets.sources import SOURCES
from proteinlm.errors import InputError

STOCKHOLM = """# STOCKHOLM 1.0
#=GF ID   Toy
#=GF AC   PF99999.1
#=GS a/1-4 AC P12345
a/1-4          MK.V
b/1-5          M-aV
#=GC SS_cons   HHHH

a/1-4          -TW
b/1-5          ATW
//
# STOCKHOLM 1.0
c MK
d MR
//
"""


def chain(name: str, residues: str) -> PdbChain:
    return PdbChain(name, 1, residues, "C" * len(residues), None, None, None, None, None, ())


def test_residue_of_column_against_the_plain_way() -> None:
    generator = np.random.default_rng(3)
    rows = []
    for _ in range(50):
        gaps = generator.random(20) < 0.3
        row = ""
        for column in range(20):
            row += "".join(generator.choice(list("acd"), generator.integers(0, 3)))
            row += "-" if gaps[column] else str(generator.choice(list("ACDWY")))
        rows.append(row)
    alignment = aligned("toy", ["x"] * 50, rows)
    assert alignment.num_columns == 20 and alignment.matrix().shape == (50, 20)
    compared = 0
    for number, row in enumerate(rows):
        residues, columns = alignment.residues(number), alignment.residue_of_column(number)
        assert residues == row.replace("-", "").upper()
        column = residue = 0
        for letter in row:
            if letter == "-":
                assert columns[column] == -1
                column += 1
            elif letter.isupper():
                assert columns[column] == residue and residues[residue] == letter
                assert chr(alignment.matrix()[number, column]) == letter
                column, residue = column + 1, residue + 1
                compared += 1
            else:
                residue += 1
    assert compared > 500


def test_a2m_and_a3m_are_one_alignment(tmp_path: Path) -> None:
    a3m = write_text(tmp_path / "toy.a3m", [">q", "MKT", "A", ">h x y", "M-vvT", "A", ">"])
    with pytest.raises(InputError, match=r"row 3 \(\) has 0 match columns, the first row has 4"):
        read_a3m(a3m)
    write_text(a3m, [">q", "MKTA", ">h x y", "M-vvT", "A"])
    a2m = write_text(tmp_path / "toy.a2m.gz", [">q", "MK..TA", ">h x y", "M-vvTA"])
    plain = write_text(tmp_path / "toy.fasta", [">q", "MK.TA", ">h", "M-VTA"])
    assert read_a3m(a3m) == read_a3m(a2m) == Alignment("toy", ("q", "h"), ("MKTA", "M-vvTA"))
    assert read_a3m(plain).rows == ("MK-TA", "M-VTA"), "without lower case a point is a gap like any other"


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([">q"], "no match columns"),
        (["MK", ">q"], "stands before the first '>'"),
        ([""], "no aligned sequences"),
        ([">q", "MK", ">r", "MKT"], r"row 2 \(r\) has 3 match columns, the first row has 2"),
        ([">q", "M1"], r"row 1 \(q\) has '1'"),
    ],
)
def test_alignments_that_cannot_be_used(tmp_path: Path, lines: list[str], why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_a3m(write_text(tmp_path / "toy.a3m", lines))


def test_stockholm(tmp_path: Path) -> None:
    first, second = read_stockholm(write_text(tmp_path / "toy.sto.gz", STOCKHOLM.splitlines()))
    assert first == Alignment("PF99999.1", ("a/1-4", "b/1-5"), ("MKV-TW", "M-aVATW"))
    assert second.rows == ("MK", "MR") and second.id == "toy.sto.gz 2"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("# STOCKHOLM 1.0\na MK\n", "ends within an alignment"),
        ("a MK\n//\n", "is no line of a Stockholm file"),
        ("# STOCKHOLM 1.0\na M K\n//\n", "is no line of a Stockholm file"),
        ("# STOCKHOLM 1.0\n//\n", "holds no aligned sequences"),
    ],
)
def test_stockholm_refusals(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "toy.sto"
    path.write_text(text)
    with pytest.raises(InputError, match=why):
        list(read_stockholm(path))


def test_alignments_of_chains(tmp_path: Path) -> None:
    path = write_archive(tmp_path / SOURCES["chain_alignments"].path, {"1ABC_A.a3m": ">1ABC_A\nMKT\n>h\nM-T\n"})
    found = read_chain_alignments(tmp_path, [chain("1ABC_A", "MKT")])
    assert found["1ABC_A"].rows == ("MKT", "M-T")
    for chains in ([chain("1ABC_A", "MKV")], [chain("2ABC_A", "MKT")]):
        with pytest.raises(InputError, match="the first row of 1ABC_A is not that chain"):
            read_chain_alignments(tmp_path, chains)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="damaged"):
        read_chain_alignments(tmp_path)


def test_balifam(tmp_path: Path) -> None:
    path = tmp_path / SOURCES["balifam"].path
    good = {
        "balifam100/in/PF00001.100": ">a\nMKT\n>b\nMVT\n>c\nWW\n",
        "balifam100/ref/PF00001.100": ">a\nMkT\n>b\nMvT\n",
        "balifam1000/in/PF00001.1000": ">a\nMKT\n",
        "balifam1000/ref/PF00001.1000": ">a\nMKT\n",
    }
    write_archive(path, good)
    (family,) = read_balifam(tmp_path)
    assert family.id == "PF00001" and [homolog.residues for homolog in family.homologs] == ["MKT", "MVT", "WW"]
    assert family.reference.num_columns == 2 and family.reference.residues(1) == "MVT"
    assert len(read_balifam(tmp_path, 1000)[0].homologs) == 1
    with pytest.raises(InputError, match="0 references and 0 sets of homologs of size 10"):
        read_balifam(tmp_path, 10)
    write_archive(path, good | {"balifam100/ref/PF00001.100": ">a\nMKV\n"})
    with pytest.raises(InputError, match="a of PF00001's reference is not among its homologs"):
        read_balifam(tmp_path)


def test_pfam_and_examples(tmp_path: Path) -> None:
    path = tmp_path / SOURCES["pfam"].path
    fasta = gzip.compress(b">a\nMK-\n>b\nMVT\n")
    write_archive(path, {"pfam/PF1_x.fasta.gz": fasta, "pfam/PF1_struct.dat": "1.0 3.0 0.5 7.25\n2.0 3.0 0.1 3.5\n"})
    (family,) = read_pfam(tmp_path)
    assert family.pairs.tolist() == [[0, 2], [1, 2]] and family.distances.tolist() == [7.25, 3.5]
    for table, why in (
        ("1 4 0 1\n", "do not fit its 3 columns"),
        ("1 2 3\n", "four numbers"),
        ("a b c d\n", "convert"),
    ):
        write_archive(path, {"pfam/PF1_x.fasta.gz": fasta, "pfam/PF1_struct.dat": table})
        with pytest.raises(InputError, match=why):
            read_pfam(tmp_path)
    write_archive(path, {"pfam/PF1_x.fasta.gz": fasta[:-9]})
    with pytest.raises(InputError, match="damaged"):
        read_pfam(tmp_path)
    write_archive(tmp_path / SOURCES["example_alignments"].path, {"x/a.a3m": ">\nMK\n>\nMV\n"})
    assert read_example_alignments(tmp_path) == {"a.a3m": Alignment("a.a3m", ("", ""), ("MK", "MV"))}


def test_conservation(tmp_path: Path) -> None:
    columns = "chain split sequence conservation_1_9"
    write_table(tmp_path, "conservation", columns, [["a", "train", "MKT", "195"], ["b", "val", "M", "3"]])
    assert [list(item.classes()) for item in read_conservation(tmp_path)] == [[0, 8, 4], [2]]
    for row, why in (
        (["a", "train", "MKT", "190"], "'0' at position 3"),
        (["a", "train", "MKT", "19"], "2 labels for 3"),
        (["a", "all", "MKT", "195"], "split is 'all'"),
        (["a", "train", "M", "1"], "a is a training chain, and its sequence is held out too"),
    ):
        write_table(tmp_path, "conservation", columns, [["b", "val", "M", "3"], row])
        with pytest.raises(InputError, match=why):
            read_conservation(tmp_path)


def test_orthologs_kingdoms_enzymes(tmp_path: Path) -> None:
    write_table(tmp_path, "orthobench", "refog species id sequence", [["R1", "Mus_musculus", "m1", "MKT"]])
    (ortholog,) = read_orthologs(tmp_path)
    assert (ortholog.id, ortholog.group, ortholog.species, ortholog.residues) == ("m1", "R1", "Mus_musculus", "MKT")
    columns = "id kingdom ec source sequence"
    rows = [
        ["a", "Archaea", "3.1.-.-", "x", "MK"],
        ["b", "Viruses", "", "x", "MK"],
        ["c", "Bacteria", "2.3.1", "x", "M"],
    ]
    write_table(tmp_path, "kingdom", columns, rows)
    proteins = read_kingdoms(tmp_path)
    assert [(protein.kingdom_class, protein.enzyme_class) for protein in proteins] == [(0, 2), (3, None), (1, 1)]
    write_table(tmp_path, "swissprot_ec", "accession ec_numbers", [["P1", "1.1.1.27;3.4.21.n1"]])
    assert read_enzymes(tmp_path)[0].ec_numbers == ("1.1.1.27", "3.4.21.n1")
    for row, why in (
        (["a", "Fungi", "", "x", "MK"], "kingdom is 'Fungi'"),
        (["a", "Archaea", "8.1", "x", "MK"], "EC number"),
    ):
        write_table(tmp_path, "kingdom", columns, [row])
        with pytest.raises(InputError, match=why):
            read_kingdoms(tmp_path)
    write_table(tmp_path, "swissprot_ec", "accession ec_numbers", [["P1", "1.1.1.27;"]])
    with pytest.raises(InputError, match="EC number ''"):
        read_enzymes(tmp_path)
