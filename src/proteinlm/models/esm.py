"""The ESM family: ESM-1 (Transformer-6, -12, -34, -36), ESM-1b and ESM-1v, ESM-2.

In: packed batches of the alphabets `ESM1` and `ESM1B`. Out: hidden states, logits, attention maps and contacts, as
named. Each architecture has its own `forward` that reads top to bottom (papers.md 2.2, 2.3 and 8.1).
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proteinlm.config import LATER
from proteinlm.errors import InputError
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.blocks import AttentionContext, MaskedHead, PreNormLayer, token_dropout
from proteinlm.models.contacts import ContactHead, MapCollector
from proteinlm.models.convolution import GappedLayout
from proteinlm.models.positions import Rotary, sinusoidal
from proteinlm.sequences.alphabet import ESM1, ESM1B
from proteinlm.sequences.batch import PackedBatch

TRAINED_RESIDUES = 1022
"""Residues in a training crop of 1,024 tokens (papers.md 1); positions beyond it were never seen in training."""

FIRST_POSITION = 2
"""fairseq counts positions from padding_idx + 1 (papers.md 2.2)."""

MASK_ESM1, MASK_ESM1B = ESM1.tokens.index("<mask>"), ESM1B.tokens.index("<mask>")


@dataclass(frozen=True)
class Esm1Config:
    """Shape of an ESM-1 model; the default is Transformer-34.

    Args:
        num_layers, width, num_heads, inner: layers, D, H, feed-forward width.
        token_dropout: rescale embeddings as training with masks did. output_bias: logits have a bias.
        contact_head: the checkpoint has a contact regression.
    """

    num_layers: int = 34
    width: int = 1280
    num_heads: int = 20
    inner: int = 5120
    token_dropout: bool = False
    output_bias: bool = False
    contact_head: bool = True


@dataclass(frozen=True)
class Esm1bConfig:
    """Shape of an ESM-1b or ESM-1v model; the default is ESM-1b.

    Args:
        num_layers, width, num_heads, inner: layers, D, H, feed-forward width.
        max_positions: learned positions for BOS, residues and EOS together.
        embedding_norm: a norm after the embedding (ESM-1b has it, ESM-1v has not).
        token_dropout: see papers.md 2.4. contact_head: the checkpoint has a contact regression.
        language_head: the checkpoint has the masked-language-model head; without it there are no logits.
    """

    num_layers: int = 33
    width: int = 1280
    num_heads: int = 20
    inner: int = 5120
    max_positions: int = 1024
    embedding_norm: bool = True
    token_dropout: bool = True
    contact_head: bool = True
    language_head: bool = True


@dataclass(frozen=True)
class Esm2Config:
    """Shape of an ESM-2 model; the default is the one of 650 M parameters.

    Args:
        num_layers, width, num_heads, inner: layers, D, H, feed-forward width.
        token_dropout: see papers.md 2.4. contact_head: the checkpoint has a contact regression.
        max_residues: residues of a training crop; longer proteins are cut into windows of this size.
        language_head: the checkpoint has the masked-language-model head; without it there are no logits.
        reach: neighbours on either side that a convolution before each feed-forward part sees; None, as in ESM-2, for
            no convolutions. Small models learn faster with them (docs/log.md).
    """

    num_layers: int = 33
    width: int = 1280
    num_heads: int = 20
    inner: int = 5120
    token_dropout: bool = True
    contact_head: bool = True
    max_residues: int = TRAINED_RESIDUES
    language_head: bool = True
    reach: int | None = field(default=None, metadata=LATER)


def _layers(
    config: Esm1Config | Esm1bConfig | Esm2Config, epsilon: float, extra_key: bool = False, reach: int | None = None
) -> nn.ModuleList:
    if config.width % config.num_heads:
        raise InputError(f"width {config.width} is not a multiple of num_heads {config.num_heads}; choose one that is")
    return nn.ModuleList(
        PreNormLayer(config.width, config.num_heads, config.inner, epsilon, extra_key, reach)
        for _ in range(config.num_layers)
    )


def _embedding(num_tokens: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(num_tokens, width)
    nn.init.normal_(embedding.weight, std=width**-0.5)
    return embedding


def _contact_head(config: Esm1Config | Esm1bConfig | Esm2Config) -> ContactHead | None:
    return ContactHead(config.num_layers, config.num_heads) if config.contact_head else None


class Esm1(ProteinModel):
    """ESM-1: pre-norm Transformer, sinusoidal positions, a learned key and value, untied output, no final norm.

    Args:
        config: shape.

    Source: papers.md 2.1 and 2.2.

    >>> model = Esm1(Esm1Config(num_layers=1, width=8, num_heads=2, inner=16)).eval()
    >>> batch = PackedBatch.pack([ESM1.encode("MKT")], prefix=1)
    >>> model(batch, Want(layers=(1,))).hidden[1].shape
    torch.Size([4, 8])
    """

    alphabet = ESM1
    has_attentions = True
    max_residues = TRAINED_RESIDUES

    def __init__(self, config: Esm1Config) -> None:
        super().__init__()
        self.config = config
        self.num_layers, self.width, self.has_contacts = config.num_layers, config.width, config.contact_head
        self.embed_tokens = _embedding(len(ESM1), config.width)
        self.layers = _layers(config, epsilon=1e-12, extra_key=True)
        self.output = nn.Parameter(nn.init.normal_(torch.empty(len(ESM1), config.width), std=config.width**-0.5))
        self.output_bias = nn.Parameter(torch.zeros(len(ESM1))) if config.output_bias else None
        self.contact_head = _contact_head(config)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`."""
        self.check(want)
        x_TD = math.sqrt(self.width) * self.embed_tokens(batch.tokens_T)
        if self.config.token_dropout:
            x_TD = token_dropout(x_TD, batch.tokens_T.eq(MASK_ESM1), batch.starts)
        x_TD = x_TD + sinusoidal(batch.positions_T() + FIRST_POSITION, self.width).to(x_TD.dtype)
        output, collector = Output(), _collector(batch, want, self.contact_head)
        x_TD = _run_layers(
            self,
            x_TD,
            AttentionContext(batch.starts, maps=collector, kernel=self.attention_kernel),
            want,
            output,
        )
        if self.num_layers in want.layers:
            output.hidden[self.num_layers] = x_TD
        if want.logits:
            output.logits_TV = F.linear(self.wanted(x_TD, want), self.output, self.output_bias)
        if collector is not None:
            collector.finish(output)
        return output


