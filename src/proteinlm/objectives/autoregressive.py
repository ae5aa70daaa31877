"""Causal language modelling: every token from those before it.

In: packed batches. Out: the batch as it is, and the next token at every token but the last of a protein. A protein that
is longer than the model's segment is read segment by segment, with memory carried on, inside the model: every token of
it carries loss. Where a stretch of a protein was cut out, the token behind it ends nothing and is not asked for: a
model that had to predict it would learn that proteins end at the length of the stretches.

Source: papers.md 6.3 (ProtTXL); Dai et al. 2019. Where the original feeds an endless stream, here every protein begins
without memory, so that no protein's loss depends on which one came before.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt64
from torch import Tensor

from proteinlm.models.base import ProteinModel
from proteinlm.objectives.base import Example, Loss, Objective, TargetLosses
from proteinlm.objectives.masked import cross_entropy
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.batch import PackedBatch


@dataclass(frozen=True)
class NextToken:
    """There is nothing to choose: segment and memory belong to the model."""


class AutoregressiveModel(Objective[Example]):
    """Predict the next token, for models whose logits are about it (`ProteinModel.logits_ahead`).

    Args:
        alphabet: of the model. config: holds nothing.

    >>> from proteinlm.sequences.alphabet import PROTTXL
    >>> batch = PackedBatch.pack([PROTTXL.encode("MK"), PROTTXL.encode("A")], prefix=1, suffix=1)
    >>> example = AutoregressiveModel(PROTTXL, NextToken()).prepare(batch, np.array([0, 0], np.uint64))
    >>> example.places_M.tolist(), example.targets_M.tolist() == batch.tokens_T[[1, 2, 3, 5, 6]].tolist()
    ([0, 1, 2, 4, 5], True)
    """

    scores = ("perplexity",)
    """Over residues alone: what stands behind the last one is no residue, and other objectives do not ask for it."""

    def __init__(self, alphabet: Alphabet, config: NextToken) -> None:
        self.alphabet, self.config, self.share = alphabet, config, 1.0

    def prepare(self, batch: PackedBatch, keys_B: UInt64[np.ndarray, "B"]) -> Example:
        """Nothing is drawn; `keys_B` are not used."""
        is_last_T = torch.zeros(len(batch.tokens_T), dtype=torch.bool)
        is_last_T[torch.tensor(batch.starts[1:]) - 1] = True
        for b in batch.cut:
            is_last_T[batch.residues(b).stop - 1] = True
        places_M = torch.nonzero(~is_last_T)[:, 0]
        return Example(batch, places_M, batch.tokens_T[places_M + 1])

    def loss(self, model: ProteinModel, example: Example) -> Loss:
        """Summed cross-entropy of all next tokens, in nats."""
        return Loss(cross_entropy(model, example).sum(), len(example.targets_M))

    def score(self, model: ProteinModel, example: Example) -> dict[str, TargetLosses]:
        """See `Objective.score`."""
        losses_M, rows_M = cross_entropy(model, example), example.rows_M()
        residue_M = self.residues(example)
        return {"perplexity": TargetLosses(losses_M[residue_M], rows_M[residue_M])}

    def residues(self, example: Example) -> Bool[Tensor, "M"]:
        """Which of the targets are residues."""
        is_residue_T = torch.zeros(len(example.batch.tokens_T), dtype=torch.bool, device=example.places_M.device)
        for b in range(len(example.batch)):
            is_residue_T[example.batch.residues(b)] = True
        return is_residue_T[example.places_M + 1]
