"""Intervals against cases worked out by hand, against SciPy draw for draw, and against the coverage they promise."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from proteinlm import metrics
from proteinlm.errors import InputError
from proteinlm.metrics import (
    Bootstrap,
    area_under_roc,
    bootstrap_difference,
    bootstrap_interval,
    spearman,
    spearman_terms,
    sum_by_group,
)


def proteins(count: int, seed: int, hardness: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy sums and masked positions of proteins that differ in length and in how hard they are."""
    random = np.random.default_rng(seed)
    counts = random.integers(7, 150, size=count)
    return counts * (2.7 + hardness * random.standard_normal(count)), counts


def test_the_value_is_the_ratio_of_the_totals() -> None:
    sums, counts = np.array([6.0, 1.0, 5.0]), np.array([2, 1, 3])
    assert bootstrap_interval(sums, counts, np.random.default_rng(1)).value == 2.0
    exponential = bootstrap_interval(sums, counts, np.random.default_rng(1), Bootstrap(exponential=True))
    assert exponential.value == pytest.approx(math.exp(2.0), rel=1e-15)
    assert exponential.groups == 3


@pytest.mark.parametrize(
    "level, low, high",
    [(0.4, 5 / 4, 5 / 4), (0.6, 1.0, 2.0), (0.95, 1.0, 2.0)],
    ids=["inside the middle half", "beyond it", "usual"],
)
def test_two_groups_by_hand(level: float, low: float, high: float) -> None:
    """Two groups, 3/3 and 2/1: a resample is 1 with probability 1/4, 5/4 with 1/2, 2 with 1/4.

    So every quantile from 1/4 to 3/4 is 5/4. Of 4,000 draws, 30 % fall below the 1/4 only by a deviation of 7 sigma.
    """
    found = bootstrap_interval(
        np.array([3.0, 2.0]), np.array([3, 1]), np.random.default_rng(2), Bootstrap(resamples=4000, level=level)
    )
    assert (found.low, found.value, found.high) == (low, 5 / 4, high)
    raised = bootstrap_interval(
        np.array([3.0, 2.0]),
        np.array([3, 1]),
        np.random.default_rng(2),
        Bootstrap(resamples=4000, level=level, exponential=True),
    )
    assert (raised.low, raised.high) == (math.exp(low), math.exp(high))


def test_groups_that_are_all_alike_leave_no_doubt() -> None:
    found = bootstrap_interval(np.full(40, 6.0), np.full(40, 3), np.random.default_rng(0))
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("exponential", [False, True])
def test_equals_scipy_draw_for_draw(exponential: bool) -> None:
    """SciPy draws the same indices from the same generator, so only the order of summation may differ."""
    stats = pytest.importorskip("scipy.stats")
    sums, counts = proteins(60, seed=3)

    def figure(s: np.ndarray, c: np.ndarray, axis: int = -1) -> np.ndarray:
        ratio = s.sum(axis=axis) / c.sum(axis=axis)
        return np.exp(ratio) if exponential else ratio

    theirs = stats.bootstrap(
        (sums, counts),
        figure,
        paired=True,
        vectorized=True,
        n_resamples=3000,
        confidence_level=0.9,
        method="percentile",
        random_state=np.random.default_rng(4),
    ).confidence_interval
    ours = bootstrap_interval(
        sums, counts, np.random.default_rng(4), Bootstrap(resamples=3000, level=0.9, exponential=exponential)
    )
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], rtol=1e-12)


