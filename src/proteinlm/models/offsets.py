"""What is added to an attention score by how far the key stands from the query: T5's relative positions, causal masks.

In: one number for each head and offset. Out: the same numbers as a matrix of scores, or as factors of exponentials.
A matrix of offsets is constant along its diagonals, so that a kernel which lays the keys out backwards can read it as a
view of one short row per head, and nothing of the size of the scores is ever made.

Shape letters: H heads (1 serves all), O offsets (2 reach + 1), L queries, S keys, R rows of T5's table.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class OffsetBias:
    """A number added to the score of query i and key j, for each head and each offset j - i.

    What is made of it is kept, so that the layers of one forward pass share it; a new pass needs a new one.

    Args:
        by_offset_HO: fp32, offset -reach first; -inf where a key is not to be seen. H is 1 where heads do not differ.

    >>> bias = OffsetBias(torch.tensor([[-1.0, 0.0, 2.0]]))
    >>> bias.matrix(2, 2, torch.float32).tolist()
    [[[0.0, 2.0], [-1.0, 0.0]]]
    """

    def __init__(self, by_offset_HO: Float[Tensor, "H O"]) -> None:
        self.by_offset_HO = by_offset_HO
        self.reach = by_offset_HO.shape[1] // 2
        self._matrices: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._factors: dict[torch.dtype, Tensor] = {}
        self._largest: float | None = None

    def matrix(self, queries: int, keys: int, dtype: torch.dtype) -> Float[Tensor, "H L S"]:
        """What is added to the scores of a sequence; gradients flow back to the row."""
        wanted = (queries, keys, dtype)
        if wanted not in self._matrices:
            assert max(queries, keys) <= self.reach + 1, "the row holds every offset of the longest sequence"
            # Row i holds offsets -i to keys - 1 - i: a window that moves one place to the left with every query.
            row_HO = self.by_offset_HO[:, self.reach - queries + 1 : self.reach + keys]
            self._matrices[wanted] = row_HO.unfold(1, keys, 1).flip(1).to(dtype)
        return self._matrices[wanted]

    def factors(self, queries: int, keys: int, dtype: torch.dtype) -> Float[Tensor, "H L S"]:
        """Take exp of `matrix` with the keys in reverse order, as a view of one row per head; no gradient."""
        if dtype not in self._factors:
            self._factors[dtype] = self.by_offset_HO.detach().exp().flip(1).to(dtype)
        row_HO = self._factors[dtype]
        shape = (len(row_HO), queries, keys)
        return row_HO.as_strided(shape, (row_HO.shape[1], 1, 1), self.reach - keys + 1)

    def largest(self) -> float:
        """Largest |number|, those left aside that forbid."""
        if self._largest is None:
            seen = self.by_offset_HO.detach()[self.by_offset_HO > -math.inf]
            self._largest = seen.abs().max().item()
        return self._largest


def causal(reach: int, device: torch.device | None = None) -> Float[Tensor, "1 O"]:
    """A row for `OffsetBias` that hides every later key.

    >>> causal(1).tolist()
    [[0.0, 0.0, -inf]]
    """
    offsets_O = torch.arange(-reach, reach + 1, device=device)
    return torch.zeros(1, len(offsets_O), device=device).masked_fill(offsets_O > 0, -math.inf)


def buckets(offsets: Int[Tensor, "*O"], count: int, furthest: int, both_sides: bool) -> Int[Tensor, "*O"]:
    """T5's bucket of each offset: near ones have one each, further ones share, in steps that grow with the logarithm.

    Args:
        offsets: key position minus query position. count: buckets in all.
        furthest: the offset from which on everything is in the last bucket.
        both_sides: half of the buckets for keys behind the query (an encoder); else those share bucket 0 (a decoder).

    Source: Raffel et al. 2020, section 2.1; the rounding is that of the published code, in fp32.

    >>> buckets(torch.tensor([-3, 0, 1, 200]), count=32, furthest=128, both_sides=True).tolist()
    [3, 0, 17, 31]
    """
    if both_sides:
        count //= 2
        side, distance = torch.where(offsets > 0, count, 0), offsets.abs()
    else:
        side, distance = torch.zeros_like(offsets), (-offsets).clamp(min=0)
    exact = count // 2
    steps = torch.log(distance.float().clamp(min=1) / exact) / math.log(furthest / exact) * (count - exact)
    shared = (exact + steps.long()).clamp(max=count - 1)
    return side + torch.where(distance < exact, distance, shared)


class RelativePositions(nn.Module):
    """T5's learned table of buckets, one for all layers of a stack.

    Args:
        num_heads: H. count, furthest: see `buckets`. is_causal: a decoder, where later keys are hidden.
    """

    def __init__(self, num_heads: int, count: int, furthest: int, is_causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, num_heads))
        self.furthest, self.is_causal = furthest, is_causal

    def forward(self, longest: int) -> OffsetBias:
        """The bias of one forward pass over sequences of up to `longest` tokens."""
        device, reach = self.weight.device, longest - 1
        offsets_O = torch.arange(-reach, longest, device=device)
        rows_O = buckets(offsets_O, len(self.weight), self.furthest, both_sides=not self.is_causal)
        by_offset_HO = self.weight.float()[rows_O].T.contiguous()
        return OffsetBias(by_offset_HO + causal(reach, device) if self.is_causal else by_offset_HO)
