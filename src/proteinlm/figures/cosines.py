"""How alike aligned residues are: cosines of residue pairs of one family, of the same column and of different ones.

In: the alignment of PF00014. Out: histograms in three conditions (all pairs, the same amino acid, different amino
acids), for the model and its untrained twin, with the AUC that tells the two kinds of pairs apart. Source: papers.md 3,
row e (Rives et al., Figure 3, which shows PF01010).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from proteinlm.datasets.alignments import read_pfam
from proteinlm.errors import InputError
from proteinlm.figures.base import Columns, Figure, Panel, Table
from proteinlm.figures.style import BLUE, ORANGE, new_figure
from proteinlm.metrics import area_under_roc
from proteinlm.tasks.alignment import (
    CONDITIONS,
    EXAMPLE,
    PAIRS,
    QUICK_PAIRS,
    QUICK_SEQUENCES,
    SEQUENCES,
    cosines,
    draw_family,
)
from proteinlm.tasks.base import Question, Reply, Wanted
from proteinlm.tasks.homology import unit

BINS = 40
KINDS = ("same column", "different columns")


class AlignmentCosines(Figure):
    """Histograms of cosines in one family."""

    name = "alignment-cosines"
    title = f"Cosine of residue pairs of {EXAMPLE}"
    source = "Rives et al. 2021, Figure 3"
    sources = ("pfam",)

    def questions(self) -> Iterator[Question]:
        """The residue vectors of the sequences drawn."""
        families = [family.alignment for family in read_pfam(self.options.data) if family.id == EXAMPLE]
        if not families:
            raise InputError(f"the alignments of Pfam lack {EXAMPLE}, which is shown; get the file again")
        sizes = (QUICK_SEQUENCES, QUICK_PAIRS) if self.options.quick else (SEQUENCES, PAIRS)
        self.family = draw_family(families[0], *sizes, self.random())
        self.vectors: dict[Panel, dict[int, np.ndarray]] = {}
        for residues in self.family.residues:
            yield Question(residues, Wanted(kept=True, layer=self.options.layer))

    def collect(self, panel: Panel, number: int, reply: Reply) -> None:
        """Keep the vectors, which lie in a file."""
        assert reply.kept is not None, "kept vectors were wanted"
        self.vectors.setdefault(panel, {})[number] = reply.kept

    def finish(self) -> Table:
        """Shares of the pairs of each kind in bins of the cosine."""
        columns = Columns("panel", "condition", "pairs", "low", "high", "share", "count", "auc")
        for panel in self.vectors:
            found = self._cosines(panel)
            # From the lowest cosine of the panel on: those of a trained model often lie within a tenth of 1.
            lowest = min((float(values.min()) for pair in found.values() for values in pair), default=0.0)
            edges = np.linspace(np.floor(10 * min(lowest, 0.9)) / 10, 1, BINS + 1)
            for name, pair in found.items():
                auc = area_under_roc(*pair)
                for kind, values in zip(KINDS, pair, strict=True):
                    counts = np.histogram(np.minimum(values, 1), edges)[0]
                    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
                        share = float(count / len(values))
                        columns.add(self.label(panel), name, kind, float(low), float(high), share, int(count), auc)
        if not columns.rows:
            raise InputError(f"{EXAMPLE} has no pairs of both kinds in any condition; more sequences are needed")
        return columns.table(f"{EXAMPLE} in place of the paper's PF01010, {len(self.family.residues)} sequences")

    def _cosines(self, panel: Panel) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of pairs of the same column and of different ones, in each condition that has both."""
        parts = [self.vectors[panel][number] for number in range(len(self.family.residues))]
        vectors_RD, starts = unit(np.concatenate(parts).astype(np.float32)), np.cumsum([0, *map(len, parts)])
        found = {}
        for name in CONDITIONS:
            same, other = (cosines(vectors_RD, starts, pairs) for pairs in self.family.pairs[name])
            if len(same) and len(other):
                found[name] = (same, other)
        return found

    def draw(self, table: Table) -> Any:
        """A row for each panel, a column for each condition."""
        panels, conditions = table.distinct("panel"), table.distinct("condition")
        figure = new_figure(3.0 * len(conditions), 2.2 * len(panels) + 1.0, self.title)
        grid = figure.subplots(len(panels), len(conditions), squeeze=False, sharex="row")
        for axes, panel in zip(grid, panels, strict=True):
            for axis, condition in zip(axes, conditions, strict=True):
                part = table.where("panel", panel).where("condition", condition)
                for kind, colour in zip(KINDS, (BLUE, ORANGE), strict=True):
                    mine = part.where("pairs", kind)
                    edges = [*mine.columns["low"], mine.columns["high"][-1]]
                    axis.stairs(mine.columns["share"], edges, fill=True, color=colour, alpha=0.45, label=kind)
                    axis.stairs(mine.columns["share"], edges, color=colour, linewidth=1)
                axis.set_title(f"{condition}: AUC {part.columns['auc'][0]:.2f}", fontsize=9)
                axis.tick_params(labelsize=7)
                axis.spines[["top", "right"]].set_visible(False)
            axes[0].set_ylabel(f"{panel}\nshare of pairs", fontsize=8)
        for axis in grid[-1]:
            axis.set_xlabel("cosine", fontsize=8)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        return figure
