"""ELECTRA's objective: what is hidden, what the discriminator sees, what both lose, and what they share."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny

from proteinlm.corpora.sampling import key_of
from proteinlm.errors import InputError
from proteinlm.models.base import Want
from proteinlm.models.electra import ElectraPair, ElectraPairConfig
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.objectives.replaced import Replaced, ReplacedTokens, Replacing
from proteinlm.sequences.alphabet import PROTBERT, STANDARD
from proteinlm.sequences.batch import PackedBatch


def proteins(count: int, length: int = 24, seed: int = 3) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(STANDARD), size=length)) for _ in range(count)]


def prepared(objective: ReplacedTokens, sequences: list[str], rows: list[int] | None = None) -> Replaced:
    rows = rows if rows is not None else list(range(len(sequences)))
    encoded = [PROTBERT.encode(sequences[row]) for row in rows]
    return objective.prepare(
        PackedBatch.pack(encoded, rows, prefix=1, suffix=1), np.array([key_of(5, row) for row in rows])
    )


def pair() -> ElectraPair:
    model = tiny("electra")
    assert isinstance(model, ElectraPair)
    return model


def test_targets_are_where_they_should_be() -> None:
    example = prepared(ReplacedTokens(PROTBERT, Replacing()), proteins(400))
    hidden, true = example.hidden, example.tokens_T
    places = hidden.places_M
    assert torch.equal(hidden.targets_M, true[places]) and set(places.tolist()) <= set(example.residues_R.tolist())
    assert len(example.residues_R) == 400 * 24 and not true[example.residues_R].lt(5).any(), "no [CLS], no [SEP]"
    untouched = torch.ones(len(true), dtype=torch.bool)
    untouched[places] = False
    assert torch.equal(hidden.batch.tokens_T[untouched], true[untouched])
    # 9,600 residues: four standard deviations of a quarter are 0.018, of 85 % of 2,400 0.029.
    assert len(places) / 9600 == pytest.approx(0.25, abs=0.018)
    is_mask = hidden.batch.tokens_T[places] == PROTBERT.mask
    assert is_mask.float().mean().item() == pytest.approx(0.85, abs=0.03)
    assert torch.equal(hidden.batch.tokens_T[places][~is_mask], hidden.targets_M[~is_mask]), "the others stay"


def test_draws_belong_to_the_protein_and_not_to_the_batch() -> None:
    objective, sequences = ReplacedTokens(PROTBERT, Replacing()), proteins(6)
    together, compared = prepared(objective, sequences, [4, 1, 5, 0, 2, 3]), 0
    for b, row in enumerate(together.hidden.batch.row_B):
        alone = prepared(objective, sequences, [row])
        mine = together.hidden.rows_M() == b
        assert torch.equal(together.draws_M[mine], alone.draws_M)
        at = together.hidden.batch.tokens(b)
        assert torch.equal(together.hidden.batch.tokens_T[at], alone.hidden.batch.tokens_T)
        compared += len(alone.draws_M)
    assert compared > 20
    with torch.no_grad():
        whole = objective.loss(pair(), together)
        parts = [objective.loss(pair(), prepared(objective, sequences, [row])) for row in range(6)]
    assert whole.count == sum(part.count for part in parts) == 6 * 24
    assert whole.sum.item() == pytest.approx(sum(part.sum.item() for part in parts), rel=1e-5)
    for name, (total, count) in whole.parts.items():
        assert count == sum(part.parts[name][1] for part in parts)
        assert total.item() == pytest.approx(sum(part.parts[name][0].item() for part in parts), rel=1e-5)


def test_guesses_follow_the_generator() -> None:
    """Ten thousand guesses at one distribution: their frequencies are its probabilities, hot or cold."""
    logits_V = torch.linspace(-2, 2, len(PROTBERT))
    for temperature in (1.0, 0.5):
        objective = ReplacedTokens(PROTBERT, Replacing(chosen=1.0, temperature=temperature))
        example = prepared(objective, proteins(420))
        count = len(example.draws_M)
        seen = objective.filled_in(example, logits_V.expand(count, -1))
        found = torch.bincount(seen.tokens_T[example.residues_R], minlength=len(PROTBERT)) / count
        wanted = torch.softmax(logits_V / temperature, 0)
        assert count == 420 * 24
        assert ((found - wanted).abs() <= 4 * (wanted * (1 - wanted) / count).sqrt()).all()


def test_the_discriminator_sees_guesses_and_no_masks() -> None:
    objective, model = ReplacedTokens(PROTBERT, Replacing()), pair()
    example = prepared(objective, proteins(200))
    with torch.no_grad():
        halves = objective.halves(model, example)
        logits = model(example.hidden.batch, Want(logits=True, places_M=example.hidden.places_M)).logits_TV
    assert torch.equal(halves.seen.tokens_T, objective.filled_in(example, logits).tokens_T)
    differs = halves.seen.tokens_T != example.tokens_T
    assert not differs[torch.isin(torch.arange(len(differs)), example.hidden.places_M, invert=True)].any()
    assert torch.equal(halves.replaced_R, differs[example.residues_R])
    # A guess is wrong with probability 1 - p(true); the number of wrong ones is within four standard deviations.
    right_M = torch.softmax(logits, -1)[torch.arange(len(logits)), example.hidden.targets_M].double()
    deviation = (right_M * (1 - right_M)).sum().sqrt()
    assert abs(halves.replaced_R.sum() - (1 - right_M).sum()) < 4 * deviation
    assert 0 < halves.replaced_R.sum() < len(right_M), "right guesses count as original"


def test_the_loss_by_hand() -> None:
    config = Replacing(chosen=0.25, weight=50.0)
    objective, model = ReplacedTokens(PROTBERT, config), pair()
    example = prepared(objective, proteins(8))
    loss = objective.loss(model, example)
    generator, discriminator = model.split()
    with torch.no_grad():
        logits = generator(example.hidden.batch, Want(logits=True)).logits_TV[example.hidden.places_M]
        seen = objective.filled_in(example, logits)
        odds = discriminator(seen, Want(replaced=True)).replaced_T[example.residues_R]
    said = -torch.log_softmax(logits, -1)[torch.arange(len(logits)), example.hidden.targets_M]
    replaced = (seen.tokens_T != example.tokens_T)[example.residues_R]
    told = -torch.where(replaced, F.logsigmoid(odds), F.logsigmoid(-odds))
    assert loss.count == len(odds) == 8 * 24
    assert loss.parts["generator"][0].item() == pytest.approx(said.sum().item(), rel=1e-5)
    assert loss.parts["discriminator"][0].item() == pytest.approx(told.sum().item(), rel=1e-5)
    assert (loss.parts["generator"][1], loss.parts["discriminator"][1]) == (len(logits), len(odds))
    assert loss.sum.item() == pytest.approx((said.sum() / 0.25 + 50 * told.sum()).item(), rel=1e-5)


def test_halves_learn_from_their_own_loss_and_share_the_embedding() -> None:
    objective, model = ReplacedTokens(PROTBERT, Replacing()), pair()
    example = prepared(objective, proteins(4))
    reached = []
    for half in ("generator_M", "discriminator_R"):
        model.zero_grad()
        getattr(objective.halves(model, example), half).sum().backward()
        reached.append({name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})
    of_generator, of_discriminator = reached
    assert {name.split(".")[0] for name in of_generator} == {"embedding", "generator", "masked_head"}
    assert {name.split(".")[0] for name in of_discriminator} == {"embedding", "discriminator", "replaced_head"}
    shared = of_generator & of_discriminator
    assert (
        shared == {name for name, _ in model.named_parameters() if name.startswith("embedding.")} and len(shared) == 5
    )
    assert of_generator | of_discriminator == {name for name, _ in model.named_parameters()}
    assert not any(name.startswith("embedding") for name, _ in model.generator.named_parameters())


def test_layers_computed_again_give_the_same_gradients() -> None:
    objective = ReplacedTokens(PROTBERT, Replacing())
    example = prepared(objective, proteins(4))
    found = []
    for recompute in (False, True):
        model = pair()
        model.recompute_layers = recompute
        objective.loss(model, example).sum.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*gradients) for gradients in zip(*found, strict=True)) and len(found[0]) > 40


def test_scores_of_held_out_proteins() -> None:
    objective, model = ReplacedTokens(PROTBERT, Replacing()), pair()
    example = prepared(objective, proteins(5))
    with torch.no_grad():
        scores = objective.score(model, example)
    assert tuple(scores) == objective.scores
    generator, discriminator = scores.values()
    hidden = example.hidden.batch.tokens_T.eq(PROTBERT.mask).sum().item()
    assert len(generator.losses_M) == len(generator.rows_M) == hidden
    assert torch.bincount(discriminator.rows_M).tolist() == [24] * 5


def test_a_pair_learns() -> None:
    """Proteins of one repeated word: the generator finds the word, and the discriminator what breaks it."""
    torch.manual_seed(0)
    sequences = ["ACDEFGH" * 4 if row % 2 else "KLMNPQR" * 4 for row in range(16)]
    objective = ReplacedTokens(PROTBERT, Replacing())
    model = ElectraPair(ElectraPairConfig(2, 32, 4, 64, 2, 16, 2, 32, max_positions=40))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for step in range(200):
        keys = np.array([key_of(step, row) for row in range(16)])
        batch = PackedBatch.pack([PROTBERT.encode(sequence) for sequence in sequences], prefix=1, suffix=1)
        loss = objective.loss(model, objective.prepare(batch, keys))
        optimiser.zero_grad()
        (loss.sum / loss.count).backward()
        optimiser.step()
        last = {name: (total / count).item() for name, (total, count) in loss.parts.items()}
        first = first or last
    # Who knows the words and not where in them a place is loses ln 7 = 1.95; who says "original" always, about 0.4.
    assert first["generator"] > 3.0 and last["generator"] < 0.7
    assert last["discriminator"] < 0.1 < first["discriminator"]


def test_what_cannot_be_is_refused() -> None:
    for wrong, message in (({"chosen": 0.0}, "chosen"), ({"weight": 0.0}, "weight"), ({"temperature": -1.0}, "temper")):
        with pytest.raises(InputError, match=message):
            Replacing(**wrong)
    example = prepared(ReplacedTokens(PROTBERT, Replacing()), proteins(1))
    with pytest.raises(InputError, match="logits were asked for"):
        ReplacedTokens(PROTBERT, Replacing()).loss(tiny("electra-discriminator"), example)
    with pytest.raises(InputError, match="replaced tokens were asked for"):
        ReplacedTokens(PROTBERT, Replacing()).loss(tiny("bert"), example)


def test_bert_swaps_for_a_different_residue() -> None:
    """ProtBert's random residue is never the one that stood there; X, which is none of the twenty, takes any."""
    sequences = [*proteins(200), "X" * 24]
    encoded = [PROTBERT.encode(sequence) for sequence in sequences]
    batch = PackedBatch.pack(encoded, prefix=1, suffix=1)
    keys = np.array([key_of(1, row) for row in range(len(sequences))])
    counts = {}
    for different in (False, True):
        masking = Masking(chosen=1.0, masked=0.0, random=1.0, different=different)
        example = MaskedLanguageModel(PROTBERT, masking).prepare(batch, keys)
        swapped = example.batch.tokens_T[example.places_M]
        assert torch.isin(swapped, torch.from_numpy(PROTBERT.residue_ids(STANDARD))).all() and len(swapped) == 201 * 24
        counts[different] = (swapped == example.targets_M).sum().item()
        spread = torch.bincount(swapped, minlength=30)[PROTBERT.residue_ids(STANDARD)] / len(swapped)
        assert ((spread - 0.05).abs() < 4 * (0.05 * 0.95 / len(swapped)) ** 0.5).all()
    assert counts[True] == 0 and counts[False] == pytest.approx(200 * 24 / 20, abs=4 * (240 * 0.95) ** 0.5)
