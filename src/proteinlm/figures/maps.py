"""Maps of proteins: mean vectors by t-SNE, coloured by what is known of each, for a model and what it must beat.

In: labelled proteins, the same number of each label, drawn at random. Out: a map for each panel. Above each stands how
many proteins have a nearest neighbour (by cosine, in the full space) of their own label: maps alone can mislead.
Source: papers.md 3, row b (Rives et al., Figure 2A); 7.4 (Elnaggar et al., protein maps).
"""

import abc
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from proteinlm.datasets.annotations import ENZYME_CLASSES, KINGDOMS, read_kingdoms, read_orthologs
from proteinlm.datasets.domains import read_scop
from proteinlm.datasets.localisation import read_deeploc
from proteinlm.errors import InputError
from proteinlm.figures.base import Columns, Figure, Panel, Table
from proteinlm.figures.projection import nearest_alike, t_sne
from proteinlm.figures.style import legend, marks, new_figure, scatter
from proteinlm.tasks.base import Question, Reply, Wanted

POINTS, QUICK_POINTS = 420, 120
"""Proteins of a map, about; the exact method takes seconds for so many."""

LONGEST = 600
"""Residues: longer proteins are left out of maps that have shorter ones to take, for the sake of time."""

ORTHOGROUPS = 12
"""Drawn; more would be hard to tell apart."""

STRUCTURAL_CLASSES = {
    "a": "all alpha",
    "b": "all beta",
    "c": "alpha / beta",
    "d": "alpha + beta",
    "e": "multi-domain",
    "f": "membrane",
    "g": "small",
}
"""The true classes of SCOP."""

Point = tuple[str, str, str]
"""Id, residues, label."""


class ProteinMap(Figure, abc.ABC):
    """A map. Subclasses are final and read their proteins."""

    legend: str
    note: str = ""

    @abc.abstractmethod
    def points(self) -> Sequence[Point]:
        """All proteins that may be drawn, labels in the order of the legend."""

    def questions(self) -> Iterator[Question]:
        """The mean vector of each protein drawn."""
        self.chosen = self._drawn(self.points())
        self.vectors: dict[Panel, dict[int, np.ndarray]] = {}
        for _, residues, _ in self.chosen:
            yield Question(residues, Wanted(mean=True, layer=self.options.layer))

    def _drawn(self, points: Sequence[Point]) -> list[Point]:
        """As many of each label as there is room for, in the order of the labels."""
        labels = list(dict.fromkeys(label for _, _, label in points))
        if len(labels) < 2:
            raise InputError(f"{self.name}: {len(labels)} kinds of proteins; a map needs two")
        most = (QUICK_POINTS if self.options.quick else POINTS) // len(labels)
        random, chosen = self.random(), []
        for label in labels:
            mine = [point for point in points if point[2] == label]
            chosen += [mine[number] for number in sorted(random.permutation(len(mine))[:most])]
        return chosen

    def collect(self, panel: Panel, number: int, reply: Reply) -> None:
        """Keep the vector."""
        assert reply.mean is not None, "the mean was wanted"
        self.vectors.setdefault(panel, {})[number] = reply.mean

    def finish(self) -> Table:
        """Coordinates of each protein in each panel."""
        columns = Columns("panel", "id", "label", "x", "y", "nearest_alike")
        labels = [label for _, _, label in self.chosen]
        for panel, vectors in self.vectors.items():
            vectors_ND = np.stack([vectors[number] for number in range(len(self.chosen))])
            places_N2 = t_sne(vectors_ND, self.options.seed)
            for point, place, alike in zip(self.chosen, places_N2, nearest_alike(vectors_ND, labels), strict=True):
                columns.add(self.label(panel), point[0], point[2], float(place[0]), float(place[1]), alike)
        return columns.table(self.note)

    def draw(self, table: Table) -> Any:
        """A panel each, one legend."""
        panels, of = table.distinct("panel"), marks(table.distinct("label"))
        figure = new_figure(3.4 * len(panels) + 2.2, 3.9, self.title)
        for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            part = table.where("panel", panel)
            scatter(axis, part, of)
            share = part.numbers("nearest_alike").mean()
            axis.set_title(f"{panel}\nnearest neighbour alike: {share:.0%}", fontsize=9)
        legend(figure, of, self.legend)
        return figure


