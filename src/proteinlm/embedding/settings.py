"""What to keep of a model's answers, and the provenance that every output carries.

In: what the user named. Out: `EmbedSettings` whose layers are counted from 0, the `Want` that a forward pass needs,
and the dictionary that says how an output came to be. The same dictionary is the fingerprint of a run: parts are put
together only where it is equal.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from proteinlm import __version__
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel, Want

Pooling = Literal["mean", "max", "cls", "none"]
Storage = Literal["fp32", "fp16", "bf16"]
Content = Literal["embeddings", "logits", "contacts"]

POOLINGS = ("mean", "max", "cls", "none")
CONTENTS = ("embeddings", "logits", "contacts")
STORAGES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

LAYOUT_VERSION = 1
"""Version of the work folder and of the provenance; raised when either changes."""

Provenance = dict[str, Any]
"""JSON values by name."""


@dataclass(frozen=True)
class EmbedSettings:
    """What to keep of each protein.

    Args:
        layers: hidden states, 0 (the embedding) to the number of layers; negative ones count from the last, -1.
        pooling: mean or max over the residues, cls (the vector of the BOS token), or none (a vector per residue).
        include: any of embeddings, logits (of every residue) and contacts (of every pair of residues).
        storage: number format of the output.

    >>> EmbedSettings(layers=(-1, 0)).resolved(num_layers=6).layers
    (6, 0)
    """

    layers: tuple[int, ...] = (-1,)
    pooling: Pooling = "mean"
    include: tuple[Content, ...] = ("embeddings",)
    storage: Storage = "fp32"

    def __post_init__(self) -> None:
        _one_of("pooling", (self.pooling,), POOLINGS)
        _one_of("storage", (self.storage,), tuple(STORAGES))
        _one_of("include", self.include, CONTENTS)
        if not self.layers:
            raise InputError("no layer is named; -1 is the last")
        if len(set(self.include)) < len(self.include):
            raise InputError(f"include names something twice ({', '.join(self.include)}); name each thing once")

    def resolved(self, num_layers: int) -> "EmbedSettings":
        """The same settings with layers counted from 0, and contents in their usual order.

        Raises:
            InputError: a layer is outside the model, or is named twice.
        """
        layers = tuple(layer + num_layers + 1 if layer < 0 else layer for layer in self.layers)
        for named, layer in zip(self.layers, layers, strict=True):
            if not 0 <= layer <= num_layers:
                raise InputError(f"layer {named} is outside 0..{num_layers} (or -{num_layers + 1}..-1) of this model")
        if len(set(layers)) < len(layers):
            raise InputError(f"layers {', '.join(map(str, self.layers))} name one layer twice; name each layer once")
        return replace(self, layers=layers, include=tuple(what for what in CONTENTS if what in self.include))

    def check(self, model: ProteinModel) -> None:
        """Raise `InputError` if the model cannot give what is asked for; the layers are resolved already."""
        model.check(self.want())
        alphabet = model.alphabet
        if "embeddings" in self.include and self.pooling == "cls" and (not alphabet.prefix or alphabet.mask is None):
            why = (
                "has no BOS token" if not alphabet.prefix else "reads left to right, so its BOS vector knows no residue"
            )
            raise InputError(f"pooling cls was asked for, but this model {why}; use --pooling mean")

    def want(self) -> Want:
        """What the forward pass is to return."""
        return Want(
            layers=self.layers if "embeddings" in self.include else (),
            logits="logits" in self.include,
            contacts="contacts" in self.include,
        )

    @property
    def per_protein(self) -> bool:
        """Whether an embedding is one vector per protein and layer."""
        return self.pooling != "none"

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the output."""
        return STORAGES[self.storage]

    def described(self) -> Provenance:
        """As JSON values; `from_provenance` reads them."""
        return {
            "layers": list(self.layers),
            "pooling": self.pooling,
            "include": list(self.include),
            "storage": self.storage,
        }

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> "EmbedSettings":
        """The settings that `described` wrote.

        >>> EmbedSettings.from_provenance(EmbedSettings(pooling="none").described()).pooling
        'none'
        """
        return cls(
            layers=tuple(provenance["layers"]),
            pooling=provenance["pooling"],
            include=tuple(provenance["include"]),
            storage=provenance["storage"],
        )


def versions() -> Provenance:
    """What computed: numbers may differ in the last bits between versions, so parts of two are not mixed."""
    return {"proteinlm": __version__, "torch": torch.__version__, "layout": LAYOUT_VERSION}


def differences(there: Provenance, now: Provenance) -> list[str]:
    """One phrase for each thing in which two runs differ; empty where their parts may be put together.

    >>> differences({"pooling": "mean", "storage": "fp32"}, {"pooling": "max", "storage": "fp32"})
    ["pooling: 'mean' there, 'max' now"]
    """
    names = [name for name in {**there, **now} if name != "model" and there.get(name) != now.get(name)]
    return [f"{name.replace('_', ' ')}: {_shown(there.get(name))} there, {_shown(now.get(name))} now" for name in names]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


def _one_of(name: str, values: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    for value in values:
        if value not in allowed:
            raise InputError(f"{name} {value!r} is unknown; use one of {', '.join(allowed)}")
    if not values:
        raise InputError(f"{name} is empty; use one of {', '.join(allowed)}")
