"""Figures with their uncertainty: ratios of sums over proteins, rank correlations, and differences of two models.

In: for each protein (or cluster of proteins) a sum and how many terms it has, as a loss returns them. Out: the ratio of
the totals with a percentile bootstrap interval. Proteins are what is drawn again, never residues: residues of one
protein are not independent of each other. NumPy only; every draw comes from a generator that the caller passes in.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from proteinlm.errors import InputError

DRAWS_AT_ONCE = 2**22
"""Draws held in memory together: 32 MB of indices, whatever the number of groups and resamples."""

Totals = tuple[np.ndarray, np.ndarray]
"""Sums and counts of each group, both of shape (G,)."""


@dataclass(frozen=True)
class Interval:
    """A figure and the range that holds it at the stated level.

    Args:
        value: the figure over all groups. low, high: percentiles of the resampled figure.
        groups: how many proteins or clusters it rests on.

    >>> str(Interval(15.0123, 14.8, 15.25, groups=670))
    '15.01 (14.80 to 15.25)'
    """

    value: float
    low: float
    high: float
    groups: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Bootstrap:
    """How an interval is made.

    Args:
        resamples: how often the groups are drawn again. level: share of the resampled figures inside the interval.
        exponential: the figure is exp(total sum / total count) instead of the ratio itself. With cross-entropy in nats
            that is the exponentiated cross-entropy, ECE (papers.md 1): 1 is perfect, 25 is guessing among 25 letters.
    """

    resamples: int = 10_000
    level: float = 0.95
    exponential: bool = False

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise InputError(f"{self.resamples} resamples give no interval; use 1,000 or more")
        if not 0 < self.level < 1:
            raise InputError(f"level {self.level} is not a share between 0 and 1; 0.95 is usual")


def bootstrap_interval(
    sums_G: np.ndarray, counts_G: np.ndarray, random: np.random.Generator, options: Bootstrap | None = None
) -> Interval:
    """Total sum over total count, with a percentile interval over groups.

    Args:
        sums_G: sum of each group, e.g. of cross-entropies in nats, shape (G,).
        counts_G: terms of each sum, shape (G,); a group without any is drawn like the others and adds nothing.
        random: where the draws come from. options: resamples, level, and whether the figure is an exponential.

    Raises:
        InputError: no groups, unequal shapes, values that are not finite, negative counts, a sum without terms, or so
            few groups with terms that a resample has none.

    >>> sums, counts = np.array([4.0, 9.0, 11.0]), np.array([2, 3, 5])
    >>> bootstrap_interval(sums, counts, np.random.default_rng(0))
    Interval(value=2.4, low=2.0, high=3.0, groups=3)
    """
    options = options or Bootstrap()
    groups = _checked((sums_G, counts_G))
    drawn_R = np.concatenate(
        [_figure((groups[0][draw], groups[1][draw]), options) for draw in _draws(len(groups[0]), random, options)]
    )
    return _interval(_figure(groups, options), drawn_R, options, len(groups[0]))


def bootstrap_difference(
    first: Totals, second: Totals, random: np.random.Generator, options: Bootstrap | None = None
) -> Interval:
    """The figure of the first model minus that of the second, on the same groups.

    Each resample draws the same groups for both, so what makes a protein hard for either model cancels out; the
    interval is narrower than those of the two figures, and excludes 0 where the difference is real at that level.

    Args:
        first, second: sums and counts of each model; element g is the same protein or cluster in both.
        random: where the draws come from. options: see `Bootstrap`.

    Raises:
        InputError: as `bootstrap_interval`, or the models have different numbers of groups.

    >>> counts = np.array([2, 3, 5])
    >>> ours, theirs = (np.array([4.0, 9.0, 11.0]), counts), (np.array([5.0, 10.5, 13.5]), counts)
    >>> str(bootstrap_difference(ours, theirs, np.random.default_rng(0)))
    '-0.50 (-0.50 to -0.50)'
    """
    options = options or Bootstrap()
    first, second = _checked(first), _checked(second)
    if len(first[0]) != len(second[0]):
        raise InputError(
            f"{len(first[0])} and {len(second[0])} groups cannot be paired; score both models on the same proteins"
        )
    drawn_R = np.concatenate(
        [
            _figure((first[0][draw], first[1][draw]), options) - _figure((second[0][draw], second[1][draw]), options)
            for draw in _draws(len(first[0]), random, options)
        ]
    )
    return _interval(_figure(first, options) - _figure(second, options), drawn_R, options, len(first[0]))


def sum_by_group(values_P: np.ndarray, group_P: np.ndarray) -> np.ndarray:
    """Totals per group of per-protein values, so that whole clusters are drawn again instead of single proteins.

    Args:
        values_P: a number per protein, shape (P,). group_P: the group of each protein, numbers or names, shape (P,).

    Returns:
        shape (G,), in the sorted order of the groups.

    Raises:
        InputError: the shapes differ.

    >>> sum_by_group(np.array([1.0, 2.0, 4.0]), np.array(["b", "a", "b"])).tolist()
    [2.0, 5.0]
    """
    if values_P.shape != group_P.shape or values_P.ndim != 1:
        raise InputError(f"values of shape {values_P.shape} and groups of shape {group_P.shape}; one group per value")
    _, number_P = np.unique(group_P, return_inverse=True)
    return np.bincount(number_P, weights=values_P)


def area_under_roc(positives_P: np.ndarray, negatives_N: np.ndarray) -> float:
    """The chance that a positive scores higher than a negative, half where they score the same.

    Args:
        positives_P, negatives_N: scores of at least one item each.

    Raises:
        InputError: there are no positives or no negatives.

    >>> area_under_roc(np.array([0.9, 0.5]), np.array([0.5, 0.1]))
    0.875
    """
    if not len(positives_P) or not len(negatives_N):
        raise InputError(f"{len(positives_P)} positives and {len(negatives_N)} negatives; one of each is needed")
    ordered_N = np.sort(negatives_N)
    lower_P = np.searchsorted(ordered_N, positives_P, side="left")
    not_higher_P = np.searchsorted(ordered_N, positives_P, side="right")
    return float((lower_P + not_higher_P).mean()) / 2 / len(ordered_N)


def spearman(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Spearman's rank correlation; values that are equal share their mean rank. NaN where either is constant.

    Args:
        first_N, second_N: finite numbers, as many in both, shape (N,).

    Raises:
        InputError: fewer than two, unequal shapes, or values that are not finite.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 10.0, 90.0])).__round__(4)
    0.866
    """
    terms_N = spearman_terms(first_N, second_N)
    return float(terms_N.mean())


