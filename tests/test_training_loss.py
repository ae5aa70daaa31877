"""The loss of a step: which residues carry it, how they are hidden, and that parts and processes change nothing."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from training_tools import ESM2, small_corpus, small_recipe, trainer

from proteinlm.corpora.sampling import follow, key_of
from proteinlm.errors import InputError
from proteinlm.models.base import Want
from proteinlm.models.esm import Esm2, Esm2Config
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.sequences.alphabet import ESM1, ESM1B, STANDARD, UNIREP, Alphabet
from proteinlm.sequences.batch import PackedBatch
from proteinlm.training.loop import Trainer

MODELS = {
    "esm1": {"architecture": "esm1", "num_layers": 2, "width": 16, "num_heads": 2, "inner": 32},
    "esm1b": {"architecture": "esm1b", "num_layers": 2, "width": 16, "num_heads": 2, "inner": 32, "max_positions": 64},
    "esm2": ESM2,
    "lstm": {"architecture": "lstm", "num_layers": 2, "width": 8},
}


def within(share: float, of: int, expected: float) -> bool:
    """Whether a share of so many draws lies within five standard deviations of what it should be."""
    return abs(share / of - expected) < 5 * (expected * (1 - expected) / of) ** 0.5


def batch_and_keys(alphabet: Alphabet, residues: int = 300_000) -> tuple[PackedBatch, np.ndarray]:
    """Sequences of 1 to 400 residues, all twenty equally often, and a key for each."""
    random = np.random.default_rng(0)
    encoded = []
    while residues > 0:
        length = min(int(random.integers(1, 401)), residues)
        encoded.append(alphabet.encode("".join(random.choice(list(STANDARD), length))))
        residues -= length
    batch = PackedBatch.pack(encoded, None, len(alphabet.prefix), len(alphabet.suffix))
    return batch, follow(key_of(1), np.arange(len(encoded), dtype=np.uint64))


@pytest.mark.parametrize("alphabet", [ESM1, ESM1B], ids=lambda alphabet: alphabet.name)
def test_masks_obey_binomial_bounds(alphabet: Alphabet) -> None:
    """15 % of the residues are chosen; of these 80 % hidden, 10 % swapped, 10 % kept; BOS and EOS are never touched."""
    batch, keys = batch_and_keys(alphabet)
    example = MaskedLanguageModel(alphabet, Masking()).prepare(batch, keys)
    is_residue = torch.zeros(len(batch.tokens_T), dtype=torch.bool)
    for b in range(len(batch)):
        is_residue[batch.residues(b)] = True
    chosen, total = len(example.places_M), 300_000
    assert int(is_residue.sum()) == total
    assert is_residue[example.places_M].all()
    assert torch.equal(example.places_M, example.places_M.unique(sorted=True))
    assert within(chosen, total, 0.15)
    assert torch.equal(example.targets_M, batch.tokens_T[example.places_M])
    untouched = torch.ones(len(batch.tokens_T), dtype=torch.bool)
    untouched[example.places_M] = False
    assert torch.equal(example.batch.tokens_T[untouched], batch.tokens_T[untouched])

    seen = example.batch.tokens_T[example.places_M]
    hidden, kept = seen.eq(alphabet.mask), seen.eq(example.targets_M)
    assert within(int(hidden.sum()), chosen, 0.8)
    # One in twenty of those that are swapped is swapped with itself.
    assert within(int(kept.sum()), chosen, 0.1 + 0.1 / 20)
    swapped = Counter(seen[~hidden & ~kept].tolist())
    assert set(swapped) == set(alphabet.residue_ids(STANDARD).tolist())
    each = sum(swapped.values()) / 20
    assert sum((count - each) ** 2 / each for count in swapped.values()) < 19 + 5 * 38**0.5


def test_a_residue_is_chosen_whatever_its_place_and_its_neighbours() -> None:
    batch, keys = batch_and_keys(ESM1B)
    chosen = np.zeros(len(batch.tokens_T), bool)
    chosen[MaskedLanguageModel(ESM1B, Masking()).prepare(batch, keys).places_M.numpy()] = True
    first = chosen[np.array(batch.starts[:-1]) + 1]
    last = chosen[np.array(batch.starts[1:]) - 2]
    assert within(int(first.sum()), len(first), 0.15) and within(int(last.sum()), len(last), 0.15)
    long = [chosen[batch.residues(b)] for b in range(len(batch))]
    pairs = sum(int((one[1:] & one[:-1]).sum()) for one in long)
    assert within(pairs, sum(len(one) - 1 for one in long), 0.15**2)


def test_masks_depend_on_the_key_alone() -> None:
    """The same sequence with the same key is hidden alike in any batch; another key hides it otherwise."""
    objective = MaskedLanguageModel(ESM1B, Masking())
    protein, other = ESM1B.encode(STANDARD * 10), ESM1B.encode("MKT" * 30)
    keys = np.array([5, 6], np.uint64)
    alone = objective.prepare(PackedBatch.pack([protein], None, 1, 1), keys[:1])
    behind = objective.prepare(PackedBatch.pack([other, protein], None, 1, 1), keys[::-1])
    assert torch.equal(behind.batch.tokens_T[len(other) :], alone.batch.tokens_T)
    differently = objective.prepare(PackedBatch.pack([protein], None, 1, 1), keys[1:])
    assert not torch.equal(differently.places_M, alone.places_M)


def test_only_chosen_places_carry_loss() -> None:
    """The loss is the cross-entropy at the chosen places, and no other place's logits have a gradient."""
    batch, keys = batch_and_keys(ESM1B, residues=2000)
    objective = MaskedLanguageModel(ESM1B, Masking())
    example = objective.prepare(batch, keys)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = Esm2(Esm2Config(2, 16, 2, 32))
    whole = model(example.batch, Want(logits=True)).logits_TV
    assert whole is not None
    logits = whole.detach().double()
    by_hand = sum(
        float(torch.logsumexp(logits[place], 0) - logits[place, target])
        for place, target in zip(example.places_M.tolist(), example.targets_M.tolist(), strict=True)
    )
    loss = objective.loss(model, example)
    assert loss.count == len(example.places_M) > 200
    assert loss.sum.item() == pytest.approx(by_hand, rel=1e-6)


