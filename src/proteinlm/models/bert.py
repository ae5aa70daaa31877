"""BERT (ProtBert, TAPE): post-norm Transformer with learned positions, and what ALBERT and ELECTRA share with it.

In: packed batches of the alphabet `PROTBERT` or `TAPE`. Out: hidden states, logits and attention maps, as named. A
protein is one segment: token type 0 throughout. The pooler of the published files, trained for pairs of sentences, is
left out.

Source: papers.md 6.1, 8.3; Devlin et al. 2019. The paper's dropout is 0, so that there is none here.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.blocks import Activation, AttentionContext, MaskedHead, PostNormLayer, Projection, run_layers
from proteinlm.models.contacts import MapCollector
from proteinlm.sequences.alphabet import PROTBERT, TAPE
from proteinlm.sequences.batch import PackedBatch

EPSILON = 1e-12
"""Of every norm (papers.md 8.3)."""

INITIAL_STD = 0.02
"""Of every matrix before training: normal, cut off at two standard deviations (Devlin et al., released code). That is
sqrt(2 / (5 x 1024)), and models narrower than 1,024 get the same rule: with 0.02, a small ALBERT had learnt next to
nothing of a toy language (0.81 nats above the least possible) when with the rule it was 0.02 above.
"""

BERT_ALPHABETS = {alphabet.name: alphabet for alphabet in (PROTBERT, TAPE)}


@dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT model; the default is ProtBert.

    Args:
        num_layers, width, num_heads, inner: layers, D, H, feed-forward width.
        max_positions: learned positions for `[CLS]`, residues and `[SEP]` together.
        token_types: rows of the table of token types; proteins use the first.
        language_head: the checkpoint has the masked-language-model head; without it there are no logits.
        alphabet: "ProtBert" or "TAPE".
    """

    num_layers: int = 30
    width: int = 1024
    num_heads: int = 16
    inner: int = 4096
    max_positions: int = 40_000
    token_types: int = 2
    language_head: bool = True
    alphabet: str = PROTBERT.name

    def __post_init__(self) -> None:
        if self.alphabet not in BERT_ALPHABETS:
            raise InputError(f"alphabet {self.alphabet!r} is none of BERT's; choose one of {', '.join(BERT_ALPHABETS)}")


@dataclass(frozen=True)
class EmbeddingSizes:
    """Sizes of a `BertEmbedding`: V tokens, E channels, positions, token types."""

    num_tokens: int
    width: int
    max_positions: int
    token_types: int


class BertEmbedding(nn.Module):
    """norm(token + position + first token type), (T,) -> (T, E)."""

    def __init__(self, sizes: EmbeddingSizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.num_tokens, sizes.width)
        self.positions = nn.Embedding(sizes.max_positions, sizes.width)
        self.token_types = nn.Embedding(sizes.token_types, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, eps=EPSILON)

    def forward(self, batch: PackedBatch) -> Float[Tensor, "T E"]:
        """Embed every token of a batch.

        Raises:
            InputError: a sequence has more tokens than there are positions.
        """
        if batch.max_length > self.positions.num_embeddings:
            raise InputError(
                f"a sequence of {batch.max_length} tokens exceeds the {self.positions.num_embeddings} positions of "
                "this model; cut it into windows"
            )
        embedded_TE = self.tokens(batch.tokens_T) + self.token_types.weight[0]
        normed_TE: Tensor = self.norm(embedded_TE + self.positions(batch.positions_T()))
        return normed_TE


def post_norm_layers(
    count: int, width: int, num_heads: int, inner: int, activation: Activation = "gelu"
) -> nn.ModuleList:
    """A stack of `count` layers.

    Raises:
        InputError: the width is no multiple of the number of heads.
    """
    if width % num_heads:
        raise InputError(f"width {width} is not a multiple of num_heads {num_heads}; choose one that is")
    return nn.ModuleList(PostNormLayer(width, num_heads, inner, EPSILON, activation) for _ in range(count))


def initialise(model: ProteinModel) -> None:
    """Give every matrix the random values that training starts from; biases stay 0, norms stay 1."""
    std = max(INITIAL_STD, math.sqrt(2 / (5 * model.width)))
    for module in model.modules():
        if isinstance(module, Projection | nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def map_collector(batch: PackedBatch, want: Want) -> MapCollector | None:
    """Takes attention maps on their way, if they are wanted."""
    return MapCollector(batch, want, None) if want.attentions else None


class Bert(ProteinModel):
    """BERT with its masked-language-model head.

    Args:
        config: shape.

    >>> model = Bert(BertConfig(num_layers=1, width=8, num_heads=2, inner=16, max_positions=10)).eval()
    >>> batch = PackedBatch.pack([PROTBERT.encode("MKT")], prefix=1, suffix=1)
    >>> model(batch, Want(logits=True)).logits_TV.shape
    torch.Size([5, 30])
    """

    has_attentions = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config, self.alphabet = config, BERT_ALPHABETS[config.alphabet]
        self.num_layers, self.width, self.has_logits = config.num_layers, config.width, config.language_head
        self.max_residues = config.max_positions - 2
        sizes = EmbeddingSizes(len(self.alphabet), config.width, config.max_positions, config.token_types)
        self.embedding = BertEmbedding(sizes)
        self.layers = post_norm_layers(config.num_layers, config.width, config.num_heads, config.inner)
        self.masked_head = (
            MaskedHead(config.width, len(self.alphabet), epsilon=EPSILON) if config.language_head else None
        )
        initialise(self)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`. Raises `InputError` beyond `max_positions` tokens."""
        self.check(want)
        output, collector = Output(), map_collector(batch, want)
        context = AttentionContext(batch.starts, maps=collector, kernel=self.attention_kernel)
        x_TD = run_layers(self, self.layers, self.embedding(batch), context, want, output)
        if want.logits and self.masked_head is not None:
            output.logits_TV = self.masked_head(self.wanted(x_TD, want), self.embedding.tokens.weight)
        if collector is not None:
            collector.finish(output)
        return output