def test_a_difference_equals_scipy_draw_for_draw() -> None:
    stats = pytest.importorskip("scipy.stats")
    (sums, counts), noise = proteins(60, seed=3), np.random.default_rng(9).standard_normal(60)
    other = sums + counts * (0.05 + 0.02 * noise)

    def figure(s: np.ndarray, o: np.ndarray, c: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.exp(s.sum(axis=axis) / c.sum(axis=axis)) - np.exp(o.sum(axis=axis) / c.sum(axis=axis))

    theirs = stats.bootstrap(
        (sums, other, counts),
        figure,
        paired=True,
        vectorized=True,
        n_resamples=3000,
        method="percentile",
        random_state=np.random.default_rng(4),
    ).confidence_interval
    ours = bootstrap_difference(
        (sums, counts), (other, counts), np.random.default_rng(4), Bootstrap(resamples=3000, exponential=True)
    )
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], rtol=1e-12)
    assert ours.high < 0


def test_pairing_takes_out_what_is_hard_for_both() -> None:
    (sums, counts), noise = proteins(300, seed=5), np.random.default_rng(6).standard_normal(300)
    other = sums + counts * (0.03 + 0.05 * noise)
    options = Bootstrap(resamples=2000)
    first, second = (bootstrap_interval(s, counts, np.random.default_rng(7), options) for s in (sums, other))
    paired = bootstrap_difference((sums, counts), (other, counts), np.random.default_rng(7), options)
    assert paired.high < 0 < first.high - second.low, "the difference is clear only where it is paired"
    assert paired.value == pytest.approx(first.value - second.value, abs=1e-12)
    same = bootstrap_difference((sums, counts), (sums, counts), np.random.default_rng(7), options)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """90 % intervals of 400 experiments: 360 expected, 5 sigma of the binomial is 30; percentile intervals of 50 groups
    fall short by a point or two, which is inside it."""
    covered = 0
    for seed in range(400):
        sums, counts = proteins(50, seed=1000 + seed)
        found = bootstrap_interval(sums, counts, np.random.default_rng(seed), Bootstrap(resamples=300, level=0.9))
        covered += found.low <= 2.7 <= found.high
    assert 330 <= covered <= 390


def test_a_seed_fixes_the_interval_whatever_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, counts = proteins(31, seed=8)
    options = Bootstrap(resamples=501)
    whole = bootstrap_interval(sums, counts, np.random.default_rng(5), options)
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", 310)
    assert bootstrap_interval(sums, counts, np.random.default_rng(5), options) == whole
    assert bootstrap_interval(sums, counts, np.random.default_rng(6), options) != whole


def test_clusters_widen_the_interval() -> None:
    """Ten copies of each protein are no news: by cluster the interval is as wide as without the copies."""
    sums, counts = proteins(80, seed=10)
    copies, cluster = np.repeat(np.arange(80), 10), np.repeat([f"c{number}" for number in range(80)], 10)
    by_cluster = sum_by_group(sums[copies], cluster), sum_by_group(counts[copies], cluster)
    options = Bootstrap(resamples=3000)

    def width(s: np.ndarray, c: np.ndarray) -> float:
        found = bootstrap_interval(s, c, np.random.default_rng(11), options)
        return found.high - found.low

    assert width(*by_cluster) == pytest.approx(width(sums, counts), rel=0.1)
    assert width(sums[copies], counts[copies]) < 0.5 * width(sums, counts)


def test_sums_by_group() -> None:
    random = np.random.default_rng(12)
    values, group = random.standard_normal(500), random.integers(0, 40, size=500)
    expected = [sum(v for v, g in zip(values, group, strict=True) if g == number) for number in range(40)]
    np.testing.assert_allclose(sum_by_group(values, group), expected, atol=1e-12)
    with pytest.raises(InputError, match="one group per value"):
        sum_by_group(values, group[:-1])


