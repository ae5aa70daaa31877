"""What an objective is: a batch becomes an example, and a model's answer to an example becomes a loss.

In: packed batches with a random key for each sequence. Out: the summed loss and how many targets it is over, so that
sums over parts, processes and accumulated steps divide once, by the exact total.
"""

import abc
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor, nn

from proteinlm.sequences.batch import PackedBatch


@dataclass(frozen=True)
class Example:
    """A batch made ready for one objective.

    Args:
        batch: what the model sees.
        places_M: tokens to predict, ascending, int64, shape (M,).
        targets_M: their true ids, int64, shape (M,).
    """

    batch: PackedBatch
    places_M: Int[Tensor, "M"]
    targets_M: Int[Tensor, "M"]

    def to(self, device: torch.device) -> "Example":
        """The same example on `device`."""
        return Example(self.batch.to(device), self.places_M.to(device), self.targets_M.to(device))


@dataclass(frozen=True)
class Loss:
    """A summed loss in nats, and the number of targets in the sum."""

    sum: Float[Tensor, ""]
    count: int


class Objective(abc.ABC):
    """Subclasses are final."""

    @abc.abstractmethod
    def prepare(self, batch: PackedBatch, keys_B: UInt64[np.ndarray, "B"]) -> Example:
        """Make an example; every random choice is a function of the sequence's key and nothing else."""

    @abc.abstractmethod
    def loss(self, model: nn.Module, example: Example) -> Loss:
        """Run the model (a `ProteinModel`, or an engine's wrapper around one) and sum the loss over the targets."""
