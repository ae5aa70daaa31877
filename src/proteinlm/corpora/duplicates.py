"""Exact duplicates: found by digest, bucket by bucket, so that memory does not grow with the corpus.

In: a digest of each sequence with its position. Out: for every sequence that occurred before, where it occurred first.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proteinlm.corpora.buckets import HASHED, KEY, Buckets, by_digest, by_range, digests, first_of_group, group_starts


class Duplicates:
    """Gathers digests, then says which sequences are copies.

    Args:
        folder: where the buckets may lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests = Buckets(folder, "digests", [*KEY, ("index", "<i8")])

    def add(self, first: int, sequences: Sequence[bytes]) -> None:
        """Take the next sequences, which stand at positions `first` and on."""
        keys = digests(sequences)
        index = np.arange(first, first + len(keys))
        self._digests.add(by_digest(keys["high"]), {"high": keys["high"], "low": keys["low"], "index": index})

    def find(self) -> Buckets:
        """The copies.

        Returns:
            Buckets by range of `dropped`; a row holds the position of a copy and of the first sequence that is equal.
        """
        merged = Buckets(self._folder, "merged", [("dropped", "<i8"), ("kept", "<i8")])
        for number in range(HASHED):
            rows = self._digests.take(number)
            rows = rows[np.lexsort((rows["index"], rows["low"], rows["high"]))]
            starts = group_starts(rows["high"], rows["low"])
            dropped = rows["index"][~starts]
            kept = rows["index"][first_of_group(starts)][~starts]
            merged.add(by_range(dropped), {"dropped": dropped, "kept": kept})
        return merged
