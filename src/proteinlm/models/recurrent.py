"""The bidirectional LSTM baselines of Rives et al.: one stack reads forwards, one backwards, and they never meet.

In: packed batches of the alphabet `ESM1B`. Out: hidden states of every layer, both directions side by side, and logits
of the residue at each token. Inside, the tokens of each direction are laid out time-major, in torch's packed sequences;
on a CPU with a little padding, which nothing reads (`SIDE_BY_SIDE`).

Source: papers.md 2.1, where this layout is derived from the paper's parameter counts and its word "biLM" and marked as
not documented. As in ELMo, which coined the word, both directions share the token embedding and the output embedding,
and the forward state after token t - 1 speaks about token t, as does the backward state after token t + 1. Here both
speak at once: their logits are added. So the logits at a token never depend on what stands there, and the model serves
the masked objective (ECE over masked positions, like the Transformers) with or without a mask in the input.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from proteinlm.errors import InputError
from proteinlm.models.base import Output, Preparable, ProteinModel, Want, require_fp32
from proteinlm.models.unirep import time_major
from proteinlm.sequences.alphabet import ESM1B
from proteinlm.sequences.batch import PackedBatch

SIDE_BY_SIDE = 8
"""Sequences that a CPU reads at once, padded to the longest of them. torch gives packed sequences to oneDNN only where
all are of one length; its own loop over unequal ones adds up the gradient of every weight at every step. Measured on
one Zen 5 thread, proteins of 30 to 1,022 residues: a training step is 20 times (S) to 50 times (2 layers of 256)
faster, and 8 at once beat 2, 4, 16 and 32. Projected states are beyond torch's oneDNN path and read without padding."""


@dataclass(frozen=True)
class LstmConfig:
    """Shape of a bidirectional LSTM; the default is the paper's large one.

    Args:
        num_layers: layers of each direction, each reading the states of its own direction below.
        width: channels of the state of one direction, and of the embedding; a hidden state has twice as many.
        cell_width: channels of the cell, from which the state is projected; None for a plain LSTM without projection.

    >>> PRESETS["S"]
    LstmConfig(num_layers=3, width=768, cell_width=None)
    """

    num_layers: int = 3
    width: int = 1536
    cell_width: int | None = None


PRESETS: dict[str, LstmConfig] = {"S": LstmConfig(width=768), "L": LstmConfig(width=1536)}
"""The paper's two (papers.md 2.1). Two layers with cells of 2048 and 4096 projected to 384 and 768 count as many."""


