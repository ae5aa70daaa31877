"""Packed batches: the one form in which token ids reach a model.

In: encoded sequences (token ids with BOS and EOS already in place). Out: one flat vector of ids and the places where
each sequence starts. There is no padding here; a kernel that wants padding makes its own (`models.attention`).

Shape letters, here and in `models`: T tokens in the batch, B sequences, L tokens (or residues) of one sequence,
D model width, H heads, C channels of one head, V alphabet size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """Several sequences laid end to end.

    Args:
        tokens_T: token ids, int64, shape (T,).
        starts: offsets into `tokens_T`, B + 1 of them, the first 0 and the last T.
        max_length: length in tokens of the longest sequence.
        row_B: for each sequence, the caller's own number for it; the id travels with the vector.
        prefix: tokens before the first residue of every sequence (BOS: 0 or 1).
        suffix: tokens after the last residue of every sequence (EOS: 0 or 1).
        cut: numbers of the sequences that are stretches behind which their protein goes on: there EOS ends nothing.
    """

    tokens_T: Int[Tensor, "T"]
    starts: tuple[int, ...]
    max_length: int
    row_B: tuple[int, ...]
    prefix: int = 0
    suffix: int = 0
    cut: frozenset[int] = frozenset()

    @classmethod
    def pack(
        cls,
        encoded: Sequence[np.ndarray],
        rows: Sequence[int] | None = None,
        prefix: int = 0,
        suffix: int = 0,
        cut: Iterable[int] = (),
    ) -> "PackedBatch":
        """Lay encoded sequences end to end.

        Args:
            encoded: one integer array of token ids per sequence, BOS and EOS included; none may be empty.
            rows: the caller's number of each sequence; 0, 1, 2 ... when left out.
            prefix: BOS tokens in front of each sequence.
            suffix: EOS tokens behind each sequence.
            cut: numbers of the sequences whose protein goes on behind them.

        >>> batch = PackedBatch.pack([np.array([0, 5, 2]), np.array([0, 7, 8, 2])], prefix=1, suffix=1)
        >>> batch.starts, batch.max_length, batch.residues(1)
        ((0, 3, 7), 4, slice(4, 6, None))
        """
        assert encoded and all(len(ids) for ids in encoded), "a batch holds at least one sequence, and none is empty"
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])])
        tokens_T = torch.from_numpy(np.concatenate(encoded).astype(np.int64))
        row_B = tuple(rows) if rows is not None else tuple(range(len(encoded)))
        assert len(row_B) == len(encoded), "one row number per sequence"
        longest = max(map(len, encoded))
        return cls(tokens_T, tuple(starts.tolist()), longest, row_B, prefix, suffix, frozenset(cut))

    def __len__(self) -> int:
        return len(self.row_B)

    def tokens(self, b: int) -> slice:
        """Where sequence `b` stands in `tokens_T`, BOS and EOS included."""
        return slice(self.starts[b], self.starts[b + 1])

    def residues(self, b: int) -> slice:
        """Where the residues of sequence `b` stand in `tokens_T`: no BOS, no EOS."""
        return slice(self.starts[b] + self.prefix, self.starts[b + 1] - self.suffix)

    def lengths_B(self, device: torch.device | None = None) -> Int[Tensor, "B"]:
        """Length of each sequence in tokens, int64, shape (B,)."""
        return torch.diff(torch.tensor(self.starts, device=device))

    def positions_T(self) -> Int[Tensor, "T"]:
        """Position of each token in its own sequence, counted from 0, int64, shape (T,)."""
        device = self.tokens_T.device
        starts = torch.tensor(self.starts, device=device)
        return torch.arange(len(self.tokens_T), device=device) - torch.repeat_interleave(
            starts[:-1], torch.diff(starts), output_size=len(self.tokens_T)
        )

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch with its ids on `device`."""
        return replace(self, tokens_T=self.tokens_T.to(device))
