"""Residue vectors on disk, mapped into memory: for tasks that read the vectors of all proteins several times.

In: vectors of a protein, once. Out: views of a file, which take no memory that the system cannot take back. A store is
for one model digest, layer, arithmetic and number format, all of which are in its folder's name; nothing else may share
it. What was written before a kill is there afterwards: a protein is listed in the index once its vectors are written.

Vectors are kept in fp16, whose 11 bits of precision are finer than what bf16 arithmetic leaves; a value beyond fp16's
range is refused, never clipped. The mean of each protein is kept in fp32, of the vectors before they were rounded.
"""

import contextlib
import glob
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Float

from proteinlm.errors import InputError

Storage = Literal["fp16", "fp32"]
DTYPES: dict[Storage, type[np.floating]] = {"fp16": np.float16, "fp32": np.float32}
INDEX, LOCK = "index.jsonl", "lock"
MARK = "features-"
"""How the folders of stores begin; only such folders are ever removed."""

TEMPORARY = ".vectors-"
"""How temporary folders of stores begin."""


@dataclass(frozen=True)
class Features:
    """Vectors of one protein: `residues_LD` in the store's format, memory-mapped, and their fp32 mean, shape (D,)."""

    residues_LD: Float[np.ndarray, "L D"]
    mean_D: Float[np.ndarray, "D"]


@dataclass(frozen=True)
class StoreKey:
    """What a store's vectors are of.

    Args:
        digest: of the model. layer: of the vectors. width: D. arithmetic: "fp32" or "bf16". storage: on disk.
    """

    digest: str
    layer: int
    width: int
    arithmetic: str
    storage: Storage = "fp16"

    @property
    def folder(self) -> str:
        """Name of the store's folder."""
        return f"{MARK}{self.digest[:32]}-layer{self.layer}-{self.arithmetic}-{self.storage}"


def protein_key(residues: str, masked: tuple[int, ...]) -> str:
    """What a protein is found by: a digest of its residues and of what is masked."""
    return hashlib.sha256(f"{residues} {masked}".encode()).hexdigest()[:32]


