"""Sequences that are, letter by letter, part of a sequence on the other side: found without comparing all with all.

In: two parts of stores. Out: pairs (inner, outer) where the inner sequence stands whole within the outer one. The first
letters of every inner sequence are looked up at every position of the outer ones. Twelve letters of five bits fit a
64-bit number, so head and tail are compared exactly in whole arrays, and only what agrees in both is compared in full.
Memory: some millions of inner sequences at a time (`SEEDS`), and a block of outer ones.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proteinlm.corpora.buckets import HASHED, KEY, Buckets, by_digest, digests
from proteinlm.corpora.columns import Block, read_blocks
from proteinlm.corpora.store import Store

SEED = 12
"""Letters of a seed, at most; shorter sequences are their own seed."""

LETTER_BITS = 5

SEEDS = 1 << 20
"""Inner sequences held at a time: 150 MB with their tables. The outer ones are read once for each load of seeds."""

PAIRS = 1 << 20
"""Candidate pairs looked at in one go."""

FILTER_BITS = 24
"""The filter in front of the search has four bytes for each seed, and 2^24 at most."""


@dataclass(frozen=True)
class Part:
    """Sequences of a store: all of them, or those on one side of a split.

    Attributes:
        store: where they are. sides: a file with one byte for each sequence, or None for all. side: which byte counts.
    """

    store: Store
    sides: Path | None = None
    side: int = 0

    def blocks(self) -> Iterator[tuple[np.ndarray, Block]]:
        """The sequences with their numbers, from front to back."""
        first = 0
        sides = self.sides.open("rb") if self.sides is not None else None
        for block in read_blocks(self.store.path):
            index = np.arange(first, first + len(block))
            first += len(block)
            if sides is not None:
                chosen = np.fromfile(sides, np.uint8, len(block)) == self.side
                index, block = index[chosen], block.select(chosen)
            if len(block):
                yield index, block
        if sides is not None:
            sides.close()


def contained(inner: Part, outer: Part, every: bool = False) -> Iterator[tuple[int, int]]:
    """Sequences of `inner` that stand whole within one of `outer`.

    Args:
        inner, outer: of different stores, or without common sequences.
        every: all pairs are wanted; else one for each inner sequence and block of outer ones is enough.

    Returns:
        Pairs of numbers, an inner and an outer sequence.
    """
    for seeds in _seeds(inner):
        tables = [_Table(seeds[seeds["size"] == size], size) for size in np.unique(seeds["size"]).tolist()]
        for index, block in outer.blocks():
            for table in tables:
                pairs = sorted(set(_hits(table, inner.store, index, block)))
                yield from pairs if every else {pair[0]: pair for pair in pairs}.values()


@dataclass(frozen=True)
class Leak:
    """Something of a held-out store that is in a training store.

    Attributes:
        train, heldout: identifiers.
        how: `same identifier`, `heldout within train` or `train within heldout` (equal sequences are both).
    """

    train: str
    heldout: str
    how: str


def leaks_between(train: Store, heldout: Store) -> Iterator[Leak]:
    """Everything of `heldout` that `train` gives away, in memory that does not grow with either.

    >>> import io
    >>> from proteinlm.corpora.build import build
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, text in (("t", b">a\\nMKTAYIAK\\n"), ("h", b">b\\nTAYI\\n>a\\nWWW\\n")):
    ...         manifest = build(io.BytesIO(text), Path(folder, name))
    ...     for leak in leaks_between(Store.open(Path(folder, "t")), Store.open(Path(folder, "h"))):
    ...         print(leak.train, leak.heldout, leak.how)
    a a same identifier
    a b heldout within train
    """
    for ours, theirs, how in leaking(train, heldout):
        yield Leak(train.identifier(ours), heldout.identifier(theirs), how)


def leaking(train: Store, heldout: Store) -> Iterator[tuple[int, int, str]]:
    """As `leaks_between`, by the numbers of the sequences."""
    for ours, theirs in _same_identifiers(train, heldout):
        yield ours, theirs, "same identifier"
    for theirs, ours in contained(Part(heldout), Part(train), every=True):
        yield ours, theirs, "heldout within train"
    for ours, theirs in contained(Part(train), Part(heldout)):
        yield ours, theirs, "train within heldout"


def _same_identifiers(train: Store, heldout: Store) -> Iterator[tuple[int, int]]:
    """Sequences with an identifier that stands in both."""
    with tempfile.TemporaryDirectory(prefix="plm-leaks-") as folder:
        names = [Buckets(Path(folder), name, [*KEY, ("index", "<i8")]) for name in ("train", "heldout")]
        for buckets, store in zip(names, (train, heldout), strict=True):
            for index, block in Part(store).blocks():
                keys = digests(name.encode() for name in block.identifiers())
                buckets.add(by_digest(keys["high"]), {"high": keys["high"], "low": keys["low"], "index": index})
        for number in range(HASHED):
            ours, theirs = (buckets.take(number).tolist() for buckets in names)
            known = {(high, low): index for high, low, index in theirs}
            for high, low, index in ours:
                if (high, low) in known:
                    yield index, known[high, low]


def window_codes(letters: np.ndarray, size: int) -> np.ndarray:
    """A number for each window of `size` letters, different for different windows.

    Args:
        letters: uint8, upper-case ASCII, shape (L,). size: 1 to 12.

    Returns:
        uint64 of shape (L - size + 1,); empty where the windows are longer than the letters.

    >>> window_codes(np.frombuffer(b"ABAB", np.uint8), 2).tolist()
    [65, 34, 65]
    """
    count = len(letters) - size + 1
    if count < 1:
        return np.empty(0, np.uint64)
    # Windows of 1, 2, 4, 8 letters by doubling; those that the binary digits of `size` name, end to end.
    power, width, done = (letters & 31).astype(np.uint64), 1, 0
    codes = np.zeros(count, np.uint64)
    while True:
        if size & width:
            codes |= power[done : done + count] << np.uint64(LETTER_BITS * done)
            done += width
        if 2 * width > size:
            return codes
        power = power[:-width] | (power[width:] << np.uint64(LETTER_BITS * width))
        width *= 2


_SEED_FIELDS = np.dtype(
    [("head", np.uint64), ("tail", np.uint64), ("index", np.int64), ("length", np.int64), ("size", np.int64)]
)


def _seeds(part: Part) -> Iterator[np.ndarray]:
    """First and last letters of every sequence, `SEEDS` sequences at a time; the array is used again."""
    held = np.empty(SEEDS, _SEED_FIELDS)
    count = 0
    for index, block in part.blocks():
        rows = _seeds_of(index, block)
        while len(rows):
            fits = rows[: SEEDS - count]
            held[count : count + len(fits)] = fits
            count += len(fits)
            rows = rows[len(fits) :]
            if count == SEEDS:
                yield held
                count = 0
    if count:
        yield held[:count]


def _seeds_of(index: np.ndarray, block: Block) -> np.ndarray:
    rows = np.zeros(len(block), _SEED_FIELDS)
    rows["index"], rows["length"] = index, block.lengths
    rows["size"] = np.minimum(block.lengths, SEED)
    starts = np.cumsum(block.lengths) - block.lengths
    for size in np.unique(rows["size"]).tolist():
        codes, chosen = window_codes(block.letters, size), rows["size"] == size
        rows["head"][chosen] = codes[starts[chosen]]
        rows["tail"][chosen] = codes[(starts + block.lengths - size)[chosen]]
    return rows


class _Table:
    """Seeds of one size, to be looked up.

    Args:
        seeds: rows of `_SEED_FIELDS`. size: letters of each seed.
    """

    def __init__(self, seeds: np.ndarray, size: int) -> None:
        self.size = size
        self.seeds = seeds[np.argsort(seeds["head"], kind="stable")]
        self._heads, self._first, self._count = np.unique(self.seeds["head"], return_index=True, return_counts=True)
        self._bits = min(FILTER_BITS, (4 * len(seeds)).bit_length())
        self._filter = np.zeros(1 << self._bits, bool)
        self._filter[self._slot(self._heads)] = True

    def find(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the codes are heads: positions in `codes`, the first row of seeds with that head, and how many."""
        at = np.flatnonzero(self._filter[self._slot(codes)])
        head = np.minimum(np.searchsorted(self._heads, codes[at]), len(self._heads) - 1)
        found = self._heads[head] == codes[at]
        return at[found], self._first[head[found]], self._count[head[found]]

    def _slot(self, codes: np.ndarray) -> np.ndarray:
        """A place in the filter: the top bits of the product with the golden ratio (Knuth 1998, 6.4)."""
        return ((codes * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - self._bits)).astype(np.int64)


