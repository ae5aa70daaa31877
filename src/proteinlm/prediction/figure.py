"""A protein's prediction as a picture: its states, how sure they are, and its contact map.

In: a prediction. Out: a PNG or SVG file. Needs matplotlib (optional).
"""

from pathlib import Path
from typing import Any

import numpy as np

from proteinlm.errors import InputError
from proteinlm.prediction.predicting import Prediction

FORMATS = ("png", "svg")
COLOURS = ("#c0392b", "#f1c40f", "#bdc3c7")
"""Helix, strand, other."""


def check_figures() -> None:
    """Raise `InputError` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401 - only to see that it is there
    except ImportError as error:
        raise InputError("figures need matplotlib; `pip install 'proteinlm[plot]'`, or leave out --figures") from error


def draw(protein: Prediction, path: Path) -> bool:
    """Draw a protein; what has no head has no part in the picture.

    Args:
        protein: with residues or contacts predicted. path: file, ending in .png or .svg.

    Returns:
        whether there was anything to draw.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_figures()
    from matplotlib.figure import Figure

    heights = ([0.25, 1.2] if protein.q3 is not None else []) + ([6.5] if protein.contacts is not None else [])
    if not heights:
        return False
    figure = Figure(figsize=(7.5, 0.8 + sum(heights)), layout="constrained")
    all_axes = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    figure.suptitle(_title(protein), fontsize=10)
    if protein.q3 is not None:
        _states(all_axes.pop(0), all_axes.pop(0), protein.q3)
    if protein.contacts is not None:
        figure.colorbar(_contacts(all_axes.pop(0), protein.contacts), label="contact probability", shrink=0.8)
    metadata = {"Software": None} if path.suffix.lower() == ".png" else {"Date": None}
    figure.savefig(path, dpi=130, metadata=metadata)
    return True


def _title(protein: Prediction) -> str:
    told = [f"{protein.id}, {len(protein.residues)} residues"]
    if protein.location is not None:
        best = max(protein.location, key=protein.location.__getitem__)
        told.append(f"{best.replace('.', ' ')} {protein.location[best]:.2f}")
    if protein.membrane is not None:
        told.append(f"in a membrane {protein.membrane:.2f}")
    return "; ".join(told)


def _states(strip: Any, shares: Any, q3: np.ndarray) -> None:
    """The likeliest state of every residue; below, the probabilities of all three on top of each other."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    length = len(q3)
    extent = (0.5, length + 0.5, 0, 1)
    shown = {"aspect": "auto", "interpolation": "nearest", "extent": extent, "vmin": 0, "vmax": 2}
    strip.imshow(q3.argmax(1)[None], cmap=ListedColormap(COLOURS), **shown)
    strip.set(xticks=[], yticks=[])
    edges = np.arange(length + 1) + 0.5
    below_L = np.zeros(length)
    for state, colour in enumerate(COLOURS):
        top_L = below_L + q3[:, state]
        shares.stairs(top_L, edges, baseline=below_L, fill=True, color=colour)
        below_L = top_L
    shares.set(xlim=(0.5, length + 0.5), ylim=(0, 1), ylabel="probability", xlabel="residue")
    patches = [
        Patch(color=colour, label=name) for name, colour in zip(("helix", "strand", "other"), COLOURS, strict=True)
    ]
    strip.legend(handles=patches, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8)


def _contacts(axes: Any, contacts_LL: np.ndarray) -> Any:
    length = len(contacts_LL)
    extent = (0.5, length + 0.5, length + 0.5, 0.5)
    axes.set(xlabel="residue", ylabel="residue")
    return axes.imshow(contacts_LL, vmin=0, vmax=1, cmap="Blues", extent=extent, interpolation="nearest")
