"""Our models under other people's tensor names, both ways.

In: tensors by the names of fair-esm or Hugging Face, or our model. Out: the other one, bit for bit. Names differ by a
table (`Naming`; those of ESM are here, another family's stand with its reader); values differ in four ways
(`Conversion`): theirs keep queries, keys and values apart, the channel pairs of rotary positions half a head apart
(ours stand side by side), vectors with leading axes, and a copy of the rotary frequencies in every layer.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.checkpoints.contents import require_names
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.models.esm import Esm2


@dataclass(frozen=True)
class Naming:
    """What one layout calls the parts of a model.

    Args:
        outside: our part outside the layers -> theirs. A part is a tensor, or a module with `weight` and `bias`.
        layer: prefix of a layer, with `{}` for its number.
        inside: our part of a layer -> theirs; three of them for queries, keys and values.
        frequencies: the rotary frequencies of a layer, after its prefix; for models that have them.
        stack: our prefix of the layers.
    """

    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, tuple[str, ...]]
    frequencies: str = ""
    stack: str = "layers."


FAIR_ESM = Naming(
    outside={
        "embed_tokens": "embed_tokens",
        "embed_positions": "embed_positions",
        "embedding_norm": "emb_layer_norm_before",
        "final_norm": "emb_layer_norm_after",
        "masked_head.dense": "lm_head.dense",
        "masked_head.norm": "lm_head.layer_norm",
        "masked_head.bias": "lm_head.bias",
        "output": "embed_out",
        "output_bias": "embed_out_bias",
        "contact_head": "contact_head.regression",
    },
    layer="layers.{}.",
    inside={
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.out": ("self_attn.out_proj",),
        "attention.extra_key": ("self_attn.bias_k",),
        "attention.extra_value": ("self_attn.bias_v",),
        "attention_norm": ("self_attn_layer_norm",),
        "feed_forward_norm": ("final_layer_norm",),
        "feed_forward.up": ("fc1",),
        "feed_forward.down": ("fc2",),
    },
    frequencies="self_attn.rot_emb.inv_freq",
)
"""papers.md 8.1, after the prefixes are gone."""

HUGGING_FACE = Naming(
    outside={
        "embed_tokens": "embeddings.word_embeddings",
        "embed_positions": "embeddings.position_embeddings",
        "embedding_norm": "embeddings.layer_norm",
        "final_norm": "encoder.emb_layer_norm_after",
        "masked_head.dense": "lm_head.dense",
        "masked_head.norm": "lm_head.layer_norm",
        "masked_head.bias": "lm_head.bias",
        "contact_head": "contact_head.regression",
    },
    layer="encoder.layer.{}.",
    inside={
        "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.out": ("attention.output.dense",),
        "attention_norm": ("attention.LayerNorm",),
        "feed_forward_norm": ("LayerNorm",),
        "feed_forward.up": ("intermediate.dense",),
        "feed_forward.down": ("output.dense",),
    },
    frequencies="attention.self.rotary_embeddings.inv_freq",
)
"""papers.md 8.2, without the prefix `esm.`."""


class Conversion(abc.ABC):
    """How the values of one of our tensors are stored elsewhere, as one or several tensors."""

    @abc.abstractmethod
    def apart(self, ours: Tensor) -> list[Tensor]:
        """Their tensors, from ours."""

    @abc.abstractmethod
    def together(self, theirs: list[Tensor]) -> Tensor:
        """Our tensor, from theirs."""


class Same(Conversion):
    """Stored as it is."""

    def apart(self, ours: Tensor) -> list[Tensor]:
        """One tensor, the same."""
        return [ours]

    def together(self, theirs: list[Tensor]) -> Tensor:
        """The one tensor."""
        return theirs[0]


@dataclass(frozen=True)
class Reshaped(Conversion):
    """Stored with other axes: `ours` and `theirs` are the shapes."""

    ours: tuple[int, ...]
    theirs: tuple[int, ...]

    def apart(self, ours: Tensor) -> list[Tensor]:
        """One tensor, in their shape."""
        return [ours.reshape(self.theirs)]

    def together(self, theirs: list[Tensor]) -> Tensor:
        """The one tensor, in our shape."""
        return theirs[0].reshape(self.ours)


@dataclass(frozen=True)
class Fused(Conversion):
    """Queries, keys and values, which we keep in one tensor.

    Args:
        rotary_heads: heads whose channels are turned in pairs; 0 for models without rotary positions.
    """

    rotary_heads: int

    def apart(self, ours: Tensor) -> list[Tensor]:
        """Three tensors; of each head of queries and keys, first all first channels of a pair, then all second."""
        query, key, value = ours.chunk(3)
        return [self._reorder(query, (-1, 2)), self._reorder(key, (-1, 2)), value]

    def together(self, theirs: list[Tensor]) -> Tensor:
        """The three in one, the two channels of a pair side by side."""
        query, key, value = theirs
        return torch.cat([self._reorder(query, (2, -1)), self._reorder(key, (2, -1)), value])

    def _reorder(self, rows: Tensor, sizes: tuple[int, int]) -> Tensor:
        if self.rotary_heads == 0:
            return rows
        return rows.unflatten(0, (self.rotary_heads, *sizes)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class Repeated(Conversion):
    """Stored `count` times, all equal."""

    count: int

    def apart(self, ours: Tensor) -> list[Tensor]:
        """As many copies."""
        return [ours] * self.count

    def together(self, theirs: list[Tensor]) -> Tensor:
        """The one that all copies equal."""
        if any(not torch.equal(theirs[0], other) for other in theirs[1:]):
            raise InputError("the layers' copies of the rotary frequencies differ; one set for all layers is supported")
        return theirs[0]


@dataclass(frozen=True)
class Split(Conversion):
    """Several matrices of equal height, which we keep in one; each is stored with `each`."""

    count: int
    each: Conversion

    def apart(self, ours: Tensor) -> list[Tensor]:
        """As many tensors."""
        return [theirs for part in ours.chunk(self.count) for theirs in self.each.apart(part)]

    def together(self, theirs: list[Tensor]) -> Tensor:
        """All in one, one below the other."""
        return torch.cat([self.each.together([one]) for one in theirs])


@dataclass(frozen=True)
class PerHead(Conversion):
    """A projection into heads, stored transposed and with an axis of heads: (H C, D) as (D, H, C)."""

    num_heads: int

    def apart(self, ours: Tensor) -> list[Tensor]:
        """One tensor of three axes."""
        return [ours.t().unflatten(1, (self.num_heads, -1))]

    def together(self, theirs: list[Tensor]) -> Tensor:
        """The matrix."""
        return theirs[0].flatten(1).t().contiguous()


@dataclass(frozen=True)
class Link:
    """One of our tensors, what it is called elsewhere, and how its values are stored there."""

    ours: str
    theirs: tuple[str, ...]
    conversion: Conversion


def links(model: ProteinModel, naming: Naming) -> Iterator[Link]:
    """Every tensor of a model with its names and its conversion in another layout."""
    for name, tensor in model.state_dict().items():
        if name == "rotary.inverse_frequency":
            copies = tuple(naming.layer.format(index) + naming.frequencies for index in range(model.num_layers))
            yield Link(name, copies, Repeated(len(copies)))
            continue
        yield Link(name, _their_names(name, naming), _conversion(model, name, tensor))


def _their_names(name: str, naming: Naming) -> tuple[str, ...]:
    if not name.startswith(naming.stack):
        return (_in_table(name, {ours: (theirs,) for ours, theirs in naming.outside.items()})[0],)
    index, rest = name.removeprefix(naming.stack).split(".", 1)
    return tuple(naming.layer.format(index) + theirs for theirs in _in_table(rest, naming.inside))


def _in_table(name: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The entry of a tensor, or of the module it belongs to.

    Raises:
        InputError: the layout has none, since its models lack this part.
    """
    if name in table:
        return table[name]
    part, _, kind = name.rpartition(".")
    if part not in table:
        raise InputError(
            f"this layout has no place for {part!r}, and its readers would not run it; export it as native"
        )
    return tuple(f"{theirs}.{kind}" for theirs in table[part])


