"""How figures look: colours that colour-blind readers can tell apart, panels, legends; files with the same bytes.

In: axes and labels. Out: decorated axes, PNG and SVG files. matplotlib is imported where it is used.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from proteinlm.checkpoints.files import atomic_file
from proteinlm.errors import InputError
from proteinlm.evaluation.plots import svg
from proteinlm.figures.base import Table

# Okabe and Ito's palette (Wong 2011, Nature Methods 8:441), without its yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY = COLOURS
FORMATS = ("png", "svg")


def require_libraries() -> None:
    """Raise `InputError` where what figures are made with is not installed."""
    try:
        import matplotlib
        import sklearn  # noqa: F401 - only to see that both are there
    except ImportError as error:
        raise InputError(
            f"figures need matplotlib and scikit-learn ({error.name} is missing); pip install 'proteinlm[figures]'"
        ) from error
    assert matplotlib.__version__, "imported"


def new_figure(width: float, height: float, title: str) -> Any:
    """An empty figure in inches, with a title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def marks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label; colours come again with other markers after eight.

    >>> marks([str(number) for number in range(9)])["8"]
    ('#0072B2', '^')
    """
    return {
        label: (COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)])
        for number, label in enumerate(labels)
    }


def spread(places_N2: Float[np.ndarray, "N 2"], apart: float) -> Float[np.ndarray, "N 2"]:
    """Places moved as little as needed until no two are nearer than `apart`, so that letters there do not overlap.

    >>> spread(np.zeros((2, 2)), 1.0).round(3).tolist()
    [[-0.5, 0.0], [0.5, 0.0]]
    """
    found, count = places_N2.astype(np.float64).copy(), len(places_N2)
    for _ in range(1000):
        moved = False
        for one in range(count):
            for other in range(one + 1, count):
                step = found[other] - found[one]
                length = float(np.hypot(*step))
                if length >= apart - 1e-9:
                    continue
                # Two that coincide part in a direction of their own, so that three do not stay on a line.
                turn = 2 * np.pi * one / count
                step = step / length if length > 0 else np.array([np.cos(turn), np.sin(turn)])
                push = (apart - length) / 2 * step
                found[one] -= push
                found[other] += push
                moved = True
        if not moved:
            break
    return found


def scatter(axis: Any, points: Table, of: Mapping[str, tuple[str, str]]) -> None:
    """The points of a map, coloured by their labels, without ticks, which mean nothing in such a map."""
    for label, (colour, marker) in of.items():
        part = points.where("label", label)
        axis.scatter(
            part.numbers("x"), part.numbers("y"), s=14, c=colour, marker=marker, linewidths=0, alpha=0.8, label=label
        )
    axis.set_xlabel("t-SNE 1", fontsize=8)
    axis.set_ylabel("t-SNE 2", fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])


def legend(figure: Any, of: Mapping[str, tuple[str, str]], title: str) -> None:
    """The marks of all panels, right of them."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6, label=label)
        for label, (colour, marker) in of.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside right center",
        fontsize=8,
        frameon=False,
        title=title,
        title_fontsize=8,
        alignment="left",
    )


def save(figure: Any, path: Path) -> None:
    """Write a figure as the ending of the path says, the same bytes for the same figure."""
    with atomic_file(path) as temporary:
        if path.suffix == ".svg":
            temporary.write_text(svg(figure), "utf-8")
        else:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
