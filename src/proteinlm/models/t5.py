"""ProtT5: an encoder that reads a protein, and a decoder that writes it; the encoder alone is a model of its own.

In: packed batches of the alphabet `PROTT5`. Out: the encoder's hidden states and attention maps; and from `T5`, the
logits of what the decoder writes. Norms are root mean squares, there are no biases, scores are not scaled, attention is
wider than the model, and positions are known through one table of relative buckets per stack (papers.md 8.3, 9).

Shape letters beside the usual: M tokens whose logits are wanted.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.models.attention import Heads, Starts, attend, probabilities
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.blocks import MapSink, Projection
from proteinlm.models.contacts import MapCollector
from proteinlm.models.offsets import OffsetBias, RelativePositions
from proteinlm.sequences.alphabet import PROTT5
from proteinlm.sequences.batch import PackedBatch

EPSILON = 1e-6
"""Of every norm, in all published models."""


@dataclass(frozen=True)
class T5EncoderConfig:
    """Shape of a T5 encoder; the default is that of ProtT5-XL.

    Args:
        num_layers, width, num_heads, head_width, inner: layers, D, H, C (H C need not be D), feed-forward width.
        buckets: rows of the table of relative positions. furthest: the offset from which on all share a bucket.
    """

    num_layers: int = 24
    width: int = 1024
    num_heads: int = 32
    head_width: int = 128
    inner: int = 16384
    buckets: int = 32
    furthest: int = 128


@dataclass(frozen=True)
class T5Config:
    """Shape of an encoder and a decoder; the default is ProtT5-XL.

    Args:
        num_layers, decoder_layers: of the encoder and of the decoder. The rest: see `T5EncoderConfig`.
    """

    num_layers: int = 24
    decoder_layers: int = 24
    width: int = 1024
    num_heads: int = 32
    head_width: int = 128
    inner: int = 16384
    buckets: int = 32
    furthest: int = 128


@dataclass(frozen=True)
class Sight:
    """What all layers of one stack share in one forward pass.

    Args:
        starts: B + 1 offsets of the sequences. bias: by relative position; in a decoder it hides what comes later.
        kernel: attention kernel by name; None chooses. maps: takes the maps of self-attention, or None.
        memory_TD: what a decoder reads, and memory_starts: where its sequences start; None in an encoder.
    """

    starts: Starts
    bias: OffsetBias
    kernel: str | None
    maps: MapSink | None = None
    memory_TD: Float[Tensor, "T D"] | None = None
    memory_starts: Starts | None = None


def _projection(inputs: int, outputs: int, deviation: float) -> Projection:
    """Without bias; T5 draws weights so that scores, which nothing scales, begin small."""
    made = Projection(inputs, outputs, bias=False)
    nn.init.normal_(made.weight, std=deviation)
    return made


class SelfAttention(nn.Module):
    """Attention within each sequence, scores plus a bias by relative position."""

    def __init__(self, config: T5Config | T5EncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        width, inside = config.width, config.num_heads * config.head_width
        self.qkv = _projection(width, 3 * inside, width**-0.5)
        self.out = _projection(inside, width, inside**-0.5)
        nn.init.normal_(self.qkv.weight[:inside], std=(width * config.head_width) ** -0.5)

    def forward(self, x_TD: Float[Tensor, "T D"], layer: int, sight: Sight) -> Float[Tensor, "T D"]:
        """Attend, (T, D) -> (T, D). `layer` only labels the maps."""
        qkv = self.qkv(x_TD).unflatten(-1, (3, self.num_heads, -1)).permute(1, 2, 0, 3)
        query, key, value = (x_HTC.contiguous() for x_HTC in qkv)
        heads = Heads(query, key, value, sight.starts, bias=sight.bias)
        if sight.maps is not None:
            for b, maps_HLL in enumerate(probabilities(heads)):
                sight.maps(layer, b, maps_HLL)
        attended: Tensor = self.out(attend(heads, sight.kernel).flatten(1))
        return attended


class CrossAttention(nn.Module):
    """Each target sequence attends to the source of the same number; positions play no part."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        width, inside = config.width, config.num_heads * config.head_width
        self.query = _projection(width, inside, (width * config.head_width) ** -0.5)
        self.key_value = _projection(width, 2 * inside, width**-0.5)
        self.out = _projection(inside, width, inside**-0.5)

    def forward(self, x_TD: Float[Tensor, "T D"], sight: Sight) -> Float[Tensor, "T D"]:
        """Attend to the memory, (T, D) -> (T, D)."""
        assert sight.memory_TD is not None, "a decoder reads a memory"
        query_HTC = self.query(x_TD).unflatten(-1, (self.num_heads, -1)).transpose(0, 1).contiguous()
        both = self.key_value(sight.memory_TD).unflatten(-1, (2, self.num_heads, -1)).permute(1, 2, 0, 3)
        heads = Heads(
            query_HTC, both[0].contiguous(), both[1].contiguous(), sight.starts, None, None, sight.memory_starts
        )
        attended: Tensor = self.out(attend(heads, sight.kernel).flatten(1))
        return attended