def spearman_terms(first_N: np.ndarray, second_N: np.ndarray) -> np.ndarray:
    """What each pair of values adds to Spearman's correlation: numbers whose mean is the correlation, shape (N,).

    A term is the correlation plus the pair's influence on it (the first-order change when the pair gains weight, the
    change of everybody's ranks included). So a bootstrap over the mean of the terms has, to first order in 1/N, the
    spread of a bootstrap that ranks anew each time, and terms of two models can be paired like any other sums.

    Args, raises: as `spearman`; NaN everywhere where either is constant.

    >>> spearman_terms(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, 4.0])).round(6).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    first_N, second_N = (np.asarray(values, dtype=np.float64) for values in (first_N, second_N))
    if first_N.ndim != 1 or first_N.shape != second_N.shape or len(first_N) < 2:
        raise InputError(f"values of shapes {first_N.shape} and {second_N.shape}; two or more pairs are ranked")
    if not (np.isfinite(first_N).all() and np.isfinite(second_N).all()):
        raise InputError("values that are not finite cannot be ranked; leave those pairs out")
    u_N, v_N = _centred_ranks(first_N), _centred_ranks(second_N)
    u_variance, v_variance, covariance = np.mean(u_N**2), np.mean(v_N**2), np.mean(u_N * v_N)
    if u_variance == 0 or v_variance == 0:
        return np.full(len(first_N), np.nan)
    scale = np.sqrt(u_variance * v_variance)
    of_covariance_N = u_N * v_N + _share_above(first_N, v_N) + _share_above(second_N, u_N) - 3 * covariance
    of_u_N = u_N**2 + 2 * _share_above(first_N, u_N) - 3 * u_variance
    of_v_N = v_N**2 + 2 * _share_above(second_N, v_N) - 3 * v_variance
    correlation = covariance / scale
    influence_N = of_covariance_N / scale - correlation / 2 * (of_u_N / u_variance + of_v_N / v_variance)
    terms_N: np.ndarray = correlation + influence_N
    return terms_N


def _centred_ranks(values_N: np.ndarray) -> np.ndarray:
    """Share of the values below each, ties counted half, minus a half."""
    _, group_N, counts_G = np.unique(values_N, return_inverse=True, return_counts=True)
    middle_G = np.cumsum(counts_G) - counts_G / 2
    ranks_N: np.ndarray = middle_G[group_N] / len(values_N) - 0.5
    return ranks_N


def _share_above(values_N: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
    """For each value, the sum of the weights of those above it, ties counted half, over N."""
    _, group_N = np.unique(values_N, return_inverse=True)
    totals_G = np.bincount(group_N, weights=weights_N)
    above_G = totals_G.sum() - np.cumsum(totals_G) + totals_G / 2
    share_N: np.ndarray = above_G[group_N] / len(values_N)
    return share_N


def _checked(totals: Totals) -> Totals:
    """The totals as float64, if they can be what they claim to be."""
    sums_G, counts_G = (np.asarray(values, dtype=np.float64) for values in totals)
    if sums_G.ndim != 1 or sums_G.shape != counts_G.shape or not len(sums_G):
        raise InputError(f"sums of shape {sums_G.shape} and counts of shape {counts_G.shape}; one of each per group")
    wrong = ~np.isfinite(sums_G) | ~np.isfinite(counts_G) | (counts_G < 0) | ((counts_G == 0) & (sums_G != 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InputError(f"group {at} has sum {sums_G[at]} over {counts_G[at]} terms; both must be finite and agree")
    return sums_G, counts_G


def _draws(groups: int, random: np.random.Generator, options: Bootstrap) -> Iterator[np.ndarray]:
    """Indices of the groups of each resample, some resamples at a time, shape (R, G). The pieces make no difference."""
    at_once = max(1, DRAWS_AT_ONCE // groups)
    for start in range(0, options.resamples, at_once):
        yield random.integers(0, groups, size=(min(at_once, options.resamples - start), groups))


def _figure(totals: Totals, options: Bootstrap) -> np.ndarray:
    """The figure over the last axis: ratio of the sums, or its exponential."""
    terms = totals[1].sum(axis=-1)
    if np.any(terms == 0):
        raise InputError("a resample of the groups has no terms; too few groups have any, score more proteins")
    ratio: np.ndarray = totals[0].sum(axis=-1) / terms
    return np.exp(ratio) if options.exponential else ratio


def _interval(value: np.ndarray, drawn_R: np.ndarray, options: Bootstrap, groups: int) -> Interval:
    outside = (1 - options.level) / 2
    low, high = np.quantile(drawn_R, [outside, 1 - outside])
    return Interval(float(value), float(low), float(high), groups)
