"""The same sets as their authors give them out: ASTRAL FASTA, NetSurfP-2.0 npz and CSV, DeepLoc FASTA, ProteinGym CSV.

In: one file, compressed or not. Out: the same records that the readers of the data folder give, with the same checks.
Alignments in Stockholm and a3m are in `alignments`, PDB and mmCIF files in `structures`.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from proteinlm.datasets.domains import ScopDomain
from proteinlm.datasets.hierarchy import is_scop
from proteinlm.datasets.localisation import LOCATIONS, TWO_LOCATIONS, LocalisedProtein
from proteinlm.datasets.secondary_structure import SS8, SecondaryStructureChain, three_states
from proteinlm.datasets.tables import RESIDUES, Row, check_unique, read_rows, text_lines
from proteinlm.datasets.variants import STOP, Assay, check_variant, mutate, parse_variant
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import STANDARD

# NetSurfP-2.0's own description of the last axis of `data` (https://services.healthtech.dtu.dk, "Raw data").
NPZ_RESIDUES = slice(0, 20)
NPZ_IN_SEQUENCE = 50
NPZ_ORDERED = 51
NPZ_EVALUATED = 52
NPZ_SS8 = slice(57, 65)
NPZ_CHANNELS = 68

_DEEPLOC = re.compile(r"(?P<location>\S+)-(?P<membrane>[MSU])")


def read_astral(path: Path) -> tuple[ScopDomain, ...]:
    """Domains of an ASTRAL FASTA file of SCOP or SCOPe, such as the 40 % set.

    A header is `>d1dlwa_ a.1.1.1 (A:) Protein hemoglobin {Paramecium}`. Residues are written in lower case there and
    come out in upper case.

    Raises:
        InputError: a header without a classification, a letter that is no residue, or an id that stands there twice.
    """
    domains = []
    for header, sequence in _fasta(path):
        words = header.split()
        if len(words) < 2 or not is_scop(words[1]):
            raise InputError(
                f"{path.name}: header {header[:60]!r} must begin with a domain and its class, as in ASTRAL"
            )
        residues = _residues(path, words[0], sequence.upper())
        domains.append(ScopDomain(words[0], words[1], residues, path.name, None, 1.0))
    check_unique(domains, path.name)
    return tuple(domains)


def read_deeploc_fasta(path: Path) -> tuple[LocalisedProtein, ...]:
    """Proteins of DeepLoc 1.0's FASTA file; `test` in the header makes the split.

    A header is `>Q9H400 Lysosome/Vacuole-M test`: accession, location, membrane (M), soluble (S) or unknown (U).

    Raises:
        InputError: a header that is not like this, a letter that is no residue, or an id that stands there twice.
    """
    proteins = []
    for header, sequence in _fasta(path):
        words = header.split()
        label = _DEEPLOC.fullmatch(words[1]) if len(words) in (2, 3) else None
        if label is None or label["location"] not in (*LOCATIONS, TWO_LOCATIONS) or words[2:] not in ([], ["test"]):
            raise InputError(
                f"{path.name}: header {header[:60]!r} must be like '>Q9H400 Lysosome/Vacuole-M test'; locations are "
                f"{', '.join(LOCATIONS)}"
            )
        residues = _residues(path, words[0], sequence)
        split = "test" if words[2:] else "train"
        proteins.append(LocalisedProtein(words[0], split, label["location"], label["membrane"], residues, path.name))
    check_unique(proteins, path.name)
    return tuple(proteins)


def read_netsurfp_csv(path: Path, split: str) -> tuple[SecondaryStructureChain, ...]:
    """Chains of one of the CSV files that ProtTrans made of NetSurfP-2.0's sets.

    Columns `input`, `dssp3`, `dssp8`, `disorder` and `cb513_mask` hold a value for each residue between spaces. A
    residue counts where both masks are 1 (ordered, and to be evaluated). The files have no ids: a chain is called by
    the name of the file and its row.

    Args:
        path: the file. split: what to call the split.

    Raises:
        InputError: a column is missing, or a row has not one value for each residue.
    """
    columns = ("input", "dssp3", "dssp8", "disorder", "cb513_mask")
    return tuple(_csv_chain(row, path, split) for row in read_rows(path, columns, ","))


def read_netsurfp_npz(path: Path, split: str) -> tuple[SecondaryStructureChain, ...]:
    """Chains of one of NetSurfP-2.0's own files, such as `Train_HHblits.npz`.

    Residues without a letter there are `X`; states are `.` where a residue has none. A residue counts where it is
    ordered and to be evaluated.

    Args:
        path: the file. split: what to call the split.

    Raises:
        InputError: the file is no such archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids, data = archive["pdbids"], archive["data"]
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path.name} cannot be read as NetSurfP's data ({error}); get the file again") from error
    if data.ndim != 3 or data.shape[2] != NPZ_CHANNELS or len(ids) != len(data):
        raise InputError(f"{path.name}: data has shape {data.shape}; ({len(ids)}, length, {NPZ_CHANNELS}) is needed")
    chains = tuple(_npz_chain(str(name), features, split, path) for name, features in zip(ids, data, strict=True))
    check_unique(chains, path.name)
    return chains


