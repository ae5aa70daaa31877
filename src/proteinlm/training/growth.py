"""A larger model that begins as a smaller one: more layers, wider feed-forward parts, the same outputs.

In: a model with random weights, and a smaller one of the same architecture. Out: the first, computing what the second
does, with what it has more of ready to learn. A small model learns the first millions of tokens in less time, and
what it knows is not lost when its size begins to hold it back.
"""

import dataclasses

import torch

from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.models.blocks import PreNormLayer
from proteinlm.models.esm import Esm1, Esm1b, Esm2

GROWS = ("num_layers", "inner")
"""What the larger model may have more of."""


def grow(large: ProteinModel, small: ProteinModel) -> None:
    """Give `large` the weights of `small`, in place, so that both compute the same.

    The layers of `small` are spread evenly; what their feed-forward parts have more of, and the layers between them,
    keep random weights where they read and get zeros where they write, so that the first step moves them.

    Args:
        large, small: ESM-1, ESM-1b or ESM-2, alike but for `num_layers` and `inner`, of which `large` has as much or
            more. A contact head is not taken over where the layers differ in number.

    Raises:
        InputError: they differ otherwise.

    Source: the zeros are those of Net2Net's identity layers (Chen 2016) and of FixUp's branches (Zhang 2019).

    >>> from proteinlm.models.esm import Esm2Config
    >>> small, large = (Esm2(Esm2Config(num_layers=n, width=8, num_heads=2, inner=8 * n)) for n in (2, 3))
    >>> grow(large, small)
    >>> [bool(layer.attention.out.weight.any()) for layer in large.layers]
    [True, True, False]
    """
    if not (isinstance(large, Esm1 | Esm1b | Esm2) and type(small) is type(large)):
        raise InputError(
            f"a {type(large).__name__} cannot grow from a {type(small).__name__}; ESM-1, ESM-1b and ESM-2 grow, each "
            "from its own kind"
        )
    for field in dataclasses.fields(large.config):
        ours, theirs = (getattr(model.config, field.name) for model in (large, small))
        if ours < theirs if field.name in GROWS else ours != theirs:
            raise InputError(
                f"{field.name} is {ours}, and the model to grow from has {theirs}; "
                + ("give as much or more" if field.name in GROWS else "only num_layers and inner can grow")
            )
    rest = {name: tensor for name, tensor in small.state_dict().items() if not name.startswith("layers.")}
    if large.num_layers != small.num_layers:
        rest = {name: tensor for name, tensor in rest.items() if not name.startswith("contact_head.")}
    large.load_state_dict(rest, strict=False)
    places = {old * large.num_layers // small.num_layers: layer for old, layer in enumerate(small.layers)}
    for place, layer in enumerate(large.layers):
        assert isinstance(layer, PreNormLayer)
        if place in places:
            _fill(layer, places[place])
        else:
            _silence(layer)


@torch.no_grad()
def _fill(layer: PreNormLayer, from_layer: torch.nn.Module) -> None:
    """Let `layer` compute what `from_layer` does."""
    assert isinstance(from_layer, PreNormLayer)
    for ours, theirs in zip(layer.parameters(), from_layer.parameters(), strict=True):
        ours[tuple(map(slice, theirs.shape))] = theirs
    layer.feed_forward.down.weight[:, len(from_layer.feed_forward.up.weight) :] = 0


def _silence(layer: PreNormLayer) -> None:
    """Let `layer` add nothing to what passes through it."""
    for projection in (layer.attention.out, layer.feed_forward.down):
        for parameter in projection.parameters():
            torch.nn.init.zeros_(parameter)