class FeedForward(nn.Module):
    """down(relu(up(x))), (T, D) -> (T, D)."""

    def __init__(self, config: T5Config | T5EncoderConfig) -> None:
        super().__init__()
        self.up = Projection(config.width, config.inner, activation="relu", bias=False)
        self.down = _projection(config.inner, config.width, config.inner**-0.5)
        nn.init.normal_(self.up.weight, std=config.width**-0.5)

    def forward(self, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Apply to every token alone."""
        output: Tensor = self.down(self.up(x_TD))
        return output


class EncoderLayer(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, config: T5Config | T5EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, EPSILON)
        self.attention = SelfAttention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, EPSILON)
        self.feed_forward = FeedForward(config)

    def forward(self, x_TD: Float[Tensor, "T D"], layer: int, sight: Sight) -> Float[Tensor, "T D"]:
        """One layer, (T, D) -> (T, D)."""
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), layer, sight)
        x_TD = x_TD + self.feed_forward(self.feed_forward_norm(x_TD))
        return x_TD


class DecoderLayer(nn.Module):
    """Like an encoder's, with attention to the memory between the two parts."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, EPSILON)
        self.attention = SelfAttention(config)
        self.cross_attention_norm = nn.RMSNorm(config.width, EPSILON)
        self.cross_attention = CrossAttention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, EPSILON)
        self.feed_forward = FeedForward(config)

    def forward(self, x_TD: Float[Tensor, "T D"], layer: int, sight: Sight) -> Float[Tensor, "T D"]:
        """One layer, (T, D) -> (T, D)."""
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), layer, sight)
        x_TD = x_TD + self.cross_attention(self.cross_attention_norm(x_TD), sight)
        x_TD = x_TD + self.feed_forward(self.feed_forward_norm(x_TD))
        return x_TD


class Stack(nn.Module):
    """Layers, the table of positions that they share, and the norm behind them; `T5` and `T5Encoder` run it.

    Args:
        layers: all of one kind. config: shape. is_causal: a decoder.
    """

    def __init__(self, layers: nn.ModuleList, config: T5Config | T5EncoderConfig, is_causal: bool) -> None:
        super().__init__()
        self.positions = RelativePositions(config.num_heads, config.buckets, config.furthest, is_causal)
        nn.init.normal_(self.positions.weight, std=config.width**-0.5)
        self.layers = layers
        self.final_norm = nn.RMSNorm(config.width, EPSILON)


def _check(config: T5Config | T5EncoderConfig) -> None:
    # A decoder's buckets are halved once, an encoder's twice, and the logarithm of `furthest` needs room.
    if config.buckets % 4 or config.furthest <= config.buckets // 2:
        raise InputError(
            f"buckets {config.buckets} must be a multiple of 4, and furthest {config.furthest} larger than half of them"
        )


def _encoder(config: T5Config | T5EncoderConfig) -> Stack:
    _check(config)
    return Stack(nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers)), config, is_causal=False)