def read_proteingym(path: Path, wild_type: str | None = None) -> Assay:
    """An assay of ProteinGym's substitution benchmark.

    Columns `mutant` (`A24G:K30R`, from 1), `mutated_sequence`, `DMS_score` and, where there is one, `DMS_score_bin`.

    Args:
        path: the file; its name is the name of the assay. wild_type: its sequence; None to undo the first variant.

    Raises:
        InputError: a column is missing, a variant does not fit the wild type, or does not give its `mutated_sequence`.
    """
    mutants: list[str] = []
    score: list[float] = []
    binary: list[float] = []
    seen: set[str] = set()
    for row in read_rows(path, ("mutant", "mutated_sequence", "DMS_score"), ","):
        mutant, sequence = row.text("mutant"), row.text("mutated_sequence")
        try:
            wild_type = wild_type if wild_type is not None else _undone(mutant, sequence)
            if mutate(wild_type, mutant) != sequence:
                raise InputError(f"{mutant} of the wild type does not give the row's mutated_sequence")
        except InputError as error:
            raise row.fail(str(error)) from error
        if mutant in seen:
            raise row.fail(f"variant {mutant} stands there twice")
        seen.add(mutant)
        mutants.append(mutant)
        score.append(row.number("DMS_score"))
        if "DMS_score_bin" in row.values:
            binary.append(row.number("DMS_score_bin"))
    if wild_type is None or not mutants:
        raise InputError(f"{path.name} has no rows; get the file again")
    scores = {"DMS_score": np.array(score)} | ({"DMS_score_bin": np.array(binary)} if binary else {})
    return Assay(path.name.split(".")[0], wild_type, tuple(mutants), scores, "ProteinGym", "")


def _fasta(path: Path) -> Iterator[tuple[str, str]]:
    """Headers and sequences as written."""
    header = ""
    parts: list[str] = []
    for line in text_lines(path):
        if line.startswith(">"):
            if header:
                yield header, "".join(parts)
            header, parts = line[1:].strip(), []
            if not header:
                raise InputError(f"{path.name} has a record without a header; give it an id and its label")
        elif header:
            parts.append(line.strip())
        elif line.strip():
            raise InputError(f"{path.name}: {line[:40]!r} stands before the first '>'; is it a FASTA file?")
    if not header:
        raise InputError(f"{path.name} has no records; get the file again")
    yield header, "".join(parts)


def _residues(path: Path, name: str, sequence: str) -> str:
    if not sequence:
        raise InputError(f"{path.name}: {name} has no residues; remove the record or add them")
    if strange := set(sequence) - RESIDUES:
        raise InputError(f"{path.name}: {name} has {min(strange)!r}, which is no residue; remove or replace it")
    return sequence


def _csv_chain(row: Row, path: Path, split: str) -> SecondaryStructureChain:
    joined = {column: row.text(column).split() for column in ("input", "dssp3", "dssp8")}
    values = {column: "".join(parts) for column, parts in joined.items()}
    length = len(values["input"])
    masks = []
    for column in ("disorder", "cb513_mask"):
        words = row.text(column).split()
        if len(words) != length or set(map(_as_bit, words)) - {"0", "1"}:
            raise row.fail(f"{column} must have 0 or 1 for each of {length} residues; it has {len(words)} values")
        masks.append([_as_bit(word) == "1" for word in words])
    checked = Row(row.file, row.line, values)
    return SecondaryStructureChain(
        id=f"{path.name.split('.')[0]} {row.line - 1}",
        split=split,
        residues=checked.residues("input"),
        ss3=checked.labels("dssp3", "HEC", length),
        ss8=checked.labels("dssp8", SS8, length),
        mask="".join("1" if ordered and evaluated else "0" for ordered, evaluated in zip(*masks, strict=True)),
    )


def _as_bit(word: str) -> str:
    """`1.0` and `1` are 1."""
    return word.removesuffix(".0")


def _npz_chain(name: str, features: np.ndarray, split: str, path: Path) -> SecondaryStructureChain:
    features = features[features[:, NPZ_IN_SEQUENCE] > 0]
    if not len(features):
        raise InputError(f"{path.name}: chain {name} has no residues; get the file again")
    counted = (features[:, NPZ_ORDERED] > 0) & (features[:, NPZ_EVALUATED] > 0)
    ss8 = _letters(features[:, NPZ_SS8], SS8, ".")
    return SecondaryStructureChain(
        id=name,
        split=split,
        residues=_letters(features[:, NPZ_RESIDUES], STANDARD, "X"),
        ss3=three_states(ss8).replace(".", "C"),
        ss8=ss8,
        mask="".join("1" if one and state != "." else "0" for one, state in zip(counted, ss8, strict=True)),
    )


def _letters(one_hot: np.ndarray, order: str, otherwise: str) -> str:
    """The letter of each row's one; `otherwise` where a row has none."""
    table = np.array([*order, otherwise])
    return "".join(table[np.where(one_hot.max(1) > 0, one_hot.argmax(1), len(order))])


def _undone(mutant: str, sequence: str) -> str:
    """The wild type of which `mutant` gives `sequence`."""
    residues = list(sequence)
    substitutions = parse_variant(mutant)
    for item in substitutions:
        if item.position > len(residues) or item.mutant in (STOP,) or residues[item.position - 1] != item.mutant:
            raise InputError(f"{item} is not what mutated_sequence has at position {item.position}")
        residues[item.position - 1] = item.wild
    check_variant(substitutions, "".join(residues))
    return "".join(residues)
