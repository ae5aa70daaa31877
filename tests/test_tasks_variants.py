"""Effects of mutations: planted effects are found, shuffled ones are not, every count and every run accounted for."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from conftest import shared_data
from datasets_tools import write_text
from embedding_tools import tiny_model
from evaluation_tools import ABILITIES, answer, facts, options, protein
from variants_tools import NAIVE

from proteinlm.checkpoints import Checkpoint
from proteinlm.datasets.variants import mutate
from proteinlm.embedding.progress import Silent
from proteinlm.evaluation.machine import Machine, facts_of
from proteinlm.inference import Runner, RunOptions
from proteinlm.models.encodings import RESIDUES, blosum62_table
from proteinlm.sequences.alphabet import LETTERS, STANDARD
from proteinlm.tasks import TASKS
from proteinlm.tasks.base import Question, Reply, Task
from proteinlm.tasks.variants import VariantEffects
from proteinlm.variants.baselines import background
from proteinlm.variants.changes import Variants, all_substitutions
from proteinlm.variants.run import score_variants

CAUSAL = ABILITIES - {"mask"}
TABLE = np.random.default_rng(0).normal(size=(60, 26, 26)).astype(np.float32)
"""What the fake model says at each position about each letter, by the residue that stands there."""


@pytest.fixture(autouse=True)
def a_small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proteinlm.tasks.variants.PSEUDO_VARIANTS", 5)
    monkeypatch.setattr("proteinlm.tasks.variants.LIKELIHOOD_VARIANTS", 7)


def write_assays(folder: Path, assays: Mapping[str, tuple[str, Mapping[str, str]]]) -> Path:
    """Assays by name: wild type, and the score of each variant as text (columns apart by tabs); the data folder."""
    columns = ["name", "wt_len", "n_variants", "score_columns", "source", "note"]
    index, fasta = ["\t".join(columns)], []
    for name, (wild_type, variants) in assays.items():
        width = next(iter(variants.values())).count("\t") + 1
        titles = [f"score{number}" for number in range(width)]
        index.append("\t".join((name, str(len(wild_type)), str(len(variants)), ";".join(titles), "made up", "")))
        fasta += [f">{name}", wild_type]
        rows = [f"{mutant}\t{mutant.count(':') + 1}\t{scores}" for mutant, scores in variants.items()]
        write_text(folder / "dms" / f"{name}.tsv.gz", ["\t".join(("mutant", "n_mut", *titles)), *rows])
    write_text(folder / "dms" / "index.tsv", index)
    write_text(folder / "dms" / "wildtypes.fasta", fasta)
    return folder


def some_variants(wild_type: str, doubles: int, seed: int = 0) -> list[str]:
    """Every third single substitution, and doubles."""
    singles = all_substitutions(wild_type)[::3]
    random = np.random.default_rng(seed)
    found = dict.fromkeys(singles)
    while len(found) < len(singles) + doubles:
        first, second = sorted(random.choice(len(wild_type), 2, replace=False))
        letters = random.choice(list(STANDARD), 2)
        if letters[0] != wild_type[first] and letters[1] != wild_type[second]:
            found[f"{wild_type[first]}{first + 1}{letters[0]}:{wild_type[second]}{second + 1}{letters[1]}"] = None
    return list(found)


def fake_table(residues: str) -> np.ndarray:
    """Log probabilities that depend on the position, the residue there and the letter, (L, 26)."""
    return TABLE[np.arange(len(residues)), [LETTERS.index(letter) for letter in residues]]


def fake_reply(number: int, question: Question) -> Reply:
    """A model without context: what is masked is known to it all the same."""
    table = fake_table(question.residues)
    places = slice(None) if question.places is None else list(question.places)
    return Reply(log_probabilities=table[places])


def fake_scores(wild_type: str, mutants: Sequence[str]) -> np.ndarray:
    variants, table = Variants.of(wild_type, mutants), fake_table(wild_type).astype(float)
    rows = variants.position_S
    return variants.total(table[rows, variants.mutant_S] - table[rows, variants.wild_S])


def planted(folder: Path, noise: float, shuffled: bool = False, length: int = 40) -> Path:
    """Two assays whose effects are the fake model's scores and noise."""
    random, assays = np.random.default_rng(3), {}
    for name, size in (("first", length), ("second", length + 10)):
        wild_type = protein(size, seed=size)
        mutants = some_variants(wild_type, doubles=100)
        effects = fake_scores(wild_type, mutants)
        effects = effects + noise * effects.std() * random.normal(size=len(effects))
        if shuffled:
            effects = random.permutation(effects)
        assays[name] = (wild_type, {mutant: f"{effect:.6f}" for mutant, effect in zip(mutants, effects, strict=True)})
    return write_assays(folder, assays)