class FeatureStore:
    """Vectors of one model and layer.

    Args:
        cache: folder that holds stores. key: what this one is of.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     store = FeatureStore(Path(cache), StoreKey("0123", layer=6, width=2, arithmetic="fp32"))
    ...     needed = store.reserve([("protein", 3)])
    ...     found = store.put("protein", np.ones((3, 2), np.float32))
    ...     store.close()
    >>> needed, found.residues_LD.dtype.name, found.mean_D.tolist()
    (20, 'float16', [1.0, 1.0])
    """

    def __init__(self, cache: Path, key: StoreKey) -> None:
        self.key, self.folder = key, cache / key.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"{str(self.folder)!r} is in use by another run; wait, or take another --cache") from error
        self._dtype = DTYPES[key.storage]
        self._places: dict[str, tuple[int, int, int, int]] = {}
        self._segments: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._finished: set[str] = set()
        self._read_index()
        self._index: IO[str] = (self.folder / INDEX).open("a", encoding="utf-8")

    def _read_index(self) -> None:
        """Find what is there; a last line that a kill cut short is removed."""
        path = self.folder / INDEX
        text = path.read_text("utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, "utf-8")
        for line in whole.splitlines():
            protein, *place = json.loads(line)
            self._places[protein] = (place[0], place[1], place[2], place[3])
            self._finished.add(protein)

    def __contains__(self, protein: object) -> bool:
        return protein in self._finished

    def reserve(self, proteins: Iterable[tuple[str, int]]) -> int:
        """Make room for proteins that are not there.

        Args:
            proteins: key and number of residues of each, in the order in which they are to lie on disk.

        Returns:
            bytes on disk for what is new.

        Raises:
            InputError: the disk has no room for them.
        """
        new = {protein: length for protein, length in proteins if protein not in self._places}
        if not new:
            return 0
        rows, width = sum(new.values()), self.key.width
        needed = rows * width * np.dtype(self._dtype).itemsize + len(new) * width * 4
        if needed > (free := shutil.disk_usage(self.folder).free):
            raise InputError(
                f"residue vectors need {needed / 1e9:.1f} GB in {str(self.folder)!r}, which has {free / 1e9:.1f} GB "
                "free; take another --cache, fewer --tasks, or --quick"
            )
        numbers = [int(path.stem.split("-")[1]) for path in self.folder.glob("residues-*.bin")]
        segment = max(numbers, default=-1) + 1
        # Pages of the new files that are never written take no room.
        residues = np.memmap(self._path("residues", segment), self._dtype, "w+", shape=(rows, width))
        means = np.memmap(self._path("means", segment), np.float32, "w+", shape=(len(new), width))
        self._segments[segment] = (residues, means)
        row = 0
        for number, (protein, length) in enumerate(new.items()):
            self._places[protein] = (segment, row, length, number)
            row += length
        return needed

    def put(self, protein: str, residues_LD: Float[np.ndarray, "L D"]) -> Features:
        """Keep the vectors of a protein that room was made for; what is there already is left as it is.

        Raises:
            InputError: a value is beyond the range of the number format.
        """
        if protein in self._finished:
            return self.get(protein)
        segment, row, length, number = self._places[protein]
        assert residues_LD.shape == (length, self.key.width), "as many vectors as room was made for"
        largest = float(np.abs(residues_LD).max())
        if not largest <= float(np.finfo(self._dtype).max):
            raise InputError(
                f"a vector holds {largest:g}, which is beyond {self.key.storage}; run with --cache-precision fp32"
            )
        residues, means = self._segment(segment)
        residues[row : row + length] = residues_LD
        means[number] = residues_LD.mean(axis=0, dtype=np.float64)
        self._index.write(json.dumps([protein, segment, row, length, number]) + "\n")
        self._index.flush()
        self._finished.add(protein)
        return self.get(protein)

    def get(self, protein: str) -> Features:
        """The vectors of a protein that is there."""
        assert protein in self._finished, "look with `in` first"
        segment, row, length, number = self._places[protein]
        residues, means = self._segment(segment)
        return Features(residues[row : row + length], np.array(means[number]))

    def _segment(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self._segments:
            residues = np.memmap(self._path("residues", number), self._dtype, "r").reshape(-1, self.key.width)
            means = np.memmap(self._path("means", number), np.float32, "r").reshape(-1, self.key.width)
            self._segments[number] = (residues, means)
        return self._segments[number]

    def _path(self, what: str, segment: int) -> Path:
        return self.folder / f"{what}-{segment:04d}.bin"

    def close(self) -> None:
        """Let others use the store. Views that were handed out stay valid."""
        self._index.close()
        self._lock.release()


def clear(cache: Path) -> int:
    """Remove every store in a folder, and nothing else.

    Returns:
        bytes that were freed.

    Raises:
        InputError: one of them is in use.
    """
    freed = 0
    for folder in sorted(cache.glob(f"{MARK}*")):
        if not (folder / INDEX).is_file():
            continue
        with _unused(folder):
            freed += sum(path.stat().st_blocks * 512 for path in folder.iterdir() if path.is_file())
            shutil.rmtree(folder)
    return freed


@contextlib.contextmanager
def kept_or_temporary(cache: Path | None, within: Path, prefix: str = TEMPORARY) -> Iterator[Path]:
    """The folder that stores go into: the user's, or a temporary one, which is removed.

    Args:
        cache: the user's folder, made if need be; None where vectors need not be kept for another run.
        within: where a temporary folder is made. What killed runs left behind there is removed.
        prefix: how the names of temporary folders begin.

    Raises:
        InputError: another run has a temporary folder of that prefix there.
    """
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        yield cache
        return
    for left_behind in within.glob(f"{glob.escape(prefix)}*"):
        clear(left_behind)
        if not any(left_behind.iterdir()):
            left_behind.rmdir()
    with tempfile.TemporaryDirectory(prefix=prefix, dir=within) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _unused(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{str(folder)!r} is in use by another run; wait for it to end") from error
    try:
        yield
    finally:
        lock.release()
