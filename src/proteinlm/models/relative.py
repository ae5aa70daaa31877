"""Relative attention with memory: what Transformer-XL introduced and XLNet took over, shared by both.

In: packed tokens of one segment, and for each layer what it read of the segments before, `memory`. Out: the layer's
tokens. A score is (q + u) k + (q + v) r(distance), where u and v are learned for each head and r is a projection of a
sinusoid; XLNet adds a term for tokens of another text segment. Long proteins are read segment by segment (`segments`);
at any moment all of them stand at the same place, so memory is one dense block.

Shape letters beside those of `models.attention`: M tokens of memory, K = M + L keys, P distances, S tokens of
a segment.

Source: papers.md 8.3; Dai et al. 2019, section 3.3; Yang et al. 2019, section 2.3 and 2.5.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from proteinlm.models.attention import Starts
from proteinlm.models.base import Output
from proteinlm.models.blocks import Activation, FeedForward, MapSink, Projection


def initial_std(width: int) -> float:
    """Standard deviation of new weights: 0.02 at 1,024 channels, as in both original code bases.

    Narrower models get larger weights, so that what a projection puts out is as large as there; with weights of 0.02, a
    small XLNet learns markedly more slowly.

    >>> initial_std(1024), initial_std(64)
    (0.02, 0.08)
    """
    return 0.02 * (1024 / width) ** 0.5


@dataclass(frozen=True)
class Segment:
    """The part of a packed batch that is run at once.

    Args:
        rows: the sequences that are still being read, ascending.
        starts: offsets of their tokens in this segment.
        tokens_S: where each of these tokens stands in the batch, int64, shape (S,).
        first: position of the first token of each, in its sequence.
    """

    rows: tuple[int, ...]
    starts: Starts
    tokens_S: Int[Tensor, "S"]
    first: int


def segments(starts: Starts, length: int, device: torch.device | None = None) -> Iterator[Segment]:
    """Cut the sequences of a batch into segments of `length` tokens, the last of each shorter.

    Yields:
        the first segments of all sequences together, then the second ones of those that have any, and so on.

    >>> [(one.rows, one.starts, one.tokens_S.tolist()) for one in segments((0, 3, 8), 4)]
    [((0, 1), (0, 3, 7), [0, 1, 2, 3, 4, 5, 6]), ((1,), (0, 1), [7])]
    """
    bounds = list(pairwise(starts))
    longest = max(end - start for start, end in bounds)
    for first in range(0, longest, length):
        rows = tuple(row for row, (start, end) in enumerate(bounds) if end - start > first)
        ranges = [(bounds[row][0] + first, min(bounds[row][0] + first + length, bounds[row][1])) for row in rows]
        tokens_S = torch.cat([torch.arange(start, end) for start, end in ranges])
        yield Segment(rows, (0, *accumulate(end - start for start, end in ranges)), tokens_S.to(device), first)


def remember(
    memory_BMD: Float[Tensor, "B M D"] | None, x_SD: Float[Tensor, "S D"], now: Segment, then: Segment, limit: int
) -> Float[Tensor, "B M D"]:
    """The memory of the next segment: the last `limit` states of what was remembered and what was read, no gradient.

    Args:
        memory_BMD: memory of segment `now`. x_SD: what the layer read in it. then: the segment that follows.
    """
    going_on = [now.rows.index(row) for row in then.rows]
    read_BSD = torch.stack([x_SD[now.starts[b] : now.starts[b + 1]] for b in going_on]).detach()
    if memory_BMD is not None:
        read_BSD = torch.cat([memory_BMD[going_on], read_BSD], dim=1)
    return read_BSD[:, max(0, read_BSD.shape[1] - limit) :]


def frequencies(width: int) -> Float[Tensor, "F"]:
    """Frequencies of the sinusoids, from 1 down to nearly 1/10000, fp32, shape (D / 2,)."""
    return 1 / 10000 ** (torch.arange(0.0, width, 2.0) / width)


def distances(memory: int, longest: int, width: int, causal: bool) -> Float[Tensor, "P D"]:
    """Sinusoids of all distances from a query back to a key, the greatest first: all sines, then all cosines.

    Args:
        memory: tokens before the segment. longest: tokens of its longest sequence. width: channels.
        causal: whether keys never stand behind their query; then the last distance is 0, else 1 - `longest`.

    >>> distances(1, 2, 2, causal=True)[:, 0].allclose(torch.tensor([2.0, 1.0, 0.0]).sin())
    True
    """
    last = 0 if causal else 1 - longest
    back_P = torch.arange(memory + longest - 1, last - 1, -1, dtype=torch.float32)
    angle = back_P[:, None] * frequencies(width)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def relative_shift(scores_LP: Float[Tensor, "*N L P"], keys: int) -> Float[Tensor, "*N L K"]:
    """From scores by distance to scores by key, without an index: each row is shifted by one more than the row above.

    Args:
        scores_LP: of L queries and the distances from (K - 1) down; entry (i, L - 1 - i + j) is about key j. Where the
            distances end at 0, entries for keys behind the query mean nothing, and the caller hides them.
        keys: K.

    >>> relative_shift(torch.tensor([[2, 1, 0], [12, 11, 10]]), 2).tolist()
    [[1, 0], [12, 11]]
    """
    length, count = scores_LP.shape[-2:]
    if count <= keys:
        scores_LP = F.pad(scores_LP, (0, keys + 1 - count))
        count = keys + 1
    flat = scores_LP.flatten(-2)[..., length - 1 : length - 1 + length * (count - 1)]
    return flat.unflatten(-1, (length, count - 1))[..., :keys]


@dataclass(frozen=True)
class Sight:
    """What the layers of one pass over one segment share: who sees whom, and from how far.

    Args:
        starts: offsets of the sequences.
        memory: tokens of memory in front of each.
        distances_PD: `distances` of the longest sequence.
        causal: a token sees itself and what stands before it.
        rank_S: place of each token in a factorisation order, -1 for tokens that all may see; a token sees what comes
            before it there. None where that is not asked.
        other_S: tokens of another text segment than the rest. None where text segments are not told apart.
        maps: called with layer, sequence and attention map (H, L, K), or None.
    """

    starts: Starts
    memory: int
    distances_PD: Float[Tensor, "P D"]
    causal: bool = False
    rank_S: Int[Tensor, "S"] | None = None
    other_S: Bool[Tensor, "S"] | None = None
    maps: MapSink | None = None

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Neighbouring sequences of equal length: (number of the first, length, how many)."""
        b = 0
        for length, group in groupby(end - start for start, end in pairwise(self.starts)):
            n = len(list(group))
            yield b, length, n
            b += n

    def span(self, length: int) -> slice:
        """The distances in a sequence of `length` tokens, out of those of the longest."""
        first = max(end - start for start, end in pairwise(self.starts)) - length
        return slice(first, first + self.memory + (length if self.causal else 2 * length - 1))

    def hidden(self, start: int, length: int, n: int, itself: bool) -> Bool[Tensor, "N L K"] | None:
        """Keys that a query must not see, for n sequences of `length` tokens from token `start` on.

        Args:
            itself: whether a token sees itself, wherever it stands in the factorisation order.
        """
        device = self.distances_PD.device
        if self.causal:
            ones_LK = torch.ones(length, self.memory + length, dtype=torch.bool, device=device)
            return ones_LK.triu(self.memory + 1)[None]
        if self.rank_S is None:
            return None
        rank_NL = self.rank_S[start : start + n * length].view(n, length)
        hidden_NLL = (rank_NL[:, None] >= rank_NL[:, :, None]) & (rank_NL[:, None] >= 0)
        if itself:
            hidden_NLL = hidden_NLL & ~torch.eye(length, dtype=torch.bool, device=device)
        return F.pad(hidden_NLL, (self.memory, 0))

    def differs(self, start: int, length: int, n: int) -> Bool[Tensor, "N L K"] | None:
        """Which keys are of another text segment than the query; memory is of the first."""
        if self.other_S is None:
            return None
        other_NL = self.other_S[start : start + n * length].view(n, length)
        return other_NL[:, :, None] != F.pad(other_NL, (self.memory, 0))[:, None]


