"""Language modelling: how well a model predicts hidden residues of proteins that it has not seen, the papers' ECE.

In: held-out proteins, with masks that depend on their residues and the seed alone (`objectives.perplexity`). Out: the
exponential of the mean cross-entropy over hidden residues and, for models that see masks, over all chosen ones. Models
without a mask token (n-grams, UniRep) are asked about the same hidden residues and see the true ones around them.
Source: papers.md 1 (exponentiated cross-entropy) and Rives et al., Table 1.
"""

from collections.abc import Iterator

import numpy as np

from proteinlm.datasets.sources import locate
from proteinlm.errors import InputError
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.objectives.perplexity import fixed_example
from proteinlm.sequences.alphabet import ESM1B, LETTERS
from proteinlm.sequences.fasta import Refused, read_fasta
from proteinlm.tasks.base import GroupScores, Question, Reply, Result, Task, Wanted

QUICK_PROTEINS = 100
HIDDEN, CHOSEN = "ECE, hidden residues", "ECE, chosen residues"

Masked = tuple[str, tuple[int, ...], tuple[int, ...]]
"""What stands in the protein that is shown, which positions are masked, and which are chosen to be predicted."""


def masked_protein(residues: str, seed: int) -> Masked:
    """The fixed masks of a protein: 15 % chosen, of them 80 % masked and 10 % another residue.

    >>> shown, masked, chosen = masked_protein("MKTAYIAKQRQISFVKSHFSRQ" * 3, seed=0)
    >>> len(shown), set(masked) <= set(chosen)
    (66, True)
    """
    objective = MaskedLanguageModel(ESM1B, Masking())
    example = fixed_example(objective, [residues], seed)
    chosen = (example.places_M.numpy() - example.batch.prefix).tolist()
    hidden = objective.hidden(example).tolist()
    tokens = example.batch.tokens_T[example.batch.residues(0)].tolist()
    masked = tuple(place for place, is_hidden in zip(chosen, hidden, strict=True) if is_hidden)
    shown = "".join(
        residue if token == ESM1B.mask else ESM1B.tokens[token] for residue, token in zip(residues, tokens, strict=True)
    )
    return shown, masked, tuple(chosen)


class Language(Task):
    """ECE of held-out proteins."""

    name = "language"
    version = 1
    title = "Prediction of hidden residues (ECE; 1 is perfect, 25 is guessing)"
    source = "Rives et al. 2021, Table 1"
    needs = frozenset(("logits",))
    sources = ("held_out",)

    def questions(self) -> Iterator[Question]:
        """Each protein with its masks; without them for models that have no mask."""
        path = locate(self.options.data, "held_out")
        proteins: dict[str, str] = {}
        for record in read_fasta(str(path), ESM1B):
            if isinstance(record, Refused):
                raise InputError(f"{path.name}: {record.id} cannot be used: {record.reason}")
            if record.id in proteins:
                raise InputError(f"{path.name}: {record.id} stands there twice; ids must be unique")
            proteins[record.id] = record.residues
        self.available = len(proteins)
        if self.options.quick:
            keep = self.random().permutation(len(proteins))[:QUICK_PROTEINS]
            names = list(proteins)
            proteins = {names[number]: proteins[names[number]] for number in sorted(keep)}
        self.names, self.proteins = list(proteins), list(proteins.values())
        self.masks = [masked_protein(residues, self.options.seed) for residues in self.proteins]
        self.losses: dict[int, np.ndarray] = {}
        sees_masks = "mask" in self.model.abilities
        wanted = Wanted(log_probabilities=True)
        for residues, (shown, masked, chosen) in zip(self.proteins, self.masks, strict=True):
            if sees_masks:
                yield Question(shown, wanted, masked, chosen)
            else:
                yield Question(residues, wanted, (), masked)

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the cross-entropy at each place."""
        assert reply.log_probabilities is not None, "log probabilities were wanted"
        _, masked, chosen = self.masks[number]
        places = chosen if "mask" in self.model.abilities else masked
        columns = [LETTERS.index(self.proteins[number][place]) for place in places]
        losses = -reply.log_probabilities[np.arange(len(places)), columns].astype(np.float64)
        if not np.isfinite(losses).all():
            raise InputError(f"{self.names[number]}: the model holds a residue for impossible; its ECE has no end")
        self.losses[number] = losses

    def finish(self) -> list[Result]:
        """Mean over hidden residues, and over chosen ones."""
        sees_masks = "mask" in self.model.abilities
        hidden_sums, hidden_counts, chosen_sums, chosen_counts = (np.zeros(len(self.proteins)) for _ in range(4))
        for number, losses in self.losses.items():
            _, masked, chosen = self.masks[number]
            is_hidden = np.isin(chosen, masked) if sees_masks else np.ones(len(losses), bool)
            hidden_sums[number], hidden_counts[number] = losses[is_hidden].sum(), is_hidden.sum()
            chosen_sums[number], chosen_counts[number] = losses.sum(), len(losses)
        found = [self._result(HIDDEN, hidden_sums, hidden_counts)]
        if sees_masks:
            found.append(self._result(CHOSEN, chosen_sums, chosen_counts))
        return found

    def _result(self, measure: str, sums_P: np.ndarray, counts_P: np.ndarray) -> Result:
        notes = [
            "held-out proteins of Swiss-Prot, not 3 million of UniRef50: levels differ from the paper's, and a model "
            "that was trained on them has seen them",
            "probabilities are over the model's whole alphabet, of 25 to 33 tokens",
        ]
        if "mask" not in self.model.abilities:
            notes.append("this model has no mask: it sees the true residues around each hidden one")
        if measure == CHOSEN:
            notes.append("a fifth of the chosen residues are not hidden: they stay, or another stands in their place")
        if self.options.quick:
            notes.append(f"a quick run: {len(self.proteins)} of {self.available} proteins, drawn at random")
        scores = GroupScores(self.names, sums_P, counts_P)
        return self.result(measure, scores, better="lower", exponential=True, notes=notes)
