"""Remote homology: each query by hand and by scikit-learn; planted relatives are found, shuffled labels are chance."""

import math
from pathlib import Path

import numpy as np
import pytest
from evaluation_tools import answer, facts, options, write_scop
from sklearn.metrics import roc_auc_score

from proteinlm.errors import InputError
from proteinlm.tasks.base import Question, Reply
from proteinlm.tasks.homology import HITS, ScopHomology, distances, score_all, score_query, unit

FOLDS = {f"a.{number}": 4 + 2 * (number % 3) for number in range(1, 31)}
MEASURES = {
    f"{level}, {name}, {kind}"
    for level in ("fold", "superfamily")
    for name in ("Hit-10", "AUC")
    for kind in ("cosine", "Euclidean")
}


def test_a_query_by_hand() -> None:
    distance = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    positive = np.array([False, False, True, False, False, True])
    negative = np.array([False, True, False, True, True, False])
    # The positive at 0.2 is behind one of three negatives, that at 0.5 behind all three.
    assert score_query(distance, positive, negative) == (pytest.approx((2 / 3 + 0) / 2), 1.0)


@pytest.mark.parametrize(("ahead", "hit"), [(HITS - 1, 1.0), (HITS, 0.0)])
def test_the_tenth_place_counts(ahead: int, hit: float) -> None:
    distance = np.concatenate([np.zeros(ahead), [1.0], np.full(20, 2.0)])
    positive = distance == 1.0
    assert score_query(distance, positive, ~positive)[1] == hit


def test_ties_are_no_gift() -> None:
    """Where everything is equally far, AUC is a half and nothing is a hit."""
    positive = np.arange(30) < 5
    assert score_query(np.ones(30), positive, ~positive) == (0.5, 0.0)


def test_auc_equals_that_of_scikit_learn() -> None:
    random, compared = np.random.default_rng(0), 0
    for _ in range(50):
        distance = random.integers(0, 15, size=40).astype(float)
        kind = random.integers(0, 3, size=40)
        positive, negative = kind == 0, kind == 1
        auc, _ = score_query(distance, positive, negative)
        used = positive | negative
        assert auc == pytest.approx(roc_auc_score(positive[used], -distance[used]), abs=1e-12)
        compared += 1
    assert compared == 50


def test_distances_by_hand() -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 3))
    cosine, euclidean = distances(unit(vectors), slice(2, 4), "cosine"), distances(vectors, slice(2, 4), "Euclidean")
    for row, i in enumerate((2, 3)):
        for j in range(7):
            a, b = vectors[i], vectors[j]
            assert cosine[row, j] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            assert euclidean[row, j] == pytest.approx(((a - b) ** 2).sum())


def test_who_is_ranked_by_hand() -> None:
    """Five domains: 0 and 1 of one superfamily, 2 of another in the same fold, 3 and 4 of other folds."""
    same = np.array(["f", "f", "f", "g", "h"])
    removed = np.array(["f.1", "f.1", "f.2", "g.1", "h.1"])
    vectors = np.array([[0.0], [0.1], [3.0], [2.0], [9.0]])
    auc, hit, queries = score_all(vectors, same, removed, "Euclidean")
    assert queries.tolist() == [0, 1, 2], "3 and 4 have no relative"
    # 0 and 1 look for 2, past 3; that they are next to each other does not count. 2 looks for 0 and 1, past 3.
    assert auc.tolist() == [0.5, 0.5, 0.5] and hit.tolist() == [1.0] * 3


def planted(codes: list[str]) -> np.ndarray:
    """Vectors that say the fold loudly and the superfamily softly, with a little noise."""
    parts = []
    for levels, loudness in ((2, 1.0), (1, 0.5)):
        numbers = np.unique([code.rsplit(".", levels)[0] for code in codes], return_inverse=True)[1]
        parts.append(loudness * np.eye(numbers.max() + 1)[numbers])
    return np.hstack(parts) + np.random.default_rng(1).normal(scale=0.01, size=(len(codes), 1))


def test_planted_relatives_are_found(tmp_path: Path) -> None:
    vectors = planted(write_scop(tmp_path, FOLDS)).astype(np.float32)
    task = ScopHomology(options(tmp_path), facts())
    found = answer(task, lambda number, question: Reply(mean=vectors[number]))
    assert found.keys() == MEASURES
    for measure, result in found.items():
        assert result.value > 0.99, measure
        assert result.n == len(vectors) and result.groups == len(FOLDS)


def test_shuffled_labels_are_chance(tmp_path: Path) -> None:
    codes = write_scop(tmp_path, FOLDS)
    shuffled = np.random.default_rng(2).permutation(planted(codes)).astype(np.float32)
    shuffled += np.random.default_rng(3).normal(scale=1e-3, size=shuffled.shape).astype(np.float32)
    task = ScopHomology(options(tmp_path), facts())
    found = answer(task, lambda number, question: Reply(mean=shuffled[number]))
    folds = [code.rsplit(".", 2)[0] for code in codes]
    superfamilies = [code.rsplit(".", 1)[0] for code in codes]
    expected = {"fold": [], "superfamily": []}
    for query in range(len(codes)):
        for level, same, removed in (("fold", folds, superfamilies), ("superfamily", superfamilies, codes)):
            positives = sum(a == same[query] and b != removed[query] for a, b in zip(same, removed, strict=True))
            negatives = sum(label != same[query] for label in same)
            missed = math.comb(negatives, HITS) / math.comb(negatives + positives, HITS)
            expected[level].append(1 - missed)
    for measure, result in found.items():
        chance = 0.5 if "AUC" in measure else float(np.mean(expected[measure.split(",")[0]]))
        # Shuffling once is one draw of the labels; the interval is of the queries given that draw.
        assert result.low - 0.03 <= chance <= result.high + 0.03, (measure, result.value, chance)


def test_excluded_folds_are_not_asked_about(tmp_path: Path) -> None:
    write_scop(tmp_path, {"a.1": 4, "b.66": 4, "c.2": 4, "c.6": 4})
    questions: list[Question] = list(ScopHomology(options(tmp_path), facts()).questions())
    assert len(questions) == 8 and all(question.wanted.mean for question in questions)


def test_nothing_to_be_found_is_told(tmp_path: Path) -> None:
    write_scop(tmp_path, {"a.1": 1, "a.2": 1})
    task = ScopHomology(options(tmp_path), facts())
    with pytest.raises(InputError, match="no domain has a relative"):
        answer(task, lambda number, question: Reply(mean=np.ones(3, np.float32)))


def test_a_quick_run_takes_whole_folds(tmp_path: Path) -> None:
    write_scop(tmp_path, {f"a.{number}": 10 for number in range(1, 90)})
    task = ScopHomology(options(tmp_path, quick=True), facts())
    vectors = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    found = answer(task, lambda number, question: Reply(mean=vectors[number]))
    result = found["fold, AUC, cosine"]
    assert result.n == 600 and result.groups == 60 and any("quick" in note for note in result.notes)
