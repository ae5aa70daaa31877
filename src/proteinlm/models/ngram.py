"""The n-gram baseline: a residue predicted from how often each one stood in the same context, Laplace-smoothed.

In: proteins as arrays of letters, as many as there are, read once. Out: a sorted table of counts, and from it the
cross-entropy of other proteins. Source: papers.md 2.1 (Laplace smoothing, grid over context and alpha). What a context
is there is not documented; here it is the `left` residues before and the `right` residues behind, and the default is
the usual n-gram, which sees what stands before. Contexts are true residues, never masks. Beyond the ends of a protein
stands a boundary letter, so first residues are predicted from knowing that they are first.

Memory does not grow with the corpus but with its distinct (context, residue) pairs, K of them: the letters are read in
chunks, each is sorted and counted, and the sorted runs are merged. While fitting at most 12 bytes x (2 K + the larger
of K and `LOOSE_KEYS`), and 0.5 GB for a chunk; 16 bytes x K afterwards.

Shape letters: T residues of several proteins end to end, P proteins, K distinct (context, residue) pairs.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import STANDARD, LetterError

LETTERS = STANDARD + "XBUZO"
"""The 25 residues that are predicted (papers.md 1: guessing among them has an ECE of 25). J is read as X."""

BITS = 5
"""Bits of a letter in a key: codes 1 to 25, and 0 for the boundary."""

MOST_CONTEXT = 11
"""Eleven letters and the residue fill 60 bits of a key."""

CHUNK_RESIDUES = 2**24
"""Residues that are sorted at once: 128 MB of keys."""

LOOSE_KEYS = 2**26
"""Runs are merged once they hold this many keys (800 MB), or as many as are already merged."""

STRIDE, SAMPLES = 1024, 2048
"""A merge takes ranges of about their product in keys, cut at samples of every run."""

LARGEST_COUNT = 2**32 - 1

UNKNOWN = 255
CODES = np.full(256, UNKNOWN, dtype=np.uint8)
CODES[np.frombuffer(LETTERS.encode(), dtype=np.uint8)] = np.arange(1, len(LETTERS) + 1)
CODES[ord("J")] = CODES[ord("X")]

Run = tuple[np.ndarray, np.ndarray]
"""Distinct keys in ascending order, int64, and how often each was seen, uint32."""


@dataclass(frozen=True)
class NGramConfig:
    """What an n-gram model conditions on.

    Args:
        left, right: residues of context before and behind; together 1 to `MOST_CONTEXT`.
        alpha: added to every count. Laplace's own is 1; a smaller one trusts the counts more.

    >>> NGramConfig(left=4).context
    4
    """

    left: int = 4
    right: int = 0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.left < 0 or self.right < 0 or not 1 <= self.context <= MOST_CONTEXT:
            raise InputError(
                f"a context of {self.left} + {self.right} residues; 1 to {MOST_CONTEXT} together are counted"
            )
        if not 0 < self.alpha < float("inf"):
            raise InputError(f"alpha is {self.alpha}; a positive number keeps every residue possible")

    @property
    def context(self) -> int:
        """Letters of context."""
        return self.left + self.right


@dataclass(frozen=True)
class Tally:
    """What the counts say of the residues that are to be scored, before any smoothing.

    Args:
        joint_T: how often the residue stood in its context. context_T: how often the context stood anywhere.
        protein_T: number of the protein that the residue is in. proteins: how many there are.
    """

    joint_T: np.ndarray
    context_T: np.ndarray
    protein_T: np.ndarray
    proteins: int

    def cross_entropy(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Sum of -ln P(residue | context) over the residues of each protein, and their number, both of shape (P,).

        P = (joint + alpha) / (context + 25 alpha); in a context never seen, 1/25.
        """
        loss_T = np.log(self.context_T + alpha * len(LETTERS)) - np.log(self.joint_T + alpha)
        sums_P = np.bincount(self.protein_T, weights=loss_T, minlength=self.proteins)
        return sums_P, np.bincount(self.protein_T, minlength=self.proteins)


