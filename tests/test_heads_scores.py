"""Contact precision by hand and by a plain loop; accuracies and Matthews correlation against scikit-learn."""

import numpy as np
import pytest

from proteinlm.errors import InputError
from proteinlm.heads.scores import contact_precision, matthews, right_by_group
from proteinlm.metrics import bootstrap_interval

BOUNDS = {"short": (6, 11), "medium": (12, 23), "long": (24, 10**9)}


def plain_precision(scores: np.ndarray, contacts: np.ndarray, name: str, divisor: int) -> tuple[int, int]:
    """Every pair in turn, sorted by score."""
    low, high = BOUNDS[name]
    length = len(contacts)
    pairs = [
        (-scores[i, j] if not np.isnan(scores[i, j]) else np.inf, i, j)
        for i in range(length)
        for j in range(i + 1, length)
        if low <= j - i <= high and contacts[i, j] != -1
    ]
    best = sorted(pairs)[: max(1, length // divisor)]
    return sum(int(contacts[i, j] == 1) for _, i, j in best), len(best)


def test_precision_by_hand() -> None:
    """30 residues: L/5 is 6 pairs. The best three long pairs are two contacts and a miss."""
    contacts = np.zeros((30, 30), int)
    scores = np.zeros((30, 30))
    for i, j in ((0, 24), (1, 26), (0, 23), (5, 11), (5, 10)):
        contacts[i, j] = 1
    scores[0, 24], scores[2, 27], scores[1, 26] = 5, 4, 3
    scores[0, 23], scores[5, 11], scores[5, 10] = 2, 1, 9
    found = contact_precision(scores, contacts)
    assert found["long", "L/5"] == (2, 6)
    assert found["medium", "L/5"] == (1, 6)
    assert found["short", "L/5"] == (1, 6), "separation 6 is short, 5 is nothing"
    # Separations 24 to 29 of 30 residues: 6 + 5 + 4 + 3 + 2 + 1 pairs.
    assert found["long", "L"] == (2, 21)
    contacts[1, 26] = -1
    assert contact_precision(scores, contacts)["long", "L/5"] == (1, 6)
    assert contact_precision(scores, contacts)["long", "L"] == (1, 20)


def test_precision_against_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    compared = 0
    for length in (7, 13, 25, 26, 40, 61):
        contacts = random.choice([-1, 0, 1], size=(length, length), p=[0.1, 0.6, 0.3])
        scores = random.integers(0, 20, (length, length)).astype(np.float32)
        scores[random.random((length, length)) < 0.05] = np.nan
        found = contact_precision(scores, contacts)
        for name in BOUNDS:
            for fraction, divisor in (("L", 1), ("L/2", 2), ("L/5", 5)):
                assert found[name, fraction] == plain_precision(scores, contacts, name, divisor)
                compared += 1
    assert compared == 54


def test_too_short_for_any_pair() -> None:
    assert set(contact_precision(np.zeros((6, 6)), np.zeros((6, 6), int)).values()) == {(0, 0)}
    with pytest.raises(InputError, match="both must be L x L"):
        contact_precision(np.zeros((6, 5)), np.zeros((6, 6), int))


@pytest.mark.parametrize("classes", [2, 5])
def test_matthews_equals_scikit_learn(classes: int) -> None:
    judge = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(classes)
    known = random.integers(0, classes, 500)
    predicted = np.where(random.random(500) < 0.6, known, random.integers(0, classes, 500))
    expected = judge.matthews_corrcoef(known, predicted)
    assert 0.4 < expected < 0.8
    assert matthews(predicted, known) == pytest.approx(expected, abs=1e-12)
    masked = np.concatenate([known, np.full(50, -1)])
    assert matthews(np.concatenate([predicted, np.zeros(50, int)]), masked) == pytest.approx(expected, abs=1e-12)
    assert matthews(np.zeros(500, int), known) == 0.0 and matthews(known, known) == pytest.approx(1.0)


def test_accuracy_equals_scikit_learn_and_is_drawn_by_protein() -> None:
    judge = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(3)
    protein = np.repeat(np.arange(50), random.integers(5, 40, 50))
    known = random.integers(0, 3, len(protein))
    predicted = np.where(random.random(50)[protein] < 0.5, known, 0)
    sums, counts = right_by_group(predicted, known, protein)
    found = bootstrap_interval(sums, counts, random)
    assert found.value == pytest.approx(judge.accuracy_score(known, predicted), abs=1e-12) and found.groups == 50
    single = bootstrap_interval(*right_by_group(predicted, known, np.arange(len(known))), random)
    assert found.high - found.low > 1.5 * (single.high - single.low), "residues of a protein are not independent"
