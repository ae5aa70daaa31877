"""Masked language modelling: some residues are hidden, and the model says which they were.

In: packed batches. Out: the corrupted batch, the places that were chosen, and the cross-entropy there. Nothing but the
chosen places carries loss, and logits are computed for no other.

Source: papers.md 1 (Rives et al., equation 1; shares from ESM-1b's published model card).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt64
from torch import Tensor, nn

from proteinlm.corpora.sampling import below, follow, uniform
from proteinlm.errors import InputError
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.objectives.base import Example, Loss, Objective, TargetLosses, residue_keys
from proteinlm.sequences.alphabet import STANDARD, Alphabet
from proteinlm.sequences.batch import PackedBatch

_FATE, _SUBSTITUTE = np.array(1, np.uint64), np.array(2, np.uint64)
"""What a key is for."""


@dataclass(frozen=True)
class Masking:
    """How residues are hidden.

    Args:
        chosen: share of the residues to predict.
        masked: share of the chosen that the mask token replaces.
        random: share of the chosen that one of the twenty residues replaces; the others stay as they are.
        different: that one is never the residue it replaces (ProtBert, papers.md 6.3).
    """

    chosen: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    different: bool = False

    def __post_init__(self) -> None:
        shares = (self.chosen, self.masked, self.random, self.masked + self.random)
        if not 0 < self.chosen <= 1 or any(not 0 <= share <= 1 + 1e-9 for share in shares):
            raise InputError(
                f"masking chosen={self.chosen}, masked={self.masked}, random={self.random}: chosen must be above 0 and "
                "up to 1, masked and random at least 0 and together at most 1"
            )


class MaskedLanguageModel(Objective[Example]):
    """Predict hidden residues.

    Args:
        alphabet: of the model; it must have a mask token.
        masking: the shares.

    Raises:
        InputError: the alphabet has no mask token.

    >>> from proteinlm.sequences.alphabet import ESM1B
    >>> batch = PackedBatch.pack([ESM1B.encode("MKTVRQGLAG")], prefix=1, suffix=1)
    >>> example = MaskedLanguageModel(ESM1B, Masking(chosen=1.0, masked=1.0, random=0.0)).prepare(
    ...     batch, np.array([5], np.uint64)
    ... )
    >>> example.batch.tokens_T.tolist()
    [0, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 2]
    >>> example.targets_M.tolist() == batch.tokens_T[1:-1].tolist()
    True
    """

    scores = ("ece", "ece_chosen")
    """Over the residues that the mask token replaced; over all that were chosen, as in training."""

    def __init__(self, alphabet: Alphabet, masking: Masking) -> None:
        if alphabet.mask is None:
            raise InputError(f"alphabet {alphabet.name} has no mask token; masked language modelling needs one")
        self.alphabet, self.masking, self.mask = alphabet, masking, alphabet.mask
        self.share = masking.chosen
        self._residues = torch.from_numpy(alphabet.residue_ids(STANDARD))
        self._numbers = torch.full((len(alphabet),), len(STANDARD))
        self._numbers[self._residues] = torch.arange(len(STANDARD))

    def prepare(self, batch: PackedBatch, keys_B: UInt64[np.ndarray, "B"]) -> Example:
        """Hide residues.

        Args:
            batch: as drawn.
            keys_B: uint64, shape (B,); the same key hides the same residues of a sequence in any batch.
        """
        is_residue_T, keys_T = residue_keys(batch, keys_B)
        places = np.flatnonzero(is_residue_T & (uniform(keys_T) < self.masking.chosen))
        fate = uniform(follow(keys_T[places], _FATE))
        places_M = torch.from_numpy(places)
        targets_M = batch.tokens_T[places_M]
        substitutes = self._residues[self._substitutes(follow(keys_T[places], _SUBSTITUTE), targets_M)]
        hidden, swapped = self.masking.masked, self.masking.masked + self.masking.random
        replaced_M = torch.where(torch.from_numpy(fate < swapped), substitutes, targets_M)
        replaced_M = replaced_M.masked_fill(torch.from_numpy(fate < hidden), self.mask)
        tokens_T = batch.tokens_T.clone()
        tokens_T[places_M] = replaced_M
        seen = PackedBatch(tokens_T, batch.starts, batch.max_length, batch.row_B, batch.prefix, batch.suffix)
        return Example(seen, places_M, targets_M)

    def _substitutes(self, keys_M: UInt64[np.ndarray, "M"], targets_M: Int[Tensor, "M"]) -> Int[np.ndarray, "M"]:
        """Which of the twenty residues may stand in for each target, by its number among them."""
        twenty = len(self._residues)
        if not self.masking.different:
            return below(keys_M, twenty)
        true_M = self._numbers[targets_M].numpy()
        drawn_M = below(keys_M, np.where(true_M < twenty, twenty - 1, twenty))
        return drawn_M + (drawn_M >= true_M)

    def loss(self, model: ProteinModel, example: Example) -> Loss:
        """Summed cross-entropy over the chosen residues, in nats."""
        return Loss(cross_entropy(model, example).sum(), len(example.targets_M))

    def score(self, model: ProteinModel, example: Example) -> dict[str, TargetLosses]:
        """See `Objective.score`."""
        losses_M, rows_M = cross_entropy(model, example), example.rows_M()
        hidden_M = self.hidden(example)
        chosen = TargetLosses(losses_M, rows_M)
        return {"ece": TargetLosses(losses_M[hidden_M], rows_M[hidden_M]), "ece_chosen": chosen}

    def hidden(self, example: Example) -> Bool[Tensor, "M"]:
        """Which of the chosen residues the mask token replaced."""
        return example.batch.tokens_T[example.places_M].eq(self.mask)


def cross_entropy(model: nn.Module, example: Example) -> Float[Tensor, "M"]:
    """Cross-entropy of each target in nats, over all tokens of the alphabet, in fp32."""
    output = model(example.batch, Want(logits=True, places_M=example.places_M))
    assert isinstance(output, Output) and output.logits_TV is not None
    return F.cross_entropy(output.logits_TV.float(), example.targets_M, reduction="none")
