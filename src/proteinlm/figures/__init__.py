"""Figures: what the papers show of representations, each as a picture and as a table of what is in it.

`base` is the contract, `FIGURES` the explicit table; `run` asks the models and writes the files. A figure is drawn from
its table alone, so that the CSV file holds all that is seen. Like a task, a figure never calls a model.
"""

from proteinlm.figures.amino_acids import AminoAcids
from proteinlm.figures.base import Figure
from proteinlm.figures.contacts import ContactMaps
from proteinlm.figures.cosines import AlignmentCosines
from proteinlm.figures.maps import EnzymeMap, KingdomMap, MembraneMap, OrthologMap, StructureMap
from proteinlm.figures.species import SpeciesOrthology
from proteinlm.figures.strips import SecondaryStructureStrips

__all__ = ["FIGURES", "Figure"]

FIGURES: dict[str, type[Figure]] = {
    kind.name: kind
    for kind in (
        AminoAcids,
        OrthologMap,
        SpeciesOrthology,
        AlignmentCosines,
        SecondaryStructureStrips,
        ContactMaps,
        StructureMap,
        KingdomMap,
        EnzymeMap,
        MembraneMap,
    )
}
"""Figures by the name that `plm figures --figures` takes."""
