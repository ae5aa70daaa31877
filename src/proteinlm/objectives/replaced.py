"""Replaced-token detection: a generator fills in hidden residues, and a discriminator says of each whether it did.

In: packed batches. Out: a batch with hidden residues, and the loss of two models at once: the generator's cross-entropy
at the hidden places, and the discriminator's at every residue of a protein into which the generator's guesses were put.
No gradient flows from one into the other; what they share is the embedding. A guess that is right counts as original.

Source: papers.md 6.3 (ProtElectra, by the released code of ELECTRA); Clark et al. 2020, section 2.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from proteinlm.corpora.sampling import follow, uniform
from proteinlm.errors import InputError
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.objectives.base import Example, Loss, Objective, Prepared, TargetLosses, residue_keys
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.batch import PackedBatch

_GUESS = np.array(3, np.uint64)
"""What a key is for; 1 and 2 are those of `masked`."""


@dataclass(frozen=True)
class Replacing:
    """How residues are hidden and what counts how much; ProtElectra's choices (papers.md 6.3).

    Args:
        chosen: share of the residues that the generator predicts and may replace.
        masked: share of the chosen that the mask token hides from the generator; it sees the others (ELECTRA's code).
        weight: of the discriminator's mean loss, beside the generator's (Clark et al., table 6).
        temperature: that the generator's guesses are drawn at.
    """

    chosen: float = 0.25
    masked: float = 0.85
    weight: float = 50.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        Masking(self.chosen, self.masked, 0.0)
        if self.weight <= 0 or self.temperature <= 0:
            raise InputError(
                f"weight={self.weight}, temperature={self.temperature}: both must be above 0; for a generator alone, "
                "train it by masking"
            )


@dataclass(frozen=True)
class Replaced(Prepared):
    """A batch for both models.

    Args:
        hidden: what the generator sees, and is to predict; M targets.
        tokens_T: the true ids, int64. residues_R: where residues stand, ascending, int64.
        draws_M: for each target, the number in [0, 1) that chooses the guess, float64.
    """

    hidden: Example
    tokens_T: Int[Tensor, "T"]
    residues_R: Int[Tensor, "R"]
    draws_M: Float[Tensor, "M"]

    def to(self, device: torch.device) -> "Replaced":
        """The same on `device`."""
        tensors = (self.tokens_T.to(device), self.residues_R.to(device), self.draws_M.to(device))
        return Replaced(self.hidden.to(device), *tensors)


@dataclass(frozen=True)
class Halves:
    """What the two models lose, in nats, fp32.

    Args:
        generator_M: at each hidden place. discriminator_R: at each residue.
        seen: what the discriminator saw. replaced_R: which residues of it are not the true ones.
    """

    generator_M: Float[Tensor, "M"]
    discriminator_R: Float[Tensor, "R"]
    seen: PackedBatch
    replaced_R: Tensor


class ReplacedTokens(Objective[Replaced]):
    """Train a generator and a discriminator together.

    The loss is that of the paper, the generator's mean and `weight` times the discriminator's, as a sum over residues:
    the generator's mean is taken over the number of targets to be expected, so that parts and processes add up.

    Args:
        alphabet: of the model; it must have a mask token. config: shares and weights.

    Raises:
        InputError: the alphabet has no mask token.

    >>> from proteinlm.sequences.alphabet import PROTBERT
    >>> batch = PackedBatch.pack([PROTBERT.encode("MKTV")], prefix=1, suffix=1)
    >>> example = ReplacedTokens(PROTBERT, Replacing(1.0, 1.0)).prepare(batch, np.array([3], np.uint64))
    >>> example.hidden.batch.tokens_T.tolist(), example.residues_R.tolist()
    ([2, 4, 4, 4, 4, 3], [1, 2, 3, 4])
    """

    scores = ("generator_perplexity", "discriminator_perplexity")
    """Over the residues that the mask token hid; over all residues, of two answers (1 is perfect, 2 is a coin)."""

    parts = ("generator", "discriminator")
    share = 1.0

    def __init__(self, alphabet: Alphabet, config: Replacing) -> None:
        self.alphabet, self.config = alphabet, config
        self.masked = MaskedLanguageModel(alphabet, Masking(config.chosen, config.masked, 0.0))

    def prepare(self, batch: PackedBatch, keys_B: UInt64[np.ndarray, "B"]) -> Replaced:
        """Hide residues and draw what will choose the guesses.

        Args:
            batch: as drawn.
            keys_B: uint64, shape (B,); the same key hides the same residues, and draws the same numbers, in any batch.
        """
        hidden = self.masked.prepare(batch, keys_B)
        is_residue_T, keys_T = residue_keys(batch, keys_B)
        draws = uniform(follow(keys_T[hidden.places_M.numpy()], _GUESS))
        residues_R = torch.from_numpy(np.flatnonzero(is_residue_T))
        return Replaced(hidden, batch.tokens_T, residues_R, torch.from_numpy(draws))

    def loss(self, model: ProteinModel, example: Replaced) -> Loss:
        """The joint loss, and its two parts."""
        halves = self.halves(model, example)
        generator, discriminator = halves.generator_M.sum(), halves.discriminator_R.sum()
        return Loss(
            generator / self.config.chosen + self.config.weight * discriminator,
            len(example.residues_R),
            {
                "generator": (generator.detach(), len(halves.generator_M)),
                "discriminator": (discriminator.detach(), len(halves.discriminator_R)),
            },
        )

    def score(self, model: ProteinModel, example: Replaced) -> dict[str, TargetLosses]:
        """See `Objective.score`."""
        halves, hidden_M = self.halves(model, example), self.masked.hidden(example.hidden)
        starts = torch.tensor(example.hidden.batch.starts, device=example.residues_R.device)
        rows_R = torch.searchsorted(starts, example.residues_R, right=True) - 1
        return {
            "generator_perplexity": TargetLosses(halves.generator_M[hidden_M], example.hidden.rows_M()[hidden_M]),
            "discriminator_perplexity": TargetLosses(halves.discriminator_R, rows_R),
        }

    def halves(self, model: ProteinModel, example: Replaced) -> Halves:
        """Run the generator, put its guesses in place, and run the discriminator."""
        hidden = example.hidden
        output = model(hidden.batch, Want(logits=True, places_M=hidden.places_M))
        assert isinstance(output, Output) and output.logits_TV is not None
        logits_MV = output.logits_TV.float()
        seen = self.filled_in(example, logits_MV.detach())
        output = model(seen, Want(replaced=True))
        assert isinstance(output, Output) and output.replaced_T is not None
        replaced_R = seen.tokens_T[example.residues_R] != example.tokens_T[example.residues_R]
        odds_R = output.replaced_T[example.residues_R].float()
        return Halves(
            F.cross_entropy(logits_MV, hidden.targets_M, reduction="none"),
            F.binary_cross_entropy_with_logits(odds_R, replaced_R.float(), reduction="none"),
            seen,
            replaced_R,
        )

    def filled_in(self, example: Replaced, logits_MV: Float[Tensor, "M V"]) -> PackedBatch:
        """The true proteins with the generator's guesses at the chosen places.

        A guess is drawn from the whole alphabet by the number that was drawn for its place: where the cumulative
        probabilities reach it. They are summed in fp64, so that rounding seldom decides.
        """
        cumulative_MV = torch.softmax(logits_MV.double() / self.config.temperature, dim=-1).cumsum(-1)
        wanted_M1 = (example.draws_M * cumulative_MV[:, -1])[:, None]
        guesses_M = torch.searchsorted(cumulative_MV, wanted_M1, right=True)[:, 0]
        tokens_T, batch = example.tokens_T.clone(), example.hidden.batch
        tokens_T[example.hidden.places_M] = guesses_M.clamp(max=len(self.alphabet) - 1)
        return PackedBatch(tokens_T, batch.starts, batch.max_length, batch.row_B, batch.prefix, batch.suffix)
