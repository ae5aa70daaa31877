"""Permutation language modelling: some residues, one after the other in random order, each from what came before it.

In: packed batches. Out: a factorisation order for each protein, the residues at its end, and their cross-entropy. A
residue that is to be predicted sees all the others and those to be predicted before it; through the model's second
stream it does not see itself. Long proteins are read segment by segment with memory, inside the model.

Source: papers.md 6.3 (ProtXLNet); Yang et al. 2019, sections 2.2 to 2.4: of a factorisation order only the last tokens
are predicted, one in six (their K). Two simplifications: residues are chosen one by one where the original code chooses
stretches of words, and `<sep>` and `<cls>` are seen by all, where it gives them a place in the order.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from proteinlm.corpora.sampling import follow, uniform
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.models.xlnet import Xlnet
from proteinlm.objectives.base import Loss, Objective, Prepared, TargetLosses, residue_keys
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.batch import PackedBatch

_ORDER = np.array(1, np.uint64)
"""What a key is for."""


@dataclass(frozen=True)
class Permuting:
    """How much is predicted.

    Args:
        predicted: share of the residues that stand at the end of the factorisation order.
    """

    predicted: float = 1 / 6

    def __post_init__(self) -> None:
        if not 0 < self.predicted <= 1:
            raise InputError(f"objective predicted={self.predicted}: a share above 0 and up to 1 is needed")


@dataclass(frozen=True)
class Permuted(Prepared):
    """A batch with a factorisation order.

    Args:
        batch: as it is.
        rank_T: place of each token in the order of its protein, -1 for those that all see, int64, shape (T,).
        places_M: tokens to predict, ascending, int64, shape (M,).
    """

    batch: PackedBatch
    rank_T: Int[Tensor, "T"]
    places_M: Int[Tensor, "M"]

    def to(self, device: torch.device) -> "Permuted":
        """The same example on `device`."""
        return Permuted(self.batch.to(device), self.rank_T.to(device), self.places_M.to(device))

    def rows_M(self) -> Int[Tensor, "M"]:
        """Which sequence of the batch each target is in, from 0, int64, shape (M,)."""
        starts = torch.tensor(self.batch.starts, device=self.places_M.device)
        return torch.searchsorted(starts, self.places_M, right=True) - 1


class PermutationModel(Objective[Permuted]):
    """Predict residues in random order, for XLNet.

    Args:
        alphabet: of the model. config: how much is predicted.

    >>> from proteinlm.sequences.alphabet import PROTXLNET
    >>> batch = PackedBatch.pack([PROTXLNET.encode("MKTV")], suffix=2)
    >>> example = PermutationModel(PROTXLNET, Permuting(1.0)).prepare(batch, np.array([3], np.uint64))
    >>> sorted(example.rank_T[:4].tolist()), example.rank_T[4:].tolist()
    ([0, 1, 2, 3], [-1, -1])
    """

    scores = ("perplexity",)

    def __init__(self, alphabet: Alphabet, config: Permuting) -> None:
        self.alphabet, self.config, self.share = alphabet, config, config.predicted

    def prepare(self, batch: PackedBatch, keys_B: UInt64[np.ndarray, "B"]) -> Permuted:
        """Draw residues and their order.

        Args:
            batch: as drawn.
            keys_B: uint64, shape (B,); the same key gives the same residues in the same order in any batch.
        """
        is_residue_T, keys_T = residue_keys(batch, keys_B)
        places = np.flatnonzero(is_residue_T & (uniform(keys_T) < self.config.predicted))
        rank_T = torch.full((len(is_residue_T),), -1)
        # Ranks are those among all residues of the batch; within a protein, only their order counts.
        rank_T[places] = torch.from_numpy(np.argsort(np.argsort(follow(keys_T[places], _ORDER))))
        return Permuted(batch, rank_T, torch.from_numpy(places))

    def loss(self, model: ProteinModel, example: Permuted) -> Loss:
        """Summed cross-entropy of the residues that are predicted, in nats."""
        return Loss(self.cross_entropy(model, example).sum(), len(example.places_M))

    def score(self, model: ProteinModel, example: Permuted) -> dict[str, TargetLosses]:
        """See `Objective.score`."""
        return {"perplexity": TargetLosses(self.cross_entropy(model, example), example.rows_M())}

    def cross_entropy(self, model: ProteinModel, example: Permuted) -> Float[Tensor, "M"]:
        """Cross-entropy of each target in nats, over all tokens of the alphabet, in fp32."""
        assert isinstance(model, Xlnet), "the table of architectures says which models train by permutation"
        predicted = model.two_stream(example.batch, example.rank_T, example.places_M)
        return F.cross_entropy(predicted.logits_MV.float(), example.batch.tokens_T[example.places_M], reduction="none")
