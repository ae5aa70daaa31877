"""Multiple alignments: a2m, a3m, aligned FASTA and Stockholm, and the collections of them in the data folder.

In: a file, an open archive or lines. Out: alignments whose rows all have the same match columns. A row holds upper case
and `-` in match columns and lower case where it has residues between two of them; `.`, which fills up the other rows at
such a place, is dropped. In a file without any lower case `.` is a gap like `-`.
"""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8

from proteinlm.datasets.chains import PdbChain
from proteinlm.datasets.sources import locate
from proteinlm.datasets.tables import RESIDUES, text_lines
from proteinlm.errors import InputError

GAPS = "-."

_LETTERS = RESIDUES | frozenset("".join(RESIDUES).lower()) | frozenset(GAPS)
_DAMAGE = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile, UnicodeDecodeError)


@dataclass(frozen=True)
class Homolog:
    """An unaligned sequence of a family.

    Attributes:
        id: of the sequence. residues: L letters.
    """

    id: str
    residues: str


@dataclass(frozen=True)
class Alignment:
    """Sequences of a family, aligned.

    Attributes:
        id: of the family or the query. names: N names as in the file, which may be empty or stand there twice.
        rows: N rows: upper case and `-` in the C match columns, lower case between them.
    """

    id: str
    names: tuple[str, ...]
    rows: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_columns(self) -> int:
        """Match columns, C."""
        return len(match_columns(self.rows[0]))

    def residues(self, row: int) -> str:
        """The whole sequence of a row, upper case, without gaps.

        >>> Alignment("f", ("a",), ("-MkT",)).residues(0)
        'MKT'
        """
        return self.rows[row].replace("-", "").upper()

    def residue_of_column(self, row: int) -> Int32[np.ndarray, " C"]:
        """Which residue of a row stands in each match column, from 0; -1 at a gap.

        >>> Alignment("f", ("a",), ("-MkT",)).residue_of_column(0).tolist()
        [-1, 0, 2]
        """
        letters = np.frombuffer(self.rows[row].encode("ascii"), np.uint8)
        is_gap, is_match = letters == ord("-"), letters < ord("a")
        index = np.cumsum(~is_gap) - 1
        return np.where(is_gap, -1, index)[is_match].astype(np.int32)

    def matrix(self) -> UInt8[np.ndarray, "N C"]:
        """The match columns as bytes: upper-case letters and `-`."""
        return np.frombuffer("".join(map(match_columns, self.rows)).encode("ascii"), np.uint8).reshape(len(self), -1)


@dataclass(frozen=True)
class BalifamFamily:
    """A family of balifam.

    Attributes:
        id: of the Pfam family. homologs: unaligned sequences, those of the reference among them.
        reference: BAliBASE's alignment; only its match columns are to be scored.
    """

    id: str
    homologs: tuple[Homolog, ...]
    reference: Alignment


@dataclass(frozen=True, eq=False)
class PfamFamily:
    """A Pfam family with distances between its columns in a structure.

    Attributes:
        id: of the family. alignment: of its members. pairs: (P, 2) match columns, from 0. distances: P distances in Å
            between the nearest heavy atoms of the two residues.
    """

    id: str
    alignment: Alignment
    pairs: Int64[np.ndarray, "P 2"]
    distances: Float64[np.ndarray, " P"]


def match_columns(row: str) -> str:
    """A row without what stands between its match columns.

    >>> match_columns("-MkT")
    '-MT'
    """
    return "".join(letter for letter in row if not letter.islower())


