"""Predictions as tables: a line a residue, a line a protein, a line a likely contact; tabs between, a header on top.

In: predictions, one after the other. Out: rows of text. `record` is the number of the protein in the input, from 1, and
tells proteins of one id apart. Probabilities have four decimals. Columns of heads that are not there are left out.
"""

from collections.abc import Iterator

import numpy as np

from proteinlm.datasets.localisation import LOCATIONS
from proteinlm.datasets.secondary_structure import SS3, SS8
from proteinlm.heads.contact import MINIMUM_SEPARATION
from proteinlm.prediction.bundle import CONTACTS, LOCALISATION, MEMBRANE, SECONDARY_STRUCTURE
from proteinlm.prediction.predicting import Prediction

LISTED = 0.1
"""Probability from which a contact stands in the table."""

STATES3 = ("helix", "strand", "other")
"""`H`, `E` and `C` in words."""

Row = list[str | int]


def files(heads: frozenset[str]) -> dict[str, list[str]]:
    """The tables that a set of heads makes: file name -> columns.

    >>> files(frozenset(["membrane"]))["proteins.tsv"]
    ['record', 'id', 'length', 'membrane', 'membrane_probability', 'windows']
    """
    found = {"proteins.tsv": protein_columns(heads)}
    if SECONDARY_STRUCTURE in heads:
        found["residues.tsv"] = [
            *("record", "id", "position", "residue", "q3", "q3_probability", *STATES3),
            *("q8", "q8_probability", *(f"q8_{state}" for state in SS8)),
        ]
    if CONTACTS in heads:
        found["contacts.tsv"] = ["record", "id", "i", "j", "residue_i", "residue_j", "separation", "probability"]
    return found


def protein_columns(heads: frozenset[str]) -> list[str]:
    """Columns of `proteins.tsv`."""
    columns = ["record", "id", "length"]
    if LOCALISATION in heads:
        columns += ["location", "location_probability"]
    if MEMBRANE in heads:
        columns += ["membrane", "membrane_probability"]
    if SECONDARY_STRUCTURE in heads:
        columns += [*STATES3, "confidence"]
    if CONTACTS in heads:
        columns.append("long_range_contacts")
    columns.append("windows")
    return columns + ([f"location_{name}" for name in LOCATIONS] if LOCALISATION in heads else [])


def rows(protein: Prediction, heads: frozenset[str]) -> Iterator[tuple[str, Row]]:
    """Every line of a protein, and the file that it belongs in."""
    yield "proteins.tsv", protein_row(protein, heads)
    yield from (("residues.tsv", row) for row in residue_rows(protein))
    yield from (("contacts.tsv", row) for row in contact_rows(protein))


def protein_row(protein: Prediction, heads: frozenset[str]) -> Row:
    """The line of a protein, in the order of `protein_columns`; a cell is empty where its map could not be joined."""
    row: Row = [protein.index + 1, protein.id, len(protein.residues)]
    if protein.location is not None:
        best = max(protein.location, key=protein.location.__getitem__)
        row += [best, _number(protein.location[best])]
    if protein.membrane is not None:
        row += ["membrane" if protein.membrane >= 0.5 else "soluble", _number(protein.membrane)]
    if protein.q3 is not None:
        shares = [_number(float(np.mean(protein.q3.argmax(1) == state))) for state in range(len(SS3))]
        row += [*shares, _number(float(protein.q3.max(1).mean()))]
    if CONTACTS in heads:
        found = protein.long_range()
        row.append("" if found is None else found)
    row.append(protein.windows)
    return row + ([_number(p) for p in protein.location.values()] if protein.location is not None else [])


def residue_rows(protein: Prediction) -> Iterator[Row]:
    """A line a residue."""
    if protein.q3 is None or protein.q8 is None:
        return
    states = zip(protein.residues, protein.states3(), protein.states8(), protein.q3, protein.q8, strict=True)
    for position, (residue, state3, state8, p3_K, p8_K) in enumerate(states, 1):
        yield [
            *(protein.index + 1, protein.id, position, residue),
            *(state3, _number(p3_K.max()), *map(_number, p3_K)),
            *(state8, _number(p8_K.max()), *map(_number, p8_K)),
        ]


def contact_rows(protein: Prediction) -> Iterator[Row]:
    """A line a pair whose probability is `LISTED` or more, `MINIMUM_SEPARATION` or more apart."""
    if protein.contacts is None:
        return
    i_P, j_P = np.triu_indices(len(protein.residues), MINIMUM_SEPARATION)
    p_P = protein.contacts[i_P, j_P]
    # NaN, which no window knows, is not above anything.
    for i, j, p in zip(*(values[p_P >= LISTED] for values in (i_P, j_P, p_P)), strict=True):
        pair = (protein.residues[i], protein.residues[j])
        yield [protein.index + 1, protein.id, int(i) + 1, int(j) + 1, *pair, int(j - i), _number(p)]


def _number(value: float) -> str:
    return f"{value:.4f}"
