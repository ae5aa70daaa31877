"""PDB chains with DSSP states, clusters and classifications, and C-beta coordinates of their representatives.

In: the data folder. Out: chains, and contact maps from coordinates. A chain here is one contiguous resolved stretch.
Two residues are in contact where their C-beta atoms (CA of glycine) are less than 8 Å apart (papers.md 4.1).
"""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int8

from proteinlm.datasets.hierarchy import cath_level, is_cath, is_scop, scop_level
from proteinlm.datasets.secondary_structure import SS8, class_numbers
from proteinlm.datasets.sources import locate
from proteinlm.datasets.tables import Row, read_records
from proteinlm.errors import InputError

CONTACT_DISTANCE = 8.0
"""Å between C-beta atoms, exclusive."""

COLUMNS = (
    "chain",
    "start",
    "length",
    "cluster30",
    "cath",
    "scop_sid",
    "scop_sccs",
    "ec_class384",
    "ec_number",
    "sequence",
    "ss8",
)


@dataclass(frozen=True)
class PdbChain:
    """A contiguous resolved stretch of a PDB chain.

    Attributes:
        id: entry and chain, such as `12AS_A`. start: number of its first residue in the entry's sequence.
        residues: L letters. ss8: L of DSSP's letters, C for coil.
        cluster: representative of its cluster at 30 % identity; None for chains too short to be clustered.
        cath: CATH code, scop_sid and scop_sccs: SCOP domain and code; each None where there is none.
        ec_class: class number in a set of 384 enzyme functions, or None. ec_numbers: EC numbers, may be partial.
    """

    id: str
    start: int
    residues: str
    ss8: str
    cluster: str | None
    cath: str | None
    scop_sid: str | None
    scop_sccs: str | None
    ec_class: int | None
    ec_numbers: tuple[str, ...]

    def ss8_classes(self) -> Int8[np.ndarray, " L"]:
        """Class in `secondary_structure.SS8` of each residue."""
        return class_numbers(self.ss8, SS8)

    def keys(self, level: str) -> tuple[str, ...]:
        """What a split at `family`, `superfamily` or `fold` must hold together.

        A family is a SCOP family or a 30 % cluster; above it a CATH code counts too. Chains that share any key are
        related, so a split must take connected groups (`splits.linked_groups`). Empty for a chain without any label.

        >>> chain = PdbChain("1ABC_A", 1, "MK", "CC", "1ABC_A", "3.40.50.720", None, None, None, ())
        >>> chain.keys("family"), chain.keys("fold")
        (('cluster 1ABC_A',), ('cluster 1ABC_A', 'CATH 3.40.50'))
        """
        found = [f"cluster {self.cluster}"] if self.cluster is not None else []
        if self.scop_sccs is not None:
            found.append(f"SCOP {scop_level(self.scop_sccs, level)}")
        if self.cath is not None and level != "family":
            found.append(f"CATH {cath_level(self.cath, level)}")
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Coordinates:
    """C-beta coordinates of many chains, kept as stored.

    Attributes:
        rows: number of each chain by its id. offsets: (N+1,) where the residues of each begin.
        stored: (residues, 3) whole numbers. scale: Å of one of them.
    """

    rows: dict[str, int]
    offsets: np.ndarray
    stored: np.ndarray
    scale: float

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, chain: object) -> bool:
        return chain in self.rows

    def of(self, chain: str) -> Float32[np.ndarray, "L 3"]:
        """Coordinates of a chain in Å.

        Raises:
            InputError: there are none of this chain.
        """
        if chain not in self.rows:
            raise InputError(f"chain {chain!r} has no coordinates; those that have are cluster representatives")
        row = self.rows[chain]
        return self.stored[self.offsets[row] : self.offsets[row + 1]].astype(np.float32) * np.float32(self.scale)

    def contacts(self, chain: str) -> Int8[np.ndarray, "L L"]:
        """1 where two residues of a chain are in contact, 0 where not."""
        return contact_map(self.of(chain))


