"""`proteinlm.load(name).embed(sequences)`: the numbers of the bare model, lazily, in order, each with its id."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_tools import (
    ALONE_TOLERANCE,
    LONGEST,
    WIDTH,
    a_job,
    made_up,
    reference,
    run,
    save_model,
    threads,
    tiny_model,
)
from embedding_tools import write_fasta as write

import proteinlm
from proteinlm import InputError, read_embeddings
from proteinlm.api import Embedded, LanguageModel
from proteinlm.embedding.plan import BLOCK_RECORDS

PROTEINS = [(header.split()[0], residues) for header, residues in made_up(30)]


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    return proteinlm.load(save_model(tmp_path), device="cpu", precision="fp32")


def test_what_a_model_says_of_itself(model: LanguageModel) -> None:
    assert (model.name, model.num_layers, model.width, model.precision) == ("tiny-0", 2, WIDTH, "fp32")
    assert len(model.digest) == 64 and repr(model) == "<LanguageModel tiny-0: 2 layers, width 16, fp32>"


def test_pairs_strings_and_files_give_the_same(model: LanguageModel, tmp_path: Path) -> None:
    path = write(tmp_path / "in.fasta", PROTEINS)
    by_pair = list(model.embed(PROTEINS))
    assert [item.id for item in by_pair] == [name for name, _ in PROTEINS] and len(by_pair) == 30
    assert [item.index for item in by_pair] == list(range(30))
    strings = list(model.embed([residues for _, residues in PROTEINS]))
    assert [item.id for item in strings] == [str(n) for n in range(30)]
    for others in (strings, list(model.embed(path)), list(model.embed(Path(path)))):
        for one, other in zip(by_pair, others, strict=True):
            np.testing.assert_array_equal(one.embedding, other.embedding)
    plain = tiny_model()
    for (_, residues), item in zip(PROTEINS, by_pair, strict=True):
        assert item.embedding is not None and item.logits is None and item.contacts is None
        expected = reference(plain, residues, 2)[1:-1].mean(0).numpy()
        np.testing.assert_allclose(item.embedding, expected, **ALONE_TOLERANCE)


def test_it_equals_the_command_line(model: LanguageModel, tmp_path: Path) -> None:
    job = a_job(write(tmp_path / "in.fasta", PROTEINS), tmp_path / "out.h5", save_model(tmp_path), pooling="none")
    run(job)
    stored = dict(read_embeddings(tmp_path / "out.h5"))
    for item in model.embed(PROTEINS, pooling="none"):
        np.testing.assert_allclose(item.embedding, stored.pop(item.id), **ALONE_TOLERANCE)
    assert not stored


def test_everything_at_once(model: LanguageModel) -> None:
    (item,) = model.embed(["mkt-ayiak*"], layers=(0, -1), pooling="none", include=("embeddings", "logits", "contacts"))
    assert isinstance(item, Embedded)
    shapes = [array.shape for array in (item.embedding, item.logits, item.contacts) if array is not None]
    assert shapes == [(2, 8, WIDTH), (8, 33), (8, 8)]
    assert all(array.dtype == np.float32 for array in (item.embedding, item.logits, item.contacts))
    np.testing.assert_array_equal(model.contacts("MKTAYIAK"), item.contacts)


def test_it_is_a_generator_with_constant_memory(model: LanguageModel) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "MKTAYIAK"

    stream = model.embed(endless())
    assert taken == 0, "nothing happens before the first is asked for"
    for n in range(3):
        assert next(stream).index == n
    assert taken == BLOCK_RECORDS + 1, "a block is held, and the one sequence that showed that it is full"
    stream.close()


def test_blocks_do_not_show(model: LanguageModel) -> None:
    sequences = ["MKT", "MVLAA"] * (BLOCK_RECORDS // 2 + 3)
    items = list(model.embed(sequences))
    assert [item.index for item in items] == list(range(len(sequences)))
    assert len({item.embedding.tobytes() for item in items}) <= 4, "two proteins, in a full and in a small last batch"
    np.testing.assert_allclose(items[0].embedding, items[-2].embedding, **ALONE_TOLERANCE)


def test_long_proteins(model: LanguageModel) -> None:
    long = "MKTV" * LONGEST
    assert [item.windows > 4 for item in model.embed([long, "MK"])] == [True, False]
    assert [item.cropped for item in model.embed([long, "MK"], long="crop")] == [3 * LONGEST, 0]
    with pytest.raises(InputError, match=r"record 2 \('1'\): 160 residues exceed the 40"):
        list(model.embed(["MK", long], long="error"))


def test_settings_are_checked_at_once(model: LanguageModel) -> None:
    for wrong, message in (
        ({"layers": (3,)}, r"layer 3 is outside 0\.\.2"),
        ({"pooling": "sum"}, "pooling 'sum' is unknown"),
        ({"include": ("embedding",)}, "include 'embedding' is unknown"),
        ({"long": "cut"}, "long 'cut' is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            model.embed(["MKT"], **wrong)


def test_a_bad_sequence_is_named_when_its_turn_comes(model: LanguageModel, tmp_path: Path) -> None:
    stream = model.embed([("a", "MKT"), ("b", "MK7")])
    with pytest.raises(InputError, match=r"sequence 2 \('b'\): letter '7' at position 3"):
        list(stream)
    with pytest.raises(InputError, match=r"record 2 \('b'\): letter '7'"):
        list(model.embed(write(tmp_path / "in.fasta", [("a", "MKT"), ("b", "MK7")])))
    with pytest.raises(InputError, match=r"there is no FASTA file 'MKTAYIAK'; .* give a list: \[sequence\]"):
        list(model.embed("MKTAYIAK"))
    with pytest.raises(InputError, match=r"cannot open 'absent\.fasta'"):
        list(model.embed("absent.fasta"))
    assert list(model.embed([])) == []


def test_the_caller_keeps_its_random_numbers_and_threads(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    model = proteinlm.load(save_model(tmp_path), device="cpu")
    state_after_saving = torch.random.get_rng_state()
    with threads(2):
        assert len(list(model.embed(PROTEINS * 40))) == 1200
        assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), state_after_saving) and torch.equal(state, state_after_saving)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'esm2-8m'"):
        proteinlm.load("esm2-8n")
