"""ALBERT (ProtAlbert): a narrow embedding, widened once, and one wide layer that runs again and again.

In: packed batches of the alphabet `PROTALBERT`. Out: hidden states, logits and attention maps, as named. The layers
share their weights, so that memory is that of one layer, and time that of all of them.

Source: papers.md 6.1, 8.3; Lan et al. 2020. The paper's dropout is 0, so that there is none here.
"""

import itertools
from dataclasses import dataclass

from proteinlm.errors import InputError
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.bert import (
    EPSILON,
    BertEmbedding,
    EmbeddingSizes,
    initialise,
    map_collector,
    post_norm_layers,
)
from proteinlm.models.blocks import Activation, AttentionContext, MaskedHead, Projection, run_layers
from proteinlm.sequences.alphabet import PROTALBERT
from proteinlm.sequences.batch import PackedBatch


@dataclass(frozen=True)
class AlbertConfig:
    """Shape of an ALBERT model; the default is ProtAlbert.

    Args:
        num_layers: how often the shared layer runs.
        width, num_heads, inner: D, H, feed-forward width.
        embedding_width: channels E of tokens and positions.
        max_positions: learned positions for `[CLS]`, residues and `[SEP]` together.
        token_types: rows of the table of token types; proteins use the first.
        exact_gelu: the erf form of GELU instead of the tanh form (`gelu_new`), which the published model has.
        language_head: the checkpoint has the masked-language-model head; without it there are no logits.
    """

    num_layers: int = 12
    width: int = 4096
    num_heads: int = 64
    inner: int = 16_384
    embedding_width: int = 128
    max_positions: int = 40_000
    token_types: int = 2
    exact_gelu: bool = False
    language_head: bool = True


class Albert(ProteinModel):
    """ALBERT with its masked-language-model head.

    Args:
        config: shape.

    >>> config = AlbertConfig(num_layers=3, width=8, num_heads=2, inner=16, embedding_width=4, max_positions=10)
    >>> batch = PackedBatch.pack([PROTALBERT.encode("MKT")], prefix=1, suffix=1)
    >>> Albert(config).eval()(batch, Want(layers=(3,))).hidden[3].shape
    torch.Size([5, 8])
    """

    alphabet = PROTALBERT
    has_attentions = True

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__()
        if config.num_layers < 1:
            raise InputError(f"num_layers is {config.num_layers}; the shared layer must run at least once")
        self.config = config
        self.num_layers, self.width, self.has_logits = config.num_layers, config.width, config.language_head
        self.max_residues = config.max_positions - 2
        activation: Activation = "gelu" if config.exact_gelu else "gelu_tanh"
        sizes = EmbeddingSizes(len(PROTALBERT), config.embedding_width, config.max_positions, config.token_types)
        self.embedding = BertEmbedding(sizes)
        self.widen = Projection(config.embedding_width, config.width)
        self.layers = post_norm_layers(1, config.width, config.num_heads, config.inner, activation)
        self.masked_head = (
            MaskedHead(config.width, len(PROTALBERT), config.embedding_width, EPSILON, activation)
            if config.language_head
            else None
        )
        initialise(self)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`. Raises `InputError` beyond `max_positions` tokens."""
        self.check(want)
        output, collector = Output(), map_collector(batch, want)
        context = AttentionContext(batch.starts, maps=collector, kernel=self.attention_kernel)
        x_TD = self.widen(self.embedding(batch)).to(self.embedding.tokens.weight.dtype)
        layers = itertools.repeat(self.layers[0], self.num_layers)
        x_TD = run_layers(self, layers, x_TD, context, want, output)
        if want.logits and self.masked_head is not None:
            output.logits_TV = self.masked_head(self.wanted(x_TD, want), self.embedding.tokens.weight)
        if collector is not None:
            collector.finish(output)
        return output
