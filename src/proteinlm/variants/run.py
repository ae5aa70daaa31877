"""The variants of a protein, scored by a model.

In: a `Runner`, `Variants` and the name of a method. Out: a `VariantScores`. Runs of the model go through the one
inference loop, some at a time, so that memory does not grow with their number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Float64

from proteinlm.errors import InputError
from proteinlm.inference import Answer, Failure, Query, Runner, forward_all
from proteinlm.models.base import ProteinModel, Want
from proteinlm.sequences.alphabet import LETTERS, STANDARD, letter_columns
from proteinlm.variants.changes import Variants
from proteinlm.variants.scoring import METHODS, Pass, Scoring, choose_method

RUNS_AT_ONCE = 1024
"""Runs that are sorted into batches together; all of a protein's are of one length, so that more would gain nothing."""


@dataclass(frozen=True, eq=False)
class VariantScores:
    """Scores of variants.

    Attributes:
        variants: what was scored. scores: in nats, higher is better, 0 is the wild type, float64, shape (N,).
        method: key of `METHODS`. runs: how often the model was run. windows: whether stretches of the protein were.
    """

    variants: Variants
    scores: Float64[np.ndarray, " N"]
    method: str
    runs: int
    windows: bool

    @property
    def mutants(self) -> tuple[str, ...]:
        """The variants as written."""
        return self.variants.mutants

    def matrix(self) -> Float64[np.ndarray, "L 20"]:
        """Scores of single substitutions by position and residue, columns as `STANDARD`; NaN where there is none."""
        table = np.full((len(self.variants.wild_type), len(STANDARD)), np.nan)
        changes_N = np.bincount(self.variants.variant_S, minlength=len(self.variants))
        single_S = changes_N[self.variants.variant_S] == 1
        columns_S = np.array([STANDARD.index(LETTERS[column]) for column in self.variants.mutant_S[single_S]], np.int64)
        table[self.variants.position_S[single_S], columns_S] = self.scores[self.variants.variant_S[single_S]]
        return table


def method_for(model: ProteinModel, name: str) -> str:
    """The method that a name stands for with a model.

    Raises:
        InputError: the model says nothing of residues, or the method is not for it.
    """
    model.check(Want(logits=True))
    if model.logits_ahead and not model.alphabet.prefix:
        raise InputError("this model says nothing of the first residue, since it reads no start token; take another")
    return choose_method(name, model.alphabet.mask is not None)


def score_variants(
    runner: Runner, variants: Variants, method: str = "auto", report: Callable[[int], None] | None = None
) -> VariantScores:
    """Score variants.

    Args:
        runner: a prepared model, whose option `long` is "window". variants: of one protein.
        method: a key of `METHODS`, or "auto". report: told after some runs how many residues were run.

    Raises:
        InputError: the method is not for this model, a letter is not in its alphabet, or memory does not suffice.

    >>> from proteinlm.inference import RunOptions
    >>> from proteinlm.models.esm import Esm2, Esm2Config
    >>> model = Esm2(Esm2Config(num_layers=1, width=8, num_heads=2, inner=16))
    >>> runner = Runner(model, RunOptions(precision="fp32", device="cpu"))
    >>> found = score_variants(runner, Variants.of("MKTV", ["K2R", "K2R:V4A"]))
    >>> found.method, found.runs, found.scores.shape
    ('masked-marginals', 2, (2,))
    """
    assert runner.options.long == "window", "other ways would leave residues without an answer"
    method = method_for(runner.model, method)
    runner.model.alphabet.residue_ids(variants.wild_type)
    scoring = METHODS[method].scoring(variants, runner.model.max_residues)
    taken = 0
    for run, answer in _answers(runner, scoring):
        log_probabilities = letter_log_probabilities(runner.model, answer)
        places = slice(None) if run.places is None else np.array(run.places)
        scoring.take(answer.row, log_probabilities[places])
        taken += 1
        if report is not None:
            report(len(run.residues))
    assert taken == scoring.count(), "every run was answered"
    limit = runner.model.max_residues
    windows = limit is not None and len(variants.wild_type) > limit
    return VariantScores(variants, scoring.scores(), method, taken, windows)


def _answers(runner: Runner, scoring: Scoring) -> Iterator[tuple[Pass, Answer]]:
    """Every run and its answer; the row of an answer is the number of its run."""
    runs = enumerate(scoring.passes())
    while chunk := dict(islice(runs, RUNS_AT_ONCE)):
        queries = [Query(number, run.residues, run.masked) for number, run in chunk.items()]
        for answer in forward_all(runner, queries, Want(logits=True)):
            if isinstance(answer, Failure):
                raise InputError(answer.reason)
            yield chunk[answer.row], answer


def letter_log_probabilities(model: ProteinModel, answer: Answer) -> Float[np.ndarray, "L 26"]:
    """What a model says of each residue of a protein, in nats over its whole alphabet, columns as `LETTERS`.

    A letter that the model reads as another has that one's column; one that it cannot read has minus infinity.
    """
    assert answer.logits is not None, "logits were wanted"
    logits_LV = answer.logits
    if model.logits_ahead:
        assert answer.first_logits is not None, "models without a start token are not asked for logits"
        logits_LV = torch.cat([answer.first_logits[None], logits_LV[:-1]])
    columns, tokens = letter_columns(model.alphabet)
    found = np.full((len(logits_LV), len(LETTERS)), -np.inf, np.float32)
    found[:, columns] = torch.log_softmax(logits_LV, dim=1).numpy()[:, tokens]
    return found
