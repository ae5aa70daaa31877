"""Vocabularies in files: read by their bytes, refused where damaged, and put into an alphabet's order."""

import json
import random
from pathlib import Path

import pytest
import torch

from proteinlm.checkpoints.vocabulary import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    read_lines,
    read_sentencepiece,
    rows_of,
    sentencepiece_bytes,
    vocabulary_of,
)
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import PROTALBERT, PROTBERT, STANDARD


def test_a_sentencepiece_file_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(sentencepiece_bytes(PROTALBERT, unknown=1))
    pieces = read_sentencepiece(path)
    assert [piece.text.removeprefix("▁") for piece in pieces] == list(PROTALBERT.tokens)
    kinds = [CONTROL, UNKNOWN, *[CONTROL] * 3, *[USER_DEFINED] * 8, *[NORMAL] * 21]
    assert [piece.kind for piece in pieces] == kinds and pieces[20].score == -20.0


def test_the_library_itself_reads_it(tmp_path: Path) -> None:
    """Spaced residues, as the publishers have them, get our ids."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "spiece.model").write_bytes(sentencepiece_bytes(PROTALBERT, unknown=1))
    judge = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert (judge.vocab_size(), judge.pad_id(), judge.unk_id(), judge.bos_id()) == (34, 0, 1, -1)
    compared = 0
    for sequence in (STANDARD + "X", "MKTVRQGX"):
        assert judge.encode(" ".join(sequence)) == PROTALBERT.residue_ids(sequence).tolist()
        compared += len(sequence)
    assert compared == 29


def test_what_the_library_trains_is_read(tmp_path: Path) -> None:
    """A vocabulary of words made of text as ProtTrans has it: residues by their frequency, not in our order."""
    sentencepiece = pytest.importorskip("sentencepiece")
    letters = "XWCHMYFQNPTDRKISEVGAL"
    lines = [" ".join(letters[: 1 + index % len(letters)]) for index in range(2000)]
    (tmp_path / "text").write_text("\n".join(lines) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "spiece"),
        model_type="word",
        vocab_size=26,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )
    judge = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    pieces = [piece.text for piece in read_sentencepiece(tmp_path / "spiece.model")]
    assert pieces == [judge.id_to_piece(index) for index in range(judge.vocab_size())] and len(pieces) == 26
    rows = rows_of(PROTALBERT, pieces, "spiece.model")
    assert rows.tolist() != list(range(34))
    assert rows[PROTALBERT.residue_ids(letters)].tolist() == judge.encode(" ".join(letters))


def test_a_file_that_is_cut_or_changed_is_refused_or_read_and_never_fails_otherwise(tmp_path: Path) -> None:
    path, whole = tmp_path / "spiece.model", sentencepiece_bytes(PROTALBERT, unknown=1)
    source = random.Random(1)
    refused = 0
    for trial in range(300):
        data = bytearray(whole[: source.randrange(len(whole))] if trial % 2 else whole)
        for _ in range(source.randrange(1, 6)):
            if data:
                data[source.randrange(len(data))] = source.randrange(256)
        path.write_bytes(data)
        try:
            read_sentencepiece(path)
        except InputError as error:
            assert "\n" not in str(error) and "spiece.model" in str(error)
            refused += 1
    assert refused > 100
    for data in (b"", b"\x0a", b"\xff" * 20, b"these are no pieces", whole[-7:]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"spiece\.model is not a SentencePiece model"):
            read_sentencepiece(path)
    with pytest.raises(InputError, match="cannot read"):
        read_sentencepiece(tmp_path / "none")


def test_rows_follow_the_order_of_the_file() -> None:
    order = list(range(len(PROTALBERT)))
    random.Random(3).shuffle(order)
    pieces = ["▁" + token if token.isalpha() else token for token in (PROTALBERT.tokens[index] for index in order)]
    rows = rows_of(PROTALBERT, pieces, "file")
    assert [pieces[row].removeprefix("▁") for row in rows] == list(PROTALBERT.tokens)
    table = torch.tensor(order, dtype=torch.float32)
    assert torch.equal(table[rows], torch.arange(len(PROTALBERT), dtype=torch.float32))


def test_what_no_protein_is_encoded_with_may_differ_and_the_rest_may_not() -> None:
    pieces = [*PROTALBERT.tokens[:5], *"abcdefgh", *("▁" + token for token in PROTALBERT.tokens[13:])]
    rows = rows_of(PROTALBERT, pieces, "file")
    assert rows.tolist() == list(range(34)), "signs that are not there stand in order"
    # A letter that is there with the mark of a word's start and without it is the one with it.
    both = [*pieces[:5], "M", *pieces[6:]]
    assert rows_of(PROTALBERT, both, "file")[PROTALBERT.tokens.index("M")] == PROTALBERT.tokens.index("M")
    for missing in ("▁L", "[MASK]", "▁X"):
        with pytest.raises(InputError, match="of alphabet ProtAlbert is not there"):
            rows_of(PROTALBERT, [piece if piece != missing else "?" for piece in pieces], "file")
    with pytest.raises(InputError, match="35 pieces, but alphabet ProtAlbert has 34"):
        rows_of(PROTALBERT, [*pieces, "?"], "file")


def test_a_list_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(PROTBERT.tokens) + "\n")
    assert read_lines(tmp_path / "vocab.txt") == PROTBERT.tokens
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as a list of tokens"):
        read_lines(tmp_path / "vocab.txt")


def test_a_folder_says_what_vocabulary_it_has(tmp_path: Path) -> None:
    assert vocabulary_of(tmp_path) is None
    path = tmp_path / "tokenizer.json"
    for vocabulary in (
        {token: index for index, token in enumerate(PROTBERT.tokens)},
        [[t, 0.0] for t in PROTBERT.tokens],
    ):
        path.write_text(json.dumps({"model": {"vocab": vocabulary}}))
        assert vocabulary_of(tmp_path) == (PROTBERT.tokens, path)
    for wrong in ({}, {"model": 1}, {"model": {"vocab": {"A": 1, "B": 1}}}, {"model": {"vocab": ["A"]}}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="holds no vocabulary that is understood"):
            vocabulary_of(tmp_path)
    (tmp_path / "vocab.txt").write_text("A\nB\n")
    assert vocabulary_of(tmp_path) == (("A", "B"), tmp_path / "vocab.txt")
    (tmp_path / "spiece.model").write_bytes(sentencepiece_bytes(PROTALBERT, unknown=1))
    assert vocabulary_of(tmp_path)[1].name == "spiece.model"


def test_letters_of_prottrans() -> None:
    for alphabet in (PROTBERT, PROTALBERT):
        assert alphabet.policy() == "X: own token; B U Z O J: read as X"
        assert alphabet.encode("UZOBJ").tolist() == alphabet.encode("XXXXX").tolist()
        assert alphabet.letters() == "".join(sorted(STANDARD + "XUZOBJ"))
    assert (len(PROTBERT), len(PROTALBERT)) == (30, 34), "papers.md 6.1"
    assert PROTBERT.encode("LAGX").tolist() == [2, 5, 6, 7, 25, 3], "papers.md 6.4: L is 5, X is 25"
