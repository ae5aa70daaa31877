"""Causal and permutation language modelling: what is predicted from what, nothing leaks, a toy language is learnt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from corpus_tools import built
from tiny_models import tiny
from toy_language import LETTERS, STEP, posterior, sample
from training_tools import small_recipe, train

from proteinlm.checkpoints import load
from proteinlm.corpora.build import BuildOptions
from proteinlm.corpora.sampling import key_of
from proteinlm.errors import InputError
from proteinlm.models.base import Want
from proteinlm.models.transformer_xl import TransformerXl
from proteinlm.models.unirep import UniRep
from proteinlm.models.xlnet import Xlnet
from proteinlm.objectives.autoregressive import AutoregressiveModel, NextToken
from proteinlm.objectives.permutation import PermutationModel, Permuted, Permuting
from proteinlm.sequences.alphabet import PROTTXL, PROTXLNET, STANDARD, Alphabet
from proteinlm.sequences.batch import PackedBatch
from proteinlm.training.loop import MODEL

LENGTH = 30


def proteins(*lengths: int, seed: int = 3) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(STANDARD), length)) for length in lengths]


def packed(alphabet: Alphabet, sequences: list[str]) -> PackedBatch:
    around = (len(alphabet.prefix), len(alphabet.suffix))
    return PackedBatch.pack([alphabet.encode(one) for one in sequences], None, *around)


def keys(count: int) -> np.ndarray:
    return np.array([key_of(7, number) for number in range(count)])


@pytest.mark.parametrize("name", ["transformer-xl", "transformer-xl-bare", "unirep"])
def test_the_next_token_is_predicted_everywhere(name: str) -> None:
    model = tiny(name)
    assert isinstance(model, TransformerXl | UniRep) and model.logits_ahead
    batch = packed(model.alphabet, proteins(12, 3, 20))
    objective = AutoregressiveModel(model.alphabet, NextToken())
    example = objective.prepare(batch, keys(3))
    with torch.no_grad():
        logits = model(batch, Want(logits=True)).logits_TV.log_softmax(-1)
        loss, scores = objective.loss(model, example), objective.score(model, example)["perplexity"]
    sums, expected, count = [0.0] * 3, 0.0, 0
    for b in range(3):
        tokens, residues = batch.tokens(b), batch.residues(b)
        for place in range(tokens.start, tokens.stop - 1):
            one = -logits[place, batch.tokens_T[place + 1]].item()
            expected, count = expected + one, count + 1
            sums[b] += one if residues.start <= place + 1 < residues.stop else 0.0
    assert loss.count == count == len(batch.tokens_T) - 3
    assert loss.sum.item() == pytest.approx(expected, rel=1e-5)
    for b in range(3):
        assert scores.losses_M[scores.rows_M == b].sum().item() == pytest.approx(sums[b], rel=1e-5)
    # Every residue that has a token in front of it.
    assert len(scores.rows_M) == 12 + 3 + 20 - (0 if model.alphabet.prefix else 3)


@pytest.mark.parametrize("name", ["transformer-xl", "transformer-xl-bare", "unirep"])
def test_the_end_of_a_stretch_is_no_end_of_a_protein(name: str) -> None:
    """A model that learnt it would expect every protein to end there."""
    alphabet = tiny(name).alphabet
    around = (len(alphabet.prefix), len(alphabet.suffix))
    encoded = [alphabet.encode(one) for one in proteins(12, 5)]
    objective = AutoregressiveModel(alphabet, NextToken())
    whole = objective.prepare(PackedBatch.pack(encoded, None, *around), keys(2))
    cut = objective.prepare(PackedBatch.pack(encoded, None, *around, cut=[0]), keys(2))
    assert cut.batch.to(torch.device("cpu")).cut == {0}
    kept = [place for place in whole.places_M.tolist() if not (alphabet.suffix and place == around[0] + 12 - 1)]
    assert cut.places_M.tolist() == kept and len(kept) == len(whole.places_M) - len(alphabet.suffix)


def test_a_long_protein_is_one_example_with_memory_carried() -> None:
    """Segments are run one after the other: the loss is that of segments run by hand with the memory handed over."""
    model = tiny("transformer-xl")
    assert isinstance(model, TransformerXl)
    batch = packed(PROTTXL, proteins(29))
    objective = AutoregressiveModel(PROTTXL, NextToken())
    with torch.no_grad():
        whole = objective.loss(model, objective.prepare(batch, keys(1)))
        memories, by_hand = [None] * model.num_layers, 0.0
        for position, (token, target) in enumerate(zip(batch.tokens_T[:-1], batch.tokens_T[1:], strict=True)):
            logits, memories = model.step(token[None], memories, position)
            by_hand += F.cross_entropy(logits, target[None]).item()
        model.config = replace(model.config, segment=64)
        unbroken = objective.loss(model, objective.prepare(batch, keys(1)))
    assert whole.count == 30 and whole.sum.item() == pytest.approx(by_hand, rel=1e-5)
    assert abs(whole.sum.item() - unbroken.sum.item()) > 1e-3


@pytest.mark.parametrize("name", ["transformer-xl", "unirep"])
def test_a_later_token_changes_no_earlier_loss(name: str) -> None:
    model = tiny(name)
    objective = AutoregressiveModel(model.alphabet, NextToken())
    (residues,) = proteins(25)
    compared = 0

    def losses(protein: str) -> torch.Tensor:
        example = objective.prepare(packed(model.alphabet, [protein]), keys(1))
        with torch.no_grad():
            return objective.score(model, example)["perplexity"].losses_M

    before = losses(residues)
    for place in range(25):
        after = losses(residues[:place] + "AC"[residues[place] == "A"] + residues[place + 1 :])
        assert torch.equal(before[:place], after[:place])
        assert not torch.allclose(before[place:], after[place:], rtol=1e-4)
        compared += place
    assert compared == 300


def permuted(sequences: list[str], predicted: float = 0.5, count: int = 1) -> Permuted:
    objective = PermutationModel(PROTXLNET, Permuting(predicted))
    return objective.prepare(packed(PROTXLNET, sequences), keys(len(sequences))[-count:])


def test_orders_are_a_function_of_the_key() -> None:
    """Alone or in a batch; what is chosen is the share that was asked for, and all orders are equally likely."""
    sequences = proteins(12, 30, 7)
    objective = PermutationModel(PROTXLNET, Permuting(0.5))
    together = objective.prepare(packed(PROTXLNET, sequences), keys(3))
    for b, residues in enumerate(sequences):
        alone = objective.prepare(packed(PROTXLNET, [residues]), keys(3)[b : b + 1])
        rank = together.rank_T[together.batch.tokens(b)]
        assert torch.equal(rank >= 0, alone.rank_T >= 0) and len(alone.places_M)
        assert torch.equal(rank[rank >= 0].argsort(), alone.rank_T[rank >= 0].argsort())
        assert (alone.rank_T[-2:] == -1).all(), "<sep> and <cls> are seen by all"
    many = PermutationModel(PROTXLNET, Permuting(1 / 6)).prepare(packed(PROTXLNET, ["A" * 40] * 500), keys(500))
    assert len(many.places_M) / 20_000 == pytest.approx(1 / 6, abs=4 * (5 / 36 / 20_000) ** 0.5)
    pairs = PermutationModel(PROTXLNET, Permuting(1.0)).prepare(packed(PROTXLNET, ["AC"] * 2000), keys(2000))
    first_wins = (pairs.rank_T.view(2000, 4)[:, 0] < pairs.rank_T.view(2000, 4)[:, 1]).float().mean().item()
    assert first_wins == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)
    with pytest.raises(InputError, match=r"predicted=1\.5"):
        Permuting(1.5)


def test_what_comes_later_in_the_order_changes_no_earlier_loss() -> None:
    model = tiny("xlnet")
    assert isinstance(model, Xlnet)
    objective = PermutationModel(PROTXLNET, Permuting(0.5))
    (residues,) = proteins(24)
    example = objective.prepare(packed(PROTXLNET, [residues]), keys(1))
    with torch.no_grad():
        before = objective.cross_entropy(model, example)
    compared = 0
    for which, place in enumerate(example.places_M.tolist()):
        other = packed(PROTXLNET, [residues[:place] + "AC"[residues[place] == "A"] + residues[place + 1 :]])
        with torch.no_grad():
            after = objective.cross_entropy(model, replace(example, batch=other))
        rank_M = example.rank_T[example.places_M]
        earlier, later = rank_M < rank_M[which], rank_M > rank_M[which]
        assert torch.equal(before[earlier], after[earlier])
        if later.any():
            assert not torch.allclose(before[later], after[later], rtol=1e-5)
        compared += int(earlier.sum())
    assert compared >= 30
    # A residue that is not predicted is seen by every one that is.
    place = int((example.rank_T[:24] < 0).nonzero()[0])
    other = packed(PROTXLNET, [residues[:place] + "AC"[residues[place] == "A"] + residues[place + 1 :]])
    with torch.no_grad():
        assert ((objective.cross_entropy(model, replace(example, batch=other)) - before).abs() > 1e-6).all()


def test_a_residue_does_not_see_itself() -> None:
    """Whatever stands at a place, its prediction is the same: the logits, not the loss."""
    model = tiny("xlnet")
    assert isinstance(model, Xlnet)
    example = permuted(proteins(15), predicted=1.0)
    with torch.no_grad():
        before = model.two_stream(example.batch, example.rank_T, example.places_M).logits_MV
        for place in range(15):
            example.batch.tokens_T[place] = (example.batch.tokens_T[place] - 16) % 20 + 17
            after = model.two_stream(example.batch, example.rank_T, example.places_M).logits_MV
            assert torch.equal(before[place], after[place])
            before = after
    assert before.shape == (15, 37)


TXL: dict[str, Any] = {
    "architecture": "transformer-xl", "num_layers": 2, "width": 64, "num_heads": 4, "head_width": 16, "inner": 128,
    "segment": 16, "memory": 16,
}  # fmt: skip
XLNET: dict[str, Any] = {
    "architecture": "xlnet", "num_layers": 2, "width": 64, "num_heads": 4, "inner": 128, "text_segments": True
}  # fmt: skip


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four thousand sequences to train on."""
    folder = tmp_path_factory.mktemp("language")
    random = np.random.default_rng(0)
    built(folder / "store", BuildOptions(), *((f"s{number}", sample(LENGTH, random)) for number in range(4000)))
    (folder / "held_out.fasta").write_text(f">a\n{sample(LENGTH, random)}\n")
    return folder


