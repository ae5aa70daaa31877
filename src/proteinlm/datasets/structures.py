"""Structure files of one's own: PDB, mmCIF and binary mmCIF to residues, C-beta coordinates and secondary structure.

In: a file, plain or compressed with gzip. Out: a record for each protein chain of its first model. Reading is biotite's
(`pip install "proteinlm[structures]"`). What is given: the residues that have coordinates, not those of SEQRES.
Secondary structure is given only if asked for, by one of two methods that must not be mixed up:

- `dssp`: DSSP's eight states from hydrogen bonds, by the program `mkdssp`, which must be installed; the `P` of DSSP 4
  (polyproline) is read as coil, as everywhere here.
- `p-sea`: three states from CA atoms alone (Labesse et al. 1997), without any program. It agrees with DSSP at most
  residues, not at all of them: use it to look at structures, not as labels to train or score on.
"""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int8

from proteinlm.datasets.chains import contact_map
from proteinlm.datasets.tables import text_of
from proteinlm.errors import InputError

if TYPE_CHECKING:
    from biotite.structure import AtomArray

METHODS = ("dssp", "p-sea")

HOW_TO_GET_DSSP = "`conda install -c conda-forge dssp`, `apt install dssp` or https://github.com/PDB-REDO/dssp"

_OF_P_SEA = {"a": "H", "b": "E", "c": "C"}


@dataclass(frozen=True, eq=False)
class StructureChain:
    """A protein chain of a structure file.

    Attributes:
        id: the chain's name in the file. residues: L letters, of the residues that have coordinates; modified residues
            as the residue that they come from, X where there is none.
        numbers: L residue numbers as in the file, with insertion code. cb: (L, 3) C-beta, CA for glycine, in Å; NaN
            where that atom is missing.
        secondary_structure: L letters, or None. method: which of `METHODS` made them, or None.
    """

    id: str
    residues: str
    numbers: tuple[str, ...]
    cb: Float32[np.ndarray, "L 3"]
    secondary_structure: str | None
    method: str | None

    def contacts(self) -> Int8[np.ndarray, "L L"]:
        """1 where two residues are in contact, 0 where not, -1 where coordinates are missing."""
        return contact_map(self.cb)


def read_structure(path: str | Path, secondary_structure: str | None = None) -> tuple[StructureChain, ...]:
    """The protein chains of a structure file, in the order of the file.

    Args:
        path: `.pdb`, `.ent`, `.cif`, `.mmcif` or `.bcif`, each also with `.gz` (not `.bcif`).
        secondary_structure: None, `dssp` (eight states) or `p-sea` (three states).

    Raises:
        InputError: biotite or `mkdssp` is not installed, the file cannot be read or holds no protein.
    """
    if secondary_structure not in (None, *METHODS):
        raise InputError(f"secondary structure {secondary_structure!r} is unknown; there are {', '.join(METHODS)}")
    if secondary_structure == "dssp" and shutil.which("mkdssp") is None:
        raise InputError(f"DSSP needs the program mkdssp: {HOW_TO_GET_DSSP}; or take p-sea, which is not DSSP")
    path = Path(path)
    atoms = _atoms(path)
    from biotite.structure import filter_amino_acids

    atoms = atoms[filter_amino_acids(atoms)]
    if not len(atoms):
        raise InputError(f"{path.name} holds no protein; give a structure with amino acids")
    names = list(dict.fromkeys(atoms.chain_id.tolist()))
    return tuple(_chain(atoms[atoms.chain_id == name], name, secondary_structure) for name in names)


def _atoms(path: Path) -> "AtomArray":
    """The atoms of the first model, of every atom the first alternative."""
    try:
        from biotite import DeserializationError, InvalidFileError
        from biotite.structure import BadStructureError
        from biotite.structure.io import pdb, pdbx
    except ImportError as error:
        raise InputError('reading structures needs biotite: pip install "proteinlm[structures]"') from error
    readers: dict[str, Callable[[], Any]] = {
        ".pdb": lambda: pdb.PDBFile.read(text_of(path)).get_structure(model=1),
        ".cif": lambda: pdbx.get_structure(pdbx.CIFFile.read(text_of(path)), model=1),
        ".bcif": lambda: pdbx.get_structure(pdbx.BinaryCIFFile.read(io.BytesIO(_bytes(path))), model=1),
    }
    kinds = {".ent": ".pdb", ".mmcif": ".cif"}
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    reader = readers.get(kinds.get(suffix, suffix))
    if reader is None:
        raise InputError(f"{path.name}: the kind of file {suffix!r} is unknown; give .pdb, .ent, .cif, .mmcif or .bcif")
    try:
        return reader()
    except InputError:
        raise
    except (DeserializationError, InvalidFileError, BadStructureError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path.name} cannot be read as a structure ({error}); get the file again") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot open {str(path)!r}: {error.strerror}; give the path of a readable file") from error


def _chain(atoms: "AtomArray", name: str, method: str | None) -> StructureChain:
    from biotite.structure import get_residue_starts

    starts = get_residue_starts(atoms, add_exclusive_stop=True)
    spans = [atoms[begin:end] for begin, end in pairwise(starts)]
    return StructureChain(
        id=name,
        residues="".join(_letter(str(residue.res_name[0])) for residue in spans),
        numbers=tuple(f"{residue.res_id[0]}{residue.ins_code[0]}" for residue in spans),
        cb=np.array([_representative(residue) for residue in spans], np.float32),
        secondary_structure=None if method is None else _states(atoms, method, len(spans)),
        method=method,
    )


def _letter(residue_name: str) -> str:
    from biotite.structure.info import one_letter_code

    return one_letter_code(residue_name) or "X"


def _representative(residue: "AtomArray") -> np.ndarray:
    """C-beta, CA of glycine; NaN where it is missing."""
    atom = residue[residue.atom_name == ("CA" if residue.res_name[0] == "GLY" else "CB")]
    return atom.coord[0] if len(atom) else np.full(3, np.nan)


def _states(atoms: "AtomArray", method: str, length: int) -> str:
    if method == "p-sea":
        from biotite.structure import annotate_sse

        found = "".join(_OF_P_SEA.get(state, "C") for state in annotate_sse(atoms))
    else:
        from biotite.application.dssp import DsspApp

        found = "".join(DsspApp.annotate_sse(atoms)).replace("P", "C")
    if len(found) != length:
        raise InputError(
            f"{method} gives {len(found)} states for {length} residues of chain {atoms.chain_id[0]}; residues without "
            "a whole backbone have none: remove them"
        )
    return found
