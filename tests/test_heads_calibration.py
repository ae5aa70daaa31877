"""Temperatures found again, reliability by hand, and the coverage of its interval."""

import numpy as np
import pytest

from proteinlm.errors import InputError
from proteinlm.heads.calibration import fit_temperature, reliability, softmax
from proteinlm.metrics import Bootstrap


def drawn(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn by their softmax: perfectly calibrated."""
    random = np.random.default_rng(seed)
    logits = 2 * random.standard_normal((rows, classes))
    return logits, (logits + random.gumbel(size=logits.shape)).argmax(1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_is_found_again(temperature: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    logits, known = drawn(20_000, 5, seed=1)
    found = fit_temperature(temperature * logits, known)
    # 20,000 rows: the standard error of log T is below 1 %.
    assert found == pytest.approx(temperature, rel=0.03)

    def cross_entropy(log_temperature: float) -> float:
        p = softmax(temperature * logits / np.exp(log_temperature))
        return float(-np.log(p[np.arange(len(known)), known]).mean())

    judge = optimize.minimize_scalar(cross_entropy, bracket=(-1, 1), tol=1e-10)
    assert found == pytest.approx(np.exp(judge.x), rel=1e-5)


def test_calibration_lowers_the_error_and_moves_no_decision() -> None:
    logits, known = drawn(6000, 4, seed=2)
    fitted = fit_temperature(3 * logits[:3000], known[:3000])
    before, after = softmax(3 * logits[3000:]), softmax(3 * logits[3000:] / fitted)
    assert (before.argmax(1) == after.argmax(1)).all()
    errors = [
        reliability(one, known[3000:], np.arange(3000), np.random.default_rng(0), Bootstrap(500)).error
        for one in (before, after)
    ]
    assert errors[0].low > 0.1 and errors[1].value < 0.03


def test_error_by_hand() -> None:
    """Two at 0.9 of which one is right, one at 0.6 that is right: (2 * 0.4 + 1 * 0.4) / 3. One unknown."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    table = reliability(probabilities, np.array([0, 1, 1, -1]), np.array([1, 1, 2, 2]), np.random.default_rng(0))
    assert table.error.value == pytest.approx(0.4) and table.error.groups == 2
    # Resamples: protein 1 alone 0.4, protein 2 alone 0.4, both 0.4.
    assert (table.error.low, table.error.high) == (pytest.approx(0.4), pytest.approx(0.4))
    assert [(row[2], round(row[3], 9), row[4]) for row in table.rows()] == [(1, 0.6, 1.0), (2, 0.9, 0.5)]
    assert table.rows()[0][:2] == (pytest.approx(9 / 15), pytest.approx(10 / 15))


def test_error_against_a_plain_loop() -> None:
    logits, known = drawn(700, 3, seed=4)
    p = softmax(1.7 * logits)
    total = 0.0
    for step in range(15):
        inside = [n for n in range(700) if step / 15 <= p[n].max() < (step + 1) / 15]
        if inside:
            sure, right = p[inside].max(1).mean(), (p[inside].argmax(1) == known[inside]).mean()
            total += len(inside) / 700 * abs(sure - right)
    found = reliability(p, known, np.arange(700) // 7, np.random.default_rng(5), Bootstrap(200))
    assert found.error.value == pytest.approx(total, abs=1e-12)
    assert found.count_B.sum() == 700 and found.error.low < found.error.value * 1.5 < 1.5 * found.error.high


def test_bad_input_is_refused() -> None:
    logits, known = drawn(10, 3, seed=6)
    groups, random = np.arange(10), np.random.default_rng(0)
    for bad_logits, bad_known, message in (
        (logits[:5], known, "one class for each row"),
        (logits, np.full(10, -1), "no row has a known class"),
        (logits, known + 1, "not all in 0..2"),
        (logits * np.inf, known, "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            fit_temperature(bad_logits, bad_known)
    with pytest.raises(InputError, match="no probabilities"):
        reliability(logits, known, groups, random)
    with pytest.raises(InputError, match="groups of shape"):
        reliability(softmax(logits), known, groups[:3], random)