def least_causal(residues: str) -> list[float]:
    """Cross-entropy of each letter given those before it, of one who knows the language."""
    state, found = np.zeros(STEP.shape[1]), []
    state[0] = 1.0
    for letter in residues:
        state = state @ STEP[STANDARD.index(letter)]
        found.append(-np.log(state.sum()))
        state = state / state.sum()
    return found


def least_permuted(residues: str, rank: np.ndarray) -> list[float]:
    """Cross-entropy of each predicted letter, given all that comes before it in the order."""
    ids = np.array([STANDARD.index(letter) for letter in residues])
    found = []
    for place in np.flatnonzero(rank >= 0):
        evidence = np.where((rank < rank[place])[:, None], np.eye(LETTERS)[ids], 1.0)
        found.append(-np.log(posterior(evidence)[place][ids[place]]))
    return found


def test_the_least_possible_by_hand() -> None:
    """A new word begins with A, F or K at .5, .3, .2; A is followed by C at .7, and that by E."""
    assert least_causal("ACEF") == pytest.approx(-np.log([0.5, 0.7, 1.0, 0.3]))
    assert least_permuted("AC", np.array([1, 0])) == pytest.approx([0.0, -np.log(0.35)], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), [("autoregressive", TXL), ("permutation", XLNET)])