class BidirectionalLstm(ProteinModel):
    """A forward and a backward LSTM language model that share their embeddings.

    `hidden[k]` holds the states of layer k after they read the token: forward in the first half of the channels,
    backward in the second; `hidden[0]` is the embedding, twice. `logits_TV[t]` are about the token at t itself and are
    made of the forward state at t - 1 and the backward state at t + 1; at the ends one direction has nothing to say and
    adds zero.

    A new model draws from torch's generator: embedding N(0, 1), matrices uniform within 1/sqrt(cell), biases of the
    forget gates 1 (Jozefowicz et al. 2015), the other biases as torch draws them.

    Args:
        config: the shape; `PRESETS` has the paper's.

    >>> model = BidirectionalLstm(LstmConfig(num_layers=2, width=8))
    >>> batch = PackedBatch.pack([ESM1B.encode("MKT"), ESM1B.encode("MARV")], prefix=1, suffix=1)
    >>> output = model(batch, Want(layers=(2,), logits=True))
    >>> output.hidden[2].shape, output.logits_TV.shape, output.hidden[2][batch.residues(1)].shape
    (torch.Size([11, 16]), torch.Size([11, 33]), torch.Size([4, 16]))
    """

    alphabet = ESM1B
    max_residues = None
    precisions: tuple[torch.dtype, ...] = (torch.float32,)
    """What `prepare` takes. bf16 is refused, as for UniRep: over a long protein the cells would add up its rounding."""

    def __init__(self, config: LstmConfig) -> None:
        super().__init__()
        if config.cell_width is not None and config.cell_width <= config.width:
            raise InputError(
                f"cell_width {config.cell_width} does not exceed width {config.width}; a state is projected to fewer "
                "channels than its cell has, so raise it or leave it out"
            )
        self.config = config
        self.num_layers = config.num_layers
        self.width = 2 * config.width
        self.embed_tokens = nn.Embedding(len(ESM1B), config.width)
        self.layers = nn.ModuleList(TwoDirections(config.width, config.cell_width) for _ in range(config.num_layers))
        self.head = nn.Linear(config.width, len(ESM1B))

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`."""
        self.check(want)
        output = Output()
        padded = batch.tokens_T.device.type == "cpu" and self.config.cell_width is None
        ahead = Reading.padded(batch) if padded else Reading.exact(batch)
        back = ahead.mirrored(batch)
        forward_TD = backward_TD = self.embed_tokens(batch.tokens_T)
        if 0 in want.layers:
            output.hidden[0] = torch.cat([forward_TD, backward_TD], dim=1)
        last = self.num_layers if want.logits else max(want.layers, default=0)
        for number, layer in enumerate(self.layers[:last], start=1):
            forward_TD, backward_TD = self.through(layer, forward_TD, backward_TD, ahead, back)
            if number in want.layers:
                output.hidden[number] = torch.cat([forward_TD, backward_TD], dim=1)
        if want.logits:
            around_TD = from_both_sides(forward_TD, backward_TD, batch)
            output.logits_TV = self.head(self.wanted(around_TD, want))
        return output


class TwoDirections(nn.Module, Preparable):
    """One layer of each direction.

    Args:
        width: channels in and out of a direction. cell_width: of its cell, if the state is projected.
    """

    def __init__(self, width: int, cell_width: int | None) -> None:
        super().__init__()
        cells, projected = (width, 0) if cell_width is None else (cell_width, width)
        self.forwards = nn.LSTM(width, cells, proj_size=projected)
        self.backwards = nn.LSTM(width, cells, proj_size=projected)
        with torch.no_grad():
            for direction in (self.forwards, self.backwards):
                # torch's gates stand in the order input, forget, cell, output, and their two biases are added.
                forget = slice(cells, 2 * cells)
                nn.init.ones_(direction.get_parameter("bias_ih_l0")[forget])
                nn.init.zeros_(direction.get_parameter("bias_hh_l0")[forget])

    def prepare_weights(self, precision: torch.dtype) -> None:
        """Nothing to lay out in fp32.

        Raises:
            InputError: for any other precision.
        """
        require_fp32(precision, "an LSTM")

    def forward(
        self, forward_TD: Float[Tensor, "T D"], backward_TD: Float[Tensor, "T D"], ahead: "Reading", back: "Reading"
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]:
        """States of both directions, each from its own states below."""
        return ahead.run(self.forwards, forward_TD), back.run(self.backwards, backward_TD)


@dataclass(frozen=True)
class Reading:
    """The order in which a recurrence reads a packed batch.

    Args:
        groups: for each group of sequences, the token at each place of its time-major layout, and how many sequences
            have one at each step (on the CPU, as torch wants it).
        place_T: where the state of each token stands in the layouts of all groups, one after the other.
    """

    groups: tuple[tuple[Int[Tensor, "P"], Int[Tensor, "S"]], ...]
    place_T: Int[Tensor, "T"]

    @classmethod
    def exact(cls, batch: PackedBatch) -> "Reading":
        """All sequences at once, without padding."""
        order_T, running = time_major(batch)
        return cls(((order_T, torch.tensor(running)),), torch.argsort(order_T))

    @classmethod
    def padded(cls, batch: PackedBatch) -> "Reading":
        """Sequences of similar length together, `SIDE_BY_SIDE` at most; a shorter one repeats its last token.

        >>> batch = PackedBatch.pack([np.array([0, 5, 2]), np.array([0, 6, 7, 2])])
        >>> reading = Reading.padded(batch)
        >>> reading.groups[0][0].tolist(), reading.groups[0][1].tolist(), reading.place_T.tolist()
        ([3, 0, 4, 1, 5, 2, 6, 2], [2, 2, 2, 2], [1, 3, 5, 0, 2, 4, 6])
        """
        starts, lengths = np.array(batch.starts[:-1]), np.diff(batch.starts)
        by_length = np.argsort(-lengths, kind="stable")
        groups, place_T, filled = [], np.empty(batch.starts[-1], dtype=np.int64), 0
        for first in range(0, len(by_length), SIDE_BY_SIDE):
            members = by_length[first : first + SIDE_BY_SIDE]
            steps = np.arange(lengths[members[0]])[:, None]
            order = starts[members] + np.minimum(steps, lengths[members] - 1)
            is_token = steps < lengths[members]
            place_T[order[is_token]] = filled + np.flatnonzero(is_token)
            filled += order.size
            groups.append((torch.from_numpy(order.ravel()), torch.full((len(order),), len(members))))
        device = batch.tokens_T.device
        moved = tuple((order.to(device), running) for order, running in groups)
        return cls(moved, torch.from_numpy(place_T).to(device))

    def mirrored(self, batch: PackedBatch) -> "Reading":
        """The same, with every sequence read from its other end."""
        mirror_T = mirror(batch)
        return Reading(tuple((mirror_T[order], running) for order, running in self.groups), self.place_T[mirror_T])

    def run(self, lstm: nn.LSTM, input_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """States of one layer, from its input; both in the order of the batch."""
        states = [lstm(PackedSequence(input_TD[order], running))[0].data for order, running in self.groups]
        return torch.cat(states)[self.place_T]


def mirror(batch: PackedBatch) -> Int[Tensor, "T"]:
    """For each token, the one that stands as far from the other end of its sequence.

    >>> batch = PackedBatch.pack([ESM1B.encode("MK"), ESM1B.encode("A")])
    >>> mirror(batch).tolist()
    [3, 2, 1, 0, 6, 5, 4]
    """
    device = batch.tokens_T.device
    starts = torch.tensor(batch.starts, device=device)
    ends = torch.repeat_interleave(starts[:-1] + starts[1:] - 1, torch.diff(starts), output_size=len(batch.tokens_T))
    return ends - torch.arange(len(batch.tokens_T), device=device)


def from_both_sides(
    forward_TD: Float[Tensor, "T D"], backward_TD: Float[Tensor, "T D"], batch: PackedBatch
) -> Float[Tensor, "T D"]:
    """Forward state of the token before plus backward state of the token behind; zero beyond the ends of a sequence."""
    position_T = batch.positions_T()[:, None]
    behind_T = position_T[mirror(batch)]
    before_TD = forward_TD.roll(1, dims=0).masked_fill(position_T == 0, 0.0)
    after_TD = backward_TD.roll(-1, dims=0).masked_fill(behind_T == 0, 0.0)
    return before_TD + after_TD
