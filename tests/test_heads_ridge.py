"""Ridge regression against scikit-learn's: coefficients, held-out errors, and what is chosen."""

import numpy as np
import pytest
from heads_tools import blocks_of, planted, shuffled

from proteinlm.errors import InputError
from proteinlm.heads import ridge
from proteinlm.heads.ridge import RidgeOptions
from proteinlm.heads.rows import Block, folds_of


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, two targets far from zero, and groups."""
    features, _ = planted(900, 10, 2, 1.0, seed)
    random = np.random.default_rng(seed + 1)
    standard = (features - features.mean(0)) / features.std(0)
    targets = standard @ random.standard_normal((10, 2)) + 50 + random.standard_normal((900, 2))
    return features, targets, np.arange(900) // 3


@pytest.mark.parametrize("strength", [0.1, 100.0])
def test_equals_scikit_learn(strength: float) -> None:
    judge = pytest.importorskip("sklearn.linear_model")
    features, targets, groups = problem()
    found = ridge.fit(blocks_of(features, targets, groups), RidgeOptions((strength,)))
    wide = features.astype(np.float64)
    standard = (wide - wide.mean(0)) / wide.std(0)
    model = judge.Ridge(alpha=strength).fit(standard, targets)
    # Products of fp32: 24 bits, of 900 rows.
    np.testing.assert_allclose(found.weight_DM, model.coef_.T, atol=1e-5)
    np.testing.assert_allclose(found.predict(features), model.predict(standard), atol=1e-4)
    assert found.predict(features).shape == (900, 2) and np.abs(model.coef_).max() > 0.5


def test_held_out_errors_against_a_plain_loop() -> None:
    features, targets, groups = problem(2)
    options = RidgeOptions((1000.0, 10.0), folds=4, seed=3)
    found = ridge.fit(blocks_of(features, targets, groups), options)
    fold = folds_of(groups, 4, np.random.default_rng(3))
    wide = (features - features.mean(0).astype(np.float64)) / features.std(0).astype(np.float64)
    for strength in options.strengths:
        total = 0.0
        for held_out in range(4):
            train, test = fold != held_out, fold == held_out
            x, y = wide[train] - wide[train].mean(0), targets[train] - targets[train].mean(0)
            w = np.linalg.solve(x.T @ x + strength * np.eye(10), x.T @ y)
            predicted = (wide[test] - wide[train].mean(0)) @ w + targets[train].mean(0)
            total += ((predicted - targets[test]) ** 2).sum()
        assert found.record["squared_error_held_out"][f"{strength:g}"] == pytest.approx(total / 900, rel=1e-5)
    assert found.record["strength"] == 10.0


def test_shuffled_targets_ask_for_the_strongest_penalty() -> None:
    features, targets, groups = problem(4)
    real = ridge.fit(blocks_of(features, targets, groups), RidgeOptions())
    control = ridge.fit(blocks_of(features, shuffled(targets), groups), RidgeOptions())
    explained = [
        1 - ((one.predict(features) - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
        for one, y in ((real, targets), (control, shuffled(targets)))
    ]
    assert explained[0] > 0.8 and explained[1] < 0.03
    assert control.record["strength"] > real.record["strength"]


def test_unknown_targets_are_left_out_and_classes_refused() -> None:
    features, targets, groups = problem(5)
    holes = np.where(np.arange(900) % 7 == 0, np.nan, targets[:, 0])
    known = ~np.isnan(holes)
    options = RidgeOptions((1.0,))
    with_holes = ridge.fit(blocks_of(features, holes, groups), options)
    without = ridge.fit(blocks_of(features[known], holes[known], groups[known]), options)
    assert with_holes.record["rows"] == known.sum()
    np.testing.assert_allclose(with_holes.weight_DM, without.weight_DM, atol=1e-6)
    with pytest.raises(InputError, match="regression needs floats"):
        ridge.fit([Block(features, np.zeros(900, int), groups)], options)
    with pytest.raises(InputError, match="fitted on 10 features"):
        without.predict(features[:, :4])
    for bad in ({"strengths": ()}, {"strengths": (0.0,)}, {"folds": 1}):
        with pytest.raises(InputError):
            RidgeOptions(**bad)