def task(folder: Path, causal: bool = False, quick: bool = False) -> Task:
    return VariantEffects(options(folder, quick), facts(CAUSAL if causal else ABILITIES))


def test_a_planted_signal_is_found(tmp_path: Path) -> None:
    results = answer(task(planted(tmp_path, noise=0.05)), fake_reply)
    for method in ("wt-marginals", "masked-marginals"):
        for name in ("first", "second"):
            for part in ("", ", single", ", multiple"):
                assert results[f"{name} score0{part}: {method}"].value > 0.98
        assert results[f"mean over 2 assays: {method}"].value > 0.98
    assert abs(results["mean over 2 assays: BLOSUM62"].value) < 0.3, "the signal is not BLOSUM62's"


def test_shuffled_effects_are_at_chance(tmp_path: Path) -> None:
    results = answer(task(planted(tmp_path, noise=0.05, shuffled=True)), fake_reply)
    whole = [result for measure, result in results.items() if " score0: " in measure and "variants)" not in measure]
    assert len(whole) >= 8
    # 350 to 420 variants: the standard error of a correlation of 0 is 0.05.
    assert all(abs(result.value) < 0.2 for result in whole)
    assert sum(result.low < 0 < result.high for result in whole) >= 0.75 * len(whole)


def test_values_and_intervals_against_scipy(tmp_path: Path) -> None:
    folder = planted(tmp_path, noise=1.0)
    results = answer(task(folder), fake_reply)
    lines = [line.split("\t") for line in _text(folder / "dms" / "first.tsv.gz")[1:]]
    wild_type = protein(40, seed=40)
    mutants, measured = [line[0] for line in lines], np.array([float(line[2]) for line in lines])
    expected = scipy.stats.spearmanr(fake_scores(wild_type, mutants), measured).statistic
    found = results["first score0: masked-marginals"]
    assert found.value == pytest.approx(expected, abs=1e-9) and found.n == len(mutants)
    blosum = [sum(_blosum(part) for part in mutant.split(":")) for mutant in mutants]
    expected = scipy.stats.spearmanr(blosum, measured).statistic
    assert results["first score0: BLOSUM62"].value == pytest.approx(expected, abs=1e-9)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        draw = random.integers(0, len(mutants), len(mutants))
        drawn.append(scipy.stats.spearmanr(fake_scores(wild_type, mutants)[draw], measured[draw]).statistic)
    # 400 and 2,000 resamples of 360 variants: ends of the interval agree to a fraction of its width of 0.15.
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)