@dataclass(frozen=True)
class NGram:
    """Counts of every residue in every context.

    Args:
        config: the context and alpha.
        keys_K: context letters, then the residue, at 5 bits each; ascending, int64.
        before_K: residues counted under the keys before each, and all of them at the end, int64, shape (K + 1,).

    >>> proteins = [np.frombuffer(residues, dtype=np.uint8) for residues in (b"AAAC", b"AC")]
    >>> model = NGram.fit(proteins, NGramConfig(left=1, alpha=1.0))
    >>> sums, counts = model.cross_entropy([np.frombuffer(b"AC", dtype=np.uint8)])
    >>> np.exp(-sums).round(6).tolist(), round((2 + 1) / (2 + 25) * (2 + 1) / (4 + 25), 6)
    ([0.011494], 0.011494)
    """

    config: NGramConfig
    keys_K: np.ndarray
    before_K: np.ndarray

    @classmethod
    def fit(cls, proteins: Iterable[np.ndarray], config: NGramConfig, chunk_residues: int = CHUNK_RESIDUES) -> "NGram":
        """Count proteins, each an array of upper-case ASCII letters, uint8, shape (L,); they are read once.

        Raises:
            InputError: there are no residues, a letter is not one of the 25 or J, or a count passes 2^32 - 1.
        """
        keys_K, counts_K = count(_keys(chunk, config) for chunk in _chunks(proteins, chunk_residues))
        if not len(keys_K):
            raise InputError("there are no residues to count; give at least one protein")
        return cls.from_counts(config, keys_K, counts_K)

    @classmethod
    def from_counts(cls, config: NGramConfig, keys_K: np.ndarray, counts_K: np.ndarray) -> "NGram":
        """A model from its keys, ascending, and how often each was seen."""
        before_K = np.zeros(len(keys_K) + 1, dtype=np.int64)
        np.cumsum(counts_K, out=before_K[1:])
        return cls(config, keys_K, before_K)

    @property
    def counts_K(self) -> np.ndarray:
        """How often each key was seen, uint32, shape (K,)."""
        return np.diff(self.before_K).astype(np.uint32)

    @property
    def residues(self) -> int:
        """Residues that were counted."""
        return int(self.before_K[-1])

    def with_alpha(self, alpha: float) -> "NGram":
        """The same counts, smoothed otherwise; nothing is copied."""
        return replace(self, config=replace(self.config, alpha=alpha))

    def tally(self, proteins: Sequence[np.ndarray], positions: Sequence[np.ndarray] | None = None) -> Tally:
        """Look up residues and their contexts.

        Args:
            proteins: letters, uint8, shape (L,) each.
            positions: for each protein, the residues to score, counted from 0; all of them when left out.

        Raises:
            InputError: an unknown letter, or positions that are not one list per protein and inside it.
        """
        lengths_P = np.array([len(letters) for letters in proteins], dtype=np.int64)
        protein_T = np.repeat(np.arange(len(proteins)), lengths_P)
        keys_T = _keys(list(proteins), self.config) if len(proteins) else np.zeros(0, np.int64)
        if positions is not None:
            chosen = _chosen(positions, lengths_P)
            keys_T, protein_T = keys_T[chosen], protein_T[chosen]
        place_T = np.searchsorted(self.keys_K, keys_T)
        # A key behind the last one is compared with the last one, which it is not.
        found_T = self.keys_K[np.minimum(place_T, len(self.keys_K) - 1)] == keys_T
        joint_T = self._between(place_T, place_T + found_T)
        first_T = keys_T >> BITS << BITS
        first, end = np.searchsorted(self.keys_K, first_T), np.searchsorted(self.keys_K, first_T + (1 << BITS))
        return Tally(joint_T, self._between(first, end), protein_T, len(proteins))

    def all_residues(self, proteins: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """How often each of the 25 residues stood in the context of each place, and how often the context itself did.

        Args:
            proteins: letters, uint8, shape (L,) each.

        Returns:
            int64 arrays of shapes (T, 25), in the order of `LETTERS`, and (T,).
        """
        keys_T = _keys(list(proteins), self.config) if len(proteins) else np.zeros(0, np.int64)
        first_T = keys_T >> BITS << BITS
        ends = [np.searchsorted(self.keys_K, first_T + code) for code in range(1, len(LETTERS) + 2)]
        joint = [self._between(start, end) for start, end in itertools.pairwise(ends)]
        return np.stack(joint, axis=1), self._between(ends[0], np.searchsorted(self.keys_K, first_T + (1 << BITS)))

    def _between(self, start_T: np.ndarray, end_T: np.ndarray) -> np.ndarray:
        total: np.ndarray = self.before_K[end_T] - self.before_K[start_T]
        return total

    def cross_entropy(
        self, proteins: Sequence[np.ndarray], positions: Sequence[np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cross-entropy in nats of each protein: sum and number of residues, both of shape (P,); see `tally`."""
        return self.tally(proteins, positions).cross_entropy(self.config.alpha)


@dataclass(frozen=True)
class Trial:
    """A point of the grid and its mean cross-entropy in nats over all residues of the held-out proteins."""

    config: NGramConfig
    cross_entropy: float


def search_grid(
    training: Callable[[], Iterable[np.ndarray]],
    held_out: Sequence[np.ndarray],
    contexts: Iterable[tuple[int, int]],
    alphas: Sequence[float],
) -> list[Trial]:
    """Try every context with every alpha; the counts of one context exist at a time.

    Args:
        training: gives the training proteins, afresh at each call; one call per context.
        held_out: proteins to choose by: of other clusters than the training's, and not those of the final report.
        contexts: pairs of residues before and behind. alphas: all of them are tried on the same counts.

    Returns:
        one trial per pair, contexts outermost; the best has the least cross-entropy.

    Raises:
        InputError: nothing is held out, or as `NGram.fit`.

    >>> proteins = [np.frombuffer(b"ACACACAC", dtype=np.uint8)]
    >>> trials = search_grid(lambda: proteins, proteins, [(1, 0), (2, 0)], [1.0, 0.1])
    >>> min(trials, key=lambda trial: trial.cross_entropy).config
    NGramConfig(left=1, right=0, alpha=0.1)
    """
    trials = []
    for left, right in contexts:
        tally = NGram.fit(training(), NGramConfig(left, right)).tally(held_out)
        if not len(tally.joint_T):
            raise InputError("no residues are held out; give proteins to choose by")
        for alpha in alphas:
            sums_P, _ = tally.cross_entropy(alpha)
            trials.append(Trial(NGramConfig(left, right, alpha), float(sums_P.sum()) / len(tally.joint_T)))
    return trials


def count(chunks: Iterable[np.ndarray]) -> Run:
    """Distinct keys of all chunks together, and how often each was seen; the chunks are sorted in place.

    >>> keys, counts = count([np.array([5, 3, 5]), np.array([3, 9])])
    >>> keys.tolist(), counts.tolist()
    ([3, 5, 9], [2, 2, 1])
    """
    runs: list[Run] = [(np.zeros(0, np.int64), np.zeros(0, np.uint32))]
    for keys in chunks:
        keys.sort()
        first = _first_of_equals(keys)
        runs.append((keys[first], np.diff(first, append=len(keys)).astype(np.uint32)))
        loose = sum(len(run[0]) for run in runs[1:])
        if loose > max(LOOSE_KEYS, len(runs[0][0])):
            runs = [merge(runs)]
    return merge(runs)


def merge(runs: Sequence[Run]) -> Run:
    """One run out of several: range by range, so that only the result is ever held beside them.

    Raises:
        InputError: a count passes 2^32 - 1.
    """
    samples = np.sort(np.concatenate([keys[::STRIDE] for keys, _ in runs]))
    borders = samples[SAMPLES::SAMPLES]
    cuts = [np.concatenate([[0], np.searchsorted(keys, borders), [len(keys)]]) for keys, _ in runs]
    total, filled = sum(len(keys) for keys, _ in runs), 0
    # Room for the case that no key stands in two runs; pages that are never written take no memory.
    merged_keys, merged_counts = np.empty(total, np.int64), np.empty(total, np.uint32)
    for number in range(len(borders) + 1):
        parts = [
            (keys[cut[number] : cut[number + 1]], counts[cut[number] : cut[number + 1]])
            for (keys, counts), cut in zip(runs, cuts, strict=True)
        ]
        keys, counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if not len(keys):
            continue
        order = np.argsort(keys)
        keys = keys[order]
        first = _first_of_equals(keys)
        totals = np.add.reduceat(counts[order], first, dtype=np.uint64)
        if totals.max() > LARGEST_COUNT:
            raise InputError(f"a residue was seen {totals.max()} times in one context; {LARGEST_COUNT} are counted")
        end = filled + len(first)
        merged_keys[filled:end], merged_counts[filled:end] = keys[first], totals
        filled = end
    return merged_keys[:filled], merged_counts[:filled]


def _first_of_equals(sorted_keys: np.ndarray) -> np.ndarray:
    """Where each distinct value of a sorted array begins."""
    if not len(sorted_keys):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))


def _chunks(proteins: Iterable[np.ndarray], residues: int) -> Iterator[list[np.ndarray]]:
    """Proteins in lists of about `residues` residues."""
    chunk: list[np.ndarray] = []
    filled = 0
    for letters in proteins:
        chunk.append(letters)
        filled += len(letters)
        if filled >= residues:
            yield chunk
            chunk, filled = [], 0
    if chunk:
        yield chunk


def _keys(proteins: list[np.ndarray], config: NGramConfig) -> np.ndarray:
    """The key of every residue of some proteins, end to end, int64, shape (T,)."""
    gap = np.zeros(max(config.left, config.right), dtype=np.uint8)
    codes = np.concatenate([gap, *(part for letters in proteins for part in (_codes(letters), gap))])
    first, end = len(gap), len(codes) - len(gap)
    keys = np.zeros(end - first, dtype=np.int64)
    for offset in (*range(-config.left, 0), *range(1, config.right + 1), 0):
        keys <<= BITS
        keys |= codes[first + offset : end + offset]
    return keys[codes[first:end] != 0]


def _codes(letters: np.ndarray) -> np.ndarray:
    """Codes 1 to 25 of upper-case ASCII letters."""
    if letters.dtype != np.uint8 or letters.ndim != 1:
        raise InputError(f"letters of {letters.dtype} and {letters.ndim} dimensions; one row of uint8 is needed")
    codes = CODES[letters]
    if codes.size and codes.max() == UNKNOWN:
        at = int(np.argmax(codes == UNKNOWN))
        raise LetterError(chr(letters[at]), at + 1, "n-gram")
    return codes


def _chosen(positions: Sequence[np.ndarray], lengths_P: np.ndarray) -> np.ndarray:
    """Positions in each protein -> places among the residues of all proteins end to end."""
    if len(positions) != len(lengths_P):
        raise InputError(f"positions of {len(positions)} proteins for {len(lengths_P)}; one list for each is needed")
    for number, (places, length) in enumerate(zip(positions, lengths_P, strict=True)):
        if len(places) and not 0 <= np.min(places) <= np.max(places) < length:
            raise InputError(f"positions of protein {number} leave its {length} residues; count from 0")
    starts_P = np.cumsum(lengths_P) - lengths_P
    moved = [np.asarray(places, np.int64) + start for places, start in zip(positions, starts_P, strict=True)]
    return np.concatenate(moved) if moved else np.zeros(0, np.int64)
