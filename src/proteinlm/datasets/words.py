"""Which training proteins share words with a protein along one diagonal: a quick look before exact alignment.

In: sequences of a training set, then one query after the other. Out: for each query the most promising training
sequences. Words are `WORD` residues in a reduced alphabet of ten letters (Murphy et al. 2000), so that a likely
exchange does not break a word; hits are counted in bands of `BAND` diagonals, because residues that correspond lie on
few of them. It finds close relatives first and misses distant ones: where everything can be aligned, nothing should
be left to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

GROUPS = ("AST", "C", "DE", "FWY", "G", "H", "ILMV", "KR", "NQ", "P")
"""Residues that are read as one letter. Murphy's ten, with alanine put to serine and threonine."""

WORD = 5
"""Residues of a word: 10^5 words, so that one of them is met by chance once in 100,000 residues."""

BAND = 16
"""Diagonals that are counted together, and with the next as many: room for insertions."""

BLOCK_RESIDUES = 4_000_000
"""Training residues indexed at a time: 100 MB of index."""

_LETTER = np.full(256, -1, np.int64)
for _number, _group in enumerate(GROUPS):
    _LETTER[np.frombuffer(_group.encode("ascii"), np.uint8)] = _number


@dataclass(frozen=True)
class _Index:
    """Where every word stands in a block of training sequences.

    Attributes:
        first: number of the block's first sequence. begin: (W + 1,) where the places of each word begin.
        owner, place: of each word's places: which sequence of the block, and where in it. longest: of the block.
        count: sequences in the block.
    """

    first: int
    begin: Int64[np.ndarray, " W1"]
    owner: Int64[np.ndarray, " P"]
    place: Int64[np.ndarray, " P"]
    longest: int
    count: int


def most_promising(queries: Sequence[str], targets: Sequence[str], count: int) -> list[Int64[np.ndarray, " K"]]:
    """For each query the numbers of at most `count` targets that share the most words with it on one band.

    Args:
        queries, targets: residues. count: how many to keep for each query.

    Returns:
        Numbers of targets in ascending order; fewer than `count` where fewer share any word.

    >>> [list(map(int, found)) for found in most_promising(["MKTAYIAKQR"], ["GGGGGGGG", "VKSAYLAKQR"], 5)]
    [[1]]
    """
    encoded = [_words(query) for query in queries]
    kept: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0, np.int64)) for _ in queries]
    for index in _blocks(targets):
        for number, words in enumerate(encoded):
            counts = _best_bands(words, index)
            found = np.flatnonzero(counts)
            numbers = np.concatenate([kept[number][0], found + index.first])
            shared = np.concatenate([kept[number][1], counts[found]])
            best = np.argsort(-shared, kind="stable")[:count]
            kept[number] = (numbers[best], shared[best])
    return [np.sort(numbers) for numbers, _ in kept]


def _words(residues: str) -> Int64[np.ndarray, " L"]:
    """The word at each place; -1 where a residue of it is none of the twenty."""
    letters = _LETTER[np.frombuffer(residues.encode("latin-1"), np.uint8)]
    size = max(len(letters) - WORD + 1, 0)
    words = np.zeros(size, np.int64)
    strange = np.zeros(size, bool)
    for shift in range(WORD if size else 0):
        part = letters[shift : shift + size]
        words *= len(GROUPS)
        words += part
        strange |= part < 0
    return np.where(strange, -1, words)


def _blocks(targets: Sequence[str]) -> Iterator[_Index]:
    """Indices of blocks of about `BLOCK_RESIDUES`."""
    first = 0
    while first < len(targets):
        last, residues = first, 0
        while last < len(targets) and (last == first or residues + len(targets[last]) <= BLOCK_RESIDUES):
            residues += len(targets[last])
            last += 1
        yield _index(targets[first:last], first)
        first = last


def _index(targets: Sequence[str], first: int) -> _Index:
    parts = [_words(target) for target in targets]
    sizes = np.array([len(part) for part in parts], np.int64)
    words = np.concatenate(parts)
    owner = np.repeat(np.arange(len(parts)), sizes)
    place = np.arange(len(words)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = np.argsort(words, kind="stable")[np.count_nonzero(words < 0) :]
    begin = np.searchsorted(words[order], np.arange(len(GROUPS) ** WORD + 1))
    longest = max(map(len, targets))
    return _Index(first, begin, owner[order], place[order], longest, len(parts))


def _best_bands(words: Int64[np.ndarray, " L"], index: _Index) -> Int64[np.ndarray, " N"]:
    """For each sequence of a block the most hits of the query's words on a band and the next one; 0 without any."""
    best = np.zeros(index.count, np.int64)
    at = np.flatnonzero(words >= 0)
    begin, end = index.begin[words[at]], index.begin[words[at] + 1]
    sizes = end - begin
    if not sizes.sum():
        return best
    hits = np.repeat(begin - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    diagonal = index.place[hits] - np.repeat(at, sizes) + len(words)
    bands = (index.longest + len(words)) // BAND + 2
    key = np.sort(index.owner[hits] * bands + diagonal // BAND)
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    band, count = key[starts], np.diff(np.r_[starts, len(key)])
    # A band of two sequences never stands beside one of the other: the last band of each is left empty.
    neighbour = np.r_[np.where(np.diff(band) == 1, count[1:], 0), 0]
    owner = band // bands
    owners = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    best[owner[owners]] = np.maximum.reduceat(count + neighbour, owners)
    return best