def _encode(model: "T5 | T5Encoder", batch: PackedBatch, want: Want, output: Output) -> Float[Tensor, "T D"]:
    """Run the encoder; keep what `want` names of it."""
    collector = MapCollector(batch, want, None) if want.attentions else None
    stack, x_TD = model.encoder, model.embed_tokens(batch.tokens_T)
    sight = Sight(batch.starts, stack.positions(batch.max_length), model.attention_kernel, collector)
    for index, layer in enumerate(stack.layers):
        if index in want.layers:
            output.hidden[index] = x_TD
        x_TD = model.through(layer, x_TD, index, sight)
    x_TD = stack.final_norm(x_TD)
    if model.num_layers in want.layers:
        output.hidden[model.num_layers] = x_TD
    if collector is not None:
        collector.finish(output)
    return x_TD


class T5Encoder(ProteinModel):
    """The encoder of ProtT5 alone, which is what proteins are embedded with. It has no logits.

    Args:
        config: shape.

    Source: papers.md 6.4 and 8.3.

    >>> model = T5Encoder(T5EncoderConfig(num_layers=1, width=8, num_heads=2, head_width=8, inner=16)).eval()
    >>> model(PackedBatch.pack([PROTT5.encode("MKT")], suffix=1), Want(layers=(1,))).hidden[1].shape
    torch.Size([4, 8])
    """

    alphabet = PROTT5
    has_attentions = True
    has_logits = False
    max_residues = None

    def __init__(self, config: T5EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.num_layers, self.width = config.num_layers, config.width
        self.embed_tokens = nn.Embedding(len(PROTT5), config.width)
        self.encoder = _encoder(config)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`."""
        self.check(want)
        output = Output()
        _encode(self, batch, want, output)
        return output


class T5(ProteinModel):
    """ProtT5: encoder, decoder, and the embedding as output matrix, scaled by D^-0.5.

    Hidden states and attention maps are the encoder's. The logits of a batch are what the decoder says of each token
    after it has read the whole batch and the tokens before: for a residue that was replaced by the mask, the
    probabilities of what stood there. `write` takes another text to be written than the one that was read.

    Args:
        config: shape.

    Source: papers.md 6.3 and 8.3.

    >>> shape = T5Config(num_layers=1, decoder_layers=1, width=8, num_heads=2, head_width=8, inner=16)
    >>> model = T5(shape).eval()
    >>> model(PackedBatch.pack([PROTT5.encode("MKT")], suffix=1), Want(logits=True)).logits_TV.shape
    torch.Size([4, 128])
    """

    alphabet = PROTT5
    has_attentions = True
    max_residues = None

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.num_layers, self.width = config.num_layers, config.width
        self.embed_tokens = nn.Embedding(len(PROTT5), config.width)
        self.encoder = _encoder(config)
        layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.decoder = Stack(layers, config, is_causal=True)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`."""
        self.check(want)
        output = Output()
        memory_TD = _encode(self, batch, want, output)
        if want.logits:
            output.logits_TV = self._decode(memory_TD, batch, batch, want.places_M)
        return output

    def write(
        self, source: PackedBatch, target: PackedBatch, places_M: Int[Tensor, "M"] | None = None
    ) -> Float[Tensor, "M V"]:
        """Read one batch and write another: logits of each target token, given the source and the tokens before it.

        Args:
            source, target: as many sequences each. places_M: the tokens of `target` that are wanted; None for all.
        """
        assert len(source) == len(target), "sequence b of the target belongs to sequence b of the source"
        return self._decode(_encode(self, source, Want(), Output()), source, target, places_M)

    def _decode(
        self, memory_TD: Tensor, source: PackedBatch, target: PackedBatch, places_M: Tensor | None
    ) -> Float[Tensor, "M V"]:
        # The decoder reads what it has written so far: the target, one place to the right, `<pad>` in front.
        before_T = target.tokens_T.roll(1)
        before_T[list(target.starts[:-1])] = PROTT5.pad
        x_TD = self.embed_tokens(before_T)
        bias = self.decoder.positions(target.max_length)
        sight = Sight(target.starts, bias, self.attention_kernel, None, memory_TD, source.starts)
        for index, layer in enumerate(self.decoder.layers):
            x_TD = self.through(layer, x_TD, index, sight)
        x_TD = self.decoder.final_norm(x_TD)
        wanted_MD = x_TD if places_M is None else x_TD[places_M]
        return F.linear(wanted_MD * self.width**-0.5, self.embed_tokens.weight)
