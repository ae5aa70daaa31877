"""How good predictions of classes and contacts are, as sums and counts that `metrics` puts intervals around.

In: predicted and known classes or contact scores; -1 is unknown and counts nowhere. Out: right answers and answers of
each protein, Matthews correlation, and the precision of the best-scoring pairs by range. NumPy only.
"""

import numpy as np

from proteinlm.errors import InputError
from proteinlm.heads.rows import UNLABELLED
from proteinlm.metrics import Totals, sum_by_group

RANGES = {"short": (6, 12), "medium": (12, 24), "long": (24, None)}
"""Separations along the chain, the upper bound not included (papers.md 4.4)."""

FRACTIONS = {"L": 1, "L/2": 2, "L/5": 5}
"""How many pairs are taken: the protein's length over this."""


def right_by_group(predicted_N: np.ndarray, known_N: np.ndarray, groups_N: np.ndarray) -> Totals:
    """Right answers and answers of each protein or cluster; their ratio is Q3, Q8, Q10 or any accuracy.

    Args:
        predicted_N, known_N: classes, shape (N,). groups_N: whose rows they are.

    Returns:
        sums and counts, both of shape (G,), in the sorted order of the groups.

    >>> right_by_group(np.array([0, 1, 1]), np.array([0, 1, -1]), np.array([7, 8, 8]))
    (array([1., 1.]), array([1., 1.]))
    """
    if predicted_N.shape != known_N.shape:
        raise InputError(f"predictions of shape {predicted_N.shape}, labels of shape {known_N.shape}; one for each")
    counted_N = known_N != UNLABELLED
    right_N = ((predicted_N == known_N) & counted_N).astype(np.float64)
    return sum_by_group(right_N, groups_N), sum_by_group(counted_N.astype(np.float64), groups_N)


def matthews(predicted_N: np.ndarray, known_N: np.ndarray) -> float:
    """Matthews' correlation of predicted and known classes, for two or more classes (Gorodkin 2004).

    Returns:
        1 for perfect, 0 for chance and where only one class is predicted or known.

    >>> matthews(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])).__round__(4)
    0.5774
    """
    if predicted_N.shape != known_N.shape or known_N.ndim != 1:
        raise InputError(f"predictions of shape {predicted_N.shape}, labels of shape {known_N.shape}; one for each")
    counted_N = known_N != UNLABELLED
    classes, pair = np.unique(np.stack([predicted_N[counted_N], known_N[counted_N]]), return_inverse=True)
    predicted, known = pair.reshape(2, -1)
    table_KK = np.zeros((len(classes), len(classes)))
    np.add.at(table_KK, (known, predicted), 1)
    total, right = table_KK.sum(), table_KK.trace()
    known_K, predicted_K = table_KK.sum(1), table_KK.sum(0)
    spread = (total**2 - predicted_K @ predicted_K) * (total**2 - known_K @ known_K)
    return float((right * total - known_K @ predicted_K) / np.sqrt(spread)) if spread > 0 else 0.0


def contact_precision(scores_LL: np.ndarray, contacts_LL: np.ndarray) -> dict[tuple[str, str], tuple[int, int]]:
    """Contacts among the best-scoring pairs of each range, for L, L/2 and L/5 pairs (papers.md 4.4).

    Pairs of equal score are taken in the order of their residues. Pairs without a score come last.

    Args:
        scores_LL: higher is likelier, of pair (i, j) with i < j, NaN where there is none, shape (L, L).
        contacts_LL: 1, 0, or -1 where the structure is missing, shape (L, L); such pairs are left out.

    Returns:
        (range, fraction) -> contacts and pairs taken. L counts all residues; at least one pair is taken, and where
        there are fewer known pairs than asked for, all of them, which may be none.

    >>> contacts = np.zeros((10, 10), int)
    >>> contacts[0, 9] = contacts[1, 8] = 1
    >>> scores = contacts + 0.0
    >>> scores[1, 8], scores[0, 6] = -1, 0.5
    >>> contact_precision(scores, contacts)[("short", "L/5")]
    (1, 2)
    """
    length = len(contacts_LL)
    if scores_LL.shape != (length, length) or contacts_LL.shape != (length, length):
        raise InputError(
            f"scores of shape {scores_LL.shape}, contacts of shape {contacts_LL.shape}; both must be L x L"
        )
    i_P, j_P = np.triu_indices(length, RANGES["short"][0])
    known_P = contacts_LL[i_P, j_P] != UNLABELLED
    i_P, j_P = i_P[known_P], j_P[known_P]
    score_P = np.nan_to_num(scores_LL[i_P, j_P].astype(np.float64), nan=-np.inf)
    order_P = np.argsort(-score_P, kind="stable")
    separation_P, touching_P = (j_P - i_P)[order_P], contacts_LL[i_P, j_P][order_P] == 1
    found = {}
    for name, (low, high) in RANGES.items():
        inside = touching_P[(separation_P >= low) & (separation_P < (high or length))]
        for fraction, divisor in FRACTIONS.items():
            taken = inside[: max(1, length // divisor)]
            found[name, fraction] = (int(taken.sum()), len(taken))
    return found