def _conversion(model: ProteinModel, name: str, tensor: Tensor) -> Conversion:
    shape = tuple(tensor.shape)
    if ".attention.qkv." in name:
        return Fused(model.config.num_heads if isinstance(model, Esm2) else 0)
    if name.endswith((".extra_key", ".extra_value")):
        return Reshaped(shape, (1, 1, *shape))
    if name == "contact_head.weight":
        return Reshaped(shape, (1, tensor.numel()))
    return Same()


def apart(table: Iterable[Link], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names, each in memory of its own.

    Args:
        table: of the model. tensors: by our names.
    """
    return {
        name: part.clone(memory_format=torch.contiguous_format)
        for link in table
        for name, part in zip(link.theirs, link.conversion.apart(tensors[link.ours]), strict=True)
    }


def together(
    table: Sequence[Link], like: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Tensors by our names.

    Args:
        table: of the model.
        like: by our names, of the shapes that are expected.
        tensors: by their names, prefixes removed; all of them are used.
        source: the file, for messages.

    Raises:
        InputError: a tensor is missing, surplus or of the wrong shape, or the copies of one differ.
    """
    expected: dict[str, Tensor] = {}
    for link in table:
        expected.update(zip(link.theirs, link.conversion.apart(like[link.ours]), strict=True))
    require_names(expected, tensors, source)
    try:
        return {link.ours: link.conversion.together([tensors[name] for name in link.theirs]) for link in table}
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def to_theirs(model: ProteinModel, tensors: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """Tensors of a model by their names, for a layout that is a table of names; see `apart`."""
    return apart(links(model, naming), tensors)


def to_ours(model: ProteinModel, tensors: Mapping[str, Tensor], naming: Naming, source: str) -> dict[str, Tensor]:
    """Tensors by our names, from such a layout; `model` is of the shape that is expected. See `together`."""
    return together(list(links(model, naming)), model.state_dict(), tensors, source)


def require_tied(copy: Tensor, embedding: Tensor, name: str, source: str) -> None:
    """Refuse an output matrix that is not the embedding it is tied to."""
    if not torch.equal(copy, embedding):
        raise InputError(f"{source}: {name} differs from the token embedding; untied output matrices are not supported")


def has_part(tensors: Iterable[str], part: str) -> bool:
    """Whether any tensor belongs to `part`."""
    return any(name == part or name.startswith(part + ".") for name in tensors)
