"""Denoising: an encoder reads a protein with some residues corrupted, and a decoder writes it as it was.

In: packed batches. Out: the corrupted batch, the text to be written, and its cross-entropy. ProtT5 was trained to write
the full sequence; T5's own way, to write nothing but what is missing, sentinel by sentinel, is the option `spans`.

Source: papers.md 6.3 (ProtT5's model card and its maintainers); Raffel et al. 2020, figure 2, for spans.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt64
from torch import Tensor

from proteinlm.corpora.sampling import below, follow, uniform
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.models.t5 import T5
from proteinlm.objectives.base import Loss, Objective, Prepared, TargetLosses, residue_keys
from proteinlm.sequences.alphabet import STANDARD, Alphabet
from proteinlm.sequences.batch import PackedBatch

_FATE, _SUBSTITUTE = np.array(1, np.uint64), np.array(2, np.uint64)
"""What a key is for."""

TARGETS = ("sequence", "spans")


@dataclass(frozen=True)
class Denoising:
    """How residues are corrupted, and what is to be written.

    Args:
        chosen: share of the residues that are corrupted.
        masked: share of the chosen that a sentinel replaces.
        random: share of the chosen that another of the twenty residues replaces; what is left stays as it is.
        fresh: the n-th masked residue of a protein becomes the n-th sentinel, and after the last the first again; else
            each becomes the first. Which of the two ProtT5 saw is not known (papers.md 6.3).
        target: "sequence" writes the whole protein. "spans" replaces each run of chosen residues by one sentinel and
            writes sentinels and runs; `masked`, `random` and `fresh` then say nothing.
    """

    chosen: float = 0.15
    masked: float = 0.9
    random: float = 0.1
    fresh: bool = True
    target: str = "sequence"

    def __post_init__(self) -> None:
        shares = (self.chosen, self.masked, self.random, self.masked + self.random)
        if not 0 < self.chosen <= 1 or any(not 0 <= share <= 1 + 1e-9 for share in shares):
            raise InputError(
                f"denoising chosen={self.chosen}, masked={self.masked}, random={self.random}: chosen must be above 0 "
                "and up to 1, masked and random at least 0 and together at most 1"
            )
        if self.target not in TARGETS:
            raise InputError(f"denoising target {self.target!r} is unknown; choose one of {', '.join(TARGETS)}")


@dataclass(frozen=True)
class Denoised(Prepared):
    """A batch to be read and a batch to be written.

    Args:
        source: corrupted. target: sequence b belongs to sequence b of the source.
        hidden_T: which tokens of the target stand for residues that the source does not show.
    """

    source: PackedBatch
    target: PackedBatch
    hidden_T: Bool[Tensor, "T"]

    def to(self, device: torch.device) -> "Denoised":
        """The same on `device`."""
        return Denoised(self.source.to(device), self.target.to(device), self.hidden_T.to(device))

    def rows_T(self) -> Int[Tensor, "T"]:
        """Which sequence each token of the target is in."""
        lengths_B = self.target.lengths_B(self.hidden_T.device)
        return torch.repeat_interleave(torch.arange(len(lengths_B), device=lengths_B.device), lengths_B)


class DenoisingModel(Objective[Denoised]):
    """Write a protein of which a corrupted copy is read.

    Args:
        alphabet: of the model; it must have sentinels. denoising: how.

    Raises:
        InputError: the alphabet has no sentinels.

    >>> from proteinlm.sequences.alphabet import PROTT5
    >>> objective = DenoisingModel(PROTT5, Denoising(chosen=1.0, masked=1.0, random=0.0))
    >>> example = objective.prepare(PackedBatch.pack([PROTT5.encode("MKT")], suffix=1), np.array([5], np.uint64))
    >>> example.source.tokens_T.tolist(), example.target.tokens_T.tolist()
    ([127, 126, 125, 1], [19, 14, 11, 1])
    """

    scores = ("hidden_perplexity", "perplexity")

    def __init__(self, alphabet: Alphabet, denoising: Denoising) -> None:
        names = [f"<extra_id_{number}>" for number in range(100)]
        if not set(names) <= set(alphabet.tokens):
            raise InputError(f"alphabet {alphabet.name} has no sentinels (<extra_id_0> ...); denoising needs T5's")
        self.alphabet, self.denoising = alphabet, denoising
        chosen = denoising.chosen
        # Of spans, both the sentinels (one at every beginning of a run) and the residues are written.
        self.share = 1.0 if denoising.target == "sequence" else chosen * (2 - chosen)
        self._sentinels = np.array([alphabet.tokens.index(name) for name in names])
        self._residues = alphabet.residue_ids(STANDARD)

    def prepare(self, batch: PackedBatch, keys_B: UInt64[np.ndarray, "B"]) -> Denoised:
        """Corrupt residues.

        Args:
            batch: as drawn.
            keys_B: uint64, shape (B,); the same key corrupts a sequence the same way in any batch.
        """
        is_residue_T, keys_T = residue_keys(batch, keys_B)
        chosen_T = is_residue_T & (uniform(keys_T) < self.denoising.chosen)
        if self.denoising.target == "spans":
            return self._spans(batch, chosen_T)
        tokens_T = batch.tokens_T.numpy().copy()
        fate_T = uniform(follow(keys_T, _FATE))
        hidden_T = chosen_T & (fate_T < self.denoising.masked)
        swapped_T = chosen_T & ~hidden_T & (fate_T < self.denoising.masked + self.denoising.random)
        tokens_T[swapped_T] = self._others(tokens_T[swapped_T], keys_T[swapped_T])
        before_T: np.ndarray = np.cumsum(hidden_T) - hidden_T
        number_T: np.ndarray = before_T - np.repeat(before_T[list(batch.starts[:-1])], np.diff(batch.starts))
        if not self.denoising.fresh:
            number_T = np.zeros_like(number_T)
        tokens_T[hidden_T] = self._sentinels[number_T[hidden_T] % len(self._sentinels)]
        source = PackedBatch(
            torch.from_numpy(tokens_T), batch.starts, batch.max_length, batch.row_B, batch.prefix, batch.suffix
        )
        return Denoised(source, batch, torch.from_numpy(hidden_T))

    def _others(self, tokens_M: np.ndarray, keys_M: np.ndarray) -> np.ndarray:
        """For each residue one of the twenty that it is not."""
        is_own = tokens_M[:, None] == self._residues
        own_M = np.where(is_own.any(1), is_own.argmax(1), len(self._residues))
        drawn_M = below(follow(keys_M, _SUBSTITUTE), len(self._residues) - is_own.any(1))
        others: np.ndarray = self._residues[drawn_M + (drawn_M >= own_M)]
        return others

    def _spans(self, batch: PackedBatch, chosen_T: np.ndarray) -> Denoised:
        """Each run of chosen residues is a sentinel in the source; the target is sentinels and runs."""
        tokens_T = batch.tokens_T.numpy()
        sources, targets, hidden = [], [], []
        for start, end in pairwise(batch.starts):
            tokens, chosen = tokens_T[start:end], chosen_T[start:end]
            begins = chosen & ~np.concatenate([[False], chosen[:-1]])
            number = np.cumsum(begins) - 1
            sources.append(np.where(begins, self._sentinel(number), tokens)[begins | ~chosen])
            # A sentinel goes before the first residue of its run, and one more closes the text.
            runs = np.flatnonzero(begins[chosen])
            written = np.insert(tokens[chosen], runs, self._sentinel(np.arange(len(runs))))
            shown = np.insert(np.ones(int(chosen.sum()), bool), runs, False)
            closing = [int(self._sentinel(np.array(len(runs)))), *self.alphabet.suffix]
            targets.append(np.concatenate([written, closing]))
            hidden.append(np.concatenate([shown, np.zeros(len(closing), bool)]))
        pack = PackedBatch.pack
        source = pack(sources, batch.row_B, batch.prefix, batch.suffix)
        return Denoised(source, pack(targets, batch.row_B), torch.from_numpy(np.concatenate(hidden)))

    def _sentinel(self, number: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._sentinels[number % len(self._sentinels)]
        return found

    def loss(self, model: ProteinModel, example: Denoised) -> Loss:
        """Summed cross-entropy over all that is written, in nats."""
        return Loss(self._cross_entropy(model, example).sum(), len(example.hidden_T))

    def score(self, model: ProteinModel, example: Denoised) -> dict[str, TargetLosses]:
        """See `Objective.score`. A hidden residue is written with all before it known, other hidden ones included."""
        losses_T, rows_T, hidden_T = self._cross_entropy(model, example), example.rows_T(), example.hidden_T
        return {
            "hidden_perplexity": TargetLosses(losses_T[hidden_T], rows_T[hidden_T]),
            "perplexity": TargetLosses(losses_T, rows_T),
        }

    def _cross_entropy(self, model: ProteinModel, example: Denoised) -> Float[Tensor, "T"]:
        assert isinstance(model, T5), "the table of architectures says which models denoise"
        logits_TV = model.write(example.source, example.target)
        return F.cross_entropy(logits_TV.float(), example.target.tokens_T, reduction="none")
