"""The twenty amino acids as a model has learnt them: its embedding of each, by t-SNE.

In: the rows of the output embedding where a model has one of its own, else of the input embedding. Out: a map, coloured
by what a side chain is like, points as large as the residue is heavy. Source: papers.md 3, row a (Rives et al., Figure
1); 7.4 (Elnaggar et al., amino-acid maps).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.figures.base import Columns, Panel, Table, WeightsFigure
from proteinlm.figures.projection import nearest_alike, t_sne
from proteinlm.figures.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION, legend, new_figure
from proteinlm.models.albert import Albert
from proteinlm.models.base import ProteinModel
from proteinlm.models.bert import Bert
from proteinlm.models.electra import ElectraDiscriminator, ElectraGenerator, ElectraPair
from proteinlm.models.elmo import Elmo
from proteinlm.models.encodings import Encoding
from proteinlm.models.esm import Esm1, Esm1b, Esm2
from proteinlm.models.recurrent import BidirectionalLstm
from proteinlm.models.t5 import T5, T5Encoder
from proteinlm.models.transformer_xl import TransformerXl
from proteinlm.models.unirep import UniRep
from proteinlm.models.xlnet import Xlnet
from proteinlm.sequences.alphabet import STANDARD
from proteinlm.tasks.base import Question, Reply

PERPLEXITY = 5.0
"""Neighbours that count among twenty."""

KINDS = {
    "hydrophobic": ("AVLIM", BLUE, "o"),
    "aromatic": ("FWY", PURPLE, "D"),
    "polar": ("STNQ", GREEN, "s"),
    "positive": ("KRH", VERMILLION, "^"),
    "negative": ("DE", ORANGE, "v"),
    "special": ("CGP", BLACK, "P"),
}
"""What a side chain is like: residues, colour, marker."""

# Average masses of residues in Da (IUPAC atomic weights), in the order of STANDARD.
MASSES = dict(
    zip(
        STANDARD,
        (
            *(71.08, 103.14, 115.09, 129.12, 147.18, 57.05, 137.14, 113.16, 128.17, 113.16),
            *(131.19, 114.10, 97.12, 128.13, 156.19, 87.08, 101.10, 99.13, 186.21, 163.18),
        ),
        strict=True,
    )
)


@dataclass(frozen=True)
class Embedding:
    """What each amino acid is to a model.

    Args:
        which: which of its matrices. rows: of the residues of `STANDARD`, fp32, shape (20, D).
    """

    which: str
    rows: Float[np.ndarray, "20 D"]


def _bert_like(model: Any) -> Tensor:
    weight: Tensor = model.embedding.tokens.weight
    return weight


def _tokens(model: Any) -> Tensor:
    weight: Tensor = model.embed_tokens.weight
    return weight


def _unirep(model: Any) -> Tensor:
    # The head has no row for <pad>, token 0.
    return torch.nn.functional.pad(model.head.weight, (0, 0, 1, 0))


_BOTH, _INPUT, _OUTPUT = "embedding of input and output", "input embedding", "output embedding"

_TABLES: dict[type[ProteinModel], tuple[str, Callable[[Any], Tensor]]] = {
    Albert: (_BOTH, _bert_like),
    Bert: (_BOTH, _bert_like),
    ElectraDiscriminator: (_INPUT, _bert_like),
    ElectraGenerator: (_BOTH, _bert_like),
    ElectraPair: (_BOTH, _bert_like),
    Elmo: (_INPUT, _tokens),
    Encoding: (_INPUT, lambda model: model.table_VD),
    Esm1: (_OUTPUT, lambda model: model.output),
    Esm1b: (_BOTH, _tokens),
    Esm2: (_BOTH, _tokens),
    BidirectionalLstm: (_OUTPUT, lambda model: model.head.weight),
    T5: (_BOTH, _tokens),
    T5Encoder: (_INPUT, _tokens),
    TransformerXl: (_BOTH, _tokens),
    UniRep: (_OUTPUT, _unirep),
    Xlnet: (_BOTH, _tokens),
}
"""Of each class of models, which matrix is shown and where it is: a row for each token of the alphabet."""


def embedding_of(model: ProteinModel) -> Embedding:
    """A model's embedding of the twenty amino acids.

    Raises:
        InputError: the model has none.

    >>> from proteinlm.models.encodings import one_hot_table
    >>> embedding_of(Encoding(one_hot_table())).rows.shape
    (20, 20)
    """
    if type(model) not in _TABLES:
        raise InputError(f"{type(model).__name__} has no embedding of amino acids; take a model with weights")
    which, table = _TABLES[type(model)]
    rows = table(model).detach().float().numpy()[model.alphabet.residue_ids(STANDARD)]
    return Embedding(which, rows)


class AminoAcids(WeightsFigure):
    """The embedding of the twenty amino acids, beside that of the untrained model."""

    name = "amino-acids"
    title = "Amino acids"
    source = "Rives et al. 2021, Figure 1; Elnaggar et al. 2021, amino-acid maps"
    needs = (frozenset(),)

    def questions(self) -> Iterator[Question]:
        """None: it is the weights that are shown."""
        self.found: dict[Panel, Embedding] = {}
        return iter(())

    def collect(self, panel: Panel, number: int, reply: Reply) -> None:
        """Never called."""
        raise AssertionError("no question was asked")

    def read(self, panel: Panel, model: ProteinModel) -> None:
        """Take the embedding."""
        self.found[panel] = embedding_of(model)

    def finish(self) -> Table:
        """Coordinates of each amino acid in each panel."""
        columns = Columns("panel", "residue", "label", "mass", "x", "y", "nearest_alike")
        kinds = [next(kind for kind, (residues, _, _) in KINDS.items() if one in residues) for one in STANDARD]
        for panel, embedding in self.found.items():
            places = t_sne(embedding.rows, self.options.seed, PERPLEXITY)
            alike = nearest_alike(embedding.rows, kinds)
            for number, residue in enumerate(STANDARD):
                place = (float(places[number, 0]), float(places[number, 1]))
                columns.add(self.label(panel), residue, kinds[number], MASSES[residue], *place, alike[number])
        return columns.table(*dict.fromkeys(f"rows of the {one.which}" for one in self.found.values()))

    def draw(self, table: Table) -> Any:
        """A panel each; letters beside the points."""
        panels = table.distinct("panel")
        figure = new_figure(3.6 * len(panels) + 1.6, 4.0, f"{self.title}: {', '.join(table.notes)}")
        for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            part = table.where("panel", panel)
            for kind, (_, colour, marker) in KINDS.items():
                mine = part.where("label", kind)
                x, y, sizes = mine.numbers("x"), mine.numbers("y"), mine.numbers("mass")
                axis.scatter(x, y, s=sizes / 2, c=colour, marker=marker, linewidths=0, alpha=0.8)
                for residue, at in zip(mine.columns["residue"], zip(x, y, strict=True), strict=True):
                    axis.annotate(residue, at, (5, 4), textcoords="offset points", fontsize=9)
            share = part.numbers("nearest_alike").mean()
            axis.set_title(f"{panel}\nnearest neighbour of the same kind: {share:.0%}", fontsize=9)
            axis.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
            axis.margins(0.12)
        of = {kind: (colour, marker) for kind, (_, colour, marker) in KINDS.items()}
        legend(figure, of, "side chain\n(size: mass)")
        return figure
