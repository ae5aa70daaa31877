"""Plots of the report, as SVG that stands inside the page.

In: a section of the report. Out: SVG text. Drawn with matplotlib, which is optional: where it is missing, the page says
so in the plot's place. The same results give the same bytes.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proteinlm.evaluation.report import Section

ACROSS = 4
"""Panels in a row."""

MISSING = "<p>Plots need matplotlib: <code>pip install 'proteinlm[plot]'</code>, then <code>plm report</code>.</p>"


def interval_plot(section: "Section", names: Sequence[str]) -> str:
    """Every figure of a section with its interval: a panel for each measure, a line for each model.

    Published figures are grey marks on the same axis.
    """
    try:
        import matplotlib  # noqa: F401 - only to see that it is there
    except ImportError:
        return MISSING
    from matplotlib.figure import Figure

    measures = section.measures
    across = min(ACROSS, len(measures))
    down = -(-len(measures) // across)
    figure = Figure(figsize=(3.1 * across + 1.2, down * (0.8 + 0.24 * len(names))), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for number, axis in enumerate(axes.flat):
        if number < len(measures):
            _panel(axis, section, measures[number], names)
        else:
            axis.set_visible(False)
    return svg(figure)


def _panel(axis: Any, section: "Section", measure: str, names: Sequence[str]) -> None:
    for row in range(len(names)):
        result = section.figure(measure, row)
        if result is not None:
            axis.plot([result.low, result.high], [row, row], color="#4477aa", linewidth=2)
            axis.plot([result.value], [row], "o", color="#4477aa", markersize=5)
    for line in section.published[measure]:
        axis.axvline(line.value, color="#bbbbbb", linewidth=1, zorder=0)
    axis.set_title(measure, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def svg(figure: Any) -> str:
    """A matplotlib figure as an SVG element, the same bytes for the same figure."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "proteinlm", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    content = text.getvalue()
    return content[content.index("<svg") :]
