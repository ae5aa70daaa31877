"""Where a token stands: sinusoidal tables (ESM-1) and rotary angles (ESM-2).

In: positions counted from 0 within each sequence, shape (T,). Out: vectors to add, or unit complex numbers to turn
pairs of channels by.
"""

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn


def sinusoidal(positions_T: Int[Tensor, "T"], width: int) -> Float[Tensor, "T D"]:
    """Sinusoidal position vectors in fairseq's layout: all sines, then all cosines (papers.md 2.2).

    Args:
        positions_T: positions, shape (T,).
        width: channels D; even.

    Returns:
        fp32 vectors of shape (T, D); frequencies run from 1 to 1/10000 over D/2 steps, both ends included.

    >>> sinusoidal(torch.tensor([0]), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    half = width // 2
    steps = torch.arange(half, device=positions_T.device)
    frequency = torch.exp(steps * (-math.log(10000.0) / (half - 1)))
    angle_TF = positions_T.float()[:, None] * frequency
    return torch.cat([angle_TF.sin(), angle_TF.cos()], dim=1)


class Rotary(nn.Module):
    """Rotary positions (RoFormer): channel pair k of a head is turned by position x inverse_frequency[k].

    The frequencies are a buffer that travels with the checkpoint: published ESM-2 weights carry values that were once
    rounded to fp16, and recomputing them changes every hidden state (papers.md 8.1). Our projections keep the two
    channels of a pair side by side, so that turning is one complex product; the readers of `checkpoints` reorder rows.

    Args:
        head_width: channels C of a head; even.
    """

    inverse_frequency: Tensor

    def __init__(self, head_width: int) -> None:
        super().__init__()
        exponent = torch.arange(0, head_width, 2).float() / head_width
        self.register_buffer("inverse_frequency", 1.0 / (10000**exponent))

    def forward(self, positions_T: Int[Tensor, "T"]) -> Complex[Tensor, "T C/2"]:
        """Unit complex numbers that turn each channel pair, complex64, shape (T, C / 2)."""
        angle_TF = positions_T.float()[:, None] * self.inverse_frequency.float()
        return torch.polar(torch.ones_like(angle_TF), angle_TF)


def turn(x: Float[Tensor, "*H T C"], turns_TF: Complex[Tensor, "*H T C/2"]) -> Float[Tensor, "*H T C"]:
    """Turn neighbouring channel pairs, in fp32 whatever the precision of `x`.

    Args:
        x: channels, shape (..., T, C). turns_TF: shape (..., T, C / 2), broadcast; the modulus scales, the angle turns.

    >>> turn(torch.tensor([[1.0, 0.0]]), torch.tensor([[1j]])).tolist()
    [[0.0, 1.0]]
    """
    pairs = x.to(torch.float32, memory_format=torch.contiguous_format).unflatten(-1, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(pairs) * turns_TF).flatten(-2).to(x.dtype)
