"""Every distinct question is answered once, in one pass for all that is wanted, and each task gets its own reply."""

from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_tools import ALONE_TOLERANCE, LAYERS, LONGEST, WIDTH, tiny_model, tiny_unirep
from evaluation_tools import protein

from proteinlm.checkpoints.loading import Checkpoint
from proteinlm.embedding.progress import Silent
from proteinlm.errors import InputError
from proteinlm.evaluation.machine import Machine, Unanswered, facts_of
from proteinlm.inference import Runner, RunOptions
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.encodings import build_encoding
from proteinlm.sequences.alphabet import LETTERS
from proteinlm.sequences.batch import PackedBatch
from proteinlm.tasks.base import Question, Reply, Wanted

A, B, LONG = protein(20, 1), protein(25, 2), protein(LONGEST + 20, 3)

Asked = dict[str, list[Question]]


def machine(folder: Path, model: ProteinModel | None = None, storage: str = "fp16") -> Machine:
    runner = Runner(model or tiny_model(), RunOptions(precision="fp32", device="cpu"))
    return Machine("ab" * 32, runner, folder, storage, Silent())


def replies(one: Machine, asked: Asked) -> dict[tuple[str, int], Reply]:
    found: dict[tuple[str, int], Reply] = {}
    for task, number, reply in one.answers(asked):
        assert isinstance(reply, Reply) and (task, number) not in found
        found[task, number] = reply
    assert found.keys() == {(task, number) for task, questions in asked.items() for number in range(len(questions))}
    one.close()
    return found


def by_hand(residues: str, masked: tuple[int, ...] = ()) -> Output:
    model = tiny_model().eval()
    batch = PackedBatch.pack([model.alphabet.encode(residues)], prefix=1, suffix=1)
    for position in masked:
        batch.tokens_T[1 + position] = model.alphabet.mask
    with torch.inference_mode():
        return model(batch, Want(layers=tuple(range(LAYERS + 1)), logits=True, attentions=True, contacts=True))


def close(ours: np.ndarray | None, expected: torch.Tensor) -> None:
    assert ours is not None and ours.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(np.array(ours)), expected, **ALONE_TOLERANCE)


def test_replies_hold_what_was_wanted_and_nothing_else(tmp_path: Path) -> None:
    wanted = {
        "mean": Wanted(mean=True),
        "residues": Wanted(residues=True, layer=1),
        "log_probabilities": Wanted(log_probabilities=True),
        "contacts": Wanted(contacts=True),
        "attentions": Wanted(attentions=True),
    }
    asked = {name: [Question(A, one), Question(B, one, masked=(3, 4))] for name, one in wanted.items()}
    found = replies(machine(tmp_path), asked)
    for number, output in enumerate((by_hand(A), by_hand(B, (3, 4)))):
        assert output.logits_TV is not None
        close(found["mean", number].mean, output.hidden[LAYERS][1:-1].mean(0))
        close(found["residues", number].residues, output.hidden[1][1:-1])
        close(found["contacts", number].contacts, output.contacts[0])
        close(found["attentions", number].attentions, output.attentions[0][:, :, 1:-1, 1:-1])
        expected = torch.log_softmax(output.logits_TV[1:-1], 1)
        ours = found["log_probabilities", number].log_probabilities
        assert ours is not None and ours.shape == (len((A, B)[number]), 26)
        ids = tiny_model().alphabet.residue_ids("ACDWYX")
        close(ours[:, [LETTERS.index(letter) for letter in "ACDWYX"]], expected[:, ids])
        # J is read as X.
        np.testing.assert_array_equal(ours[:, LETTERS.index("J")], ours[:, LETTERS.index("X")])
    for (name, _), reply in found.items():
        others = [field for field in wanted if field != name]
        assert all(vars(reply)[field] is None for field in others) and reply.kept is None


def test_places_choose_rows(tmp_path: Path) -> None:
    every, some = Wanted(log_probabilities=True), (7, 2, 19)
    found = replies(machine(tmp_path), {"t": [Question(A, every), Question(A, every, places=some)]})
    whole, chosen = found["t", 0].log_probabilities, found["t", 1].log_probabilities
    assert whole is not None and chosen is not None
    np.testing.assert_array_equal(chosen, whole[list(some)])