def aligned(name: str, names: Sequence[str], rows: Sequence[str]) -> Alignment:
    """An alignment of rows as they stand in a file.

    Args:
        name: of the alignment. names: of its rows. rows: letters, `-` and `.`.

    Raises:
        InputError: there is no row, a letter is no residue, or rows have different numbers of match columns.

    >>> aligned("f", ["a", "b"], ["MKvT", "M-.T"]).rows
    ('MKvT', 'M-T')
    >>> aligned("f", ["a", "b"], ["MKvT", "M.T"])
    Traceback (most recent call last):
    ...
    proteinlm.errors.InputError: f: row 2 (b) has 2 match columns, the first row has 3; is it cut short?
    """
    if not rows:
        raise InputError(f"{name} holds no aligned sequences; get the file again")
    for number, row in enumerate(rows):
        if strange := set(row) - _LETTERS:
            raise InputError(f"{name}: row {number + 1} ({names[number]}) has {min(strange)!r}, which is no residue")
    has_insertions = any(not row.isupper() and any(map(str.islower, row)) for row in rows)
    rows = [row.replace(".", "") if has_insertions else row.replace(".", "-") for row in rows]
    widths = [len(match_columns(row)) for row in rows]
    for number, width in enumerate(widths):
        if width != widths[0]:
            raise InputError(
                f"{name}: row {number + 1} ({names[number]}) has {width} match columns, the first row has {widths[0]}; "
                "is it cut short?"
            )
    if widths[0] == 0:
        raise InputError(f"{name}: the first row has no match columns (upper case or '-')")
    return Alignment(name, tuple(names), tuple(rows))


def parse_a3m(name: str, lines: Iterable[str]) -> Alignment:
    """An alignment from the lines of an a2m, a3m or aligned FASTA file."""
    return aligned(name, *_fasta(name, lines))


def read_a3m(path: Path) -> Alignment:
    """An alignment from an a2m, a3m or aligned FASTA file, compressed or not.

    Raises:
        InputError: the file cannot be read, or as `aligned`.
    """
    return parse_a3m(path.name.split(".")[0], text_lines(path))


def read_stockholm(path: Path) -> Iterator[Alignment]:
    """The alignments of a Stockholm file, such as Pfam's, one after the other.

    An alignment is called by its accession (`#=GF AC`), else its `#=GF ID`, else by its number in the file.

    Raises:
        InputError: the file does not begin with `# STOCKHOLM`, ends within an alignment, or as `aligned`.
    """
    rows: dict[str, list[str]] = {}
    features: dict[str, str] = {}
    inside, number = False, 0
    for line in text_lines(path):
        if line.startswith("# STOCKHOLM"):
            inside, number, rows, features = True, number + 1, {}, {}
        elif line.strip() == "//" and inside:
            title = features.get("AC") or features.get("ID") or f"{path.name} {number}"
            yield aligned(title, list(rows), ["".join(parts) for parts in rows.values()])
            inside = False
        elif line.startswith("#=GF"):
            words = line.split(None, 2)
            features.setdefault(words[1], words[2] if len(words) > 2 else "")
        elif line.strip() and not line.startswith("#"):
            words = line.split()
            if not inside or len(words) != 2:
                raise InputError(
                    f"{path.name}: {line[:40]!r} is no line of a Stockholm file; does it begin with '# STOCKHOLM 1.0'?"
                )
            rows.setdefault(words[0], []).append(words[1])
    if inside or not number:
        raise InputError(f"{path.name} ends within an alignment or holds none; get the file again")


