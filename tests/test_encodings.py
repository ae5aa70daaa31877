"""One-hot, BLOSUM62 and composition as models: their numbers by hand, and that they go wherever a model goes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_tools import made_up, plm, tiny_model, write_fasta

from proteinlm import checkpoints, read_embeddings
from proteinlm.checkpoints.ngram import save_ngram
from proteinlm.errors import InputError
from proteinlm.inference import Answer, Query, Runner, RunOptions, forward_all
from proteinlm.models.base import Want
from proteinlm.models.encodings import ENCODINGS, RESIDUES, blosum62_table
from proteinlm.models.ngram import LETTERS, NGram, NGramConfig
from proteinlm.models.ngram_model import COUNTED, NGramModel
from proteinlm.sequences.alphabet import STANDARD
from proteinlm.sequences.batch import PackedBatch


def hidden(name: str, residues: str) -> np.ndarray:
    runner = Runner(checkpoints.load(name).model, RunOptions(device="cpu"))
    (found,) = forward_all(runner, [Query(0, residues)], Want(layers=(0,)))
    assert isinstance(found, Answer)
    return found.hidden[0].numpy()


def test_the_mean_of_one_hot_is_the_composition() -> None:
    residues = "MKTAYIAKQRQISFVKSHFSRQ"
    counts = Counter(residues)
    expected = [counts[letter] / len(residues) for letter in STANDARD]
    np.testing.assert_allclose(hidden("one-hot", residues).mean(0), expected, rtol=1e-6)
    composition = hidden("composition", residues)
    assert composition.shape == (len(residues), 20)
    np.testing.assert_allclose(composition, np.tile(expected, (len(residues), 1)), rtol=1e-6)


def test_blosum62_is_symmetric_with_the_published_diagonal() -> None:
    table = blosum62_table()[RESIDUES.residue_ids(STANDARD)]
    np.testing.assert_array_equal(table, table.T)
    scores = (4, 5, 6, 6, 9, 5, 5, 6, 8, 4, 4, 5, 5, 6, 7, 4, 5, 11, 7, 4)
    diagonal = dict(zip("ARNDCQEGHILKMFPSTWYV", scores, strict=True))
    assert {letter: table[at, at] for at, letter in enumerate(STANDARD)} == diagonal
    np.testing.assert_array_equal(hidden("blosum62", "WV"), table[[STANDARD.index("W"), STANDARD.index("V")]])


def test_letters_beyond_the_twenty() -> None:
    rare = hidden("one-hot", "XUOJBZ")
    assert rare[:4].sum() == 0 and rare[4:].sum(1).tolist() == [1.0, 1.0]
    assert rare[4, STANDARD.index("D")] == rare[4, STANDARD.index("N")] == 0.5


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_a_protein_does_not_depend_on_its_neighbours(name: str) -> None:
    model = checkpoints.load(name).model
    proteins = [residues for _, residues in made_up(7)]
    together = model(PackedBatch.pack([RESIDUES.encode(one) for one in proteins]), Want(layers=(0,))).hidden[0]
    alone = torch.cat([torch.from_numpy(hidden(name, one)) for one in proteins])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-7)


def test_plm_embed_takes_an_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proteins = made_up(6)
    source, out = write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "out.h5"
    assert plm(monkeypatch, "embed", source, "-o", out, "--model", "blosum62") == 0
    found = list(dict(read_embeddings(out)).values())
    assert len(found) == 6
    np.testing.assert_allclose(found[0], hidden("blosum62", proteins[0][1]).mean(0), rtol=1e-5)


def test_digests_tell_encodings_apart() -> None:
    digests = {name: checkpoints.load(name).digest for name in ENCODINGS}
    assert len(set(digests.values())) == 3
    assert checkpoints.load("one-hot").digest == digests["one-hot"]


def test_what_has_no_weights_has_no_untrained_twin() -> None:
    with pytest.raises(InputError, match="without parameters"):
        checkpoints.untrained("one-hot")


def test_untrained_has_the_shape_and_other_weights(tmp_path: Path) -> None:
    checkpoints.save(tiny_model(), tmp_path / "tiny.safetensors")
    trained = checkpoints.load(tmp_path / "tiny.safetensors")
    one, again, other = (checkpoints.untrained(tmp_path / "tiny.safetensors", seed) for seed in (1, 1, 2))
    assert one.digest == again.digest != other.digest != trained.digest
    assert one.name == "tiny untrained (seed 1)"
    shapes = {name: tensor.shape for name, tensor in trained.model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in one.model.state_dict().items()}


def test_a_published_shape_needs_no_weights_to_be_untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTEINLM_WEIGHTS", str(tmp_path))
    found = checkpoints.untrained("esm2-8m", seed=2)
    assert found.name == "esm2_t6_8M_UR50D untrained (seed 2)" and found.model.num_layers == 6
    assert found.digest == checkpoints.digest_of(checkpoints.build("esm2-8m", seed=2))


def test_ngram_logits_are_its_probabilities() -> None:
    """Column by column against the counts' own cross-entropy, with each residue put in the place."""
    training = [np.frombuffer(residues.encode(), np.uint8) for _, residues in made_up(40)]
    counts = NGram.fit(training, NGramConfig(left=2, right=1, alpha=0.5))
    protein = "MKTAYIAKQ"
    batch = PackedBatch.pack([COUNTED.encode(protein)])
    logits = NGramModel(counts)(batch, Want(logits=True)).logits_TV
    assert logits is not None
    np.testing.assert_allclose(logits.exp().sum(1), 1, rtol=1e-5)
    compared = 0
    for place in range(len(protein)):
        for letter in LETTERS:
            changed = np.frombuffer((protein[:place] + letter + protein[place + 1 :]).encode(), np.uint8)
            sums, _ = counts.cross_entropy([changed], [np.array([place])])
            assert float(logits[place, COUNTED.residue_ids(letter)[0]]) == pytest.approx(-sums[0], rel=1e-5)
            compared += 1
    assert compared == 25 * len(protein)


def test_a_file_of_counts_is_a_model(tmp_path: Path) -> None:
    counts = NGram.fit([np.frombuffer(b"MKTAYIAKQR", np.uint8)], NGramConfig(left=1))
    save_ngram(counts, tmp_path / "counts.safetensors")
    found = checkpoints.load(tmp_path / "counts.safetensors")
    assert isinstance(found.model, NGramModel) and found.name == "counts" and len(found.digest) == 64
    with pytest.raises(InputError, match="no hidden states"):
        list(forward_all(Runner(found.model, RunOptions(device="cpu")), [Query(0, "MKT")], Want(layers=(0,))))
