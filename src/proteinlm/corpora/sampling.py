"""The order in which sequences are drawn: a pure function of seed, epoch and position, in no memory.

In: a store and a way of sampling. Out: for any position of any epoch, the sequence that stands there. Nothing is
shuffled in memory and nothing is remembered, so that a stopped run goes on exactly where it was, and any number of
processes agree on the order without talking.

Random numbers here are hashes (splitmix64, Steele et al. 2014) of what they are about: the same key gives the same
number on every machine.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, UInt64

from proteinlm.corpora.store import Store
from proteinlm.errors import InputError

MODES = ("all", "representatives", "clusters")
"""What one epoch visits once: every sequence (UR100), every cluster's representative (UR50/S), or every cluster, of
which a member is then drawn uniformly (UR50/D); papers.md 1."""

ROUNDS = 6
"""Rounds of the Feistel network; four make a permutation that no efficient test tells from a random one (Luby and
Rackoff 1988), given random round functions."""


def mix(x: UInt64[np.ndarray, "*N"]) -> UInt64[np.ndarray, "*N"]:
    """The finaliser of splitmix64: a bijection of 64-bit numbers in which every bit depends on every other.

    >>> int(mix(np.uint64(1)))
    6238072747940578789
    """
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key_of(*parts: int) -> np.uint64:
    """A 64-bit key of several whole numbers, in which their order counts.

    >>> bool(key_of(1, 2) != key_of(2, 1))
    True
    """
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = follow(key, np.array([part % 2**64], np.uint64))
    return np.uint64(key[0])


def follow(key: UInt64[np.ndarray, "*N"] | np.uint64, number: UInt64[np.ndarray, "*N"]) -> UInt64[np.ndarray, "*N"]:
    """The keys of `number` under `key`, element by element, with broadcasting."""
    with np.errstate(over="ignore"):
        return mix(mix(np.asarray(key)) + (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def uniform(keys: UInt64[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """One number in [0, 1) for each key, with 53 random bits.

    >>> bool(0 <= uniform(key_of(7)) < 1)
    True
    """
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(keys: UInt64[np.ndarray, "*N"], limits: Int[np.ndarray, "*N"] | int) -> Int[np.ndarray, "*N"]:
    """A whole number in [0, limit) for each key; off uniform by less than limit / 2^53.

    >>> below(np.array([0, 2**64 - 1], np.uint64), 10).tolist()
    [0, 9]
    """
    return np.floor(uniform(keys) * limits).astype(np.int64)


@lru_cache
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    """The keys of the rounds of one permutation, which is asked for again and again."""
    return tuple(key_of(key, number) for number in range(ROUNDS))


@dataclass(frozen=True)
class Shuffle:
    """A permutation of 0..size-1 that is computed where it is asked for.

    A Feistel network permutes the numbers of as many bits as `size` needs; where it leaves the range, it is walked on
    until it comes back (at most two steps on average, since `size` fills more than a quarter of that domain).

    Args:
        size: numbers to permute. key: which permutation.

    >>> sorted(Shuffle(10, 3)(np.arange(10)).tolist()) == list(range(10))
    True
    """

    size: int
    key: int

    def __call__(self, positions: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        """What stands at each position, int64, shape (N,)."""
        half = max(1, (max(self.size - 1, 1).bit_length() + 1) // 2)
        numbers = self._network(positions.astype(np.uint64), half)
        while (outside := numbers >= np.uint64(self.size)).any():
            numbers[outside] = self._network(numbers[outside], half)
        return numbers.astype(np.int64)

    def _network(self, numbers: np.ndarray, half: int) -> np.ndarray:
        bits, mask = np.uint64(half), np.uint64(2**half - 1)
        left, right = numbers >> bits, numbers & mask
        for key in _round_keys(self.key):
            left, right = right, left ^ (follow(key, right) & mask)
        mixed: np.ndarray = (left << bits) | right
        return mixed


@dataclass(frozen=True)
class Order:
    """Which sequence stands at each position of each epoch.

    Args:
        store: the corpus.
        mode: what an epoch visits once, of `MODES`.
        fraction: part of the sequences (or clusters) that is used at all, the same in every epoch; smaller fractions
            of the same seed are contained in larger ones.
        seed: of the fraction, of every epoch's order and of the members drawn.

    Raises:
        InputError: the mode needs clusters that the store does not have, or the fraction leaves nothing.
    """

    store: Store
    mode: str = "clusters"
    fraction: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"sampling {self.mode!r} is unknown; choose one of {', '.join(MODES)}")
        if self.mode != "all" and not self.store.num_clusters:
            raise InputError(
                f"sampling {self.mode!r} needs clusters, which {str(self.store.path)!r} does not have; build the store "
                "with --clusters, or sample 'all'"
            )
        if not 0 < self.fraction <= 1:
            raise InputError(f"fraction is {self.fraction}; give a number above 0, up to 1")
        if self.size < 1:
            raise InputError(f"fraction {self.fraction} of {self.units} leaves nothing; raise it")

    @property
    def units(self) -> int:
        """Sequences, or clusters, that there are."""
        return len(self.store) if self.mode == "all" else self.store.num_clusters

    @property
    def size(self) -> int:
        """Positions in an epoch."""
        return round(self.units * self.fraction)

    def sequences(self, positions: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        """Sequences at positions counted from the start of the first epoch.

        Args:
            positions: any whole numbers from 0 on; position p is in epoch p // size.

        Returns:
            indices into the store, int64, shape (N,).
        """
        epochs, places = np.divmod(positions, self.size)
        units = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            units[here] = Shuffle(self.size, int(key_of(self.seed, 0, int(epoch))))(places[here])
        if self.size < self.units:
            units = Shuffle(self.units, int(key_of(self.seed, 1)))(units)
        if self.mode == "all":
            return units
        first, members = self.store.cluster_starts[units], self.store.cluster_starts[units + 1]
        chosen = first
        if self.mode == "clusters":
            keys = follow(key_of(self.seed, 2), positions.astype(np.uint64))
            chosen = first + below(keys, members - first)
        return self.store.members[chosen].astype(np.int64)
