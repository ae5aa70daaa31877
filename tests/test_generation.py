"""Generation: frequencies are the model's probabilities, one at a time is all at once, temperature 0 takes the best.

Frequencies are compared by a chi-square test with seeds that are fixed: the bound is what one in a thousand right
samplers exceeds.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from scipy.stats import chi2
from tiny_models import tiny

from proteinlm import checkpoints
from proteinlm.cli import cli
from proteinlm.errors import InputError
from proteinlm.generation import SWISS_PROT, Generated, Plan, Sampling, composition, draw, generate
from proteinlm.inference import Runner, RunOptions
from proteinlm.models.base import ProteinModel, Want
from proteinlm.sequences.alphabet import STANDARD
from proteinlm.sequences.batch import PackedBatch

WAYS = ["transformer-xl", "unirep", "xlnet", "esm2"]


def runner(name: str) -> Runner:
    return Runner(tiny(name), RunOptions(precision="fp32", device="cpu"))


def made(name: str, plan: Plan, sampling: Sampling = Sampling()) -> list[Generated]:  # noqa: B008
    return list(generate(runner(name), plan, sampling))


def logits(model: ProteinModel, tokens: list[int], place: int) -> np.ndarray:
    """Log-probabilities at one token of one sequence."""
    alphabet = model.alphabet
    batch = PackedBatch.pack([np.array(tokens)], None, len(alphabet.prefix), len(alphabet.suffix))
    with torch.no_grad():
        said = model(batch, Want(logits=True)).logits_TV[place]
    return torch.log_softmax(said.double(), dim=-1).numpy()


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> None:
    expected = probabilities * counts.sum()
    assert (expected >= 5).all(), "too rare to be judged"
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(1e-3, len(counts) - 1), statistic


@pytest.mark.parametrize("name", WAYS)
def test_eight_at_once_are_the_same_as_one_at_a_time(name: str) -> None:
    """Each protein depends on the seed and its number: not on its neighbours, nor on how many are made."""
    plan = Plan(count=8, length=14, prompt="MK", sweeps=2)
    together = made(name, plan, Sampling(0.8, 0.9, seed=3))
    alone = [
        made(name, Plan(count=1, length=14, prompt="MK", sweeps=2, first=number), Sampling(0.8, 0.9, seed=3))[0]
        for number in range(8)
    ]
    by_threes = made(name, Plan(count=8, length=14, prompt="MK", sweeps=2, at_once=3), Sampling(0.8, 0.9, seed=3))
    for one, other, third in zip(together, alone, by_threes, strict=True):
        assert (one.number, one.residues, one.drawn, one.ended) == (
            other.number, other.residues, other.drawn, other.ended
        )  # fmt: skip
        assert one.residues == third.residues
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)
    assert len({one.residues for one in together}) == 8
    assert all(one.residues.startswith("MK") and set(one.residues) <= set(STANDARD) for one in together)
    other_seed = made(name, plan, Sampling(0.8, 0.9, seed=4))
    assert all(one.residues != other.residues for one, other in zip(together, other_seed, strict=True))


@pytest.mark.parametrize("name", ["transformer-xl", "unirep", "xlnet"])
def test_letters_and_likelihoods_by_hand(name: str) -> None:
    """At temperature 0 every letter is the most probable one, and the log-likelihood is the sum of the terms."""
    model = tiny(name)
    alphabet, choices = model.alphabet, [*tiny(name).alphabet.residue_ids(STANDARD).tolist()]
    ends = alphabet.suffix[:1] if model.logits_ahead else ()
    (protein,) = made(name, Plan(count=1, length=12, prompt="MK"), Sampling(temperature=0))
    residues, total, ended = "MK", 0.0, False
    while len(residues) < 12 and not ended:
        ids = alphabet.residue_ids(residues).tolist()
        if model.logits_ahead:
            said = logits(model, [*alphabet.prefix, *ids], -1)
        else:
            hidden = [alphabet.mask] * (12 - len(residues))
            said = logits(model, [*alphabet.prefix, *ids, *hidden, *alphabet.suffix], len(alphabet.prefix) + len(ids))
        best = max([*choices, *ends], key=lambda token: said[token])
        total, ended = total + said[best], best in ends
        residues += "" if ended else alphabet.tokens[best]
    assert (protein.residues, protein.ended) == (residues, ended)
    assert protein.drawn == len(residues) - 2 + ended
    assert protein.log_likelihood == pytest.approx(total, rel=1e-5)


def test_a_protein_ends_where_the_model_ends_it() -> None:
    proteins = made("transformer-xl", Plan(count=60, length=40))
    ended = [one for one in proteins if one.ended]
    assert 5 < len(ended) < 60, "some end early, some are cut"
    assert all(one.drawn == len(one.residues) + 1 for one in ended)
    assert all(one.drawn == len(one.residues) == 40 for one in proteins if not one.ended)
    assert all(one.residues for one in proteins)


@pytest.mark.parametrize("name", ["transformer-xl", "unirep", "xlnet"])
def test_frequencies_are_the_probabilities(name: str) -> None:
    """The letter behind a prompt, over 4,000 proteins, against the model's own distribution over what may be drawn."""
    model = tiny(name)
    alphabet = model.alphabet
    ids = alphabet.encode("MA").tolist()
    ends = alphabet.suffix[:1] if model.logits_ahead else ()
    if model.logits_ahead:
        said = logits(model, ids[: len(alphabet.prefix) + 2], -1)
    else:
        said = logits(model, [*ids[:2], alphabet.mask, *ids[2:]], 2)
    open_ = said[[*alphabet.residue_ids(STANDARD).tolist(), *ends]]
    probabilities = np.exp(open_) / np.exp(open_).sum()
    proteins = made(name, Plan(count=4000, length=3, prompt="MA", at_once=1000))
    counts = np.array(
        [sum(one.residues[2:] == letter for one in proteins) for letter in [*STANDARD, *[""] * len(ends)]]
    )
    assert counts.sum() == 4000
    chi_square(counts, probabilities)


