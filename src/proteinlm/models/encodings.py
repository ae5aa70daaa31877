"""Encodings: what a residue is, without anything learnt of its neighbours. They are the baselines of every evaluation.

In: packed batches of the alphabet `RESIDUES`. Out: one hidden state, layer 0, in the interface of any other model, so
that whatever takes a model takes these by name. They have no parameters, no logits and no limit of length.

`one-hot` and `blosum62` give a row of a table for each residue; the mean over a protein is its amino-acid composition,
or that seen through BLOSUM62. `composition` gives every residue the composition of its whole protein, which is all that
a bag of residues knows. Letters beyond the twenty: X, U, O and J have no one-hot column and read the row X of BLOSUM62;
B and Z are half of each residue they stand for, and have rows of their own in BLOSUM62.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.sequences.alphabet import STANDARD, Alphabet
from proteinlm.sequences.batch import PackedBatch

RESIDUES = Alphabet(
    name="residues",
    tokens=("<pad>", *STANDARD, "X", "B", "Z"),
    pad=0,
    mask=None,
    substitutes=(("U", "X"), ("O", "X"), ("J", "X")),
)
"""The twenty residues, unknown, and the two ambiguous ones."""

# Henikoff & Henikoff 1992, PNAS 89:10915; as NCBI distributes it, in half bits.
_BLOSUM62 = """
   A  R  N  D  C  Q  E  G  H  I  L  K  M  F  P  S  T  W  Y  V  B  Z  X
A  4 -1 -2 -2  0 -1 -1  0 -2 -1 -1 -1 -1 -2 -1  1  0 -3 -2  0 -2 -1  0
R -1  5  0 -2 -3  1  0 -2  0 -3 -2  2 -1 -3 -2 -1 -1 -3 -2 -3 -1  0 -1
N -2  0  6  1 -3  0  0  0  1 -3 -3  0 -2 -3 -2  1  0 -4 -2 -3  3  0 -1
D -2 -2  1  6 -3  0  2 -1 -1 -3 -4 -1 -3 -3 -1  0 -1 -4 -3 -3  4  1 -1
C  0 -3 -3 -3  9 -3 -4 -3 -3 -1 -1 -3 -1 -2 -3 -1 -1 -2 -2 -1 -3 -3 -2
Q -1  1  0  0 -3  5  2 -2  0 -3 -2  1  0 -3 -1  0 -1 -2 -1 -2  0  3 -1
E -1  0  0  2 -4  2  5 -2  0 -3 -3  1 -2 -3 -1  0 -1 -3 -2 -2  1  4 -1
G  0 -2  0 -1 -3 -2 -2  6 -2 -4 -4 -2 -3 -3 -2  0 -2 -2 -3 -3 -1 -2 -1
H -2  0  1 -1 -3  0  0 -2  8 -3 -3 -1 -2 -1 -2 -1 -2 -2  2 -3  0  0 -1
I -1 -3 -3 -3 -1 -3 -3 -4 -3  4  2 -3  1  0 -3 -2 -1 -3 -1  3 -3 -3 -1
L -1 -2 -3 -4 -1 -2 -3 -4 -3  2  4 -2  2  0 -3 -2 -1 -2 -1  1 -4 -3 -1
K -1  2  0 -1 -3  1  1 -2 -1 -3 -2  5 -1 -3 -1  0 -1 -3 -2 -2  0  1 -1
M -1 -1 -2 -3 -1  0 -2 -3 -2  1  2 -1  5  0 -2 -1 -1 -1 -1  1 -3 -1 -1
F -2 -3 -3 -3 -2 -3 -3 -3 -1  0  0 -3  0  6 -4 -2 -2  1  3 -1 -3 -3 -1
P -1 -2 -2 -1 -3 -1 -1 -2 -2 -3 -3 -1 -2 -4  7 -1 -1 -4 -3 -2 -2 -1 -2
S  1 -1  1  0 -1  0  0  0 -1 -2 -2  0 -1 -2 -1  4  1 -3 -2 -2  0  0  0
T  0 -1  0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -2 -1  1  5 -2 -2  0 -1 -1  0
W -3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1  1 -4 -3 -2 11  2 -3 -4 -3 -2
Y -2 -2 -2 -3 -2 -1 -2 -3  2 -1 -1 -2 -1  3 -3 -2 -2  2  7 -1 -3 -2 -1
V  0 -3 -3 -3 -1 -2 -2 -3 -3  3  1 -2  1 -1 -2 -2  0 -3 -1  4 -3 -2 -1
B -2 -1  3  4 -3  0  1 -1  0 -3 -4  0 -3 -3 -2  0 -1 -4 -3 -3  4  1 -1
Z -1  0  0  1 -3  3  4 -2  0 -3 -3  1 -1 -3 -1  0 -1 -3 -2 -2  1  4 -1
X  0 -1 -1 -1 -2 -1 -1 -1 -1 -1 -1 -1 -1 -1 -2  0  0 -2 -1 -1 -1 -1 -1
"""


def one_hot_table() -> Float[np.ndarray, "V 20"]:
    """A row for each token of `RESIDUES`, a column for each residue of `STANDARD`, float32.

    >>> one_hot_table()[RESIDUES.residue_ids("ACX")].sum(axis=1).tolist()
    [1.0, 1.0, 0.0]
    """
    table = np.zeros((len(RESIDUES), len(STANDARD)), np.float32)
    table[RESIDUES.residue_ids(STANDARD)] = np.eye(len(STANDARD), dtype=np.float32)
    for letter, either in (("B", "DN"), ("Z", "EQ")):
        table[RESIDUES.residue_ids(letter)[0]] = table[RESIDUES.residue_ids(either)].mean(axis=0)
    return table


def blosum62_table() -> Float[np.ndarray, "V 20"]:
    """The row of each token of `RESIDUES` in BLOSUM62, a column for each residue of `STANDARD`, float32.

    >>> blosum62_table()[RESIDUES.residue_ids("W"), STANDARD.index("W")].item()
    11.0
    """
    head, *rows = (line.split() for line in _BLOSUM62.strip().splitlines())
    columns = [head.index(residue) for residue in STANDARD]
    table = np.zeros((len(RESIDUES), len(STANDARD)), np.float32)
    for letter, *scores in rows:
        table[RESIDUES.residue_ids(letter)[0]] = np.array(scores, np.float32)[columns]
    return table


class Encoding(ProteinModel):
    """A row of a table for each residue.

    Args:
        table_VD: a row for each token of `RESIDUES`.

    >>> batch = PackedBatch.pack([RESIDUES.encode("MKT")])
    >>> Encoding(one_hot_table())(batch, Want(layers=(0,))).hidden[0].shape
    torch.Size([3, 20])
    """

    alphabet = RESIDUES
    num_layers = 0
    max_residues = None
    has_logits = False
    precisions: tuple[torch.dtype, ...] = (torch.float32,)

    def __init__(self, table_VD: Float[np.ndarray, "V D"]) -> None:
        super().__init__()
        self.width = table_VD.shape[1]
        self.table_VD: Tensor
        self.register_buffer("table_VD", torch.from_numpy(table_VD))

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Look residues up; see `ProteinModel.forward`."""
        self.check(want)
        return Output(hidden={layer: self.table_VD[batch.tokens_T] for layer in want.layers})


