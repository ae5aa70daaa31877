"""Structure files: residues, C-beta coordinates and secondary structure of structures that the tests build."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("biotite", reason="biotite is not installed (extra `structures`)")

import biotite.structure as struc
from biotite.structure.io import pdb, pdbx

from proteinlm.datasets.structures import read_structure
from proteinlm.errors import InputError

NAMES = ["MET", "GLY", "MSE", "ALA", "TRP", "LYS", "GLU", "LEU", "ALA", "VAL"] * 2
RESIDUES = "MGMAWKELAV" * 2


ATOMS = ("N", "CA", "C", "O", "CB")


def ideal_helix(length: int) -> np.ndarray:
    """Atoms of an ideal alpha helix: 100 degrees and 1.5 Å a residue, radius, phase and rise of each atom."""
    geometry = ((1.55, -0.489, -0.85), (2.28, 0.0, 0.0), (1.68, 0.458, 1.06), (2.02, 0.45, 2.25), (3.29, -0.325, -0.95))
    atoms = []
    for radius, phase, rise in geometry:
        angle = np.arange(length) * np.deg2rad(100) + phase
        atoms.append(np.stack([radius * np.cos(angle), radius * np.sin(angle), np.arange(length) * 1.5 + rise], axis=1))
    return np.stack(atoms, axis=1)


def structure() -> struc.AtomArray:
    """Chain A of 20 residues with one modified residue and one missing C-beta, chain B of 6, and water."""
    made = []
    for chain, names, shift in (("A", NAMES, 0.0), ("B", NAMES[:6], 40.0)):
        for number, (name, points) in enumerate(zip(names, ideal_helix(len(names)), strict=True), 11):
            for atom, point in zip(ATOMS, points, strict=True):
                if atom == "CB" and (name == "GLY" or (chain == "A" and number == 15)):
                    continue
                made.append(
                    struc.Atom(
                        point + shift,
                        chain_id=chain,
                        res_id=number,
                        res_name=name,
                        atom_name=atom,
                        element=atom[0],
                        hetero=name == "MSE",
                    )
                )
    made.append(
        struc.Atom([90, 90, 90], chain_id="A", res_id=99, res_name="HOH", atom_name="O", element="O", hetero=True)
    )
    return struc.array(made)


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"toy{suffix}"
    if suffix == ".pdb":
        file = pdb.PDBFile()
        file.set_structure(structure())
    else:
        file = pdbx.CIFFile() if suffix == ".cif" else pdbx.BinaryCIFFile()
        pdbx.set_structure(file, structure(), data_block="toy")
    file.write(path)
    return path


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".bcif"])
def test_residues_and_coordinates(tmp_path: Path, suffix: str) -> None:
    first, second = read_structure(write(tmp_path, suffix))
    assert (first.id, first.residues, second.id, second.residues) == ("A", RESIDUES, "B", RESIDUES[:6])
    assert first.numbers[0] == "11" and first.numbers[-1] == "30" and first.secondary_structure is None
    expected = ideal_helix(20)[:, 4]
    expected[[1, 11]] = ideal_helix(20)[[1, 11], 1]  # CA of glycine
    expected[4] = np.nan
    assert np.allclose(first.cb, expected, atol=2e-3, equal_nan=True), "PDB files have three decimals"
    contacts = first.contacts()
    assert (contacts[4] == -1).all() and contacts[6, 7] == 1 and contacts[0, 19] == 0
    assert np.allclose(second.cb[0], ideal_helix(6)[0, 4] + 40, atol=2e-3)


def test_secondary_structure_from_ca_atoms(tmp_path: Path) -> None:
    first, _ = read_structure(write(tmp_path, ".cif"), "p-sea")
    assert first.method == "p-sea" and first.secondary_structure is not None
    assert len(first.secondary_structure) == 20 and first.secondary_structure.count("H") >= 16
    assert set(first.secondary_structure) <= set("HEC")


def test_compressed_files(tmp_path: Path) -> None:
    packed = tmp_path / "toy.ent.gz"
    packed.write_bytes(gzip.compress(write(tmp_path, ".pdb").read_bytes()))
    assert read_structure(packed)[0].residues == RESIDUES


def test_structures_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write(tmp_path, ".pdb")
    with pytest.raises(InputError, match="secondary structure 'stride' is unknown; there are dssp, p-sea"):
        read_structure(good, "stride")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="needs the program mkdssp"):
        read_structure(good, "dssp")
    with pytest.raises(InputError, match="cannot open"):
        read_structure(tmp_path / "absent.pdb")
    with pytest.raises(InputError, match=r"the kind of file '\.xyz' is unknown"):
        read_structure(tmp_path / "a.xyz")
    for name, text in (
        ("a.cif", "data_x\nloop_\n_atom_site.id\n"),
        ("a.pdb", "HEADER    nothing\nEND\n"),
        ("a.bcif", "x"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=r"cannot be read as a structure|holds no protein"):
            read_structure(tmp_path / name)
    water = pdb.PDBFile()
    water.set_structure(structure()[-1:])
    water.write(tmp_path / "water.pdb")
    with pytest.raises(InputError, match="holds no protein"):
        read_structure(tmp_path / "water.pdb")


@pytest.mark.skipif(shutil.which("mkdssp") is None, reason="the program mkdssp is not installed")
def test_dssp(tmp_path: Path) -> None:
    first, _ = read_structure(write(tmp_path, ".cif"), "dssp")
    assert first.secondary_structure is not None and len(first.secondary_structure) == 20
    assert first.secondary_structure[2:-2] == "H" * 16 and first.method == "dssp"