def test_the_language_is_learnt(language: Path, tmp_path: Path, name: str, model: dict[str, Any]) -> None:
    """Within 0.03 nats of what can be known; letter frequencies alone miss it by more than a nat."""
    steps = 500
    # Two residues in five are predicted rather than one in six: it takes fewer steps to see as many.
    share = [("objective.predicted", 0.4)] if name == "permutation" else []
    recipe = small_recipe(
        language, ("data.sampling", "all"), ("data.crop", LENGTH), ("batch.tokens", 2048),
        ("batch.tokens_per_part", 2048), ("optimiser.name", "adamw"), ("optimiser.learning_rate", 5e-3),
        ("schedule.warmup", 50), ("run.steps", steps), ("run.log_every", 50), ("run.validate_every", steps),
        ("run.checkpoint_every", steps), ("objective.name", name), *share, model=model,
    )  # fmt: skip
    train(recipe, tmp_path / "run")
    learnt = load(str(tmp_path / "run" / MODEL)).model
    random = np.random.default_rng(1)
    sequences = [sample(LENGTH, random) for _ in range(400)]
    objective = recipe.objective_of(learnt.alphabet)
    example = objective.prepare(packed(learnt.alphabet, sequences), keys(400))
    with torch.no_grad():
        ours = objective.score(learnt, example)["perplexity"].losses_M.mean().item()
    if name == "autoregressive":
        least = np.mean([one for residues in sequences for one in least_causal(residues)])
    else:
        ranks = example.rank_T.view(400, LENGTH + 2)[:, :LENGTH].numpy()
        least = np.mean([one for pair in zip(sequences, ranks, strict=True) for one in least_permuted(*pair)])
    print(f"{name}: {ours:.4f} nats, least possible {least:.4f}")
    assert ours < least + 0.03