class OrthologMap(ProteinMap):
    """Orthologous groups of genes: trained, untrained, composition."""

    name = "orthologs"
    title = "Genes of orthologous groups"
    source = "Rives et al. 2021, Figure 2A"
    sources = ("orthobench",)
    panels: tuple[Panel, ...] = ("model", "untrained", "composition")
    legend = "orthogroup"
    note = "the orthogroups of Open OrthoBench that the most species have; the paper's groups were not told"

    def points(self) -> Sequence[Point]:
        """All proteins of the groups that the most species have."""
        proteins = read_orthologs(self.options.data)
        species = Counter(group for group, _ in {(protein.group, protein.species) for protein in proteins})
        most = sorted(species, key=lambda group: (-species[group], group))[:ORTHOGROUPS]
        chosen = [protein for protein in proteins if protein.group in most]
        return [(one.id, one.residues, one.group) for one in sorted(chosen, key=lambda one: (one.group, one.id))]


class StructureMap(ProteinMap):
    """SCOP domains by structural class."""

    name = "structural-class"
    title = "Domains by structural class"
    source = "Elnaggar et al. 2021, protein maps; SCOPe"
    sources = ("scop",)
    legend = "SCOP class"
    note = "domains that are whole chains; the paper has the 40 % set of SCOPe 2.07"

    def points(self) -> Sequence[Point]:
        """The domains of the seven true classes."""
        domains = read_scop(self.options.data)
        return [
            (one.id, one.residues, name)
            for letter, name in STRUCTURAL_CLASSES.items()
            for one in domains
            if one.sccs[0] == letter and len(one.residues) <= LONGEST
        ]


class KingdomMap(ProteinMap):
    """Proteins by kingdom of life, and viruses."""

    name = "kingdom"
    title = "Proteins by kingdom of life"
    source = "Elnaggar et al. 2021, protein maps"
    sources = ("kingdom",)
    legend = "kingdom"
    note = "kingdoms come from different collections, which a model may tell apart by other things than the kingdom"

    def points(self) -> Sequence[Point]:
        """All proteins of at most 600 residues."""
        proteins = read_kingdoms(self.options.data)
        return [
            (one.id, one.residues, kingdom)
            for kingdom in KINGDOMS
            for one in proteins
            if one.kingdom == kingdom and len(one.residues) <= LONGEST
        ]


class EnzymeMap(ProteinMap):
    """Enzymes by main class."""

    name = "enzyme-class"
    title = "Enzymes by main class"
    source = "Elnaggar et al. 2021, protein maps"
    sources = ("kingdom",)
    legend = "EC main class"

    def points(self) -> Sequence[Point]:
        """All proteins with an EC number, of at most 600 residues."""
        proteins = read_kingdoms(self.options.data)
        return [
            (one.id, one.residues, f"{number + 1} {name}")
            for number, name in enumerate(ENZYME_CLASSES)
            for one in proteins
            if one.enzyme_class == number and len(one.residues) <= LONGEST
        ]


class MembraneMap(ProteinMap):
    """Membrane and soluble proteins."""

    name = "membrane"
    title = "Membrane and soluble proteins"
    source = "Elnaggar et al. 2021, protein maps"
    sources = ("deeploc",)
    legend = "DeepLoc"

    def points(self) -> Sequence[Point]:
        """All proteins with a label of DeepLoc's own, of at most 600 residues."""
        proteins = [
            one
            for one in read_deeploc(self.options.data)
            if one.membrane_class is not None and not one.membrane_is_weak and len(one.residues) <= LONGEST
        ]
        return [
            (one.id, one.residues, name)
            for number, name in enumerate(("soluble", "membrane"))
            for one in proteins
            if one.membrane_class == number
        ]
