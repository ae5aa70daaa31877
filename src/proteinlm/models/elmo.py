"""ELMo (SeqVec): a forward and a backward LSTM whose states are projected and clipped, over a table of residues.

In: packed batches of the alphabet `SEQVEC`. Out: hidden states, forward in the first half of the channels, backward in
the second. The original computes a token's embedding from its characters; every token of a protein is one character,
so that a table of a row for each says the same (`checkpoints.elmo` makes it). The publishers left the language-model
head out of their file.

Source: papers.md 8.5; Heinzinger et al. 2019; Peters et al. 2018, as in allennlp 0.9 (`elmo_lstm.py`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from proteinlm.models.base import Output, Preparable, ProteinModel, Want, require_fp32
from proteinlm.models.blocks import Projection
from proteinlm.models.recurrent import mirror
from proteinlm.models.unirep import step_blocks, time_major
from proteinlm.sequences.alphabet import SEQVEC
from proteinlm.sequences.batch import PackedBatch


@dataclass(frozen=True)
class ElmoConfig:
    """Shape of an ELMo model; the default is SeqVec.

    Args:
        num_layers: layers of each direction. width: channels of a direction's state, and of the embedding; a hidden
            state has twice as many. cell_width: channels of a cell.
        cell_limit, state_limit: cells and states are cut off at plus and minus this.
    """

    num_layers: int = 2
    width: int = 512
    cell_width: int = 4096
    cell_limit: float = 3.0
    state_limit: float = 3.0


class Elmo(ProteinModel):
    """SeqVec's two stacks of LSTMs.

    `hidden[0]` is the embedding, twice. From the second layer on, a layer's states are added to those below. The
    authors' vector of a residue is the sum of all three layers; each sequence starts here from zero, whereas theirs
    start from where the last batch ended.

    Args:
        config: the shape.

    >>> model = Elmo(ElmoConfig(width=4, cell_width=8)).eval()
    >>> batch = PackedBatch.pack([SEQVEC.encode("MKT"), SEQVEC.encode("MARV")], prefix=1, suffix=1)
    >>> model(batch, Want(layers=(2,))).hidden[2].shape
    torch.Size([11, 8])
    """

    alphabet = SEQVEC
    max_residues = None
    has_logits = False
    precisions: tuple[torch.dtype, ...] = (torch.float32,)
    """What `prepare` takes: like UniRep, a recurrence that would add up the rounding of bf16."""

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.config = config
        self.num_layers, self.width = config.num_layers, 2 * config.width
        self.embed_tokens = nn.Embedding(len(SEQVEC), config.width)
        self.layers = nn.ModuleList(ElmoLayer(config) for _ in range(config.num_layers))

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`."""
        self.check(want)
        output = Output()
        order_T, running = time_major(batch)
        mirrored_T = mirror(batch)[order_T]
        forward_TD = backward_TD = self.embed_tokens(batch.tokens_T)
        if 0 in want.layers:
            output.hidden[0] = torch.cat([forward_TD, backward_TD], dim=1)
        for number, layer in enumerate(self.layers[: max(want.layers, default=0)], start=1):
            below = (forward_TD, backward_TD)
            forward_TD, backward_TD = self.through(layer, *below, order_T, mirrored_T, running)
            if number > 1:
                forward_TD, backward_TD = forward_TD + below[0], backward_TD + below[1]
            if number in want.layers:
                output.hidden[number] = torch.cat([forward_TD, backward_TD], dim=1)
        return output


class ElmoLayer(nn.Module):
    """One layer of each direction.

    Args:
        config: of the model.
    """

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.ahead, self.back = ClippedLstm(config), ClippedLstm(config)

    def forward(
        self,
        forward_TD: Float[Tensor, "T D"],
        backward_TD: Float[Tensor, "T D"],
        order_T: Int[Tensor, "T"],
        mirrored_T: Int[Tensor, "T"],
        running: list[int],
    ) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]:
        """States of both directions, each from its own states below; `order_T` and `mirrored_T` are time-major."""
        ahead_TD = self.ahead(forward_TD[order_T], running)[torch.argsort(order_T)]
        back_TD = self.back(backward_TD[mirrored_T], running)[torch.argsort(mirrored_T)]
        return ahead_TD, back_TD


class ClippedLstm(nn.Module, Preparable):
    """One direction of a layer: i, f, g, o from the input and the last state;
    c = clip(sigmoid(f) c + sigmoid(i) tanh(g)); h = clip(P (sigmoid(o) tanh(c))). State h and cell c start at zero.

    Args:
        config: of the model.
    """

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.config = config
        self.read = Projection(config.width, 4 * config.cell_width)
        self.recall = Projection(config.width, 4 * config.cell_width, bias=False)
        self.project = Projection(config.cell_width, config.width, bias=False)

    def prepare_weights(self, precision: torch.dtype) -> None:
        """The projections lay themselves out in fp32.

        Raises:
            InputError: for any other precision.
        """
        require_fp32(precision, "ELMo")

    def forward(self, input_TD: Float[Tensor, "T D"], running: list[int]) -> Float[Tensor, "T D"]:
        """States of a time-major layout (`unirep.time_major`), in the same layout."""
        config = self.config
        state = input_TD.new_zeros(running[0], config.width)
        cell = input_TD.new_zeros(running[0], config.cell_width)
        states = []
        for block, counts in step_blocks(running):
            for count, read_NG in zip(counts, self.read(input_TD[block]).split(counts), strict=True):
                i, f, g, o = (read_NG + self.recall(state[:count])).chunk(4, dim=1)
                cell = f.sigmoid() * cell[:count] + i.sigmoid() * g.tanh()
                cell = cell.clamp(-config.cell_limit, config.cell_limit)
                state = self.project(o.sigmoid() * cell.tanh()).clamp(-config.state_limit, config.state_limit)
                states.append(state)
        return torch.cat(states)
