"""What a query may ask beyond a residue string: masks, in windows too; attention maps of residues; logits at BOS."""

import numpy as np
import pytest
import torch
from embedding_tools import ALONE_TOLERANCE, LONGEST, RESIDUES, tiny_model, tiny_unirep

from proteinlm.errors import InputError
from proteinlm.inference import TOKENS_WITH_MAPS, Answer, Query, Runner, RunOptions, cut, forward_all, plan
from proteinlm.models.base import Want
from proteinlm.sequences.batch import PackedBatch


def protein(length: int) -> str:
    return "".join(np.random.default_rng(length).choice(list(RESIDUES), size=length))


def runner(tokens: int = 100) -> Runner:
    return Runner(tiny_model(), RunOptions(precision="fp32", device="cpu", tokens_per_batch=tokens))


def answers(run: Runner, queries: list[Query], want: Want) -> dict[int, Answer]:
    found = {answer.row: answer for answer in forward_all(run, queries, want) if isinstance(answer, Answer)}
    assert sorted(found) == sorted(query.row for query in queries)
    return found


def masked_by_hand(residues: str, masked: tuple[int, ...], want: Want) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and last hidden states of the residues, by writing the mask's id into the batch."""
    model = tiny_model().eval()
    batch = PackedBatch.pack([model.alphabet.encode(residues)], prefix=1, suffix=1)
    for position in masked:
        batch.tokens_T[1 + position] = model.alphabet.mask
    with torch.inference_mode():
        output = model(batch, want)
    assert output.logits_TV is not None
    return output.logits_TV[1:-1], output.hidden[2][1:-1]


def test_masks_are_seen_by_the_model() -> None:
    want = Want(layers=(2,), logits=True)
    queries = [
        Query(0, protein(20)),
        Query(1, protein(20), masked=(0, 7, 19)),
        Query(2, protein(25), masked=(3,)),
        Query(3, protein(20), masked=tuple(range(20))),
    ]
    found = answers(runner(), queries, want)
    for query in queries:
        logits, hidden = masked_by_hand(query.residues, query.masked, want)
        torch.testing.assert_close(found[query.row].logits, logits, **ALONE_TOLERANCE)
        torch.testing.assert_close(found[query.row].hidden[2], hidden, **ALONE_TOLERANCE)
    assert not torch.equal(found[0].logits[3], found[1].logits[3]), "a mask elsewhere changes what is said here"


def test_a_masked_letter_is_not_seen() -> None:
    residues = protein(20)
    other = residues[:5] + ("A" if residues[5] != "A" else "C") + residues[6:]
    found = answers(runner(), [Query(0, residues, (5,)), Query(1, other, (5,))], Want(logits=True))
    assert torch.equal(found[0].logits, found[1].logits)


def test_masks_of_every_window() -> None:
    """A long protein, masked all along: each window equals the masked window alone."""
    residues, masked = protein(150), tuple(range(0, 150, 11))
    want = Want(layers=(2,), logits=True)
    (found,) = answers(runner(), [Query(0, residues, masked)], want).values()
    pieces = cut(Query(0, residues, masked), LONGEST)
    assert found.windows == len(pieces) > 2
    for piece in pieces:
        inside = tuple(at - piece.start for at in masked if piece.start <= at < piece.start + len(piece.residues))
        logits, hidden = masked_by_hand(piece.residues, inside, want)
        low, high = piece.owned
        own = slice(low - piece.start, high - piece.start)
        torch.testing.assert_close(found.logits[low:high], logits[own], **ALONE_TOLERANCE)
        torch.testing.assert_close(found.hidden[2][low:high], hidden[own], **ALONE_TOLERANCE)


def test_a_cropped_protein_loses_the_masks_behind_the_crop() -> None:
    run = Runner(tiny_model(), RunOptions(precision="fp32", device="cpu", long="crop"))
    residues = protein(LONGEST + 10)
    masked = answers(run, [Query(0, residues, (3, LONGEST + 2))], Want(logits=True))[0]
    logits, _ = masked_by_hand(residues[:LONGEST], (3,), Want(layers=(2,), logits=True))
    assert masked.cropped == 10
    torch.testing.assert_close(masked.logits, logits, **ALONE_TOLERANCE)


def test_models_without_a_mask_refuse_masks() -> None:
    run = Runner(tiny_unirep(), RunOptions(precision="fp32", device="cpu"))
    with pytest.raises(InputError, match="no mask token"):
        list(forward_all(run, [Query(0, "MKTV", (1,))], Want(layers=(1,))))


def test_attentions_are_of_residues_and_stitched() -> None:
    short, long = protein(LONGEST - 3), protein(100)
    found = answers(runner(), [Query(0, short), Query(1, long)], Want(attentions=True))
    model = tiny_model().eval()

    def maps(residues: str) -> torch.Tensor:
        batch = PackedBatch.pack([model.alphabet.encode(residues)], prefix=1, suffix=1)
        with torch.inference_mode():
            return model(batch, Want(attentions=True)).attentions[0][:, :, 1:-1, 1:-1]

    torch.testing.assert_close(found[0].attentions, maps(short), **ALONE_TOLERANCE)
    whole, compared = found[1].attentions, 0
    assert whole is not None and whole.shape == (*maps(short).shape[:2], 100, 100)
    for piece in cut(Query(1, long), LONGEST):
        window = maps(piece.residues)
        for i in range(len(piece.residues)):
            for j in range(len(piece.residues)):
                if 2 * piece.owned[0] <= i + j + 2 * piece.start < 2 * piece.owned[1]:
                    ours = whole[:, :, i + piece.start, j + piece.start]
                    torch.testing.assert_close(ours, window[:, :, i, j], **ALONE_TOLERANCE)
                    compared += 1
    assert compared == (~whole[0, 0].isnan()).sum() > 100 * LONGEST
    assert whole[0, 0, 0, 99].isnan()


def test_attention_maps_come_in_small_batches() -> None:
    run = runner(tokens=4096)
    queries = [Query(row, protein(LONGEST - row)) for row in range(20)] * 3
    batches, _, _ = plan(queries, run, TOKENS_WITH_MAPS)
    sizes = [sum(len(piece.residues) + 2 for piece in batch) for batch in batches]
    assert max(sizes) <= TOKENS_WITH_MAPS < sum(sizes)


def test_the_first_residue_of_a_model_that_looks_ahead() -> None:
    """UniRep says at a token what comes next: what it says of the first residue stands at the start token."""
    model = tiny_unirep().eval()
    assert model.logits_ahead and not tiny_model().logits_ahead
    batch = PackedBatch.pack([model.alphabet.encode("MKTV")], prefix=1)
    with torch.inference_mode():
        logits = model(batch, Want(logits=True)).logits_TV
    run = Runner(tiny_unirep(), RunOptions(precision="fp32", device="cpu"))
    (found,) = answers(run, [Query(0, "MKTV")], Want(logits=True)).values()
    assert logits is not None and found.first_logits is not None and found.logits is not None
    torch.testing.assert_close(torch.cat([found.first_logits[None], found.logits]), logits, **ALONE_TOLERANCE)
