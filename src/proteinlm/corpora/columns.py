"""The columns of a store, in order: written and read back block by block, in a folder made whole or not at all.

In and out: `Block`, some thousands of sequences with their identifiers as flat arrays. Files are read and written from
front to back with ordinary calls, not mapped: a pass over a corpus of any size holds one block.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from proteinlm import __version__
from proteinlm.corpora.manifest import FORMAT, Manifest, histogram
from proteinlm.corpora.store import POSITION
from proteinlm.errors import InputError
from proteinlm.sequences.fasta import FastaSummary

SHARD_RESIDUES = 1 << 30
"""Residues in one file of letters, at most (one sequence that is longer gets a file of its own)."""

BLOCK_ROWS = 1 << 15
BLOCK_RESIDUES = 1 << 22
"""Sequences and residues in a block that is read back, at most (one sequence that is longer is a block)."""


@dataclass(frozen=True)
class Block:
    """Sequences end to end.

    Attributes:
        letters: uint8, the residues of all. lengths: int64, shape (rows,).
        names: uint8, the identifiers of all in UTF-8. name_lengths: int64, shape (rows,).
    """

    letters: np.ndarray
    lengths: np.ndarray
    names: np.ndarray
    name_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, keep: np.ndarray) -> "Block":
        """The rows where the boolean array `keep` is true."""
        if keep.all():
            return self
        return Block(
            self.letters[np.repeat(keep, self.lengths)],
            self.lengths[keep],
            self.names[np.repeat(keep, self.name_lengths)],
            self.name_lengths[keep],
        )

    def identifiers(self) -> list[str]:
        """The identifiers, one string each."""
        ends = np.cumsum(self.name_lengths)
        data = self.names.tobytes()
        return [
            data[end - size : end].decode("utf-8")
            for end, size in zip(ends.tolist(), self.name_lengths.tolist(), strict=True)
        ]


class HashedFile:
    """A file being written, its SHA-256 growing with it."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.size = 0
        self._file = path.open("wb")
        self._hasher = hashlib.sha256()

    def write(self, data: "np.ndarray | bytes") -> None:
        """Append bytes, or the bytes of a contiguous array."""
        view = memoryview(data if isinstance(data, bytes) else data.tobytes())
        self._file.write(view)
        self._hasher.update(view)
        self.size += len(view)

    def close(self) -> dict[str, Any]:
        """Make sure that it is on the disk; its entry for the manifest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self.size, "sha256": self._hasher.hexdigest()}


class Writer:
    """Writes the columns of a store into an empty folder, block by block.

    Args:
        folder: where. shard_residues: most residues in one file of letters.
    """

    def __init__(self, folder: Path, shard_residues: int = SHARD_RESIDUES) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        self.rows = 0
        self.residues = 0
        self.lengths: Counter[int] = Counter()
        self._composition = np.zeros(256, np.int64)
        self._name_bytes = 0
        self._shard_residues = shard_residues
        self._shard = HashedFile(folder / "letters-00000.bin")
        self._columns = {
            name: HashedFile(folder / f"{name}.bin") for name in ("starts", "lengths", "names", "name_starts")
        }
        zero = np.zeros(1, POSITION)
        self._columns["starts"].write(zero)
        self._columns["name_starts"].write(zero)

    def append(self, block: Block) -> None:
        """Write a block of sequences."""
        ends = np.cumsum(block.lengths)
        self._write_letters(block.letters, ends)
        self._columns["starts"].write((ends + self.residues).astype(POSITION))
        self._columns["lengths"].write(block.lengths.astype(POSITION))
        self._columns["names"].write(np.ascontiguousarray(block.names))
        self._columns["name_starts"].write((np.cumsum(block.name_lengths) + self._name_bytes).astype(POSITION))
        self.rows += len(block)
        self.residues += len(block.letters)
        self._name_bytes += len(block.names)
        self._composition += np.bincount(block.letters, minlength=256)
        values, counts = np.unique(block.lengths, return_counts=True)
        self.lengths.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def close(self) -> None:
        """Finish the files."""
        for file in (self._shard, *self._columns.values()):
            self.files[file.name] = file.close()

    def manifest(self, origin: FastaSummary) -> Manifest:
        """What the finished columns hold, and what is known of the file they come from."""
        composition = {chr(byte): int(self._composition[byte]) for byte in np.flatnonzero(self._composition)}
        return Manifest(
            format=FORMAT,
            version=__version__,
            source="",
            source_sha256=origin.digest,
            records=origin.records,
            refused=origin.refused,
            normalised=dict(origin.normalised),
            sequences=self.rows,
            residues=self.residues,
            shortest=min(self.lengths, default=0),
            longest=max(self.lengths, default=0),
            letters="".join(composition),
            composition=composition,
            length_histogram=histogram(self.lengths),
            files=dict(self.files),
        )

    def _write_letters(self, letters: np.ndarray, ends: np.ndarray) -> None:
        """Write residues; begin a new file before the sequence that would make this one too large."""
        done = row = 0
        while row < len(ends):
            room = self._shard_residues - self._shard.size
            fits = int(np.searchsorted(ends, done + room, side="right"))
            if fits <= row:
                if self._shard.size:
                    self._next_shard()
                    continue
                fits = row + 1
            end = int(ends[fits - 1])
            self._shard.write(np.ascontiguousarray(letters[done:end]))
            done, row = end, fits

    def _next_shard(self) -> None:
        self.files[self._shard.name] = self._shard.close()
        number = sum(name.startswith("letters-") for name in self.files)
        self._shard = HashedFile(self.folder / f"letters-{number:05d}.bin")


def read_blocks(folder: Path, consume: bool = False) -> Iterator[Block]:
    """The columns in `folder`, block by block, from front to back.

    Args:
        folder: where a `Writer` wrote and was closed.
        consume: remove each file of letters once it has been read.
    """
    letters = _Chain(sorted(folder.glob("letters-*.bin")), consume)
    with (
        (folder / "lengths.bin").open("rb") as lengths_file,
        (folder / "names.bin").open("rb") as names_file,
        (folder / "name_starts.bin").open("rb") as starts_file,
    ):
        start = np.fromfile(starts_file, POSITION, 1)
        while len(all_lengths := np.fromfile(lengths_file, POSITION, BLOCK_ROWS)):
            for lengths in _pieces(all_lengths):
                starts = np.concatenate([start, np.fromfile(starts_file, POSITION, len(lengths))])
                start = starts[-1:]
                name_lengths = np.diff(starts)
                names = np.fromfile(names_file, np.uint8, int(name_lengths.sum()))
                yield Block(letters.read(int(lengths.sum())), lengths, names, name_lengths)


def _pieces(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Lengths cut into pieces of at most `BLOCK_RESIDUES` residues, and at least one sequence."""
    ends = np.cumsum(lengths)
    done = row = 0
    while row < len(ends):
        after = max(row + 1, int(np.searchsorted(ends, done + BLOCK_RESIDUES, side="right")))
        yield lengths[row:after]
        done, row = int(ends[after - 1]), after


