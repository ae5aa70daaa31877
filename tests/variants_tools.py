"""What the tests of variants share: a model asked one stretch at a time, and scores added up in plain loops."""

import torch

from proteinlm.datasets.variants import mutate, parse_variant
from proteinlm.models.base import ProteinModel, Want
from proteinlm.sequences.batch import PackedBatch

PROTEIN = "MKTAYIAKQRFS"
LONG = "MSHHWGYGKHNGPEHWHKDFPIAKGERQSPVDIDTHTAKYDPSLKPLSVS"
"""Longer than the 28 or 30 residues of the tiny Transformers."""

MUTANTS = ("M1A", "K2R", "K2R:S12W", "A4G:Y5F:I6L", "S12P", "Y5W:M1L")
LONG_MUTANTS = ("M1A", "S50W", "F20K", "F20K:P21G", "M1A:S50W", "H3A:P30K:I33N")


def said(model: ProteinModel, residues: str, masked: tuple[int, ...] = ()) -> torch.Tensor:
    """Log probabilities over the model's tokens at every residue, from one run of one sequence alone, float64."""
    alphabet = model.alphabet
    ids = alphabet.encode(residues)
    for position in masked:
        assert alphabet.mask is not None
        ids[len(alphabet.prefix) + position] = alphabet.mask
    batch = PackedBatch.pack([ids], prefix=len(alphabet.prefix), suffix=len(alphabet.suffix))
    with torch.inference_mode():
        logits = model(batch, Want(logits=True)).logits_TV
    first = len(alphabet.prefix) - (1 if model.logits_ahead else 0)
    return torch.log_softmax(logits[first : first + len(residues)].double(), dim=1)


def token(model: ProteinModel, residue: str) -> int:
    return int(model.alphabet.residue_ids(residue)[0])


def window_around(middle: int, residues: str, limit: int | None) -> tuple[int, str]:
    """The stretch with a position in its middle, or as near to it as the ends allow."""
    size = min(limit or len(residues), len(residues))
    start = middle - size // 2
    while start + size > len(residues):
        start -= 1
    start = max(start, 0)
    return start, residues[start : start + size]


def naive_wild_type(model: ProteinModel, wild_type: str, mutant: str) -> float:
    table = said(model, wild_type)
    return sum(
        float(table[item.position - 1, token(model, item.mutant)] - table[item.position - 1, token(model, item.wild)])
        for item in parse_variant(mutant)
    )


def naive_masked(model: ProteinModel, wild_type: str, mutant: str) -> float:
    """Mask one position at a time, each in the stretch around it."""
    total = 0.0
    for item in parse_variant(mutant):
        start, stretch = window_around(item.position - 1, wild_type, model.max_residues)
        at = item.position - 1 - start
        row = said(model, stretch, (at,))[at]
        total += float(row[token(model, item.mutant)] - row[token(model, item.wild)])
    return total


def naive_joint(model: ProteinModel, wild_type: str, mutant: str) -> float:
    """Mask all positions of a variant; in one stretch around them, or one around each where that is too short."""
    positions = sorted(item.position - 1 for item in parse_variant(mutant))
    size = min(model.max_residues or len(wild_type), len(wild_type))
    total = 0.0
    for item in parse_variant(mutant):
        together = positions[-1] - positions[0] < size
        middle = (positions[0] + positions[-1] + 1) // 2 if together else item.position - 1
        start, stretch = window_around(middle, wild_type, model.max_residues)
        masked = tuple(position - start for position in positions if start <= position < start + size)
        row = said(model, stretch, masked)[item.position - 1 - start]
        total += float(row[token(model, item.mutant)] - row[token(model, item.wild)])
    return total


def naive_pseudo(model: ProteinModel, wild_type: str, mutant: str) -> float:
    """Pseudo-log-likelihood of the whole variant minus that of the whole wild type, nothing left out."""

    def likelihood(residues: str) -> float:
        total = 0.0
        for position, residue in enumerate(residues):
            start, stretch = window_around(position, residues, model.max_residues)
            at = position - start
            total += float(said(model, stretch, (at,))[at, token(model, residue)])
        return total

    return likelihood(mutate(wild_type, mutant)) - likelihood(wild_type)


def naive_likelihood(model: ProteinModel, wild_type: str, mutant: str) -> float:
    def likelihood(residues: str) -> float:
        table = said(model, residues)
        return sum(float(table[position, token(model, residue)]) for position, residue in enumerate(residues))

    return likelihood(mutate(wild_type, mutant)) - likelihood(wild_type)


NAIVE = {
    "wt-marginals": naive_wild_type,
    "masked-marginals": naive_masked,
    "joint-masked-marginals": naive_joint,
    "pseudo-ppl": naive_pseudo,
    "likelihood": naive_likelihood,
}