def test_masking_needs_a_mask_and_shares() -> None:
    with pytest.raises(InputError, match="alphabet UniRep has no mask token"):
        MaskedLanguageModel(UNIREP, Masking())
    for shares in ({"chosen": 0.0}, {"chosen": 1.1}, {"masked": -0.1}, {"masked": 0.95, "random": 0.1}):
        with pytest.raises(InputError, match="chosen must be above 0 and up to 1"):
            Masking(**shares)


def gradients(run: Trainer) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, weight.grad) for name, weight in run.model.named_parameters() if weight.grad is not None)


@pytest.mark.parametrize("name", MODELS)
def test_parts_and_processes_change_nothing(tmp_path: Path, name: str) -> None:
    """One batch in one part; in parts of any size; dealt to 2, 3 and 8 processes: one sum, one count, one gradient.

    Sums of some 60 terms in fp32, in another order: 1e-6 of the sum; gradients to 1e-5 of the largest in each tensor
    (of the whole gradient where a tensor's own is nothing but rounding, as that of the bias of all keys).
    """
    small_corpus(tmp_path)
    run = trainer(small_recipe(tmp_path, model=MODELS[name]), tmp_path / "run")
    crops, _ = run.stream.draw(0)

    def summed(world: int, most_tokens: int) -> tuple[float, int, int, dict[str, torch.Tensor]]:
        run.model.zero_grad()
        total, count, number = 0.0, 0, 0
        for rank in range(world):
            for part in run.stream.parts(crops, rank, world, most_tokens):
                loss = run.objective.loss(run.model, run.objective.prepare(part.batch, part.keys_B))
                loss.sum.backward()
                total, count, number = total + loss.sum.item(), count + loss.count, number + 1
        return total, count, number, {name: gradient.clone() for name, gradient in gradients(run)}

    total, count, number, expected = summed(1, 400)
    assert number == 1 and count > 40
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    seen = set()
    for world, most_tokens in [(1, 150), (1, 60), (1, 10), (2, 400), (2, 100), (3, 400), (8, 400)]:
        again, targets, parts, found = summed(world, most_tokens)
        seen.add(parts)
        assert targets == count
        assert again == pytest.approx(total, rel=1e-6)
        assert found.keys() == expected.keys()
        for tensor, gradient in found.items():
            bound = 1e-5 * max(expected[tensor].abs().max().item(), 1e-2 * scale)
            assert (gradient - expected[tensor]).abs().max().item() < bound, (tensor, world, most_tokens)
    assert len(seen) >= 4, "the batch was cut in many ways"


def test_a_step_uses_the_mean_over_all_its_targets(tmp_path: Path) -> None:
    """The gradient that the optimiser sees is that of summed loss over count, however the batch is cut."""
    small_corpus(tmp_path)
    run = trainer(small_recipe(tmp_path, ("optimiser.clip", 0.0), ("batch.tokens_per_part", 60)), tmp_path / "run")
    crops, position = run.stream.draw(0)
    (whole,) = run.stream.parts(crops, 0, 1, 400)
    loss = run.objective.loss(run.model, run.objective.prepare(whole.batch, whole.keys_B))
    (loss.sum / loss.count).backward()
    expected = {name: gradient.clone() for name, gradient in gradients(run)}
    run.model.zero_grad()
    found: dict[str, torch.Tensor] = {}
    run.optimisers[0].register_step_pre_hook(
        lambda *_: found.update({name: gradient.clone() for name, gradient in gradients(run)})
    )
    made = run.step()
    assert made.loss == pytest.approx((loss.sum / loss.count).item(), rel=1e-6)
    assert run.progress.position == position and run.progress.tokens == sum(crop.tokens for crop in crops)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-6), name
    assert made.norm == pytest.approx(sum(float(g.square().sum()) for g in expected.values()) ** 0.5, rel=1e-5)


def test_bf16_is_close_to_fp32(tmp_path: Path) -> None:
    """Products in bf16 (2^-9 relative) leave the loss of an untrained model within a percent; weights stay fp32."""
    small_corpus(tmp_path)
    runs = [
        trainer(small_recipe(tmp_path, ("run.precision", precision)), tmp_path / precision)
        for precision in ("fp32", "bf16")
    ]
    exact, rounded = (run.step().loss for run in runs)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert all(weight.dtype == torch.float32 for weight in runs[1].model.parameters())
    assert all(gradient.dtype == torch.float32 for _, gradient in gradients(runs[1]))
