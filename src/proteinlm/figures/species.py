"""Genes and species as directions: four orthologous genes of four species by their two principal components.

In: orthogroups of which four species have one protein each. Out: a panel each for the model, its untrained twin and
amino-acid composition. Where a model tells species and genes apart, one axis sorts species and the other genes. Source:
papers.md 3, row c (Rives et al., Figure 2B).
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np

from proteinlm.datasets.annotations import OrthologousProtein, read_orthologs
from proteinlm.errors import InputError
from proteinlm.figures.base import Columns, Figure, Panel, Table
from proteinlm.figures.projection import principal_components
from proteinlm.figures.style import legend, marks, new_figure, spread
from proteinlm.tasks.base import Question, Reply, Wanted
from proteinlm.tasks.orthologs import single_copies

GENES = SPECIES = 4

LETTER = 0.055
"""What a letter takes of a panel's width."""


def choose(proteins: tuple[OrthologousProtein, ...]) -> list[OrthologousProtein]:
    """Four genes of four species: of the species that share the most single-copy genes, the first four of these.

    Args:
        proteins: of all orthogroups. Ties go to the names that come first.

    Returns:
        sixteen proteins of different sequences, gene by gene.

    Raises:
        InputError: no four species share four such genes.
    """
    single = single_copies(proteins)
    found: list[OrthologousProtein] = []
    most = GENES - 1
    for species in combinations(sorted({protein.species for protein in proteins}), SPECIES):
        shared = [
            name
            for name in sorted(single)
            if all(one in single[name] for one in species)
            and len({single[name][one].residues for one in species}) == SPECIES
        ]
        if len(shared) > most:
            most = len(shared)
            found = [single[name][one] for name in shared[:GENES] for one in species]
    if not found:
        raise InputError(f"no {SPECIES} species have single copies of the same {GENES} genes; more proteins are needed")
    return found


class SpeciesOrthology(Figure):
    """Four genes of four species in the plane."""

    name = "species-orthology"
    title = "Four genes (colour) in four species (letter)"
    source = "Rives et al. 2021, Figure 2B"
    sources = ("orthobench",)
    panels: tuple[Panel, ...] = ("model", "untrained", "composition")

    def questions(self) -> Iterator[Question]:
        """The mean vector of sixteen proteins."""
        self.chosen = choose(read_orthologs(self.options.data))
        self.vectors: dict[Panel, dict[int, np.ndarray]] = {}
        for protein in self.chosen:
            yield Question(protein.residues, Wanted(mean=True, layer=self.options.layer))

    def collect(self, panel: Panel, number: int, reply: Reply) -> None:
        """Keep the vector."""
        assert reply.mean is not None, "the mean was wanted"
        self.vectors.setdefault(panel, {})[number] = reply.mean

    def finish(self) -> Table:
        """Coordinates, and the share of the variance along each axis."""
        columns = Columns("panel", "id", "gene", "species", "letter", "x", "y", "share_x", "share_y")
        letters = {name: "ABCD"[number] for number, name in enumerate(sorted({one.species for one in self.chosen}))}
        for panel, vectors in self.vectors.items():
            places, shares = principal_components(np.stack([vectors[n] for n in range(len(self.chosen))]))
            for one, place in zip(self.chosen, places, strict=True):
                where = (float(place[0]), float(place[1]), float(shares[0]), float(shares[1]))
                columns.add(self.label(panel), one.id, one.group, one.species, letters[one.species], *where)
        return columns.table("genes and species of Open OrthoBench, not the paper's, which were not told")

    def draw(self, table: Table) -> Any:
        """A panel each; a letter at each point, one legend of colours and one of letters."""
        panels, of = table.distinct("panel"), marks(table.distinct("gene"))
        figure = new_figure(3.4 * len(panels) + 2.4, 3.9, self.title)
        for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            part = table.where("panel", panel)
            _letters(axis, part, [of[gene][0] for gene in part.columns["gene"]])
            axis.set_title(panel, fontsize=9)
            axis.set_xlabel(f"component 1 ({part.columns['share_x'][0]:.0%} of variance)", fontsize=8)
            axis.set_ylabel(f"component 2 ({part.columns['share_y'][0]:.0%})", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.locator_params(nbins=5)
        species = dict(zip(table.columns["letter"], table.columns["species"], strict=True))
        names = "\n".join(f"{letter}  {name.replace('_', ' ')}" for letter, name in sorted(species.items()))
        legend(figure, {gene: (colour, "s") for gene, (colour, _) in of.items()}, f"{names}\n\northogroup")
        return figure


def _letters(axis: Any, part: Table, colours: list[str]) -> None:
    """A dot at each place, and its letter as near to it as the other letters allow, with a line between the two."""
    places_N2 = np.stack([part.numbers("x"), part.numbers("y")], axis=1)
    low, high = places_N2.min(axis=0), places_N2.max(axis=0)
    size = np.where(high > low, high - low, 1.0)
    letters_N2 = spread((places_N2 - low) / size + [0.02, 0.03], LETTER) * size + low
    for letter, place, at, colour in zip(part.columns["letter"], places_N2, letters_N2, colours, strict=True):
        axis.plot(*np.stack([place, at], axis=1), color=colour, linewidth=0.5, alpha=0.6)
        axis.text(*at, letter, color=colour, fontsize=9, weight="bold", ha="center", va="center")
    axis.scatter(*places_N2.T, s=5, c=colours)
    axis.set_xlim(low[0] - 0.12 * size[0], high[0] + 0.14 * size[0])
    axis.set_ylim(low[1] - 0.12 * size[1], high[1] + 0.14 * size[1])
