"""XLNet (ProtXLNet): a Transformer that reads in both directions, and predicts in any order through a second stream.

In: packed batches of the alphabet `PROTXLNET`. Out: hidden states, attention maps and logits. `forward` is the
published way to embed: every token sees every other, positions are relative, and nothing is remembered. The publishers'
tokeniser pads on the left, which relative positions do not notice: our vectors are theirs, `[pad:-2]`.

`two_stream` is the way to train and to generate. The content stream of a token sees that token and those before it in a
factorisation order; the query stream of a place sees what comes before it in that order, and not what stands there.
`forward` does so, too, for places that hold `<mask>`: no other token sees them, and their logits are those of the query
stream. (In training, XLNet never saw `<mask>` as a token.) All other logits are of tokens that see themselves.

Source: papers.md 6.3, 6.4 and 8.3; Yang et al. 2019. Dropout (.1 in the paper) is not applied.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from proteinlm.errors import InputError
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
from proteinlm.sequences.alphabet import PROTXLNET
from proteinlm.sequences.batch import PackedBatch

CLASS = PROTXLNET.tokens.index("<cls>")
MASK = PROTXLNET.tokens.index("<mask>")


@dataclass(frozen=True)
class XlnetConfig:
    """Shape of an XLNet; the default is ProtXLNet as its publishers embed with it.

    Args:
        num_layers, width, num_heads, inner: layers, D, H, feed-forward width.
        text_segments: `<cls>` is told apart from the rest, as a text segment of its own, which the tokeniser says and
            XLNet was trained with. The publishers' embedding code leaves it out (papers.md 6.4), and so does ProtXLNet
            here.
        segment: tokens that `two_stream` reads at once. memory: states of the segments before that a layer sees.
    """

    num_layers: int = 30
    width: int = 1024
    num_heads: int = 16
    inner: int = 4096
    text_segments: bool = False
    segment: int = 512
    memory: int = 384


@dataclass(frozen=True)
class Predicted:
    """What `two_stream` returns.

    Args:
        logits_MV: about the places that were asked for, in their order. content_TD: last states of all tokens.
        query_MD: last states of the places.
    """

    logits_MV: Float[Tensor, "M V"]
    content_TD: Float[Tensor, "T D"]
    query_MD: Float[Tensor, "M D"]


class Xlnet(ProteinModel):
    """Post-norm Transformer with relative positions, text segments, memory and two streams.

    Args:
        config: the shape; the default is ProtXLNet's.

    >>> model = Xlnet(XlnetConfig(num_layers=1, width=8, num_heads=2, inner=16))
    >>> batch = PackedBatch.pack([PROTXLNET.encode("MKT")], prefix=0, suffix=2)
    >>> output = model(batch, Want(layers=(1,)))
    >>> output.hidden[1].shape, output.hidden[1][batch.residues(0)].shape
    (torch.Size([5, 8]), torch.Size([3, 8]))
    """

    alphabet = PROTXLNET
    has_attentions = True
    takes_kernels = False
    max_residues = None

    def __init__(self, config: XlnetConfig) -> None:
        super().__init__()
        if config.width % config.num_heads:
            raise InputError(
                f"width {config.width} is not a multiple of num_heads {config.num_heads}; choose one that is"
            )
        self.config = config
        self.num_layers, self.width = config.num_layers, config.width
        self.embed_tokens = nn.Embedding(len(PROTXLNET), config.width)
        self.query_start = nn.Parameter(nn.init.normal_(torch.empty(config.width), std=initial_std(config.width)))
        self.layers = nn.ModuleList(_layer(config) for _ in range(config.num_layers))
        self.head_bias = nn.Parameter(torch.zeros(len(PROTXLNET)))
        nn.init.normal_(self.embed_tokens.weight, std=initial_std(config.width))

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch, each sequence as a whole; see `ProteinModel.forward`."""
        self.check(want)
        masked_M = torch.nonzero(batch.tokens_T.eq(MASK))[:, 0]
        maps = SegmentMaps(batch.starts, self.num_layers) if want.attentions else None
        (segment,) = segments(batch.starts, batch.max_length, batch.tokens_T.device)
        rank_T = batch.tokens_T.eq(MASK).long() - 1 if len(masked_M) else None
        sight = self._sight(batch.tokens_T, segment, 0, rank_T)
        if maps is not None:
            sight = replace(sight, maps=maps.of(segment, 0))
        output, streams = Output(), self._start(batch.tokens_T, masked_M)
        for index, layer in enumerate(self.layers):
            if index in want.layers:
                output.hidden[index] = streams.content_SD
            streams = self.through(layer, streams, None, sight, index)
        last_TD = streams.content_SD
        if self.num_layers in want.layers:
            output.hidden[self.num_layers] = last_TD
        if want.logits:
            if streams.query_MD is not None:
                last_TD = last_TD.index_copy(0, masked_M, streams.query_MD)
            output.logits_TV = self.head(self.wanted(last_TD, want))
        if maps is not None:
            maps.finish(output)
        return output

    def two_stream(
        self,
        batch: PackedBatch,
        rank_T: Int[Tensor, "T"],
        places_M: Int[Tensor, "M"],
        segment_length: int | None = None,
    ) -> Predicted:
        """Predict places from what comes before them in a factorisation order, segment by segment.

        Args:
            batch: T tokens.
            rank_T: place of each token in the order of its sequence, int64; -1 for tokens that every token sees. No
                two tokens of one segment need differ: those of equal rank do not see each other.
            places_M: tokens to predict, each once; each must have something to see.
            segment_length: tokens read at once; None for `config.segment`.

        Source: Yang et al. 2019, sections 2.3 and 2.4.
        """
        todo = list(segments(batch.starts, segment_length or self.config.segment, batch.tokens_T.device))
        memories: list[Tensor | None] = [None] * self.num_layers
        place_in_segment_T = torch.full_like(rank_T, -1)
        contents, queries, which = [], [], []
        for number, segment in enumerate(todo):
            place_in_segment_T.fill_(-1)[segment.tokens_S] = torch.arange(len(segment.tokens_S), device=rank_T.device)
            here = torch.nonzero(place_in_segment_T[places_M] >= 0)[:, 0]
            remembered = 0 if memories[0] is None else memories[0].shape[1]
            tokens_S = batch.tokens_T[segment.tokens_S]
            sight = self._sight(tokens_S, segment, remembered, rank_T[segment.tokens_S])
            streams, read = self._start(tokens_S, place_in_segment_T[places_M[here]]), []
            for index, layer in enumerate(self.layers):
                read.append(streams.content_SD)
                streams = self.through(layer, streams, memories[index], sight, index)
            contents.append(streams.content_SD)
            if streams.query_MD is not None:
                queries.append(streams.query_MD)
                which.append(here)
            if number + 1 < len(todo):
                memories = [
                    remember(memory, x_SD, segment, todo[number + 1], self.config.memory)
                    for memory, x_SD in zip(memories, read, strict=True)
                ]
        content_TD = torch.cat(contents)[torch.argsort(torch.cat([segment.tokens_S for segment in todo]))]
        query_MD = torch.cat(queries)[torch.argsort(torch.cat(which))] if queries else content_TD[:0]
        return Predicted(self.head(query_MD), content_TD, query_MD)

    def head(self, hidden_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T V"]:
        """Logits from last hidden states of either stream."""
        return F.linear(hidden_TD, self.embed_tokens.weight, self.head_bias)

    def _start(self, tokens_S: Tensor, places_M: Tensor) -> Streams:
        """What enters the first layer; no query stream where no place is asked for."""
        content_SD = self.embed_tokens(tokens_S)
        if not len(places_M):
            return Streams(content_SD)
        return Streams(content_SD, self.query_start.expand(len(places_M), -1), places_M)

    def _sight(self, tokens_S: Tensor, segment: Segment, memory: int, rank_S: Tensor | None) -> Sight:
        longest = max(end - start for start, end in pairwise(segment.starts))
        table_PD = distances(memory, longest, self.width, causal=False).to(tokens_S.device)
        other_S = tokens_S.eq(CLASS) if self.config.text_segments else None
        return Sight(segment.starts, memory, table_PD, rank_S=rank_S, other_S=other_S)


def _layer(config: XlnetConfig) -> RelativeLayer:
    attention = RelativeAttention(config.width, config.num_heads, config.width // config.num_heads, text_segments=True)
    for weight in (attention.segment_bias, attention.segment_keys):
        assert weight is not None, "built with text segments"
        # Where text segments are not told apart, these are kept for the files, and nothing trains them.
        weight.requires_grad_(config.text_segments)
    return RelativeLayer(attention, config.width, config.inner, epsilon=1e-12, activation="gelu")