def _hits(table: _Table, inner: Store, index: np.ndarray, block: Block) -> Iterator[tuple[int, int]]:
    """Seeds of the table that belong to a sequence which stands whole within one of the block."""
    codes = window_codes(block.letters, table.size)
    ends = np.cumsum(block.lengths)
    at, low, counts = table.find(codes)
    # Few enough hits at a time that their pairs fit; one hit has no more pairs than there are seeds.
    slices = np.cumsum(counts) // PAIRS
    for number in np.unique(slices).tolist():
        chosen = slices == number
        count = counts[chosen]
        position = np.repeat(at[chosen], count)
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        seeds = table.seeds[np.repeat(low[chosen], count) + within]
        row = np.searchsorted(ends, position, side="right")
        fits = position + seeds["length"] <= ends[row]
        position, seeds, row = position[fits], seeds[fits], row[fits]
        same = codes[position + seeds["length"] - table.size] == seeds["tail"]
        position, seeds, targets = position[same], seeds[same], index[row[same]]
        # Up to twice the size, head and tail are everything.
        short = seeds["length"] <= 2 * table.size
        pairs = np.unique(np.stack([seeds["index"][short], targets[short]]), axis=1)
        yield from zip(*pairs.tolist(), strict=True)
        for start, seed, target in zip(position[~short].tolist(), seeds[~short], targets[~short].tolist(), strict=True):
            name, length = int(seed["index"]), int(seed["length"])
            if np.array_equal(block.letters[start : start + length], inner.letters(name)):
                yield name, target