class RelativeAttention(nn.Module):
    """Attention by content and by distance, over memory and the segment.

    Args:
        width, num_heads, head_width: D, H, C. text_segments: whether there are terms for other text segments.
    """

    def __init__(self, width: int, num_heads: int, head_width: int, text_segments: bool) -> None:
        super().__init__()
        channels = num_heads * head_width
        self.num_heads, self.scale = num_heads, head_width**-0.5
        self.query = Projection(width, channels, bias=False)
        self.key_value = Projection(width, 2 * channels, bias=False)
        self.distance = Projection(width, channels, bias=False)
        self.out = Projection(channels, width, bias=False)
        std = initial_std(width)
        self.content_bias = _normal(std, num_heads, head_width)
        self.distance_bias = _normal(std, num_heads, head_width)
        self.segment_bias = _normal(std, num_heads, head_width) if text_segments else None
        self.segment_keys = _normal(std, 2, num_heads, head_width) if text_segments else None
        for projection in (self.query, self.key_value, self.distance, self.out):
            nn.init.normal_(projection.weight, std=std)

    def keys(self, x_SD: Tensor, memory_BMD: Tensor | None, sight: Sight) -> "Keys":
        """What queries of either stream are held against."""
        key_value = self.key_value(x_SD).unflatten(-1, (2, self.num_heads, -1))
        remembered = None
        if sight.memory:
            assert memory_BMD is not None and memory_BMD.shape[1] == sight.memory
            remembered = self.key_value(memory_BMD).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        distance_HPC = self.distance(sight.distances_PD).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
        return Keys(key_value, remembered, distance_HPC)

    def attend(self, query_SD: Tensor, keys: "Keys", sight: Sight, layer: int, itself: bool) -> Float[Tensor, "S D"]:
        """Attend from every token of the segment; `query_SD` are projected already. `layer` only labels the maps."""
        query_SHC = query_SD.unflatten(-1, (self.num_heads, -1))
        runs = list(sight.runs())
        sizes = [length * n for _, length, n in runs]
        mixed = []
        parts = zip(runs, query_SHC.split(sizes), keys.own.split(sizes), strict=True)
        for (b, length, n), query, own in parts:
            query_NHLC = query.unflatten(0, (n, length)).transpose(1, 2)
            key_NHKC, value_NHKC = keys.of_run(b, length, n, own)
            scores = self._scores(query_NHLC, key_NHKC, keys.distance_HPC[:, sight.span(length)])
            start = sight.starts[b]
            scores = self._with_segments(scores, query_NHLC, sight.differs(start, length, n)) * self.scale
            hidden = sight.hidden(start, length, n, itself)
            if hidden is not None:
                scores = scores.masked_fill(hidden[:, None], -torch.inf)
            weights = torch.softmax(scores.float(), dim=-1)
            if sight.maps is not None:
                for offset, map_HLK in enumerate(weights):
                    sight.maps(layer, b + offset, map_HLK)
            mixed.append((weights.to(value_NHKC.dtype) @ value_NHKC).transpose(1, 2).flatten(0, 1))
        output: Tensor = self.out(torch.cat(mixed).flatten(1))
        return output

    def _scores(self, query_NHLC: Tensor, key_NHKC: Tensor, distance_HPC: Tensor) -> Float[Tensor, "N H L K"]:
        by_content = (query_NHLC + self._like(self.content_bias, query_NHLC)) @ key_NHKC.transpose(2, 3)
        by_distance = (query_NHLC + self._like(self.distance_bias, query_NHLC)) @ distance_HPC.transpose(1, 2)
        return by_content + relative_shift(by_distance, key_NHKC.shape[2])

    def _with_segments(self, scores: Tensor, query_NHLC: Tensor, differs_NLK: Tensor | None) -> Tensor:
        if differs_NLK is None:
            return scores
        assert self.segment_bias is not None and self.segment_keys is not None, "built without text segments"
        keys_HC2 = self.segment_keys.permute(1, 2, 0).to(query_NHLC.dtype)
        same, other = ((query_NHLC + self._like(self.segment_bias, query_NHLC)) @ keys_HC2).split(1, dim=-1)
        return scores + torch.where(differs_NLK[:, None], other, same)

    @staticmethod
    def _like(bias_HC: Tensor, query_NHLC: Tensor) -> Tensor:
        return bias_HC[:, None].to(query_NHLC.dtype)


