"""What is measured: the shapes of ESM-2, the proteins, and how much arithmetic they cost whoever does it.

In: the name of a size and a number of proteins. Out: residue strings and counts. Nothing here imports PyTorch.
"""

from dataclasses import dataclass

import numpy as np

MEDIAN_RESIDUES = 270
SPREAD = 0.6
"""Standard deviation of the logarithm of the lengths."""
FEWEST_RESIDUES, MOST_RESIDUES = 30, 1022
"""Lengths beyond are clipped; 1,022 residues are the most that ESM-2 was trained on."""
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
TOKENS_PER_BATCH = 4096
"""The budget of a batch, the same for everyone who batches by budget."""


@dataclass(frozen=True)
class Shape:
    """A size of ESM-2.

    Args:
        num_layers, width, num_heads: of the model. proteins: how many make a pass of about 10 s for the slowest
            contestant on two cores.
        inner: channels of the feed-forward parts; 0, four times the width.
        reach: of our convolutions, which the peers do without; None for none.
    """

    num_layers: int
    width: int
    num_heads: int
    proteins: int
    inner: int = 0
    reach: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", self.inner or 4 * self.width)


SHAPES: dict[str, Shape] = {
    "tiny": Shape(num_layers=2, width=32, num_heads=4, proteins=12),
    "8m": Shape(num_layers=6, width=320, num_heads=20, proteins=320),
    "35m": Shape(num_layers=12, width=480, num_heads=20, proteins=120),
    "150m": Shape(num_layers=30, width=640, num_heads=20, proteins=40),
    "650m": Shape(num_layers=33, width=1280, num_heads=20, proteins=12),
}
"""Sizes by name. `tiny` is nobody's model: it is for trying the program itself."""


def proteins(count: int, seed: int = 0) -> list[str]:
    """Random proteins in file order, their lengths log-normal.

    Args:
        count: how many. seed: of lengths and letters.
    """
    generator = np.random.default_rng(seed)
    lengths = np.exp(generator.normal(np.log(MEDIAN_RESIDUES), SPREAD, count)).astype(int)
    lengths = lengths.clip(FEWEST_RESIDUES, MOST_RESIDUES)
    return ["".join(generator.choice(list(LETTERS), length)) for length in lengths]


@dataclass(frozen=True)
class Floor:
    """The least work that a pass can be, however it is done.

    Attributes:
        flops: of all matrix products, a multiply-add counted as two.
        exponentials: of the softmax.
        bytes: weights in bf16 once per batch, token ids in, one fp32 vector per protein out.
        parameters: weights and biases that the last hidden state depends on.
    """

    flops: int
    exponentials: int
    bytes: int
    parameters: int


def floor(shape: Shape, lengths: list[int]) -> Floor:
    """Count the work of embedding proteins of these lengths (residues; BOS and EOS are added here).

    Per token and layer: 8 D^2 + 4 D I for the projections (3 D^2 + D^2 + 2 D I weights), 4 L D for q k^T and its
    product with the values; per sequence and layer L^2 exponentials of each head. Convolutions are left out.
    """
    tokens = [length + 2 for length in lengths]
    total, squares, d, inner = sum(tokens), sum(n * n for n in tokens), shape.width, shape.inner
    parameters = shape.num_layers * (4 * d * d + 2 * d * inner + 9 * d + inner) + 33 * d + 2 * d
    batches = -(-total // TOKENS_PER_BATCH)
    return Floor(
        flops=shape.num_layers * ((8 * d * d + 4 * d * inner) * total + 4 * d * squares),
        exponentials=shape.num_layers * shape.num_heads * squares,
        bytes=2 * parameters * batches + 8 * total + 4 * d * len(lengths),
        parameters=parameters,
    )