@pytest.mark.parametrize(
    "sums, counts, message",
    [
        ([], [], "one of each per group"),
        ([1.0, 2.0], [1], "one of each per group"),
        ([[1.0]], [[1]], "one of each per group"),
        ([1.0, math.nan], [1, 1], "group 1 has sum nan"),
        ([1.0, 1.0], [1, -2], "group 1 has sum 1.0 over -2.0 terms"),
        ([1.0, 1.0], [1, 0], "group 1 has sum 1.0 over 0.0 terms"),
        ([0.0, 0.0, 1.0], [0, 0, 1], "a resample of the groups has no terms"),
    ],
)
def test_what_cannot_be_resampled_is_refused(sums: list[float], counts: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bootstrap_interval(np.array(sums), np.array(counts), np.random.default_rng(0))


def test_an_empty_group_adds_nothing() -> None:
    sums, counts = proteins(30, seed=13)
    with_empty = bootstrap_interval(np.append(sums, 0.0), np.append(counts, 0), np.random.default_rng(0))
    assert with_empty.value == pytest.approx(sums.sum() / counts.sum()) and with_empty.groups == 31


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="0 resamples"):
        Bootstrap(resamples=0)
    with pytest.raises(InputError, match=r"level 95"):
        Bootstrap(level=95)
    totals = np.array([1.0, 2.0]), np.array([1, 1])
    with pytest.raises(InputError, match="2 and 1 groups cannot be paired"):
        bootstrap_difference(totals, (totals[0][:1], totals[1][:1]), np.random.default_rng(0))


@pytest.mark.parametrize("levels", [4, 30, 10**9])
def test_spearman_against_scipy(levels: int) -> None:
    """Ties from many to none; the same ranks give the same correlation to rounding."""
    random = np.random.default_rng(levels)
    compared = 0
    for length in (2, 3, 10, 500):
        for _ in range(20):
            first, second = random.integers(0, levels, (2, length)).astype(float)
            second += random.choice([0, 1, -1]) * first
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # SciPy warns of constant input, for which both give NaN
                theirs = scipy.stats.spearmanr(first, second).statistic
            np.testing.assert_allclose(spearman(first, second), theirs, atol=1e-12)
            compared += np.isfinite(theirs)
    assert compared >= 60


@pytest.mark.parametrize("strength", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("ties", [False, True])
def test_spearman_terms_have_the_spread_of_ranking_anew(strength: float, ties: bool) -> None:
    """The interval of the mean of the terms is that of a bootstrap that ranks every resample."""
    random = np.random.default_rng(7)
    first = random.normal(size=400)
    second = strength * first + random.normal(size=400)
    if ties:
        first, second = np.round(first * 1.5), np.round(second)
    terms = spearman_terms(first, second)
    found = bootstrap_interval(terms, np.ones(400), np.random.default_rng(1), Bootstrap(resamples=2000))
    assert found.value == pytest.approx(scipy.stats.spearmanr(first, second).statistic, abs=1e-12)
    drawn = [spearman(first[draw], second[draw]) for draw in random.integers(0, 400, (2000, 400))]
    low, high = np.quantile(drawn, [0.025, 0.975])
    # 2,000 resamples place an end of the interval to about a twentieth of its width.
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low) + 0.002)


def test_spearman_refuses() -> None:
    for first, second, why in (
        ([1.0], [1.0], "two or more"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "shapes"),
        ([1.0, np.nan], [1.0, 2.0], "not finite"),
    ):
        with pytest.raises(InputError, match=why):
            spearman(np.array(first), np.array(second))
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))


def test_area_under_roc_equals_that_of_scikit_learn() -> None:
    """Scores of few values, so that many are equal."""
    random, compared = np.random.default_rng(0), 0
    for size in range(2, 60):
        positives, negatives = random.integers(0, 8, size=size), random.integers(0, 8, size=3 * size)
        labels = np.repeat([1, 0], [size, 3 * size])
        expected = roc_auc_score(labels, np.concatenate([positives, negatives]))
        assert area_under_roc(positives, negatives) == pytest.approx(expected, abs=1e-12)
        compared += 1
    assert compared == 58


@pytest.mark.parametrize(("positives", "negatives"), [(0, 3), (3, 0)])
def test_area_under_roc_needs_both(positives: int, negatives: int) -> None:
    with pytest.raises(InputError, match="one of each is needed"):
        area_under_roc(np.ones(positives), np.ones(negatives))