def test_gibbs_sampling_reaches_its_stationary_distribution() -> None:
    """One open residue: each sweep draws it from the model's conditional, whatever it was before."""
    model = tiny("esm2")
    ids = model.alphabet.encode("MKA").tolist()
    said = logits(model, [*ids[:3], model.alphabet.mask, ids[4]], 3)[model.alphabet.residue_ids(STANDARD)]
    proteins = made("esm2", Plan(count=4000, length=3, prompt="MK", sweeps=1, at_once=1000))
    counts = np.array([sum(one.residues[2] == letter for one in proteins) for letter in STANDARD])
    chi_square(counts, np.exp(said) / np.exp(said).sum())


def test_gibbs_reports_the_pseudo_log_likelihood() -> None:
    model = tiny("esm2")
    (protein,) = made("esm2", Plan(count=1, length=9, prompt="MK", sweeps=2))
    ids, total = model.alphabet.encode(protein.residues).tolist(), 0.0
    for place in range(3, 10):
        total += logits(model, [*ids[:place], model.alphabet.mask, *ids[place + 1 :]], place)[ids[place]]
    assert protein.drawn == 7 and protein.log_likelihood == pytest.approx(total, rel=1e-5)


def test_more_sweeps_draw_anew() -> None:
    few, many = (made("esm2", Plan(count=4, length=20, sweeps=sweeps)) for sweeps in (1, 2))
    assert all(one.residues != other.residues for one, other in zip(few, many, strict=True))


def test_draws_follow_temperature_and_nucleus() -> None:
    """20,000 draws of four letters, against probabilities by hand."""
    probabilities = np.array([0.5, 0.25, 0.15, 0.1])
    rows, keys = (
        np.tile(np.log(probabilities) + 3.0, (20_000, 1)),
        np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64),
    )

    def counts(sampling: Sampling) -> np.ndarray:
        return np.bincount(draw(rows, sampling, keys), minlength=4)

    chi_square(counts(Sampling()), probabilities)
    squared = probabilities**2 / (probabilities**2).sum()
    chi_square(counts(Sampling(temperature=0.5)), squared)
    # .5 + .25 reach .75 exactly; .76 needs the third letter.
    for top_p, kept in ((0.75, 2), (0.76, 3), (0.5, 1), (0.01, 1)):
        found = counts(Sampling(top_p=top_p))
        assert found[kept:].sum() == 0
        if kept > 1:
            chi_square(found[:kept], probabilities[:kept] / probabilities[:kept].sum())
    assert counts(Sampling(temperature=0))[0] == 20_000
    assert counts(Sampling(temperature=1e-3))[0] == 20_000, "towards 0 it becomes the most probable letter"


