"""ELECTRA (ProtElectra): a small generator that fills in masked residues, and a discriminator that spots them.

In: packed batches of the alphabet `PROTBERT`. Out: hidden states and attention maps of either, logits of the generator,
and from the discriminator the log odds that a token was replaced. `ElectraPair` is the two as they are trained: tokens,
positions and token types are embedded once for both, which is why a generator narrower than its embedding has a
projection behind it. `split` makes of it the two models that are published.

Source: papers.md 6.1, 6.3, 8.3; Clark et al. 2020. The paper's dropout is 0, so that there is none here.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.bert import (
    EPSILON,
    BertEmbedding,
    EmbeddingSizes,
    initialise,
    map_collector,
    post_norm_layers,
)
from proteinlm.models.blocks import AttentionContext, MaskedHead, Projection, run_layers
from proteinlm.sequences.alphabet import PROTBERT
from proteinlm.sequences.batch import PackedBatch


@dataclass(frozen=True)
class ElectraConfig:
    """Shape of a generator or a discriminator; the default is ProtElectra's discriminator.

    Args:
        num_layers, width, num_heads, inner: layers, D, H, feed-forward width.
        embedding_width: channels E of tokens and positions; a projection follows where it is not D.
        max_positions: learned positions for `[CLS]`, residues and `[SEP]` together.
        token_types: rows of the table of token types; proteins use the first.
        head: the checkpoint has the head that the model was trained with.
    """

    num_layers: int = 30
    width: int = 1024
    num_heads: int = 16
    inner: int = 4096
    embedding_width: int = 1024
    max_positions: int = 40_000
    token_types: int = 2
    head: bool = True


@dataclass(frozen=True)
class ElectraPairConfig:
    """Shape of the two that are trained together; the default is ProtElectra.

    Args:
        num_layers, width, num_heads, inner: of the discriminator, as in `ElectraConfig`.
        generator_layers, generator_width, generator_heads, generator_inner: of the generator.
        max_positions, token_types: of the one embedding, which is as wide as the discriminator.
    """

    num_layers: int = 30
    width: int = 1024
    num_heads: int = 16
    inner: int = 4096
    generator_layers: int = 30
    generator_width: int = 256
    generator_heads: int = 4
    generator_inner: int = 1024
    max_positions: int = 40_000
    token_types: int = 2

    def discriminator(self) -> ElectraConfig:
        """Shape of the discriminator alone."""
        sizes = (self.num_layers, self.width, self.num_heads, self.inner)
        return ElectraConfig(*sizes, self.width, self.max_positions, self.token_types)

    def generator(self) -> ElectraConfig:
        """Shape of the generator alone."""
        sizes = (self.generator_layers, self.generator_width, self.generator_heads, self.generator_inner)
        return ElectraConfig(*sizes, self.width, self.max_positions, self.token_types)


class ElectraBody(nn.Module):
    """What stands between embedding and head: a projection where widths differ, and the layers."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        differs = config.embedding_width != config.width
        self.project = Projection(config.embedding_width, config.width) if differs else None
        self.layers = post_norm_layers(config.num_layers, config.width, config.num_heads, config.inner)

    def run(self, model: ProteinModel, embedded_TE: Tensor, batch: PackedBatch, want: Want, output: Output) -> Tensor:
        """The last hidden state (T, D); hidden states and attention maps that `want` names go into `output`."""
        collector = map_collector(batch, want)
        context = AttentionContext(batch.starts, maps=collector, kernel=model.attention_kernel)
        x_TD = embedded_TE if self.project is None else self.project(embedded_TE).to(embedded_TE.dtype)
        x_TD = run_layers(model, self.layers, x_TD, context, want, output)
        if collector is not None:
            collector.finish(output)
        return x_TD


class ReplacedHead(nn.Module):
    """Dense, gelu, one number: the log odds that a token was replaced, (T, D) -> (T,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = Projection(width, width, activation="gelu")
        self.output = nn.Linear(width, 1)  # keeps fp32, as the embedding that logits are made with

    def forward(self, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T"]:
        """One number for every token."""
        odds_T1: Tensor = self.output(self.dense(x_TD).to(self.output.weight.dtype))
        return odds_T1[:, 0]


def _embedding(config: ElectraConfig) -> BertEmbedding:
    sizes = EmbeddingSizes(len(PROTBERT), config.embedding_width, config.max_positions, config.token_types)
    return BertEmbedding(sizes)


def _masked_head(config: ElectraConfig) -> MaskedHead:
    return MaskedHead(config.width, len(PROTBERT), config.embedding_width, EPSILON)


class ElectraGenerator(ProteinModel):
    """The generator: a masked language model.

    Args:
        config: shape.

    >>> config = ElectraConfig(1, width=8, num_heads=2, inner=16, embedding_width=12, max_positions=10)
    >>> batch = PackedBatch.pack([PROTBERT.encode("MKT")], prefix=1, suffix=1)
    >>> ElectraGenerator(config).eval()(batch, Want(logits=True)).logits_TV.shape
    torch.Size([5, 30])
    """

    alphabet = PROTBERT
    has_attentions = True

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.config = config
        self.num_layers, self.width, self.has_logits = config.num_layers, config.width, config.head
        self.max_residues = config.max_positions - 2
        self.embedding = _embedding(config)
        self.body = ElectraBody(config)
        self.masked_head = _masked_head(config) if config.head else None
        initialise(self)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`. Raises `InputError` beyond `max_positions` tokens."""
        self.check(want)
        output = Output()
        x_TD = self.body.run(self, self.embedding(batch), batch, want, output)
        if want.logits and self.masked_head is not None:
            output.logits_TV = self.masked_head(self.wanted(x_TD, want), self.embedding.tokens.weight)
        return output


