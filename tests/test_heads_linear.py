"""The linear probe against scikit-learn's optimum, and as it meets masks, groups, rare classes and bad blocks."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from heads_tools import blocks_of, planted, shuffled

from proteinlm.errors import InputError
from proteinlm.heads import linear
from proteinlm.heads.linear import LinearProbe, ProbeOptions
from proteinlm.heads.rows import Block, folds_of, sample_of, survey


def optimum_of_scikit_learn(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (D, K) and intercepts (K,) of standardised features, in fp64, to a gradient of 1e-9."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    wide = features.astype(np.float64)
    standard = (wide - wide.mean(0)) / wide.std(0)
    model = linear_model.LogisticRegression(C=1 / strength, tol=1e-9, max_iter=10_000).fit(standard, labels)
    return model.coef_.T, model.intercept_ - model.intercept_.mean()


@pytest.mark.parametrize("strength", [1.0, 30.0])
@pytest.mark.parametrize("streamed", [False, True])
def test_equals_scikit_learn(strength: float, streamed: bool) -> None:
    """Coefficients of size 1 to 1e-4: the flattest direction has curvature 1/40 or so, times the gradient of 1e-6."""
    features, labels = planted(1500, 12, 4, 2.0)
    groups = np.arange(1500) // 10
    options = ProbeOptions(4, (strength,), selection_rows=400 if streamed else 10_000, tolerance=1e-6)
    probe = linear.fit(blocks_of(features, labels, groups), options)
    assert probe.record["converged"] and probe.record["rows_chosen_on"] == (400 if streamed else 1500)

    weight, intercept = optimum_of_scikit_learn(features, labels, strength)
    assert weight.shape == (12, 4) and np.abs(weight).max() > 0.3
    np.testing.assert_allclose(probe.weight_DK, weight, atol=1e-4)
    np.testing.assert_allclose(probe.bias_K, intercept, atol=1e-4)
    standard = (features.astype(np.float64) - features.mean(0)) / features.std(0)
    theirs = np.exp(standard @ weight + intercept)
    np.testing.assert_allclose(probe.predict_proba(features), theirs / theirs.sum(1, keepdims=True), atol=1e-4)


def test_half_precision_features_lose_nothing_more() -> None:
    features, labels = planted(1200, 10, 3, 2.0, seed=3)
    half, groups = features.astype(np.float16), np.arange(1200)
    options = ProbeOptions(3, (1.0,), tolerance=1e-6)
    from_half = linear.fit(blocks_of(half, labels, groups), options)
    from_full = linear.fit(blocks_of(half.astype(np.float32), labels, groups, rows=1200), options)
    # Only the order of summation differs.
    np.testing.assert_allclose(from_half.weight_DK, from_full.weight_DK, atol=2e-5)


def test_features_far_from_zero_are_centred_before_they_are_multiplied() -> None:
    """A mean of 1,000 standard deviations would cost three digits of the logits."""
    features, labels = planted(1000, 5, 2, 2.0, seed=4)
    groups, options = np.arange(1000), ProbeOptions(2, (1.0,), tolerance=1e-6)
    standard = (features - features.mean(0)) / features.std(0)
    near = linear.fit(blocks_of(standard, labels, groups), options)
    far = linear.fit(blocks_of((standard.astype(np.float64) + 1000).astype(np.float32), labels, groups), options)
    # fp32 itself rounds numbers near 1,000 by 3e-5.
    np.testing.assert_allclose(far.weight_DK, near.weight_DK, atol=2e-4)


def test_masked_rows_and_constant_features_change_nothing() -> None:
    features, labels = planted(900, 8, 3, 3.0, seed=5)
    groups, options = np.arange(900) // 5, ProbeOptions(3, (1.0, 10.0), tolerance=1e-6)
    plain = linear.fit(blocks_of(features, labels, groups), options)
    random = np.random.default_rng(6)
    at = np.sort(random.integers(0, 900, 200))
    noisy = np.insert(features, at, 1e4, axis=0)
    masked = np.insert(labels, at, -1)
    widened = np.column_stack([noisy, np.full(len(noisy), 7.0, np.float32)])
    probe = linear.fit(blocks_of(widened, masked, np.insert(groups, at, 10**6)), options)
    assert probe.record["rows"] == 900
    np.testing.assert_allclose(probe.weight_DK[:8], plain.weight_DK, atol=5e-5)
    assert np.abs(probe.weight_DK[8]).max() < 1e-6


def test_planted_signal_is_found_and_shuffled_labels_are_not() -> None:
    features, labels = planted(3000, 16, 8, 20.0, seed=7)
    groups = np.arange(3000) // 4
    train, test = slice(0, 2000), slice(2000, 3000)
    options = ProbeOptions(8, tolerance=1e-4)
    probe = linear.fit(blocks_of(features[train], labels[train], groups[train]), options)
    right = (probe.predict_proba(features[test]).argmax(1) == labels[test]).mean()
    assert right > 0.85, "the planted signal is near certain"

    dealt = shuffled(labels)
    control = linear.fit(blocks_of(features[train], dealt[train], groups[train]), options)
    chance = np.bincount(dealt[test]).max() / 1000
    by_chance = (control.predict_proba(features[test]).argmax(1) == dealt[test]).mean()
    # Four standard deviations of 1,000 draws.
    assert by_chance < chance + 4 * np.sqrt(chance * (1 - chance) / 1000)
    assert control.record["strength"] > probe.record["strength"]


def test_strength_is_chosen_on_whole_held_out_groups() -> None:
    """Every protein has a signature of its own that tells its class: useless for another one, ideal for itself.

    Held-out residues of the same protein would ask for the weakest penalty, held-out proteins for the strongest.
    """
    random = np.random.default_rng(8)
    protein = np.repeat(np.arange(60), 20)
    signature, label = random.standard_normal((60, 40)), random.integers(0, 2, 60)
    features = (signature[protein] + 0.1 * random.standard_normal((1200, 40))).astype(np.float32)
    strengths = (1e4, 1e2, 1.0)
    by_protein = linear.fit(blocks_of(features, label[protein], protein), ProbeOptions(2, strengths))
    by_residue = linear.fit(blocks_of(features, label[protein], np.arange(1200)), ProbeOptions(2, strengths))
    assert (by_protein.record["strength"], by_residue.record["strength"]) == (1e4, 1.0)
    scores = by_residue.record["cross_entropy_held_out"]
    assert list(scores) == ["10000", "100", "1"] and scores["1"] == min(scores.values())


def test_same_seed_same_bits() -> None:
    features, labels = planted(800, 6, 3, 2.0, seed=9)
    blocks = blocks_of(features, labels, np.arange(800) // 7)
    first, again = (linear.fit(blocks, ProbeOptions(3, selection_rows=300, seed=5)) for _ in range(2))
    assert first.weight_DK.tobytes() == again.weight_DK.tobytes() and first.record == again.record


def test_class_without_examples_gets_next_to_nothing() -> None:
    features, labels = planted(500, 5, 3, 2.0, seed=10)
    probe = linear.fit(blocks_of(features, labels, np.arange(500)), ProbeOptions(4, (1.0,)))
    assert probe.predict_proba(features)[:, 3].max() < 1e-3


def test_no_convergence_is_told() -> None:
    features, labels = planted(500, 5, 3, 2.0, seed=11)
    with pytest.warns(UserWarning, match="not at its optimum: after 2 passes"):
        probe = linear.fit(blocks_of(features, labels, np.arange(500)), ProbeOptions(3, (1.0,), most_passes=2))
    assert not probe.record["converged"]


def test_blocks_that_are_read_from_disk(tmp_path: Path) -> None:
    """A read-only memory map works, and is not copied as a whole."""
    features, labels = planted(700, 6, 2, 3.0, seed=12)
    path = tmp_path / "features.npy"
    np.save(path, features)
    mapped = np.load(path, mmap_mode="r")
    options = ProbeOptions(2, (1.0,))
    from_disk = linear.fit([Block(mapped, labels, np.arange(700))], options)
    from_memory = linear.fit([Block(features, labels, np.arange(700))], options)
    assert from_disk.weight_DK.tobytes() == from_memory.weight_DK.tobytes()


class Shrinking:
    """Blocks that hold fewer rows on every pass."""

    def __init__(self, block: Block) -> None:
        self.block, self.left = block, len(block.targets_N)

    def __iter__(self) -> Iterator[Block]:
        block, rows = self.block, self.left
        self.left -= 10
        yield Block(block.features_ND[:rows], block.targets_N[:rows], block.groups_N[:rows])


def test_bad_input_is_refused_in_one_line() -> None:
    features, labels = planted(100, 4, 2, 2.0)
    groups, options = np.arange(100), ProbeOptions(2, (1.0,))
    good = Block(features, labels, groups)
    broken = features.copy()
    broken[5, 2] = np.nan
    cases = [
        (iter([good]), options, "end.* after one pass"),
        (Shrinking(good), options, "other rows than the first"),
        ([Block(broken, labels, groups)], options, "feature 2 is not finite"),
        ([Block(features, labels + 1, groups)], options, "class 2 is outside 0..1"),
        ([Block(features, np.where(labels == 1, -2, 0), groups)], options, "class -2 is outside"),
        ([Block(features, labels / 1.0, groups)], options, "one integer per row"),
        ([Block(features, labels[:50], groups)], options, "one label and one group per row"),
        ([Block(features, np.full(100, -1), groups)], options, "no row has a label"),
        ([Block(features, labels, groups // 50)], ProbeOptions(2), "2 groups cannot be parted into 3 folds"),
    ]
    for blocks, asked, message in cases:
        with pytest.raises(InputError, match=message) as told:
            linear.fit(blocks, asked)
        assert "\n" not in str(told.value)
    probe = linear.fit([good], options)
    with pytest.raises(InputError, match="fitted on 4 features"):
        probe.predict_proba(features[:, :3])
    for bad in ({"classes": 1}, {"classes": 2, "strengths": (0.0,)}, {"classes": 2, "folds": 1}):
        with pytest.raises(InputError):
            ProbeOptions(**bad)


def test_moments_against_numpy() -> None:
    features, labels = planted(1000, 7, 2, 1.0, seed=13)
    found = survey(blocks_of(features, labels, np.arange(1000), rows=97))
    np.testing.assert_allclose(found.mean_D.numpy(), features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.scale_D.numpy(), features.astype(np.float64).std(0), rtol=1e-10)


def test_folds_and_samples_keep_groups_whole() -> None:
    random = np.random.default_rng(14)
    groups = random.integers(0, 50, 1000)
    fold = folds_of(groups, 4, random)
    assert all(len(set(fold[groups == group])) == 1 for group in range(50))
    assert np.bincount(fold).min() > 200
    taken = sample_of(groups, 300, random)
    assert all(len(set(taken[groups == group])) == 1 for group in range(50))
    assert 300 <= taken.sum() <= 300 + np.bincount(groups).max()


def test_no_rows_in_no_rows_out() -> None:
    probe = LinearProbe(np.zeros((3, 2), np.float32), np.zeros(2, np.float32), np.zeros(3, np.float32), np.ones(3, "f"))
    assert probe.predict_proba(np.zeros((0, 3), np.float32)).shape == (0, 2)


def test_the_benchmark_measures_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both contestants see the rows that are on disk and end at the same probabilities. No timing is asserted."""
    pytest.importorskip("sklearn")
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    spec = importlib.util.spec_from_file_location("benchmark_probe", folder / "probe.py")
    assert spec is not None and spec.loader is not None
    probe = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_probe", probe)
    spec.loader.exec_module(probe)
    monkeypatch.setattr(probe, "PER_BLOCK", 700)
    probe.write(tmp_path, 2000, 9)
    assert sum(len(block.targets_N) for block in probe.OnDisk(tmp_path, 2000, 9)) == 2000
    found, judge = probe.ours(tmp_path, 2000, 9, fixed=True), probe.theirs(tmp_path, 2000, 9)
    assert found["rows"] == 2000 and found["converged"] and judge["passes"] > 3
    mine, yours = np.load(tmp_path / "ours.npy"), np.load(tmp_path / "theirs.npy")
    assert mine.shape == yours.shape == (700, 8)
    np.testing.assert_allclose(mine, yours, atol=1e-4)