class _Chain:
    """Several files read as one."""

    def __init__(self, paths: list[Path], consume: bool) -> None:
        self._paths = paths
        self._consume = consume
        self._file = paths[0].open("rb")

    def read(self, size: int) -> np.ndarray:
        """The next `size` bytes."""
        out = np.empty(size, np.uint8)
        filled = 0
        while filled < size:
            count = self._file.readinto(out.data[filled:])
            filled += count
            if not count:
                self._file.close()
                done = self._paths.pop(0)
                if self._consume:
                    done.unlink()
                self._file = self._paths[0].open("rb")
        return out


class NameReader:
    """Identifiers of any row of the columns in `folder`, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._names = (folder / "names.bin").open("rb")
        self._starts = (folder / "name_starts.bin").open("rb")

    def __getitem__(self, row: int) -> str:
        """The identifier of a row."""
        self._starts.seek(row * POSITION.itemsize)
        start, end = np.fromfile(self._starts, POSITION, 2).tolist()
        self._names.seek(start)
        return self._names.read(end - start).decode("utf-8")

    def close(self) -> None:
        """Close the files."""
        self._names.close()
        self._starts.close()


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest, which makes the folder a store."""
    manifest.write(folder)
    return manifest


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder `.NAME.building` beside `path`, which takes its place when the block ends well.

    What an earlier run that was killed left behind is removed.

    Raises:
        InputError: `path` exists, another process is writing it, or the disk does not take it.
    """
    if path.exists():
        raise InputError(f"{str(path)!r} exists; remove it or choose another name")
    if not path.absolute().parent.is_dir():
        raise InputError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; create it first")
    temporary = path.with_name(f".{path.name}.building")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        with lock.acquire(timeout=0):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                yield temporary
                os.replace(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout as error:
        raise InputError(f"{str(path)!r} is being written by another process; wait for it") from error
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}; mend that, run it again") from error
