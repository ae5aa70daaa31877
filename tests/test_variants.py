"""Scores of variants against plain loops that run the model on one sequence at a time."""

import numpy as np
import pytest
from tiny_models import TINY, tiny
from variants_tools import LONG, LONG_MUTANTS, MUTANTS, NAIVE, PROTEIN, said, token

from proteinlm.errors import InputError
from proteinlm.inference import Runner, RunOptions
from proteinlm.models.base import ProteinModel
from proteinlm.sequences.alphabet import LETTERS, STANDARD
from proteinlm.variants.changes import Variants, all_substitutions
from proteinlm.variants.run import VariantScores, score_variants
from proteinlm.variants.scoring import METHODS, PseudoPerplexity, choose_method

TOLERANCE = {"rtol": 1e-4, "atol": 5e-5}
"""fp32, batched against alone: a log probability is right to some 1e-6, and up to 100 of them are added."""


def methods_of(model: ProteinModel) -> list[str]:
    if not model.has_logits or (model.logits_ahead and not model.alphabet.prefix):
        return []
    return [
        name for name in METHODS if (model.alphabet.mask is None) == (name == "likelihood") or name == "wt-marginals"
    ]


CASES = [(name, method) for name in TINY for method in methods_of(tiny(name))]


def scored(
    model: ProteinModel, wild_type: str, mutants: tuple[str, ...], method: str, budget: int = 100
) -> VariantScores:
    runner = Runner(model, RunOptions(precision="fp32", device="cpu", tokens_per_batch=budget))
    return score_variants(runner, Variants.of(wild_type, mutants), method)


@pytest.mark.parametrize("name, method", CASES)
def test_every_method_is_the_plain_loop(name: str, method: str) -> None:
    expected = [NAIVE[method](tiny(name), PROTEIN, mutant) for mutant in MUTANTS]
    found = scored(tiny(name), PROTEIN, MUTANTS, method)
    assert found.scores.shape == (len(MUTANTS),) and np.ptp(expected) > 1e-3, "the model tells variants apart"
    np.testing.assert_allclose(found.scores, expected, **TOLERANCE)


def test_every_kind_of_model_was_tried() -> None:
    assert len(CASES) >= 25
    assert {method for _, method in CASES} == METHODS.keys() == NAIVE.keys()
    assert {"esm1", "esm1b", "esm2", "lstm", "unirep"} <= {name for name, _ in CASES}


@pytest.mark.parametrize("method", ["masked-marginals", "joint-masked-marginals", "pseudo-ppl"])
@pytest.mark.parametrize("name", ["esm1b", "esm2"])
def test_long_proteins_stand_in_windows_around_the_mask(name: str, method: str) -> None:
    model = tiny(name)
    assert model.max_residues is not None and len(LONG) > model.max_residues
    mutants = LONG_MUTANTS[:4:3] if method == "pseudo-ppl" else LONG_MUTANTS
    expected = [NAIVE[method](model, LONG, mutant) for mutant in mutants]
    found = scored(tiny(name), LONG, mutants, method)
    assert found.windows
    np.testing.assert_allclose(found.scores, expected, **TOLERANCE)


def test_long_proteins_by_wild_type_marginals() -> None:
    """Each residue from the window that it stands deepest in: here two windows, cut in the middle."""
    model = tiny("esm2")
    limit = model.max_residues or 0
    tables = [said(model, LONG[:limit]), said(model, LONG[-limit:])]
    border = len(LONG) // 2
    expected = []
    for mutant in ("M1A", "S50W", "F20K"):
        at = int(mutant[1:-1]) - 1
        row = tables[0][at] if at < border else tables[1][at - (len(LONG) - limit)]
        expected.append(float(row[token(model, mutant[-1])] - row[token(model, mutant[0])]))
    found = scored(tiny("esm2"), LONG, ("M1A", "S50W", "F20K"), "wt-marginals")
    np.testing.assert_allclose(found.scores, expected, **TOLERANCE)
    assert found.windows and found.runs == 1


def test_what_lies_out_of_reach_is_not_run() -> None:
    """A change at the end of a long protein is in the stretches of the last positions only."""
    near = PseudoPerplexity(Variants.of("A" * 100, ["A100C"]), window=20)
    assert near.count() == len(list(near.passes())) < 50
    whole = PseudoPerplexity(Variants.of("A" * 20, ["A20C"]), window=20)
    assert whole.count() == 2 * 20