@dataclass(frozen=True)
class Keys:
    """Keys and values of one layer.

    Args:
        own: of the segment, shape (S, 2, H, C). remembered: of memory, shape (2, B, H, M, C), or None.
        distance_HPC: keys by distance, for the longest sequence.
    """

    own: Float[Tensor, "S 2 H C"]
    remembered: Float[Tensor, "2 B H M C"] | None
    distance_HPC: Float[Tensor, "H P C"]

    def of_run(self, b: int, length: int, n: int, own: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (N, H, K, C) of n sequences of `length` tokens, from sequence b on."""
        key_value = own.unflatten(0, (n, length)).permute(2, 0, 3, 1, 4)
        if self.remembered is not None:
            key_value = torch.cat([self.remembered[:, b : b + n], key_value], dim=3)
        return key_value[0], key_value[1]


class RelativeLayer(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + feed_forward(x)): post-norm, as both papers published it.

    Args:
        attention: as built. width, inner: D and the feed-forward width. epsilon: of both norms.
        activation: of the feed-forward.
    """

    def __init__(
        self, attention: RelativeAttention, width: int, inner: int, epsilon: float, activation: Activation
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.feed_forward = FeedForward(width, inner, activation)
        self.feed_forward_norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, streams: "Streams", memory_BMD: Tensor | None, sight: Sight, layer: int) -> "Streams":
        """One layer over one segment; `layer` only labels the maps."""
        keys = self.attention.keys(streams.content_SD, memory_BMD, sight)
        query_SD = self.attention.query(streams.content_SD)
        content_SD = self._rest(streams.content_SD, self.attention.attend(query_SD, keys, sight, layer, itself=True))
        if streams.query_MD is None or streams.places_M is None:
            return Streams(content_SD)
        asked_MD = self.attention.query(streams.query_MD)
        asked_SD = asked_MD.new_zeros(len(content_SD), asked_MD.shape[1]).index_copy(0, streams.places_M, asked_MD)
        blind = replace(sight, maps=None)
        answer_MD = self.attention.attend(asked_SD, keys, blind, layer, itself=False)[streams.places_M]
        return Streams(content_SD, self._rest(streams.query_MD, answer_MD), streams.places_M)

    def _rest(self, x_SD: Tensor, attended_SD: Tensor) -> Float[Tensor, "S D"]:
        x_SD = self.attention_norm(x_SD + attended_SD)
        output: Tensor = self.feed_forward_norm(x_SD + self.feed_forward(x_SD))
        return output


@dataclass(frozen=True)
class Streams:
    """What goes through the layers.

    Args:
        content_SD: a state for every token, which sees that token.
        query_MD: a state for each of M places, which knows where it is and not what stands there; or None.
        places_M: these places in the segment, int64, shape (M,).
    """

    content_SD: Float[Tensor, "S D"]
    query_MD: Float[Tensor, "M D"] | None = None
    places_M: Int[Tensor, "M"] | None = None


class SegmentMaps:
    """Attention maps of a batch that is read segment by segment, put together; keys out of reach have weight 0.

    Args:
        starts: of the batch. num_layers: of the model.
    """

    def __init__(self, starts: Starts, num_layers: int) -> None:
        self.lengths = [end - start for start, end in pairwise(starts)]
        self.maps: list[list[Tensor | None]] = [[None] * num_layers for _ in self.lengths]

    def of(self, segment: Segment, memory: int) -> MapSink:
        """Takes the maps of one segment, which has `memory` tokens in front."""

        def take(layer: int, b: int, map_HLK: Float[Tensor, "H L K"]) -> None:
            row = segment.rows[b]
            ahead = self.lengths[row] - segment.first - map_HLK.shape[1]
            whole_HLL = F.pad(map_HLK, (segment.first - memory, ahead))
            before = self.maps[row][layer]
            self.maps[row][layer] = whole_HLL if before is None else torch.cat([before, whole_HLL], dim=1)

        return take

    def finish(self, output: Output) -> None:
        """Write the maps into `output`."""
        output.attentions = [torch.stack([one for one in layers if one is not None]) for layers in self.maps]


def _normal(std: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))
