"""Predictions as text for a terminal: a protein in a few lines, and its secondary structure residue by residue.

In: a prediction. Out: lines of at most 80 characters. Under each state stands how sure the head is: 9 is a probability
of 0.9 or more, 5 one from 0.5 to 0.6.
"""

import numpy as np

from proteinlm.prediction.predicting import CALLED, LONG_RANGE, Prediction

WIDE, APART = 60, 10
"""Residues of a line; a gap after every ten."""

LOCATIONS_SHOWN = 3


def describe(protein: Prediction) -> str:
    """A protein in words.

    >>> print(describe(Prediction("P1", 0, "MKTV", membrane=0.25)))
    P1   4 residues
      membrane   soluble 0.75
    """
    lines = [f"{protein.id}   {len(protein.residues)} residues"]
    if protein.location is not None:
        ranked = sorted(protein.location.items(), key=lambda item: -item[1])[:LOCATIONS_SHOWN]
        lines.append("  location   " + ", ".join(f"{name.replace('.', ' ')} {p:.2f}" for name, p in ranked))
    if protein.membrane is not None:
        word, p = ("membrane", protein.membrane) if protein.membrane >= 0.5 else ("soluble", 1 - protein.membrane)
        lines.append(f"  membrane   {word} {p:.2f}")
    if protein.q3 is not None:
        shares = [float(np.mean(protein.q3.argmax(1) == state)) for state in range(3)]
        told = ", ".join(
            f"{word} {share:.0%}" for word, share in zip(("helix", "strand", "other"), shares, strict=True)
        )
        lines.append(f"  structure  {told}; mean confidence {protein.q3.max(1).mean():.2f}")
    if (found := protein.long_range()) is not None:
        lines.append(f"  contacts   {found} at long range ({LONG_RANGE} or more apart) of probability {CALLED} or more")
    if protein.windows > 1:
        lines.append(f"  length     beyond what the model reads at once: run in {protein.windows} windows")
    if protein.q3 is not None:
        lines += ["", *_strip(protein, np.minimum((protein.q3.max(1) * 10).astype(int), 9))]
    return "\n".join(lines)


def _strip(protein: Prediction, digits_L: np.ndarray) -> list[str]:
    """Residues, states and confidences, `WIDE` of them a line."""
    rows = (protein.residues, protein.states3(), "".join(map(str, digits_L)))
    lines = []
    for start in range(0, len(protein.residues), WIDE):
        for row, margin in zip(rows, (f"{start + 1:>8}", "", ""), strict=True):
            part = row[start : start + WIDE]
            tens = " ".join(part[at : at + APART] for at in range(0, len(part), APART))
            lines.append(f"{margin:<8}  {tens}")
        lines.append("")
    return lines[:-1]