def test_each_distinct_question_is_answered_once(tmp_path: Path) -> None:
    """Two tasks, three proteins, nine questions: three passes, with masks four."""
    one = machine(tmp_path)
    mean, residues = Wanted(mean=True), Wanted(residues=True)
    asked = {
        "first": [Question(A, mean), Question(B, mean), Question(A, mean)],
        "second": [Question(B, residues), Question(LONG, residues), Question(A, residues, masked=(1,))],
        "third": [Question(A, residues), Question(B, mean), Question(LONG, mean)],
    }
    found = replies(one, asked)
    assert one.passes == 4 and len(found) == 9
    assert found["second", 1].windows == 2 and found["first", 0].windows == 1
    np.testing.assert_array_equal(found["first", 1].mean, found["third", 1].mean)
    np.testing.assert_allclose(found["second", 0].residues.mean(0), found["first", 1].mean, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(found["second", 2].residues, found["third", 0].residues)


def test_a_model_that_looks_ahead_is_asked_one_token_before(tmp_path: Path) -> None:
    found = replies(machine(tmp_path, tiny_unirep()), {"t": [Question("MKTV", Wanted(log_probabilities=True))]})
    model = tiny_unirep().eval()
    with torch.inference_mode():
        logits = model(PackedBatch.pack([model.alphabet.encode("MKTV")], prefix=1), Want(logits=True)).logits_TV
    assert logits is not None
    expected = torch.log_softmax(logits[:-1], 1)[:, model.alphabet.residue_ids("MKTV")]
    close(found["t", 0].log_probabilities[:, [LETTERS.index(letter) for letter in "MKTV"]], expected)


def test_kept_vectors_are_on_disk_and_found_again(tmp_path: Path) -> None:
    asked = {"t": [Question(A, Wanted(kept=True)), Question(LONG, Wanted(kept=True, mean=True))]}
    first = machine(tmp_path)
    found = replies(first, asked)
    expected = by_hand(A).hidden[LAYERS][1:-1]
    kept = found["t", 0].kept
    assert kept is not None and kept.dtype == np.float16 and kept.shape == (20, WIDTH)
    np.testing.assert_allclose(kept, expected, rtol=1e-3, atol=1e-4)
    assert (first.passes, first.reused) == (2, 0)
    again = machine(tmp_path)
    more = {"t": [*asked["t"], Question(B, Wanted(kept=True))], "other": [Question(A, Wanted(mean=True))]}
    second = replies(again, more)
    assert (again.passes, again.reused) == (1, 2), "only the new protein goes through the model"
    np.testing.assert_array_equal(second["t", 0].kept, kept)
    np.testing.assert_array_equal(second["t", 1].mean, found["t", 1].mean)
    np.testing.assert_allclose(second["other", 0].mean, expected.mean(0), rtol=1e-5, atol=1e-6)


def test_vectors_in_fp32_are_run_again_even_if_kept(tmp_path: Path) -> None:
    replies(machine(tmp_path), {"t": [Question(A, Wanted(kept=True))]})
    again = machine(tmp_path)
    found = replies(again, {"t": [Question(A, Wanted(residues=True)), Question(A, Wanted(kept=True))]})
    assert again.passes == 1
    close(found["t", 0].residues, by_hand(A).hidden[LAYERS][1:-1])


def test_letters_that_a_model_cannot_read_are_told(tmp_path: Path) -> None:
    one = machine(tmp_path)
    asked = {"t": [Question("MK*TV", Wanted(mean=True)), Question(A, Wanted(mean=True))]}
    found = {number: reply for _, number, reply in one.answers(asked)}
    one.close()
    assert isinstance(found[0], Unanswered) and "'*'" in found[0].reason
    assert isinstance(found[1], Reply)


def test_a_layer_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer 7 is outside"):
        replies(machine(tmp_path), {"t": [Question(A, Wanted(mean=True, layer=7))]})


def test_what_models_can_do() -> None:
    def able(model: ProteinModel) -> set[str]:
        return set(facts_of(Checkpoint(model, "m", "", "0", "")).abilities)

    assert able(tiny_model()) == {"residues", "logits", "mask", "attentions", "contacts"}
    assert able(tiny_unirep()) == {"residues", "logits"}
    assert able(build_encoding("one-hot")[0]) == {"residues"}


@pytest.mark.parametrize("positions", [(-1,), (4,)])
def test_questions_outside_their_protein_are_refused(positions: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="leave 4 residues"):
        Question("MKTV", Wanted(mean=True), masked=positions)
    with pytest.raises(InputError, match="leave 4 residues"):
        Question("MKTV", Wanted(mean=True), places=positions)