def test_composition_by_hand() -> None:
    assert set(SWISS_PROT) == set(STANDARD) and sum(SWISS_PROT.values()) == pytest.approx(100, abs=0.1)
    found = composition(["AAAC", "CCGG"])
    assert found.residues == 8 and found.share["A"] == found.share["C"] == 3 / 8 and found.share["W"] == 0
    total = sum(SWISS_PROT.values())
    terms = [(3 / 8, "A"), (3 / 8, "C"), (2 / 8, "G")]
    expected = sum(share * math.log2(share / (SWISS_PROT[letter] / total)) for share, letter in terms)
    assert found.divergence == pytest.approx(expected)
    like = "".join(letter * round(100 * per_cent) for letter, per_cent in SWISS_PROT.items())
    assert composition([like]).divergence == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: Sampling(temperature=-1), "temperature is -1"),
        (lambda: Sampling(top_p=0), "top-p is 0"),
        (lambda: Plan(count=0, length=5), "count is 0"),
        (lambda: Plan(count=1, length=2, prompt="MK"), "the prompt has 2 residues"),
        (lambda: made("lstm-projected", Plan(count=1, length=5, prompt="M1")), "letter '1'"),
        (lambda: made("esm2", Plan(count=1, length=31)), "takes 30 residues"),
        (lambda: made("esm2-body", Plan(count=1, length=5)), "cannot generate"),
        (lambda: made("transformer-xl-bare", Plan(count=1, length=5)), "give a prompt"),
    ],
)
def test_what_cannot_be_done_is_refused(what: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        what()


def test_the_command(tmp_path: Path) -> None:
    """FASTA with a likelihood for each, the report, and the same again from the same seed."""
    checkpoints.save(tiny("transformer-xl"), tmp_path / "model.safetensors")

    def run(*more: str) -> Result:
        return CliRunner().invoke(cli, ["generate", "--model", str(tmp_path / "model.safetensors"), *more])

    done = run("-o", str(tmp_path / "a.fasta"), "--count", "5", "--length", "30", "--report", str(tmp_path / "a.json"))
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "a.fasta").read_text().splitlines()
    headers, residues = lines[::2], lines[1::2]
    assert [header.split()[0] for header in headers] == [f">generated_{number}" for number in range(5)]
    report = json.loads((tmp_path / "a.json").read_text())
    for header, letters, protein in zip(headers, residues, report["proteins"], strict=True):
        assert set(letters) <= set(STANDARD) and letters == protein["residues"]
        fields = dict(field.split("=") for field in header.split()[1:])
        assert float(fields["log_likelihood"]) == pytest.approx(protein["log_likelihood"], abs=1e-4)
        assert report["digest"].startswith(fields["digest"]) and fields["seed"] == "0"
    drawn = sum(protein["drawn"] for protein in report["proteins"])
    total = sum(protein["log_likelihood"] for protein in report["proteins"])
    assert report["perplexity"] == pytest.approx(math.exp(-total / drawn))
    assert f"{report['divergence_bits']:.3f} bits from the composition of Swiss-Prot" in done.output
    again = run("-o", str(tmp_path / "b.fasta"), "--count", "2", "--first", "3", "--length", "30")
    assert again.exit_code == 0
    assert (tmp_path / "b.fasta").read_text().splitlines()[1::2] == residues[3:]
    refused = run("-o", str(tmp_path / "c.fasta"), "--top-p", "2")
    assert isinstance(refused.exception, InputError) and "top-p is 2" in str(refused.exception)
    assert not (tmp_path / "c.fasta").exists()
