"""Transformer-XL (ProtTXL): a causal language model that reads long proteins in segments and remembers what it read.

In: packed batches of the alphabet `PROTTXL`. Out: hidden states, attention maps, and logits about the *next* token.
Every protein is read in segments of `config.segment` tokens; in each layer, a token sees what stands before it in its
segment and the last `config.memory` states that the layer read of the segments before, through which no gradient flows.
Training, embedding and generation read in the same way, so that all three see the same numbers.

ProtTXL was never released (papers.md 8.3); its sizes are pinned by the parameter counts of papers.md 6.1, which leave
23 tokens and a plain tied head: with so few tokens the adaptive softmax of the original has a single cluster.

Source: papers.md 6.1, 8.3; Dai et al. 2019. Dropout (.15 in the paper) is not applied.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.relative import (
    RelativeAttention,
    RelativeLayer,
    Segment,
    SegmentMaps,
    Sight,
    Streams,
    distances,
    initial_std,
    remember,
    segments,
)
from proteinlm.sequences.alphabet import PROTTXL, PROTTXL_BARE
from proteinlm.sequences.batch import PackedBatch


@dataclass(frozen=True)
class TransformerXlConfig:
    """Shape of a Transformer-XL; the default is ProtTXL.

    Args:
        num_layers, width, num_heads, head_width, inner: layers, D, H, C, feed-forward width.
        segment: tokens that are read at once. memory: states of the segments before that a layer sees.
        boundaries: an `<eos>` in front of and behind every protein, as between the documents of a training stream;
            without it, the first residue of a protein is never predicted.
    """

    num_layers: int = 30
    width: int = 1024
    num_heads: int = 16
    head_width: int = 64
    inner: int = 4096
    segment: int = 512
    memory: int = 512
    boundaries: bool = True


PRESETS: dict[str, TransformerXlConfig] = {
    "ProtTXL": TransformerXlConfig(),
    "ProtTXL-BFD": TransformerXlConfig(num_layers=32, num_heads=14, head_width=128),
}
"""papers.md 6.1."""

Memories = list[Tensor | None]
"""Memory of each layer, (B, M, D), or None before anything was read."""


class TransformerXl(ProteinModel):
    """Causal Transformer with relative positions and segment memory.

    Args:
        config: the shape; `PRESETS` has the paper's.

    >>> model = TransformerXl(TransformerXlConfig(num_layers=1, width=8, num_heads=2, head_width=4, inner=16))
    >>> batch = PackedBatch.pack([PROTTXL.encode("MKT")], prefix=1, suffix=1)
    >>> model(batch, Want(logits=True)).logits_TV.shape
    torch.Size([5, 23])
    """

    has_attentions = True
    takes_kernels = False
    logits_ahead = True
    max_residues = None

    def __init__(self, config: TransformerXlConfig) -> None:
        super().__init__()
        self.config = config
        self.alphabet = PROTTXL if config.boundaries else PROTTXL_BARE
        self.num_layers, self.width = config.num_layers, config.width
        self.embed_tokens = nn.Embedding(len(self.alphabet), config.width)
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.num_layers))
        self.head_bias = nn.Parameter(torch.zeros(len(self.alphabet)))
        nn.init.normal_(self.embed_tokens.weight, std=initial_std(config.width))

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch, segment by segment; see `ProteinModel.forward`."""
        self.check(want)
        maps = SegmentMaps(batch.starts, self.num_layers) if want.attentions else None
        todo = list(segments(batch.starts, self.config.segment, batch.tokens_T.device))
        memories: Memories = [None] * self.num_layers
        kept: dict[int, list[Tensor]] = {layer: [] for layer in (*want.layers, self.num_layers)}
        for number, segment in enumerate(todo):
            sight = self._sight(segment, memories, maps)
            states = self._run(batch.tokens_T[segment.tokens_S], memories, sight)
            for layer, parts in kept.items():
                parts.append(states[layer])
            if number + 1 < len(todo):
                then = todo[number + 1]
                memories = [
                    remember(memory, x_SD, segment, then, self.config.memory)
                    for memory, x_SD in zip(memories, states[:-1], strict=True)
                ]
        place_T = torch.argsort(torch.cat([segment.tokens_S for segment in todo]))
        whole = {layer: torch.cat(parts)[place_T] for layer, parts in kept.items()}
        output = Output(hidden={layer: whole[layer] for layer in want.layers})
        if want.logits:
            output.logits_TV = self.head(self.wanted(whole[self.num_layers], want))
        if maps is not None:
            maps.finish(output)
        return output

    def head(self, hidden_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T V"]:
        """Logits about the next token, from last hidden states."""
        return F.linear(hidden_TD, self.embed_tokens.weight, self.head_bias)

    def step(
        self, tokens_B: Int[Tensor, "B"], memories: Memories, position: int
    ) -> tuple[Float[Tensor, "B V"], Memories]:
        """Read one more token of B sequences, all at the same place; the same numbers as `forward` gives.

        Args:
            tokens_B: the tokens. memories: from the step before; `[None] * num_layers` for the first.
            position: place of the tokens in their sequences.

        Returns:
            logits about the next tokens, and the memories for it.
        """
        if position % self.config.segment == 0:
            memories = [None if one is None else _last(one, self.config.memory) for one in memories]
        rows = tuple(range(len(tokens_B)))
        alone = Segment(rows, (*rows, len(rows)), torch.arange(len(rows)), position)
        states = self._run(tokens_B, memories, self._sight(alone, memories, maps=None))
        memories = [
            x_BD[:, None] if memory is None else torch.cat([memory, x_BD[:, None]], dim=1)
            for memory, x_BD in zip(memories, states[:-1], strict=True)
        ]
        return self.head(states[-1]), memories

    def _sight(self, segment: Segment, memories: Memories, maps: SegmentMaps | None) -> Sight:
        remembered = 0 if memories[0] is None else memories[0].shape[1]
        longest = max(end - start for start, end in zip(segment.starts, segment.starts[1:], strict=False))
        table_PD = distances(remembered, longest, self.width, causal=True).to(segment.tokens_S.device)
        sink = None if maps is None else maps.of(segment, remembered)
        return Sight(segment.starts, remembered, table_PD, causal=True, maps=sink)

    def _run(self, tokens_S: Tensor, memories: Memories, sight: Sight) -> list[Tensor]:
        """The embedding and what comes out of each layer."""
        x_SD = self.width**0.5 * self.embed_tokens(tokens_S)
        states = [x_SD]
        for index, layer in enumerate(self.layers):
            x_SD = self.through(layer, Streams(x_SD), memories[index], sight, index).content_SD
            states.append(x_SD)
        return states


def _last(memory_BMD: Tensor, limit: int) -> Tensor:
    return memory_BMD[:, max(0, memory_BMD.shape[1] - limit) :]


def _layer(config: TransformerXlConfig) -> RelativeLayer:
    attention = RelativeAttention(config.width, config.num_heads, config.head_width, text_segments=False)
    return RelativeLayer(attention, config.width, config.inner, epsilon=1e-5, activation="relu")
