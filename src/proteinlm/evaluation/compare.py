"""Two models, figure by figure: paired bootstrap differences from two files of results.

In: two runs. Out: for every figure that both have, first minus second with its interval, drawn over the same proteins
or clusters for both. What cannot be paired is listed with the reason.
"""

from dataclasses import dataclass

import numpy as np

from proteinlm.evaluation.results import Run, TaskRun
from proteinlm.metrics import Bootstrap, Interval, bootstrap_difference
from proteinlm.tasks.base import RESAMPLES, Result


@dataclass(frozen=True)
class Difference:
    """One figure in two runs.

    Args:
        task, measure: which. first, second: the figures, None where a run has none. gap: first minus second; None where
            they cannot be paired, for the reason in `reason`. verdict: "first", "second" (which is better), "not
            resolved" or "".
    """

    task: str
    measure: str
    first: float | None
    second: float | None
    gap: Interval | None = None
    reason: str = ""
    verdict: str = ""


def compare(first: Run, second: Run, seed: int = 0) -> list[Difference]:
    """Every figure of either run.

    Args:
        first, second: from `results.read`. seed: of the draws.
    """
    theirs = {task.name: task for task in second.tasks}
    ours = {task.name: task for task in first.tasks}
    found: list[Difference] = []
    for name in list(dict.fromkeys([*ours, *theirs])):
        found += _task(ours.get(name), theirs.get(name), seed)
    return found


def _task(first: TaskRun | None, second: TaskRun | None, seed: int) -> list[Difference]:
    ours = {} if first is None else {result.measure: result for result in first.results}
    theirs = {} if second is None else {result.measure: result for result in second.results}
    found = []
    for measure in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(measure), theirs.get(measure)
        if one is not None and other is not None:
            found.append(_difference(one, other, seed))
            continue
        present = one or other
        assert present is not None, "the measure is one of either run"
        values = (one.value if one else None, other.value if other else None)
        found.append(Difference(present.task, measure, *values, reason="one of the runs has no such figure"))
    return found


def _difference(one: Result, other: Result, seed: int) -> Difference:
    reason = _why_not(one, other)
    if reason:
        return Difference(one.task, one.measure, one.value, other.value, reason=reason)
    options = Bootstrap(resamples=RESAMPLES, exponential=one.exponential)
    first, second = ((np.array(each.sums), np.array(each.counts)) for each in (one, other))
    gap = bootstrap_difference(first, second, np.random.default_rng(seed), options)
    verdict = "not resolved"
    if one.better and (gap.low > 0 or gap.high < 0):
        verdict = "first" if (gap.low > 0) == (one.better == "higher") else "second"
    return Difference(one.task, one.measure, one.value, other.value, gap, verdict=verdict if one.better else "")


def _why_not(one: Result, other: Result) -> str:
    """Why two figures cannot be paired; empty where they can."""
    if one.version != other.version:
        return f"versions {one.version} and {other.version} of the task; evaluate the older again"
    if not one.pairing or not other.pairing:
        return "the figure is not a mean over groups"
    if one.pairing != other.pairing:
        return "they are over different proteins (other data, seed, or --quick)"
    return ""


def markdown(first: Run, second: Run, differences: list[Difference]) -> str:
    """The differences as a table."""
    lines = [
        f"# {first.name} minus {second.name}",
        "",
        "Paired bootstrap over the same proteins or clusters, 95 % intervals.",
        "",
        f"| task | measure | {first.name} | {second.name} | difference | better |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    names = {"first": first.name, "second": second.name}
    for one in differences:
        values = ["" if value is None else f"{value:.3f}" for value in (one.first, one.second)]
        gap = one.reason if one.gap is None else f"{one.gap.value:+.3f} ({one.gap.low:+.3f} to {one.gap.high:+.3f})"
        cells = (one.task, one.measure, *values, gap, names.get(one.verdict, one.verdict))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