class Composition(ProteinModel):
    """The composition of the whole protein for each of its residues.

    >>> batch = PackedBatch.pack([RESIDUES.encode("AAC")])
    >>> Composition()(batch, Want(layers=(0,))).hidden[0][2, :2].tolist()
    [0.6666666865348816, 0.3333333432674408]
    """

    alphabet = RESIDUES
    num_layers = 0
    width = len(STANDARD)
    max_residues = None
    has_logits = False
    precisions: tuple[torch.dtype, ...] = (torch.float32,)

    def __init__(self) -> None:
        super().__init__()
        self.table_VD: Tensor
        self.register_buffer("table_VD", torch.from_numpy(one_hot_table()))

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Average within each protein; see `ProteinModel.forward`."""
        self.check(want)
        means = [self.table_VD[batch.tokens_T[batch.tokens(b)]].mean(0) for b in range(len(batch))]
        lengths_B = batch.lengths_B(batch.tokens_T.device)
        hidden_TD = torch.repeat_interleave(torch.stack(means), lengths_B, dim=0)
        return Output(hidden=dict.fromkeys(want.layers, hidden_TD))


ENCODINGS: dict[str, str] = {
    "one-hot": "1 at the residue, 0 elsewhere",
    "blosum62": "the residue's row of BLOSUM62",
    "composition": "the protein's amino-acid composition at every residue",
}
"""Encodings by name, and what a residue's vector is."""


def build_encoding(name: str) -> tuple[ProteinModel, str]:
    """An encoding by its key in `ENCODINGS`, and the sha256 of its name and table.

    >>> build_encoding("blosum62")[0].width
    20
    """
    model: Encoding | Composition
    if name == "composition":
        model = Composition()
    else:
        model = Encoding({"one-hot": one_hot_table, "blosum62": blosum62_table}[name]())
    digest = hashlib.sha256(name.encode() + model.table_VD.numpy().tobytes()).hexdigest()
    return model.eval(), digest
