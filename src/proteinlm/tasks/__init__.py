"""Tasks: what the papers ask of a model, each as questions, collected replies and scored results.

`base` is the contract. `TASKS` is the explicit table; a new task is one file here and one line in it. A task never
calls a model: `evaluation` does. `published` holds the papers' figures.
"""

from proteinlm.tasks import published
from proteinlm.tasks.alignment import FamilyAlignment
from proteinlm.tasks.base import Entry, Published, Question, Reply, Result, Task, TaskOptions, TwoRoundTask, Wanted
from proteinlm.tasks.conservation import Conservation
from proteinlm.tasks.contacts import AttentionContacts, HeadContacts, ProjectedContacts
from proteinlm.tasks.homology import CathHomology, ScopHomology
from proteinlm.tasks.language import Language
from proteinlm.tasks.localisation import AttendedLocalisation, Localisation
from proteinlm.tasks.orthologs import OrthologArithmetic
from proteinlm.tasks.secondary_structure import (
    ConvolutionalSecondaryStructure,
    LinearSecondaryStructure,
    RecurrentSecondaryStructure,
)
from proteinlm.tasks.variants import VariantEffects

__all__ = [
    "TASKS",
    "Entry",
    "Published",
    "Question",
    "Reply",
    "Result",
    "Task",
    "TaskOptions",
    "TwoRoundTask",
    "Wanted",
]

TASKS: dict[str, Entry] = {
    Language.name: Entry(Language, published.LANGUAGE),
    ScopHomology.name: Entry(ScopHomology, published.HOMOLOGY),
    CathHomology.name: Entry(CathHomology),
    FamilyAlignment.name: Entry(FamilyAlignment),
    LinearSecondaryStructure.name: Entry(LinearSecondaryStructure, published.SECONDARY_STRUCTURE_LINEAR),
    ConvolutionalSecondaryStructure.name: Entry(ConvolutionalSecondaryStructure, published.SECONDARY_STRUCTURE_CNN),
    RecurrentSecondaryStructure.name: Entry(RecurrentSecondaryStructure, published.SECONDARY_STRUCTURE_LSTM),
    ProjectedContacts.name: Entry(ProjectedContacts, published.CONTACTS_LINEAR),
    AttentionContacts.name: Entry(AttentionContacts, published.CONTACTS_ATTENTION),
    HeadContacts.name: Entry(HeadContacts, published.CONTACTS_ATTENTION),
    OrthologArithmetic.name: Entry(OrthologArithmetic),
    Localisation.name: Entry(Localisation, published.LOCALISATION),
    AttendedLocalisation.name: Entry(AttendedLocalisation, published.LOCALISATION_ATTENTION),
    Conservation.name: Entry(Conservation),
    VariantEffects.name: Entry(VariantEffects, published.VARIANTS),
}
"""Tasks by the name that `plm evaluate --tasks` takes, in the order of the report."""
