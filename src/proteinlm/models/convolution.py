"""Depthwise convolution over packed tokens: what a channel says a few residues up and down the chain.

In: packed tokens (T, D), and a `GappedLayout`, which says where they stand once zeros lie between sequences. Out: the
same shape. The zeros keep sequences from seeing each other, so that one convolution serves the whole batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.models.base import Preparable, computing_in
from proteinlm.sequences.batch import PackedBatch

FEWEST_CHANNELS = 32
"""With PyTorch 2.13 on a CPU, a kernel of 15 taps or more over 16 channels or less runs for ever in bf16."""


@dataclass(frozen=True)
class GappedLayout:
    """Where packed tokens stand when `reach` rows lie empty between sequences.

    Args:
        rows_T: row of each token, int64, shape (T,). size: number of rows.

    >>> import numpy as np
    >>> GappedLayout.of(PackedBatch.pack([np.arange(2), np.arange(3)]), reach=2).rows_T.tolist()
    [0, 1, 4, 5, 6]
    """

    rows_T: Int[Tensor, "T"]
    size: int

    @classmethod
    def of(cls, batch: PackedBatch, reach: int) -> "GappedLayout":
        """The layout of a batch, on the device of its tokens."""
        device, count = batch.tokens_T.device, len(batch.tokens_T)
        gaps_B = reach * torch.arange(len(batch), device=device)
        gaps_T = torch.repeat_interleave(gaps_B, batch.lengths_B(device), output_size=count)
        return cls(torch.arange(count, device=device) + gaps_T, count + reach * (len(batch) - 1))


class DepthwiseConvolution(nn.Module, Preparable):
    """x + the weighted sum of a channel's neighbours, for each channel alone; it begins as the identity.

    Args:
        width: channels D. reach: neighbours on either side that a token sees, 1 or more.

    Raises:
        InputError: a reach of less than 1.

    Source: as the Canon layers before a feed-forward part (Allen-Zhu 2025), which look back only; this one both ways.

    >>> import numpy as np
    >>> convolution = DepthwiseConvolution(width=1, reach=1)
    >>> _ = nn.init.ones_(convolution.weight)
    >>> layout = GappedLayout.of(PackedBatch.pack([np.arange(2), np.arange(3)]), reach=1)
    >>> convolution(torch.tensor([[1.0], [2.0], [10.0], [20.0], [30.0]]), layout).flatten().tolist()
    [4.0, 5.0, 40.0, 80.0, 80.0]
    """

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        if reach < 1:
            raise InputError(f"reach is {reach}; leave it out for no convolutions, or let them see 1 neighbour or more")
        self.weight = nn.Parameter(torch.zeros(width, 1, 2 * reach + 1))

    def prepare_weights(self, precision: torch.dtype) -> None:
        """Cast to `precision`."""
        self.to(precision)

    def forward(self, x_TD: Float[Tensor, "T D"], layout: GappedLayout) -> Float[Tensor, "T D"]:
        """Convolve each sequence, (T, D) -> (T, D), in the precision of the weights or of autocast."""
        dtype = computing_in(self.weight)
        x_TD = x_TD.to(dtype)
        gapped_RD = x_TD.new_zeros(layout.size, x_TD.shape[1]).index_copy(0, layout.rows_T, x_TD)
        sums_RD: Tensor = _Convolve.apply(gapped_RD, self.weight.to(dtype))
        return x_TD + sums_RD[layout.rows_T]


class _Convolve(torch.autograd.Function):
    """y[r] = sum over k of w[k] x[r + k - reach], rows beyond the ends being zero.

    Its gradients are written out: oneDNN's own gradient of the weights takes many times as long as the convolution.
    """

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, w_D1K: Tensor) -> Tensor:
        ctx.save_for_backward(x_RD, w_D1K)
        return _convolve(x_RD, w_D1K)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (g_RD,), (x_RD, w_D1K) = gradients, ctx.saved_tensors
        return _convolve(g_RD, w_D1K.flip(2)), _shifted_products(g_RD, x_RD, w_D1K.shape[2])[:, None]


def _convolve(x_RD: Tensor, w_D1K: Tensor) -> Tensor:
    """The convolution as PyTorch runs it best, on an image of one row with its channels last, which copies nothing.

    Few channels get others of zeros beside them on a CPU (`FEWEST_CHANNELS`).
    """
    width, _, size = w_D1K.shape
    if width < FEWEST_CHANNELS and x_RD.device.type == "cpu":
        spare = FEWEST_CHANNELS - width
        return _convolve(F.pad(x_RD, (0, spare)), F.pad(w_D1K, (0, 0, 0, 0, 0, spare)))[:, :width]
    image_1D1R = x_RD[None, None].permute(0, 3, 1, 2)
    y_1D1R = F.conv2d(image_1D1R, w_D1K[:, :, None], padding=(0, size // 2), groups=width)
    return y_1D1R[0, :, 0].T


def _shifted_products(g_RD: Tensor, x_RD: Tensor, size: int) -> Tensor:
    """For each of `size` shifts k and each channel the sum over r of g[r] x[r + k - reach], (D, K).

    Cut into blocks of size - 1 rows, a block of g meets the rows of two blocks of x at most. A matrix product over all
    blocks gives every pair of places in them, and a diagonal of it holds the pairs that are a shift apart.
    """
    block, reach = size - 1, size // 2
    spare = -len(g_RD) % block
    g_DMI = F.pad(g_RD, (0, 0, 0, spare)).T.contiguous().unflatten(1, (-1, block))
    x_DMJ = F.pad(x_RD, (0, 0, reach, spare + reach)).T.contiguous().unfold(1, 2 * block, block)
    pairs_DIJ = g_DMI.transpose(1, 2) @ x_DMJ
    return torch.stack([pairs_DIJ.diagonal(shift, 1, 2).sum(-1) for shift in range(size)], dim=1)