def _text(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def _blosum(substitution: str) -> float:
    row = RESIDUES.residue_ids(substitution[0])[0]
    return float(blosum62_table()[row, STANDARD.index(substitution[-1])])


@pytest.mark.parametrize("quick, causal", [(True, False), (False, False), (False, True)])
def test_methods_that_are_tried(quick: bool, causal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proteinlm.tasks.variants.QUICK_ASSAYS", ("first",))
    monkeypatch.setattr("proteinlm.tasks.variants.PSEUDO_LONGEST", 12)
    folder = planted(tmp_path, noise=0.5, length=12)
    results = answer(task(folder, causal, quick), fake_reply)
    methods = {measure.split(": ")[1] for measure in results}
    expected = {"wt-marginals", "BLOSUM62", "background frequencies", "fewer substitutions"}
    if not quick:
        masked = {
            "masked-marginals",
            "joint-masked-marginals",
            "pseudo-ppl (5 variants)",
            "masked-marginals (5 variants)",
        }
        expected |= {"likelihood (7 variants)"} if causal else masked
    assert methods == expected
    assert any(measure.startswith("second") for measure in results) != quick
    for measure, result in results.items():
        sample = measure.rpartition("(")[2].partition(" ")[0]
        assert not sample.isdigit() or result.n == (2 if measure.startswith("mean") else int(sample))


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    wild_type = "MKTAYIAK"
    scores = {
        "M1A": "1\t5",
        "K2R": "2\t",
        "T3*": "-9\t-9",
        "A4G": "\t",
        "Y5F": "4\t1",
        "I6L": "0\t2",
        "A7C:K8R": "3\t3",
    }
    results = answer(task(write_assays(tmp_path, {"one": (wild_type, scores)})), fake_reply)
    first, second = results["one score0: wt-marginals"], results["one score1: wt-marginals"]
    assert (first.n, second.n) == (5, 4)
    assert "left out: 1 variants with a stop, 1 without a measurement" in first.notes
    assert not any(measure.startswith("mean") for measure in results), "one assay has no mean"


def test_a_score_that_is_constant_is_told_as_nothing(tmp_path: Path) -> None:
    results = answer(task(planted(tmp_path, noise=0.1)), lambda number, question: _flat(question))
    found = results["first score0: wt-marginals"]
    assert (found.value, found.low, found.high) == (0, 0, 0) and any("ranks nothing" in note for note in found.notes)


def _flat(question: Question) -> Reply:
    count = len(question.residues) if question.places is None else len(question.places)
    return Reply(log_probabilities=np.zeros((count, 26), np.float32))


def test_two_models_are_paired_over_the_same_variants(tmp_path: Path) -> None:
    folder = planted(tmp_path, noise=0.3)
    ours, theirs = answer(task(folder), fake_reply), answer(task(folder), lambda number, question: _flat(question))
    assert {measure: result.pairing for measure, result in ours.items()} == {
        measure: result.pairing for measure, result in theirs.items()
    }
    assert all(result.groups <= 400 for result in ours.values())


def test_the_table_of_tasks() -> None:
    assert TASKS["variants"].task is VariantEffects
    assert any(line.measure == "mean over 8 assays: masked-marginals" for line in TASKS["variants"].published)


def test_with_a_model_through_the_machine(tmp_path: Path) -> None:
    """The scores behind the figures are those of `score_variants`, and so of the plain loops."""
    wild_type = protein(55, seed=1)
    mutants = some_variants(wild_type, doubles=5)[::20]
    folder = write_assays(tmp_path, {"one": (wild_type, {mutant: f"{n}" for n, mutant in enumerate(mutants)})})
    checkpoint = Checkpoint(tiny_model(), "tiny", "", "0" * 64, "")
    assert checkpoint.model.max_residues is not None and checkpoint.model.max_residues < len(wild_type), "windows"
    under_test = VariantEffects(options(folder), facts_of(checkpoint))
    questions = list(under_test.questions())
    runner = Runner(checkpoint.model, RunOptions(precision="fp32", device="cpu"))
    machine = Machine(checkpoint.digest, runner, tmp_path / "cache", "fp16", Silent())
    for _, number, reply in machine.answers({"variants": questions}):
        assert isinstance(reply, Reply)
        under_test.collect(number, reply)
    found = under_test.finish()
    assert any("exceed the" in note for note in found[0].notes)
    by_method = {scored.what: scored.scoring.scores() for scored in under_test.scored}
    assert {"wt-marginals", "masked-marginals", "pseudo-ppl (5 variants)"} <= by_method.keys()
    for method in ("wt-marginals", "masked-marginals"):
        direct = score_variants(runner, Variants.of(wild_type, mutants), method).scores
        np.testing.assert_allclose(by_method[method], direct, atol=2e-5)
    one = [NAIVE["masked-marginals"](tiny_model().eval(), wild_type, mutant) for mutant in mutants[:3]]
    np.testing.assert_allclose(by_method["masked-marginals"][:3], one, atol=2e-5)


def test_the_published_assays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows nothing but how frequent residues are is the baseline of that name, on every assay."""
    monkeypatch.setattr("proteinlm.tasks.variants.QUICK_VARIANTS", 300)
    folder = shared_data("dms").parent
    frequencies = Variants.of("M" + STANDARD.replace("M", ""), [f"M1{letter}" for letter in STANDARD if letter != "M"])
    of_letter = dict(zip([mutant[-1] for mutant in frequencies.mutants], background(frequencies), strict=True))
    known = np.array([of_letter.get(letter, 0.0) for letter in LETTERS], np.float32)

    def knows_frequencies(number: int, question: Question) -> Reply:
        return Reply(log_probabilities=np.tile(known, (len(question.places or question.residues), 1)))

    results = answer(task(folder, quick=True), knows_frequencies)
    assert "mean over 4 assays: wt-marginals" in results
    compared = 0
    for measure, result in results.items():
        if measure.endswith(": background frequencies"):
            same = results[measure.replace("background frequencies", "wt-marginals")]
            assert result.value == pytest.approx(same.value, abs=2e-3), "fp32 may break ties of single precision"
            assert result.n == same.n and -1 < result.low <= result.value <= result.high < 1
            compared += 1
    assert compared >= 10
    assert results["mean over 4 assays: BLOSUM62"].value > 0.1, "substitution matrices know something of real assays"


def test_mutants_of_the_planted_assays_fit() -> None:
    wild_type = protein(40, seed=40)
    assert all(mutate(wild_type, mutant) != wild_type for mutant in some_variants(wild_type, 50))
