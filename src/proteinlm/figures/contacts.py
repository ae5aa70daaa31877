"""Contact maps of four proteins: what touches, and what the model says touches.

In: PDB chains with C-beta coordinates. Out: above the diagonal the contacts of the structure; below it the same in grey
and the L pairs that the model finds likeliest, right and wrong ones. Probabilities come from the model's contact head;
of a model with attention and no such head, from a regression on attention maps that is fitted on 20 other chains.
Source: papers.md 4.2 (Rives et al., Figures 5 and S7), 8.1.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from proteinlm.datasets.chains import PdbChain
from proteinlm.datasets.sources import data_folder
from proteinlm.errors import InputError
from proteinlm.figures.base import Columns, Figure, Panel, Table
from proteinlm.figures.style import BLUE, VERMILLION, new_figure
from proteinlm.heads.contact import MINIMUM_SEPARATION, ContactRows, contact_rows, fit_contact_rows
from proteinlm.tasks.base import Question, Reply, Wanted
from proteinlm.tasks.contacts import draw_chains, weighted_map

SHOWN = 4
SHORTEST, LONGEST = 60, 160
"""Residues of the chains that are shown."""

CANDIDATES = 400
KINDS = {"contact": ("0.7", "s"), "right": (BLUE, "s"), "wrong": (VERMILLION, "x")}
"""Colour and marker of what is drawn."""


def likeliest(score_LL: np.ndarray, contacts_LL: np.ndarray) -> list[tuple[int, int, bool]]:
    """The L best-scoring pairs at least six apart whose distance is known: i < j from 0, and whether they touch.

    >>> score = np.zeros((8, 8))
    >>> score[0, 7] = 1
    >>> likeliest(score, np.ones((8, 8), int))[0]
    (0, 7, True)
    """
    i_P, j_P = np.triu_indices(len(score_LL), MINIMUM_SEPARATION)
    known_P = contacts_LL[i_P, j_P] >= 0
    i_P, j_P = i_P[known_P], j_P[known_P]
    order_P = np.argsort(-np.nan_to_num(score_LL[i_P, j_P], nan=-np.inf), kind="stable")[: len(score_LL)]
    return [(int(i), int(j), bool(contacts_LL[i, j] == 1)) for i, j in zip(i_P[order_P], j_P[order_P], strict=True)]


class ContactMaps(Figure):
    """True and predicted contacts."""

    name = "contacts"
    title = "Contacts: structure above the diagonal, L likeliest pairs below"
    source = "Rives et al. 2021, Figures 5 and S7"
    needs = (frozenset(("contacts",)), frozenset(("attentions",)))
    sources = ("chains", "coordinates")
    panels: tuple[Panel, ...] = ("model",)

    def questions(self) -> Iterator[Question]:
        """Contacts of the chains shown; or attention maps of these, after those of the chains to fit on."""
        drawn = draw_chains(data_folder(self.options.data), self.options.seed, CANDIDATES, self.model.max_residues)
        self.shown = [chain for chain in drawn.test if SHORTEST <= len(chain.residues) <= LONGEST][:SHOWN]
        if not self.shown:
            raise InputError(f"no chain of {SHORTEST} to {LONGEST} residues has coordinates and fits the model")
        self.has_head = "contacts" in self.model.abilities
        self.fitted: list[PdbChain] = [] if self.has_head else drawn.train
        self.touching = {chain.id: drawn.coordinates.contacts(chain.id) for chain in (*self.fitted, *self.shown)}
        self.rows: dict[int, ContactRows] = {}
        self.maps: dict[int, np.ndarray] = {}
        for chain in (*self.fitted, *self.shown):
            yield Question(chain.residues, Wanted(contacts=self.has_head, attentions=not self.has_head))

    def collect(self, panel: Panel, number: int, reply: Reply) -> None:
        """Keep the probabilities; or the pairs to fit on and the maps of the chains that are shown."""
        if self.has_head:
            assert reply.contacts is not None, "contacts were wanted"
            self.maps[number] = reply.contacts
            return
        assert reply.attentions is not None, "attention maps were wanted"
        maps_MLL = reply.attentions.reshape(-1, *reply.attentions.shape[-2:])
        if number < len(self.fitted):
            contacts_LL = self.touching[self.fitted[number].id]
            self.rows[number] = contact_rows(torch.from_numpy(maps_MLL), contacts_LL)
        else:
            self.maps[number - len(self.fitted)] = maps_MLL

    def finish(self) -> Table:
        """Pairs of residues, i < j from 1: contacts of the structure, and likely pairs, right or wrong."""
        columns = Columns("chain", "length", "i", "j", "kind", "score")
        note = "probabilities of the model's contact head"
        scores = self.maps
        if not self.has_head:
            found = fit_contact_rows([self.rows[number] for number in sorted(self.rows)])
            scores = {number: weighted_map(maps, found.weight_M) + found.bias for number, maps in self.maps.items()}
            note = f"log odds of a regression on attention maps, fitted on {found.proteins} other chains"
        for number, chain in enumerate(self.shown):
            contacts_LL, length = self.touching[chain.id], len(chain.residues)
            for i, j in zip(*np.triu_indices(length, MINIMUM_SEPARATION), strict=True):
                if contacts_LL[i, j] == 1:
                    columns.add(chain.id, length, int(i) + 1, int(j) + 1, "contact", float(scores[number][i, j]))
            for i, j, right in likeliest(scores[number], contacts_LL):
                kind = "right" if right else "wrong"
                columns.add(chain.id, length, i + 1, j + 1, kind, float(scores[number][i, j]))
        return columns.table(note, f"pairs at least {MINIMUM_SEPARATION} apart along the chain")

    def draw(self, table: Table) -> Any:
        """Two maps in a row."""
        from matplotlib.lines import Line2D

        chains = table.distinct("chain")
        down = -(-len(chains) // 2)
        figure = new_figure(7.6, 3.7 * down + 1.0, f"{self.title}: {self.model.name}")
        grid = figure.subplots(down, 2, squeeze=False)
        for axis in grid.flat[len(chains) :]:
            axis.set_visible(False)
        for axis, chain in zip(grid.flat, chains, strict=False):
            _map(axis, table.where("chain", chain))
            axis.set_title(_precision(chain, table.where("chain", chain)), fontsize=9)
        names = {"contact": "contact of the structure", "right": "predicted, right", "wrong": "predicted, wrong"}
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6, label=names[kind])
            for kind, (colour, marker) in KINDS.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        return figure


def _precision(chain: str, part: Table) -> str:
    right, wrong = (len(part.where("kind", kind)) for kind in ("right", "wrong"))
    return f"chain {chain}: {right} of {right + wrong} right"


def _map(axis: Any, part: Table) -> None:
    length = part.columns["length"][0]
    for kind, (colour, marker) in KINDS.items():
        mine = part.where("kind", kind)
        i, j = mine.numbers("i"), mine.numbers("j")
        size = 900 / length
        if kind == "contact":
            axis.scatter(j, i, s=size, c=colour, marker=marker, linewidths=0)
        axis.scatter(i, j, s=size, c=colour, marker=marker, linewidths=0 if marker == "s" else 0.9)
    axis.plot([1, length], [1, length], color="0.6", linewidth=0.6)
    axis.set(xlim=(0, length + 1), ylim=(length + 1, 0), aspect="equal", xlabel="residue", ylabel="residue")
    axis.xaxis.label.set_size(8)
    axis.yaxis.label.set_size(8)
    axis.tick_params(labelsize=7)
