"""ECE as a task equals ECE as it is computed in training; a perfect predictor scores 1, a guess the alphabet's size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets_tools import write_text
from embedding_tools import tiny_model, tiny_unirep
from evaluation_tools import answer, facts, options, write_held_out

from proteinlm.checkpoints.loading import Checkpoint
from proteinlm.datasets.sources import SOURCES
from proteinlm.embedding.progress import Silent
from proteinlm.errors import InputError
from proteinlm.evaluation.machine import Machine, facts_of
from proteinlm.inference import Runner, RunOptions
from proteinlm.models.base import ProteinModel, Want
from proteinlm.models.ngram import NGram, NGramConfig
from proteinlm.models.ngram_model import NGramModel
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.objectives.perplexity import hidden_positions, protein_losses
from proteinlm.sequences.alphabet import ESM1B, LETTERS
from proteinlm.sequences.batch import PackedBatch
from proteinlm.tasks.base import Question, Reply, Result
from proteinlm.tasks.language import CHOSEN, HIDDEN, Language, masked_protein

NO_MASK = frozenset(("residues", "logits"))


def through_the_machine(model: ProteinModel, data: Path, folder: Path) -> dict[str, Result]:
    """The results of the task, asked of a real model."""
    checkpoint = Checkpoint(model, "tiny", "", "0" * 64, "")
    task = Language(options(data), facts_of(checkpoint))
    machine = Machine("0" * 64, Runner(model, RunOptions(precision="fp32", device="cpu")), folder, "fp16", Silent())
    for _, number, reply in machine.answers({"language": list(task.questions())}):
        assert isinstance(reply, Reply)
        task.collect(number, reply)
    return {result.measure: result for result in task.finish()}


def test_equals_the_losses_of_training(tmp_path: Path) -> None:
    """The same masks, the same cross-entropies, protein by protein; hidden and chosen residues."""
    proteins = list(write_held_out(tmp_path, 12, longest=40).values())
    expected = protein_losses(tiny_model(), MaskedLanguageModel(ESM1B, Masking()), proteins, seed=0)
    found = through_the_machine(tiny_model(), tmp_path, tmp_path)
    assert set(found) == {HIDDEN, CHOSEN}
    for measure, (sums, counts) in ((HIDDEN, expected.hidden), (CHOSEN, expected.chosen)):
        np.testing.assert_array_equal(found[measure].counts, counts)
        # fp32 logits in batches of another shape; sums of some ten terms around 3.
        np.testing.assert_allclose(found[measure].sums, sums, rtol=1e-4)
        assert found[measure].value == pytest.approx(np.exp(sums.sum() / counts.sum()), rel=1e-4)
        assert found[measure].better == "lower" and found[measure].n == counts.sum() > 20


def test_models_without_a_mask_are_asked_about_the_hidden_residues(tmp_path: Path) -> None:
    """UniRep, residue by residue: the logits before each hidden residue."""
    proteins = list(write_held_out(tmp_path, 5).values())
    places = hidden_positions(MaskedLanguageModel(ESM1B, Masking()), proteins, seed=0)
    model = tiny_unirep().eval()
    expected = []
    for residues, hidden in zip(proteins, places, strict=True):
        ids = torch.from_numpy(model.alphabet.encode(residues))
        with torch.inference_mode():
            logits = model(PackedBatch.pack([ids.numpy()], prefix=1), Want(logits=True)).logits_TV
        assert logits is not None
        log = torch.log_softmax(logits, 1)
        expected.append(-sum(float(log[at, ids[at + 1]]) for at in hidden))
    found = through_the_machine(tiny_unirep(), tmp_path, tmp_path)
    assert set(found) == {HIDDEN}
    np.testing.assert_allclose(found[HIDDEN].sums, expected, rtol=1e-4)


def test_an_ngram_scores_what_its_counts_say(tmp_path: Path) -> None:
    proteins = list(write_held_out(tmp_path, 8).values())
    arrays = [np.frombuffer(residues.encode(), np.uint8) for residues in proteins]
    counts = NGram.fit(arrays[:5], NGramConfig(left=2, right=1, alpha=0.1))
    places = hidden_positions(MaskedLanguageModel(ESM1B, Masking()), proteins, seed=0)
    sums, numbers = counts.cross_entropy(arrays, places)
    found = through_the_machine(NGramModel(counts), tmp_path, tmp_path)
    np.testing.assert_allclose(found[HIDDEN].sums, sums, rtol=1e-5)
    np.testing.assert_array_equal(found[HIDDEN].counts, numbers)


def test_masks_depend_on_residues_and_seed_alone() -> None:
    residues = "MKTAYIAKQRQISFVKSHFSRQ" * 10
    shown, masked, chosen = masked_protein(residues, seed=3)
    assert masked_protein(residues, seed=3) == (shown, masked, chosen) != masked_protein(residues, seed=4)
    assert set(masked) < set(chosen) and len(shown) == len(residues)
    changed = {at for at in range(len(residues)) if shown[at] != residues[at]}
    assert changed and changed <= set(chosen) - set(masked)


def test_a_good_predictor_is_near_1_and_a_guess_at_25(tmp_path: Path) -> None:
    proteins = list(write_held_out(tmp_path, 30).values())

    def told(right: float) -> dict[str, Result]:
        def reply(number: int, question: Question) -> Reply:
            assert question.places is not None
            log = np.full((len(question.places), 26), np.log((1 - right) / 25), np.float32)
            for row, place in enumerate(question.places):
                log[row, LETTERS.index(proteins[number][place])] = np.log(right)
            return Reply(log_probabilities=log)

        return answer(Language(options(tmp_path), facts()), reply)

    assert all(result.value == pytest.approx(1 / 0.99, rel=1e-5) for result in told(0.99).values())
    assert all(result.value == pytest.approx(26, rel=1e-5) for result in told(1 / 26).values())


def test_shuffled_answers_are_worse_than_a_guess(tmp_path: Path) -> None:
    """Probabilities of the right residues of another protein: chance hits only, so no better than frequencies."""
    proteins = list(write_held_out(tmp_path, 40).values())

    def reply(number: int, question: Question) -> Reply:
        assert question.places is not None
        other = proteins[(number + 7) % len(proteins)]
        log = np.full((len(question.places), 26), np.log(0.5 / 25), np.float32)
        for row, place in enumerate(question.places):
            log[row, LETTERS.index(other[place % len(other)])] = np.log(0.5)
        return Reply(log_probabilities=log)

    found = answer(Language(options(tmp_path), facts()), reply)
    # A twentieth is right by chance: exp(-(0.05 ln 0.5 + 0.95 ln 0.02)) = 42.
    assert all(result.low > 20 and result.value == pytest.approx(42, rel=0.15) for result in found.values())


def test_a_protein_that_stands_there_twice_is_told(tmp_path: Path) -> None:
    write_text(tmp_path / SOURCES["held_out"].path, [">a", "MKT", ">b", "MKV", ">a", "MRT"])
    with pytest.raises(InputError, match="a stands there twice"):
        list(Language(options(tmp_path), facts()).questions())


def test_impossible_residues_are_told(tmp_path: Path) -> None:
    write_held_out(tmp_path, 3)
    task = Language(options(tmp_path), facts(NO_MASK))
    with pytest.raises(InputError, match="impossible"):
        answer(task, lambda _, question: Reply(log_probabilities=np.full((len(question.places or ()), 26), -np.inf)))