class Esm1b(ProteinModel):
    """ESM-1b and ESM-1v: learned positions, norms before and after, tied masked-language-model head.

    Args:
        config: shape.

    Source: papers.md 2.3 and 2.4.

    >>> model = Esm1b(Esm1bConfig(num_layers=1, width=8, num_heads=2, inner=16)).eval()
    >>> batch = PackedBatch.pack([ESM1B.encode("MKT")], prefix=1, suffix=1)
    >>> model(batch, Want(logits=True)).logits_TV.shape
    torch.Size([5, 33])
    """

    alphabet = ESM1B
    has_attentions = True

    def __init__(self, config: Esm1bConfig) -> None:
        super().__init__()
        self.config = config
        self.num_layers, self.width, self.has_contacts = config.num_layers, config.width, config.contact_head
        self.max_residues = config.max_positions - 2
        self.embed_tokens = _embedding(len(ESM1B), config.width)
        self.embed_positions = _embedding(config.max_positions + FIRST_POSITION, config.width)
        self.embedding_norm = nn.LayerNorm(config.width) if config.embedding_norm else None
        self.layers = _layers(config, epsilon=1e-5)
        self.final_norm = nn.LayerNorm(config.width)
        self.has_logits = config.language_head
        self.masked_head = MaskedHead(config.width, len(ESM1B)) if config.language_head else None
        self.contact_head = _contact_head(config)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`. Raises `InputError` beyond `max_positions` tokens."""
        self.check(want)
        if batch.max_length > self.config.max_positions:
            raise InputError(
                f"a sequence of {batch.max_length} tokens exceeds the {self.config.max_positions} positions of this "
                "model; cut it into windows"
            )
        x_TD = self.embed_tokens(batch.tokens_T)
        if self.config.token_dropout:
            x_TD = token_dropout(x_TD, batch.tokens_T.eq(MASK_ESM1B), batch.starts)
        x_TD = x_TD + self.embed_positions(batch.positions_T() + FIRST_POSITION)
        if self.embedding_norm is not None:
            x_TD = self.embedding_norm(x_TD)
        output, collector = Output(), _collector(batch, want, self.contact_head)
        x_TD = _run_layers(
            self,
            x_TD,
            AttentionContext(batch.starts, maps=collector, kernel=self.attention_kernel),
            want,
            output,
        )
        _finish(self, self.final_norm(x_TD), want, output, collector)
        return output


class Esm2(ProteinModel):
    """ESM-2: rotary positions, a final norm, tied masked-language-model head.

    Args:
        config: shape.

    Source: papers.md 8.1; the convolutions of `reach` are not ESM-2's, see `DepthwiseConvolution`.

    >>> model = Esm2(Esm2Config(num_layers=1, width=8, num_heads=2, inner=16)).eval()
    >>> batch = PackedBatch.pack([ESM1B.encode("MKT")], prefix=1, suffix=1)
    >>> model(batch, Want(contacts=True)).contacts[0].shape
    torch.Size([3, 3])
    """

    alphabet = ESM1B
    has_attentions = True

    def __init__(self, config: Esm2Config) -> None:
        super().__init__()
        self.config = config
        self.num_layers, self.width, self.has_contacts = config.num_layers, config.width, config.contact_head
        self.max_residues = config.max_residues
        self.embed_tokens = _embedding(len(ESM1B), config.width)
        self.rotary = Rotary(config.width // config.num_heads)
        self.layers = _layers(config, epsilon=1e-5, reach=config.reach)
        self.final_norm = nn.LayerNorm(config.width)
        self.has_logits = config.language_head
        self.masked_head = MaskedHead(config.width, len(ESM1B)) if config.language_head else None
        self.contact_head = _contact_head(config)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`."""
        self.check(want)
        x_TD = self.embed_tokens(batch.tokens_T)
        if self.config.token_dropout:
            x_TD = token_dropout(x_TD, batch.tokens_T.eq(MASK_ESM1B), batch.starts)
        output, collector = Output(), _collector(batch, want, self.contact_head)
        turns_TF = self.rotary(batch.positions_T())
        layout = GappedLayout.of(batch, self.config.reach) if self.config.reach is not None else None
        context = AttentionContext(batch.starts, turns_TF, collector, self.attention_kernel, layout)
        x_TD = _run_layers(self, x_TD, context, want, output)
        _finish(self, self.final_norm(x_TD), want, output, collector)
        return output


def _collector(batch: PackedBatch, want: Want, head: ContactHead | None) -> MapCollector | None:
    return MapCollector(batch, want, head) if want.attentions or want.contacts else None


def _run_layers(
    model: "Esm1 | Esm1b | Esm2", x_TD: Tensor, context: AttentionContext, want: Want, output: Output
) -> Tensor:
    """Run the stack; keep the hidden states before each layer that `want` names (the last is the caller's)."""
    for index, layer in enumerate(model.layers):
        if index in want.layers:
            output.hidden[index] = x_TD
        x_TD = model.through(layer, x_TD, index, context)
    return x_TD


def _finish(model: Esm1b | Esm2, last_TD: Tensor, want: Want, output: Output, collector: MapCollector | None) -> None:
    """What ESM-1b and ESM-2 return from their normed last hidden state."""
    if model.num_layers in want.layers:
        output.hidden[model.num_layers] = last_TD
    if want.logits and model.masked_head is not None:
        output.logits_TV = model.masked_head(model.wanted(last_TD, want), model.embed_tokens.weight)
    if collector is not None:
        collector.finish(output)
