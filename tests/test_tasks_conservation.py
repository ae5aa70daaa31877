"""Conservation: planted grades are read off, shuffled ones are the commonest, the ranks are SciPy's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets_tools import write_table
from evaluation_tools import answer, facts, options, protein

from proteinlm.datasets.conservation import CONSERVATION
from proteinlm.tasks import conservation
from proteinlm.tasks.base import Question, Reply
from proteinlm.tasks.conservation import Conservation

SHARES = np.array([13, 7, 9, 10, 12, 13, 13, 11, 12]) / 100
"""Of the grades, roughly as in ConSurf-DB."""

ACCURACY, RANKS = "accuracy, 9 grades", "Spearman of the expected grade"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """80 training and 25 validation chains; grades from 0 by residues."""
    folder, rows, known = tmp_path_factory.mktemp("data"), [], {}
    for number in range(105):
        residues = protein(30 + number % 7, 30_000 + number)
        grades = np.random.default_rng([9, number]).choice(9, size=len(residues), p=SHARES)
        known[residues] = grades
        split = "train" if number < 80 else "val"
        rows.append((f"{number}_A", split, residues, "".join(CONSERVATION[grade] for grade in grades)))
    write_table(folder, "conservation", "chain split sequence conservation_1_9", rows)
    return folder, known


def planted(known: dict[str, np.ndarray], shuffled: bool = False) -> Callable[[int, Question], Reply]:
    """Vectors that tell the grade of the residue, or of another one."""

    def reply(number: int, question: Question) -> Reply:
        random = np.random.default_rng(number)
        grades = known[question.residues]
        grades = random.permutation(grades) if shuffled else grades
        return Reply(kept=(np.eye(9)[grades] + random.normal(scale=0.1, size=(len(grades), 9))).astype(np.float16))

    return reply


def test_planted_grades_are_read_off(data: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, known = data
    found = answer(Conservation(options(folder), facts()), planted(known))
    assert found.keys() == {ACCURACY, RANKS}
    residues = sum(len(grades) for grades in list(known.values())[80:])
    for result in found.values():
        assert result.value > 0.98 and result.low <= result.value <= result.high
        assert result.n == residues and result.groups == 25


def test_shuffled_grades_are_chance(data: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, known = data
    found = answer(Conservation(options(folder), facts()), planted(known, shuffled=True))
    # 825 residues: three standard deviations are 0.035 and 0.10.
    assert abs(found[ACCURACY].value - SHARES.max()) < 0.05 and abs(found[RANKS].value) < 0.1


def test_the_rank_correlation_is_that_of_scipy(
    data: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = pytest.importorskip("scipy.stats")
    folder, known = data
    random = np.random.default_rng(0)

    def probabilities(task: Conservation, probe: object) -> np.ndarray:
        """Grades that are known in part."""
        grades = np.concatenate([known[chain.residues] for chain in task.test])
        mixed = np.eye(9)[grades] + 3 * random.random((len(grades), 9))
        seen.append((mixed / mixed.sum(1, keepdims=True), grades))
        return seen[0][0]

    seen: list[tuple[np.ndarray, np.ndarray]] = []
    monkeypatch.setattr(conservation.Conservation, "_probabilities", probabilities)
    found = answer(Conservation(options(folder), facts()), planted(known))
    (chances, grades), *_ = seen
    judged = stats.spearmanr(chances @ np.arange(1, 10), grades + 1).statistic
    assert 0.1 < judged < 0.9 and found[RANKS].value == pytest.approx(judged, abs=1e-10)
    assert found[ACCURACY].value == pytest.approx((chances.argmax(1) == grades).mean())


def test_a_quick_run_is_smaller_and_says_so(
    data: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, known = data
    monkeypatch.setattr(conservation, "QUICK_TRAINING_CHAINS", 40)
    monkeypatch.setattr(conservation, "QUICK_TEST_CHAINS", 10)
    task = Conservation(options(folder, quick=True), facts())
    found = answer(task, planted(known))
    assert len(task.train) == 40 and found[ACCURACY].groups == 10
    assert {chain.split for chain in task.train} == {"train"} and {chain.split for chain in task.test} == {"val"}
    assert any("quick" in note for note in found[ACCURACY].notes)
