"""What an objective is: a batch becomes an example, and a model's answer to an example becomes a loss.

In: packed batches with a random key for each sequence. Out: the summed loss and how many targets it is over, so that
sums over parts, processes and accumulated steps divide once, by the exact total.
"""

import abc
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt64
from torch import Tensor

from proteinlm.corpora.sampling import follow
from proteinlm.models.base import ProteinModel
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.batch import PackedBatch


class Prepared(abc.ABC):
    """A batch made ready for one objective. Subclasses are frozen dataclasses, and final."""

    @abc.abstractmethod
    def to(self, device: torch.device) -> "Prepared":
        """The same on `device`."""


@dataclass(frozen=True)
class Example(Prepared):
    """A batch in which some tokens are to be predicted.

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

    def rows_M(self) -> Int[Tensor, "M"]:
        """Which sequence of the batch each target is in, from 0, int64, shape (M,)."""
        starts = torch.tensor(self.batch.starts, device=self.places_M.device)
        return torch.searchsorted(starts, self.places_M, right=True) - 1


@dataclass(frozen=True)
class Loss:
    """A summed loss in nats, and the number of targets in the sum.

    Args:
        sum: what is minimised. count: its targets.
        parts: sums and counts of what the loss consists of, detached, by the names in `Objective.parts`.
    """

    sum: Float[Tensor, ""]
    count: int
    parts: dict[str, tuple[Float[Tensor, ""], int]] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetLosses:
    """The loss of each target in nats, fp32, and which sequence of the batch it is in, int64; shape (M,) each."""

    losses_M: Float[Tensor, "M"]
    rows_M: Int[Tensor, "M"]


ExampleT = TypeVar("ExampleT", bound=Prepared)


class Objective(abc.ABC, Generic[ExampleT]):
    """Subclasses are final. They get the model itself and may call it, and any method of it, as often as they like.

    Attributes:
        alphabet: of the model.
        share: about how many targets there are for each token of a batch; gradients are scaled by it for the time
            being, and exactly once all targets are counted.
        scores: what `score` gives, the most telling first. They become columns of `validation.csv`.
        parts: what a loss consists of, where it is more than one thing. They become columns of `training.csv`.
    """

    alphabet: Alphabet
    share: float
    scores: tuple[str, ...] = ("perplexity",)
    parts: tuple[str, ...] = ()

    @abc.abstractmethod
    def prepare(self, batch: PackedBatch, keys_B: UInt64[np.ndarray, "B"]) -> ExampleT:
        """Make an example; every random choice is a function of the sequence's key and nothing else."""

    @abc.abstractmethod
    def loss(self, model: ProteinModel, example: ExampleT) -> Loss:
        """Run the model and sum the loss over the targets."""

    @abc.abstractmethod
    def score(self, model: ProteinModel, example: ExampleT) -> dict[str, TargetLosses]:
        """The loss of each target, by the names in `scores`; for proteins that are held out."""


def residue_keys(
    batch: PackedBatch, keys_B: UInt64[np.ndarray, "B"]
) -> tuple[Bool[np.ndarray, "T"], UInt64[np.ndarray, "T"]]:
    """Which tokens are residues, and a random key for each token.

    Args:
        batch: as drawn. keys_B: of its sequences, uint64, shape (B,).

    Returns:
        bool and uint64, shape (T,); a token's key depends on its sequence's key and its position, not on the batch.

    >>> batch = PackedBatch.pack([np.array([0, 5, 6, 2])], prefix=1, suffix=1)
    >>> residue_keys(batch, np.array([9], np.uint64))[0].tolist()
    [False, True, True, False]
    """
    lengths = np.diff(batch.starts)
    within_T = np.arange(len(batch.tokens_T)) - np.repeat(batch.starts[:-1], lengths)
    is_residue_T = (within_T >= batch.prefix) & (within_T < np.repeat(lengths, lengths) - batch.suffix)
    return is_residue_T, follow(np.repeat(keys_B, lengths), within_T.astype(np.uint64))