def distances(coordinates: np.ndarray) -> Float64[np.ndarray, "L L"]:
    """Distances between all pairs of residues in Å; NaN where one of them has no coordinates.

    >>> distances(np.array([[0.0, 0, 0], [3, 4, 0]])).tolist()
    [[0.0, 5.0], [5.0, 0.0]]
    """
    points = np.asarray(coordinates, np.float64)
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))


def contact_map(coordinates: np.ndarray, cutoff: float = CONTACT_DISTANCE) -> Int8[np.ndarray, "L L"]:
    """1 where two residues are less than `cutoff` apart, 0 where not, -1 where one of them has no coordinates.

    Args:
        coordinates: (L, 3) in Å, NaN for residues that were not resolved. cutoff: Å, exclusive.

    >>> contact_map(np.array([[0.0, 0, 0], [7.9, 0, 0], [8, 0, 0], [np.nan] * 3])).tolist()
    [[1, 1, 0, -1], [1, 1, 1, -1], [0, 1, 1, -1], [-1, -1, -1, -1]]
    """
    apart = distances(coordinates)
    return np.where(np.isnan(apart), np.int8(-1), (apart < cutoff).astype(np.int8))


def read_chains(folder: str | Path | None) -> tuple[PdbChain, ...]:
    """The 17,347 chains.

    Args:
        folder: the data folder; None for what PROTEINLM_DATA names.

    Raises:
        InputError: the file is missing or has a row that cannot be used.
    """
    return read_records(locate(folder, "chains"), COLUMNS, _chain)


def read_coordinates(folder: str | Path | None, chains: Iterable[PdbChain] | None = None) -> Coordinates:
    """Coordinates of 11,032 cluster representatives of 40-400 residues.

    Args:
        folder: the data folder. chains: if given, every chain that has coordinates must have as many residues.

    Raises:
        InputError: the file is missing, damaged, inconsistent, or does not fit `chains`.
    """
    path = locate(folder, "coordinates")
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, offsets, stored, scale = (file[name] for name in ("ids", "offsets", "xyz", "scale"))
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path.name} cannot be read ({error}); get the file again") from error
    rows = {str(name): number for number, name in enumerate(ids)}
    if len(rows) < len(ids):
        raise InputError(f"{path.name} holds a chain twice; ids must be unique")
    right = stored.ndim == 2 and stored.shape[1] == 3 and offsets.shape == (len(ids) + 1,)
    if not right or offsets[0] != 0 or offsets[-1] != len(stored) or (np.diff(offsets) <= 0).any():
        raise InputError(f"{path.name}: the offsets do not divide {len(stored)} residues among {len(ids)} chains")
    found = Coordinates(rows, offsets, stored, float(scale))
    for chain in chains or ():
        if chain.id in found and len(found.of(chain.id)) != len(chain.residues):
            raise InputError(
                f"{path.name} has {len(found.of(chain.id))} residues of chain {chain.id}, the table of chains has "
                f"{len(chain.residues)}; take both files from one release"
            )
    return found


def _chain(row: Row) -> PdbChain:
    residues = row.residues()
    if row.integer("length") != len(residues):
        raise row.fail(f"length is {row.integer('length')}, but the sequence has {len(residues)} residues")
    cath, sccs = row.optional("cath"), row.optional("scop_sccs")
    if cath is not None and not is_cath(cath):
        raise row.fail(f"cath is {cath!r}; it must be class.architecture.topology.superfamily")
    if sccs is not None and not is_scop(sccs):
        raise row.fail(f"scop_sccs is {sccs!r}; it must be class.fold.superfamily.family")
    return PdbChain(
        id=row.text("chain"),
        start=row.integer("start"),
        residues=residues,
        ss8=row.labels("ss8", SS8, len(residues)),
        cluster=row.optional("cluster30"),
        cath=cath,
        scop_sid=row.optional("scop_sid"),
        scop_sccs=sccs,
        ec_class=row.integer("ec_class384") if row.values["ec_class384"] else None,
        ec_numbers=tuple(part for part in row.values["ec_number"].split(",") if part),
    )
