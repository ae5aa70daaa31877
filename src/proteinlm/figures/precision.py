"""Two models protein by protein: a figure of every protein (or cluster) by one against that by the other.

In: two runs of `plm evaluate`. Out: a scatter with the diagonal, and the histogram of the differences. Contact
precision of single domains is what the paper shows so; any measure that both runs have over the same groups can be.
Source: papers.md 4.2 (Rives et al., Figure 5, per-domain precision).
"""

from typing import Any

import numpy as np

from proteinlm.config import nearest
from proteinlm.errors import InputError
from proteinlm.evaluation.results import Run
from proteinlm.figures.base import Columns, Table
from proteinlm.figures.style import BLUE, GREY, new_figure
from proteinlm.tasks.base import Result

NAME = "precision-scatter"


def comparable(first: Run, second: Run) -> dict[str, tuple[Result, Result]]:
    """What both runs measured over the same groups, by `task: measure`; contacts come first."""
    ours, theirs = (
        {f"{task.name}: {result.measure}": result for task in run.tasks for result in task.results}
        for run in (first, second)
    )
    found = {
        name: (result, theirs[name])
        for name, result in ours.items()
        if name in theirs
        and result.pairing
        and (result.pairing, result.version) == (theirs[name].pairing, theirs[name].version)
    }
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("contacts")))


def precision_table(first: Run, second: Run, measure: str | None = None) -> Table:
    """A measure of each group by two models.

    Args:
        first, second: from `evaluation.results.read`. measure: `task: measure`; the first there is, contacts before
            others, if None.

    Raises:
        InputError: the runs have no such measure, or none over the same groups.
    """
    found = comparable(first, second)
    if not found:
        raise InputError("the two runs have no figure over the same groups; evaluate both on the same data and seed")
    name = measure or next(iter(found))
    if name not in found:
        raise InputError(
            f"measure {name!r} is not in both runs{nearest(name, found) or '; there are: ' + ', '.join(found)}"
        )
    columns = Columns("group", "measure", "first", "second", "first_value", "second_value")
    one, other = found[name]
    for group, entries in enumerate(zip(one.sums, one.counts, other.sums, other.counts, strict=True)):
        if entries[1] and entries[3]:
            values = (entries[0] / entries[1], entries[2] / entries[3])
            columns.add(group, name, first.name, second.name, *values)
    return columns.table("results hold no names of groups: they are numbered as in `sums` and `counts`")


def draw(table: Table) -> Any:
    """One against the other, and the differences."""
    x, y = table.numbers("second_value"), table.numbers("first_value")
    first, second = table.columns["first"][0], table.columns["second"][0]
    figure = new_figure(8.4, 4.2, f"{table.columns['measure'][0]}, a point for each of {len(table)} groups")
    scatter, histogram = figure.subplots(1, 2)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    pad = 0.04 * (high - low or 1.0)
    scatter.plot([low - pad, high + pad], [low - pad, high + pad], color=GREY, linewidth=1)
    scatter.scatter(x, y, s=14, c=BLUE, alpha=0.6, linewidths=0)
    scatter.set(xlabel=second, ylabel=first, aspect="equal", xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
    scatter.set_title(f"above the diagonal: {np.mean(y > x):.0%}, below: {np.mean(y < x):.0%}", fontsize=9)
    histogram.hist(y - x, bins=min(31, 2 + round(len(table) ** 0.5)), color=BLUE, alpha=0.7)
    histogram.yaxis.get_major_locator().set_params(integer=True)
    histogram.axvline(0, color=GREY, linewidth=1)
    histogram.set(xlabel=f"{first} minus {second}", ylabel="groups")
    histogram.set_title(f"mean of the differences: {np.mean(y - x):+.3f}", fontsize=9)
    for axis in (scatter, histogram):
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_size(8)
        axis.yaxis.label.set_size(8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