def test_pseudo_perplexity_of_three_residues_by_hand() -> None:
    """The first and the last residue count, and the probability is that of the residue that is masked."""
    model = tiny("esm2")
    by_hand = 0.0
    for residues, sign in (("MRT", 1.0), ("MKT", -1.0)):
        for masked, residue in enumerate(residues):
            by_hand += sign * float(said(model, residues, (masked,))[masked, token(model, residue)])
    found = scored(tiny("esm2"), "MKT", ("K2R",), "pseudo-ppl")
    assert found.runs == 6
    np.testing.assert_allclose(found.scores, [by_hand], **TOLERANCE)
    # What other tools compute: the residue behind the mask, and not the first.
    off_by_one = said(model, "MRT", (1,))[1, token(model, "T")] - said(model, "MKT", (1,))[1, token(model, "T")]
    assert abs(float(off_by_one) - by_hand) > 1e-3


@pytest.mark.parametrize("method", ["masked-marginals", "joint-masked-marginals", "pseudo-ppl", "wt-marginals"])
def test_scores_do_not_depend_on_what_else_is_scored(method: str) -> None:
    """Alone, together, in the other order, in small and large batches."""
    together = scored(tiny("esm2"), PROTEIN, MUTANTS, method).scores
    turned = scored(tiny("esm2"), PROTEIN, MUTANTS[::-1], method, budget=10_000).scores[::-1]
    alone = [scored(tiny("esm2"), PROTEIN, (mutant,), method, budget=1).scores[0] for mutant in MUTANTS]
    np.testing.assert_allclose(turned, together, **TOLERANCE)
    np.testing.assert_allclose(alone, together, **TOLERANCE)


def test_multiple_mutants_add_up_and_joint_masks_do_not() -> None:
    model = tiny("esm2")
    mutants = ("K2R", "Y5F", "K2R:Y5F")
    first, second, both = scored(model, PROTEIN, mutants, "masked-marginals").scores
    assert both == pytest.approx(first + second, abs=1e-12)
    joint = scored(tiny("esm2"), PROTEIN, mutants, "joint-masked-marginals").scores
    np.testing.assert_allclose(joint[:2], [first, second], **TOLERANCE)
    assert abs(joint[2] - both) > 4e-4, "eight times the tolerance"


def test_all_substitutions_in_one_set_of_runs() -> None:
    mutants = tuple(all_substitutions(PROTEIN))
    assert len(set(mutants)) == 19 * len(PROTEIN)
    found = scored(tiny("esm2"), PROTEIN, mutants, "masked-marginals")
    assert found.runs == len(PROTEIN)
    table = found.matrix()
    assert table.shape == (len(PROTEIN), 20) and np.isnan(table).sum() == len(PROTEIN)
    assert table[1, STANDARD.index("R")] == found.scores[mutants.index("K2R")]
    assert all(np.isnan(table[at, STANDARD.index(residue)]) for at, residue in enumerate(PROTEIN))


def test_more_runs_than_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored(tiny("esm2"), PROTEIN, MUTANTS, "pseudo-ppl").scores
    monkeypatch.setattr("proteinlm.variants.run.RUNS_AT_ONCE", 7)
    np.testing.assert_allclose(scored(tiny("esm2"), PROTEIN, MUTANTS, "pseudo-ppl").scores, whole, **TOLERANCE)


def test_models_without_a_mask() -> None:
    assert choose_method("auto", has_mask=False) == "likelihood"
    with pytest.raises(InputError, match="needs a mask token"):
        scored(tiny("unirep"), PROTEIN, MUTANTS, "masked-marginals")
    with pytest.raises(InputError, match="left to right"):
        scored(tiny("esm2"), PROTEIN, MUTANTS, "likelihood")
    with pytest.raises(InputError, match="unknown"):
        scored(tiny("esm2"), PROTEIN, MUTANTS, "masked")
    with pytest.raises(InputError, match="no language-model head"):
        scored(tiny("esm1b-body"), PROTEIN, MUTANTS, "auto")
    with pytest.raises(InputError, match="first residue"):
        scored(tiny("transformer-xl-bare"), PROTEIN, MUTANTS, "auto")


@pytest.mark.parametrize(
    "mutant, why",
    [
        ("K3R", "has T at position 3"),
        ("K200R", "beyond the wild type, which has 12"),
        ("K2B", "not a substitution"),
        ("K2*", "holds a stop"),
        ("K2K", "changes nothing"),
        ("K2R:K2W", "twice"),
        ("", "not a substitution"),
    ],
)
def test_what_is_no_variant_is_refused(mutant: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Variants.of(PROTEIN, ["M1A", mutant])


def test_variants_as_arrays() -> None:
    variants = Variants.of(PROTEIN, MUTANTS)
    assert len(variants) == len(MUTANTS)
    for number, mutant in enumerate(MUTANTS):
        rebuilt = ":".join(
            f"{LETTERS[wild]}{position + 1}{LETTERS[new]}"
            for owner, position, wild, new in zip(
                variants.variant_S, variants.position_S, variants.wild_S, variants.mutant_S, strict=True
            )
            if owner == number
        )
        assert rebuilt == mutant
    assert list(variants.sequences())[2] == "MRTAYIAKQRFW"