class ElectraDiscriminator(ProteinModel):
    """The discriminator: the one that ELECTRA is used for afterwards.

    Args:
        config: shape.

    >>> config = ElectraConfig(1, width=8, num_heads=2, inner=16, embedding_width=8, max_positions=10)
    >>> batch = PackedBatch.pack([PROTBERT.encode("MKT")], prefix=1, suffix=1)
    >>> ElectraDiscriminator(config).eval()(batch, Want(replaced=True)).replaced_T.shape
    torch.Size([5])
    """

    alphabet = PROTBERT
    has_attentions = True
    has_logits = False

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.config = config
        self.num_layers, self.width, self.has_replaced = config.num_layers, config.width, config.head
        self.max_residues = config.max_positions - 2
        self.embedding = _embedding(config)
        self.body = ElectraBody(config)
        self.replaced_head = ReplacedHead(config.width) if config.head else None
        initialise(self)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`. Raises `InputError` beyond `max_positions` tokens."""
        self.check(want)
        output = Output()
        x_TD = self.body.run(self, self.embedding(batch), batch, want, output)
        if want.replaced and self.replaced_head is not None:
            output.replaced_T = self.replaced_head(x_TD)
        return output


class ElectraPair(ProteinModel):
    """Generator and discriminator as they are trained: one embedding for both.

    As an embedder it is its discriminator: hidden states and attention maps are those. Logits are the generator's, and
    only the half that is asked for runs.

    Args:
        config: shape.

    >>> config = ElectraPairConfig(1, 8, 2, 16, 1, 4, 1, 8, max_positions=10)
    >>> batch = PackedBatch.pack([PROTBERT.encode("MKT")], prefix=1, suffix=1)
    >>> output = ElectraPair(config).eval()(batch, Want(logits=True, replaced=True))
    >>> output.logits_TV.shape, output.replaced_T.shape
    (torch.Size([5, 30]), torch.Size([5]))
    """

    alphabet = PROTBERT
    has_attentions = True
    has_replaced = True

    def __init__(self, config: ElectraPairConfig) -> None:
        super().__init__()
        self.config = config
        self.num_layers, self.width = config.num_layers, config.width
        self.max_residues = config.max_positions - 2
        self.embedding = _embedding(config.discriminator())
        self.generator, self.masked_head = ElectraBody(config.generator()), _masked_head(config.generator())
        self.discriminator, self.replaced_head = ElectraBody(config.discriminator()), ReplacedHead(config.width)
        initialise(self)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run over one packed batch; see `ProteinModel.forward`. Raises `InputError` beyond `max_positions` tokens."""
        self.check(want)
        output, embedded_TE = Output(), self.embedding(batch)
        if want.layers or want.attentions or want.replaced:
            x_TD = self.discriminator.run(self, embedded_TE, batch, want, output)
            if want.replaced:
                output.replaced_T = self.replaced_head(x_TD)
        if want.logits:
            x_TD = self.generator.run(self, embedded_TE, batch, Want(), Output())
            output.logits_TV = self.masked_head(self.wanted(x_TD, want), self.embedding.tokens.weight)
        return output

    def split(self) -> tuple[ElectraGenerator, ElectraDiscriminator]:
        """The two models apart, each with a copy of the embedding.

        >>> pair = ElectraPair(ElectraPairConfig(1, 8, 2, 16, 1, 4, 1, 8, max_positions=10))
        >>> [part.width for part in pair.split()]
        [4, 8]
        """
        state = self.state_dict()
        generator = ElectraGenerator(self.config.generator())
        discriminator = ElectraDiscriminator(self.config.discriminator())
        for part, body, head in (
            (generator, "generator.", "masked_head."),
            (discriminator, "discriminator.", "replaced_head."),
        ):
            names = {
                name.replace(body, "body.", 1): name for name in state if name.startswith(("embedding.", body, head))
            }
            part.load_state_dict({ours: state[name] for ours, name in names.items()})
            part.train(self.training)
        return generator, discriminator
