"""Probabilities that mean what they say: a temperature fitted on validation data, and how far off they are.

In: logits or probabilities with known classes. Out: the temperature to divide logits by, a reliability table, and the
expected calibration error with a bootstrap interval over proteins. NumPy only. Source: Guo et al. 2017.
"""

from dataclasses import dataclass

import numpy as np

from proteinlm.errors import InputError
from proteinlm.heads.rows import UNLABELLED
from proteinlm.metrics import Bootstrap, Interval

COLDEST, HOTTEST = 0.02, 50.0
"""Temperatures outside these mean that the logits carry no probability at all."""

BINS = 15
"""Equal steps of confidence, as in the source."""


@dataclass(frozen=True)
class Reliability:
    """How often predictions of a confidence were right, in equal steps of confidence from 0 to 1.

    Attributes:
        count_B: rows in each step. confidence_B, accuracy_B: means over them, NaN where there are none.
        error: the expected calibration error, mean over rows of the distance between the two, in 0..1.
    """

    count_B: np.ndarray
    confidence_B: np.ndarray
    accuracy_B: np.ndarray
    error: Interval

    def rows(self) -> list[tuple[float, float, int, float, float]]:
        """One line a step that has rows: from, to, rows, mean confidence, share right."""
        edges = np.linspace(0, 1, len(self.count_B) + 1)
        return [
            (float(edges[b]), float(edges[b + 1]), int(count), float(self.confidence_B[b]), float(self.accuracy_B[b]))
            for b, count in enumerate(self.count_B)
            if count
        ]


def fit_temperature(logits_NK: np.ndarray, known_N: np.ndarray) -> float:
    """The temperature T at which softmax(logits / T) gives the known classes the highest likelihood.

    Args:
        logits_NK: of validation rows, which the head was not fitted on. known_N: classes, -1 unknown.

    Returns:
        T, between 0.02 and 50; above 1 the head was too sure of itself.

    Raises:
        InputError: shapes that do not fit, no known class, or logits that are not finite.

    >>> random = np.random.default_rng(0)
    >>> logits = random.standard_normal((4000, 3))
    >>> known = (logits + random.gumbel(size=logits.shape)).argmax(1)
    >>> abs(fit_temperature(5 * logits, known) - 5) < 0.5
    True
    """
    logits_NK, known_N = _known(logits_NK, known_N)
    coldness = (1 / HOTTEST, 1 / COLDEST)
    mine_N = logits_NK[np.arange(len(known_N)), known_N]
    # The slope of the cross-entropy in 1/T only grows: its root is found by halving.
    for _ in range(60):
        middle = float(np.sqrt(coldness[0] * coldness[1]))
        slope = ((softmax(middle * logits_NK) * logits_NK).sum(1) - mine_N).mean()
        coldness = (coldness[0], middle) if slope > 0 else (middle, coldness[1])
    return 1 / coldness[0]


def reliability(
    probabilities_NK: np.ndarray,
    known_N: np.ndarray,
    groups_N: np.ndarray,
    random: np.random.Generator,
    options: Bootstrap | None = None,
) -> Reliability:
    """The reliability table of the likeliest class, and the expected calibration error with its interval.

    Args:
        probabilities_NK: rows that sum to 1. known_N: classes, -1 unknown. groups_N: protein or cluster of each row,
            which is what is drawn again. random: of the draws. options: resamples and level.

    Raises:
        InputError: shapes that do not fit, no known class, or rows that are no probabilities.

    >>> certain = np.array([[1.0, 0.0]] * 4)
    >>> table = reliability(certain, np.array([0, 0, 0, 1]), np.arange(4), np.random.default_rng(0))
    >>> table.error.value, table.rows()[0][2:]
    (0.25, (4, 1.0, 0.75))
    """
    options = options or Bootstrap()
    if groups_N.shape != known_N.shape:
        raise InputError(f"groups of shape {groups_N.shape}, classes of shape {known_N.shape}; one for each")
    groups_N = groups_N[known_N != UNLABELLED]
    probabilities_NK, known_N = _known(probabilities_NK, known_N)
    # Rounding of fp16 sums is the largest that is let through.
    if probabilities_NK.min() < 0 or np.abs(probabilities_NK.sum(1) - 1).max() > 1e-2:
        raise InputError("rows that do not sum to 1 are no probabilities; give the softmax of the logits")
    confidence_N = np.minimum(probabilities_NK.max(1), 1.0)
    right_N = probabilities_NK.argmax(1) == known_N
    bin_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    _, group_N = np.unique(groups_N, return_inverse=True)
    groups = int(group_N.max()) + 1
    cell_N = group_N * BINS + bin_N

    def by_cell(weights: np.ndarray | None) -> np.ndarray:
        return np.bincount(cell_N, weights=weights, minlength=groups * BINS).reshape(groups, BINS).astype(np.float64)

    count_GB, sure_GB, right_GB = by_cell(None), by_cell(confidence_N), by_cell(right_N.astype(np.float64))
    drawn_R = np.empty(options.resamples)
    for resample in range(options.resamples):
        times_G = np.bincount(random.integers(0, groups, groups), minlength=groups).astype(np.float64)
        drawn_R[resample] = np.abs(times_G @ (sure_GB - right_GB)).sum() / (times_G @ count_GB).sum()
    count_B = count_GB.sum(0)
    value = float(np.abs((sure_GB - right_GB).sum(0)).sum() / len(known_N))
    low, high = np.quantile(drawn_R, [(1 - options.level) / 2, (1 + options.level) / 2])
    rows_B = np.where(count_B > 0, count_B, np.nan)
    error = Interval(value, float(low), float(high), groups)
    return Reliability(count_B, sure_GB.sum(0) / rows_B, right_GB.sum(0) / rows_B, error)


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Probabilities in fp64.

    >>> softmax(np.array([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """
    logits_NK = logits_NK.astype(np.float64)
    raised_NK = np.exp(logits_NK - logits_NK.max(-1, keepdims=True))
    probabilities_NK: np.ndarray = raised_NK / raised_NK.sum(-1, keepdims=True)
    return probabilities_NK


def _known(values_NK: np.ndarray, known_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose class is known, in fp64."""
    if values_NK.ndim != 2 or known_N.shape != values_NK.shape[:1]:
        raise InputError(f"values of shape {values_NK.shape}, classes of shape {known_N.shape}; one class for each row")
    counted_N = known_N != UNLABELLED
    if not counted_N.any():
        raise InputError("no row has a known class; nothing can be calibrated on it")
    if known_N.max() >= values_NK.shape[1] or known_N.min() < UNLABELLED:
        raise InputError(f"classes {known_N.min()} to {known_N.max()} are not all in 0..{values_NK.shape[1] - 1}")
    values_NK = values_NK[counted_N].astype(np.float64)
    if not np.isfinite(values_NK).all():
        raise InputError("logits or probabilities that are not finite; check the features")
    return values_NK, known_N[counted_N]
