"""How well a model predicts hidden residues of proteins that it has not seen: the papers' ECE.

In: a model and residue strings. Out: for each protein the summed cross-entropy and the number of targets; `metrics`
turns them into the exponential of the mean and its interval. A protein's masks depend on its residues and the seed
alone: not on the batch, the order or the model.

Under 80/10/10 a fifth of the chosen residues are not hidden: they stay, or another stands in their place. A model that
knows no more than the frequencies of residues, and to trust half of what it sees there, scores 15.3 over all chosen
residues of Swiss-Prot proteins and 18.2 over the hidden ones. So both are given, and `hidden` is the one to compare
with models that see no mask (n-grams, LSTMs).

Source: papers.md 1 (exponentiated cross-entropy, Rives et al.).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from proteinlm.corpora.sampling import key_of
from proteinlm.metrics import Totals
from proteinlm.models.base import ProteinModel
from proteinlm.objectives.base import ExampleT, Objective, TargetLosses
from proteinlm.objectives.masked import MaskedLanguageModel
from proteinlm.sequences.batch import PackedBatch


@dataclass(frozen=True)
class ProteinLosses:
    """Cross-entropy of P proteins: sums in nats and counts of targets, float64, shape (P,) each.

    Attributes:
        hidden: over the residues that the mask token replaced.
        chosen: over all residues that were chosen, as in training.
    """

    hidden: Totals
    chosen: Totals


def protein_losses(
    model: ProteinModel,
    objective: MaskedLanguageModel,
    sequences: Sequence[str],
    seed: int = 0,
    tokens_per_batch: int = 16384,
) -> ProteinLosses:
    """Cross-entropy of the chosen residues of each protein.

    Args:
        model: on any device; it is put into evaluation mode and back.
        objective: says what is hidden.
        sequences: P residue strings, none longer than the model takes.
        seed: of the masks. tokens_per_batch: room; changes nothing but speed and memory.
    """
    scores = target_losses(model, objective, sequences, seed, tokens_per_batch)
    return ProteinLosses(hidden=scores["ece"], chosen=scores["ece_chosen"])


def target_losses(
    model: ProteinModel,
    objective: Objective[ExampleT],
    sequences: Sequence[str],
    seed: int = 0,
    tokens_per_batch: int = 16384,
) -> dict[str, Totals]:
    """Loss of the targets of each protein, for any objective: sums in nats and counts by the names in its `scores`.

    Args:
        model, sequences, seed, tokens_per_batch: as for `protein_losses`. objective: says what the targets are.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    found = {name: (np.zeros(len(sequences)), np.zeros(len(sequences))) for name in objective.scores}
    for rows in length_batches(sequences, tokens_per_batch):
        example = fixed_example(objective, [sequences[row] for row in rows], seed)
        with torch.no_grad():
            scores = objective.score(model, example.to(device))  # type: ignore[arg-type]
        for name, totals in found.items():
            add_up(scores[name], rows, totals)
    model.train(training)
    return found


def add_up(scores: TargetLosses, rows: Sequence[int], totals: Totals) -> None:
    """Put the losses of one batch where they belong.

    Args:
        scores: of the batch. rows: which protein each of its sequences is.
        totals: sums and counts of all proteins, filled in place.
    """
    owner_M = scores.rows_M.cpu().numpy()
    totals[0][rows] = np.bincount(owner_M, scores.losses_M.double().cpu().numpy(), minlength=len(rows))
    totals[1][rows] = np.bincount(owner_M, minlength=len(rows))


def hidden_positions(objective: MaskedLanguageModel, sequences: Sequence[str], seed: int = 0) -> list[np.ndarray]:
    """The residues that `protein_losses` hides, for models that take no mask.

    Args:
        objective, sequences, seed: as for `protein_losses`.

    Returns:
        positions from 0 in each protein, int64.
    """
    found = []
    for residues in sequences:
        example = fixed_example(objective, [residues], seed)
        found.append(example.places_M[objective.hidden(example)].numpy() - example.batch.prefix)
    return found


def fixed_example(objective: Objective[ExampleT], sequences: Sequence[str], seed: int) -> ExampleT:
    """Proteins made ready, with random choices that depend on their residues and the seed alone."""
    alphabet = objective.alphabet
    encoded = [alphabet.encode(residues) for residues in sequences]
    batch = PackedBatch.pack(encoded, None, len(alphabet.prefix), len(alphabet.suffix))
    return objective.prepare(batch, np.array([_key(residues, seed) for residues in sequences], np.uint64))


def _key(residues: str, seed: int) -> np.uint64:
    digest = hashlib.sha256(residues.encode("ascii")).digest()
    return key_of(seed, int.from_bytes(digest[:8], "little"))


def length_batches(sequences: Sequence[str], tokens: int) -> list[list[int]]:
    """Rows in order of length, as many together as fit into so many tokens."""
    batches: list[list[int]] = []
    room = 0
    for row in sorted(range(len(sequences)), key=lambda row: len(sequences[row])):
        size = len(sequences[row]) + 2
        if size > room or not batches:
            batches.append([])
            room = tokens
        batches[-1].append(row)
        room -= size
    return batches
