"""Rows sorted out on disk: what is too much for memory is written to many files by key, and each file fits.

In: rows (NumPy structured arrays) in any order. Out: the same rows, bucket by bucket; all rows of one key are in one
bucket, and where the bucket is a range of positions, the buckets come in order. Memory: a buffer, and one bucket.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

HASHED = 256
"""Buckets for keys that are digests: at 250 M rows a bucket holds a million."""

RANGE_ROWS = 1 << 20
"""Positions in a bucket that is a range."""

BUFFER_ROWS = 1 << 18
"""Rows held before they are written."""

KEY = [("high", "<u8"), ("low", "<u8")]
"""A 128-bit digest in a row: two of 10^10 different texts share one with a probability below 10^-18."""


def digests(texts: Iterable[bytes]) -> np.ndarray:
    """128-bit BLAKE2b digests.

    Returns:
        Structured array of shape (texts,) with the fields of `KEY`.
    """
    return np.frombuffer(b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts), dtype=KEY)


class Buckets:
    """Rows on their way into buckets, then out of them, once.

    Args:
        folder: where the files go. name: what they are called.
        fields: name and type of what a row holds.
    """

    def __init__(self, folder: Path, name: str, fields: list[tuple[str, str]]) -> None:
        self.rows = 0
        self.fields = fields
        self._dtype = np.dtype(fields)
        self._path = folder / name
        self._buffer: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []
        self._buffered = 0

    def add(self, numbers: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows.

        Args:
            numbers: the bucket of each row, int64.
            columns: one array for each field.
        """
        assert set(columns) == set(self._dtype.names or ()), "a column for each field"
        rows = np.empty(len(numbers), self._dtype)
        for name, values in columns.items():
            rows[name] = values
        self._buffer.append(rows)
        self._numbers.append(numbers)
        self._buffered += len(rows)
        self.rows += len(rows)
        if self._buffered >= BUFFER_ROWS:
            self._flush()

    def take(self, number: int) -> np.ndarray:
        """The rows of a bucket, in the order they were added; they are gone then."""
        self._flush()
        path = self._bucket(number)
        if not path.exists():
            return np.empty(0, self._dtype)
        rows = np.fromfile(path, self._dtype)
        path.unlink()
        return rows

    def _bucket(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}-{number:05d}.rows")

    def _flush(self) -> None:
        if not self._buffered:
            return
        numbers = np.concatenate(self._numbers)
        order = np.argsort(numbers, kind="stable")
        numbers, rows = numbers[order], np.concatenate(self._buffer)[order]
        starts = np.flatnonzero(group_starts(numbers))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
            with self._bucket(int(numbers[start])).open("ab") as file:
                rows[start:end].tofile(file)
        self._buffer, self._numbers, self._buffered = [], [], 0


def by_digest(high: np.ndarray) -> np.ndarray:
    """Bucket of each digest: its top 8 bits."""
    return (high >> np.uint64(56)).astype(np.int64)


def ranges(total: int) -> int:
    """How many ranges of `RANGE_ROWS` hold `total` positions."""
    return max(1, -(-total // RANGE_ROWS))


def by_range(positions: np.ndarray) -> np.ndarray:
    """Bucket of each position."""
    return positions // RANGE_ROWS


def group_starts(*columns: np.ndarray) -> np.ndarray:
    """For sorted rows: whether each row differs from the one before in any of the columns.

    >>> group_starts(np.array([1, 1, 2]), np.array([5, 5, 5])).tolist()
    [True, False, True]
    """
    starts = np.zeros(len(columns[0]), bool)
    starts[:1] = True
    for column in columns:
        starts[1:] |= column[1:] != column[:-1]
    return starts


def first_of_group(starts: np.ndarray) -> np.ndarray:
    """Position of the first row of the group that each row belongs to.

    >>> first_of_group(np.array([True, False, True])).tolist()
    [0, 0, 2]
    """
    return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