def members(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The files of a tar archive with their lines, in order; `.gz` members are decompressed.

    Raises:
        InputError: the archive is damaged or a member is no text.
    """
    try:
        with tarfile.open(path, "r|*") as archive:
            for item in archive:
                handle = archive.extractfile(item)
                if handle is not None:
                    data = handle.read()
                    data = gzip.decompress(data) if item.name.endswith(".gz") else data
                    yield item.name, data.decode("utf-8").splitlines()
    except _DAMAGE as error:
        raise InputError(f"{path.name} is damaged ({error}); get the file again") from error


def read_chain_alignments(folder: str | Path | None, chains: Iterable[PdbChain] | None = None) -> dict[str, Alignment]:
    """The 428 alignments of PDB chains by the id of the chain; the first row is the chain itself.

    Args:
        folder: the data folder. chains: if given, each alignment must be of one of them, with the same residues.

    Raises:
        InputError: the file is missing or damaged, or an alignment does not fit its chain.
    """
    path = locate(folder, "chain_alignments")
    found = {PurePosixPath(name).stem: parse_a3m(PurePosixPath(name).stem, lines) for name, lines in members(path)}
    if chains is not None:
        residues = {chain.id: chain.residues for chain in chains}
        for name, alignment in found.items():
            if alignment.rows[0] != residues.get(name):
                raise InputError(f"{path.name}: the first row of {name} is not that chain; take both from one release")
    return found


def read_balifam(folder: str | Path | None, size: int = 100) -> tuple[BalifamFamily, ...]:
    """Families of balifam in the order of their names.

    Args:
        folder: the data folder. size: 100 or 1000 homologs for each family (40 and 39 families).

    Raises:
        InputError: the file is missing or damaged, or a reference sequence is not among the homologs.
    """
    path = locate(folder, "balifam")
    homologs: dict[str, tuple[Homolog, ...]] = {}
    references: dict[str, Alignment] = {}
    for name, lines in members(path):
        top, part, file = PurePosixPath(name).parts
        family = PurePosixPath(file).stem
        if top != f"balifam{size}":
            continue
        if part == "ref":
            references[family] = parse_a3m(family, lines)
        else:
            homologs[family] = tuple(map(Homolog, *_fasta(family, lines)))
    if not references or set(references) != set(homologs):
        raise InputError(
            f"{path.name} has {len(references)} references and {len(homologs)} sets of homologs of size {size}"
        )
    families = [BalifamFamily(name, homologs[name], references[name]) for name in sorted(references)]
    for entry in families:
        known = {homolog.id: homolog.residues for homolog in entry.homologs}
        for number, name in enumerate(entry.reference.names):
            if known.get(name) != entry.reference.residues(number):
                raise InputError(f"{path.name}: {name} of {entry.id}'s reference is not among its homologs")
    return tuple(families)


def read_pfam(folder: str | Path | None) -> tuple[PfamFamily, ...]:
    """PF00014 and PF13354 with the distances between their columns.

    Raises:
        InputError: the file is missing or damaged, or a distance is of a column that the alignment has not.
    """
    path = locate(folder, "pfam")
    alignments: dict[str, Alignment] = {}
    tables: dict[str, np.ndarray] = {}
    for name, lines in members(path):
        family = PurePosixPath(name).name.split("_")[0]
        if name.endswith(".dat"):
            tables[family] = _distances(f"{path.name}: {name}", lines)
        else:
            alignments[family] = parse_a3m(family, lines)
    found = []
    for family, alignment in sorted(alignments.items()):
        table = tables.get(family, np.empty((0, 4)))
        pairs = table[:, :2].astype(np.int64) - 1
        if not len(pairs) or pairs.min() < 0 or pairs.max() >= alignment.num_columns:
            raise InputError(f"{path.name}: the distances of {family} do not fit its {alignment.num_columns} columns")
        found.append(PfamFamily(family, alignment, pairs, table[:, 3]))
    return tuple(found)


def read_example_alignments(folder: str | Path | None) -> dict[str, Alignment]:
    """The 12 example alignments by the names of their files."""
    path = locate(folder, "example_alignments")
    return {PurePosixPath(name).name: parse_a3m(PurePosixPath(name).name, lines) for name, lines in members(path)}


def _fasta(title: str, lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names up to the first white space and texts of FASTA lines."""
    names: list[str] = []
    parts: list[list[str]] = []
    for line in lines:
        if line.startswith(">"):
            names.append((line[1:].split() or [""])[0])
            parts.append([])
        elif parts:
            parts[-1].append(line.strip())
        elif line.strip():
            raise InputError(f"{title}: {line[:40]!r} stands before the first '>'; is it an alignment?")
    return names, ["".join(part) for part in parts]


def _distances(title: str, lines: Sequence[str]) -> np.ndarray:
    """Rows of column, column, score, distance."""
    try:
        table = np.array([[float(word) for word in line.split()] for line in lines])
    except ValueError as error:
        raise InputError(f"{title}: {error}") from error
    if table.ndim != 2 or table.shape[1] != 4:
        raise InputError(f"{title} must have four numbers in each line")
    return table
