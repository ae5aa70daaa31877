"""Scores of all single substitutions of a protein as a picture: a column per position, a row per residue.

In: a `VariantScores`. Out: a PNG or SVG file. Blue is more probable than the wild type, red less; a dot is the wild
type, and grey was not scored. Needs matplotlib (optional).
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import STANDARD
from proteinlm.variants.run import VariantScores

ROWS = "GAVLIMPFWYSTCNQHKRDE"
"""Residues from top to bottom: small, aliphatic, aromatic, polar, positive, negative."""

STRIP = 100
"""Positions side by side."""

SUFFIXES = (".png", ".svg")


def check_heatmap(path: Path) -> None:
    """Raise `InputError` where a picture could not be drawn into this file."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--heatmap {path}: the name must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    try:
        import matplotlib  # noqa: F401 - only to see that it is there
    except ImportError as error:
        raise InputError(
            "heat maps need matplotlib; `pip install 'proteinlm[plot]'`, or leave out --heatmap"
        ) from error


def draw_heatmap(path: Path, scores: VariantScores, title: str, first: int = 1) -> None:
    """Draw the single substitutions; multiple mutants are not shown.

    Args:
        path: file, ending in .png or .svg. scores: of a protein. title: above. first: number of the first residue.

    Raises:
        InputError: no single substitution was scored, or matplotlib is not installed.
    """
    check_heatmap(path)
    from matplotlib.figure import Figure

    table_LR = scores.matrix()[:, [STANDARD.index(residue) for residue in ROWS]]
    if np.isnan(table_LR).all():
        raise InputError(
            f"{title}: no single substitution was scored, so there is nothing to draw; leave out --heatmap"
        )
    wild_type = scores.variants.wild_type
    strips = range(0, len(wild_type), STRIP)
    widest = min(len(wild_type), STRIP)
    figure = Figure(figsize=(2.2 + 0.13 * widest, 0.6 + 2.9 * len(strips)), layout="constrained")
    figure.suptitle(title)
    all_axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    # Most scores lie within; a few far ones would make everything else pale.
    limit = float(np.nanpercentile(np.abs(table_LR), 98)) or 1.0
    for axes, start in zip(all_axes, strips, strict=True):
        image = _strip(axes, table_LR, wild_type, (start, first), limit)
        axes.set_xlim(start + first - 0.5, start + first + widest - 0.5)
    figure.colorbar(image, ax=all_axes.tolist(), label=f"score, nats ({scores.method})", aspect=12 * len(strips))
    metadata = {"Software": None} if path.suffix.lower() == ".png" else {"Date": None}
    figure.savefig(path, dpi=150, metadata=metadata)


def _strip(
    axes: Any, table_LR: Float64[np.ndarray, "L 20"], wild_type: str, where: tuple[int, int], limit: float
) -> Any:
    """Up to `STRIP` positions; `where` is the first of them from 0, and the number of the protein's first residue."""
    from matplotlib import colormaps

    start, first = where
    part_PR, residues = table_LR[start : start + STRIP], wild_type[start : start + STRIP]
    left = start + first - 0.5
    extent = (left, left + len(residues), len(ROWS) - 0.5, -0.5)
    colours = colormaps["RdBu"].with_extremes(bad="0.85")
    shown = {"aspect": "auto", "interpolation": "nearest", "extent": extent, "cmap": colours}
    image = axes.imshow(part_PR.T, vmin=-limit, vmax=limit, **shown)
    dots = [(left + 0.5 + at, ROWS.index(residue)) for at, residue in enumerate(residues) if residue in ROWS]
    if dots:
        axes.scatter(*np.array(dots).T, s=4, color="black", linewidths=0)
    axes.set_yticks(range(len(ROWS)), ROWS, fontsize=6)
    positions = [at for at in range(start + first, start + first + len(residues)) if at % 10 == 0]
    axes.set_xticks(positions, [f"{wild_type[at - first]}{at}" for at in positions], fontsize=7)
    return image
