"""Heads in files: one safetensors file that says which model's features the head was fitted on, and refuses others.

In: a head, what its classes are called, and where its features came from. Out: `NAME.safetensors` whose metadata has
one entry, `proteinlm_head`: a JSON object (`HeadCard`); and back. Nothing in it can run code. Written whole or not at
all; used only if its own digest fits, and only with the model whose digest it carries.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from proteinlm.checkpoints.files import atomic_file, read_card, read_safetensors, write_safetensors
from proteinlm.config import from_dict, nearest, to_dict
from proteinlm.errors import InputError
from proteinlm.heads.calibration import softmax
from proteinlm.heads.contact import PairProjection, PairProjectionConfig
from proteinlm.heads.fitting import predict_logits
from proteinlm.heads.layers import Head
from proteinlm.heads.linear import LinearProbe
from proteinlm.heads.network import (
    CnnConfig,
    ContactResNet,
    ContactResNetConfig,
    FnnConfig,
    LightAttention,
    LightAttentionConfig,
    LstmConfig,
    PooledFnn,
    ResidueCnn,
    ResidueLstm,
)

ENTRY = "proteinlm_head"
FORMAT_VERSION = 1
LINEAR = "linear"


@dataclass(frozen=True)
class Kind:
    """A kind of network: its class and its configuration's class."""

    head: Callable[..., Head]
    config: type


KINDS: dict[str, Kind] = {
    "cnn": Kind(ResidueCnn, CnnConfig),
    "lstm": Kind(ResidueLstm, LstmConfig),
    "fnn": Kind(PooledFnn, FnnConfig),
    "light-attention": Kind(LightAttention, LightAttentionConfig),
    "contact-resnet": Kind(ContactResNet, ContactResNetConfig),
    "pair-projection": Kind(PairProjection, PairProjectionConfig),
}
"""Networks by the name that stands in files; `linear` is the linear probe."""


@dataclass(frozen=True)
class Features:
    """Where features came from.

    Args:
        model: name. digest: of its weights (`checkpoints`). layer: whose vectors, as an index into the hidden states.
        width: of the vectors. pooled: whether a row is the mean over a protein's residues.
    """

    model: str
    digest: str
    layer: int
    width: int
    pooled: bool = False


@dataclass(frozen=True)
class HeadCard:
    """What a file of a head says of itself.

    Args:
        kind: key of `KINDS`, or "linear". config: its configuration. features: fields of `Features`.
        classes: task -> names of the classes, in order. temperatures: task -> what logits are divided by.
        record: how it was fitted. digest: of all of this and of the tensors. format_version: of this layout.
    """

    kind: str
    config: dict
    features: dict
    classes: dict
    temperatures: dict
    record: dict
    digest: str
    format_version: int = FORMAT_VERSION


@dataclass
class FittedHead:
    """A head with all that it takes to use it.

    Attributes:
        head: a network or a linear probe. features: what it was fitted on.
        classes: task -> names of the classes. temperatures: task -> temperature; 1 where it was not calibrated.
        record: how it was fitted.
    """

    head: Head | LinearProbe
    features: Features
    classes: dict[str, list[str]]
    temperatures: dict[str, float] = field(default_factory=dict)
    record: dict[str, object] = field(default_factory=dict)

    def predict_proba(self, features: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Calibrated probabilities of each class, by task, for each protein.

        Args:
            features: of each protein, from the model and layer of `self.features`, shape (L, D).

        Returns:
            per protein: task -> shape (L, K) per residue, (K,) per protein, (L, L, 2) per pair.
        """
        if isinstance(self.head, LinearProbe):
            head = self.head
            everything: Iterator[list[np.ndarray]] = ([head.logits(one)] for one in features)
        else:
            everything = predict_logits(self.head, features)
        return [
            {
                task: softmax(one / self.temperatures.get(task, 1.0))
                for task, one in zip(self.classes, logits, strict=True)
            }
            for logits in everything
        ]


def save_head(fitted: FittedHead, path: Path) -> str:
    """Write a head as one file, atomically; returns its digest.

    Raises:
        InputError: the class names do not fit the head, or the file cannot be written.
    """
    config: dict[str, object] = {}
    if isinstance(fitted.head, LinearProbe):
        kind = LINEAR
        tensors, outputs = fitted.head.tensors(), [len(fitted.head.bias_K)]
    else:
        kind, config = _kind_of(fitted.head)
        tensors, outputs = fitted.head.state_dict(), list(fitted.head.outputs.values())
    _require_classes(outputs, fitted.classes, str(path))
    parts: dict[str, object] = {
        "kind": kind,
        "config": config,
        "features": to_dict(fitted.features),
        "classes": fitted.classes,
        "temperatures": fitted.temperatures,
        "record": fitted.record,
    }
    digest = _digest(parts, tensors)
    text = json.dumps({**parts, "digest": digest, "format_version": FORMAT_VERSION})
    with atomic_file(path) as temporary:
        write_safetensors(temporary, tensors, {ENTRY: text})
    return digest


def load_head(path: Path, model_digest: str) -> FittedHead:
    """Read a head for use with the model of a digest.

    Args:
        path: what `save_head` wrote. model_digest: of the model whose features the head will be given.

    Raises:
        InputError: the file is damaged, of another version or no head, or was fitted on another model's features.
    """
    tensors, metadata = read_safetensors(path)
    if ENTRY not in metadata:
        raise InputError(f"{path} holds no head; give a file that was saved with a head in it")
    card = read_card(HeadCard, metadata[ENTRY], FORMAT_VERSION, path)
    parts = {name: value for name, value in to_dict(card).items() if name not in ("digest", "format_version")}
    if _digest(parts, tensors) != card.digest:
        raise InputError(f"{path} is not as it was written: its digest does not fit; get it again")
    features = from_dict(Features, card.features, f"{path}: features")
    if features.digest != model_digest:
        raise InputError(
            f"{path} was fitted on features of {features.model} (digest {features.digest[:12]}), not of this model "
            f"(digest {model_digest[:12]}); use that model, or fit the head anew"
        )
    head = _rebuild(card, tensors, path)
    outputs = [len(head.bias_K)] if isinstance(head, LinearProbe) else list(head.outputs.values())
    _require_classes(outputs, card.classes, str(path))
    return FittedHead(head, features, card.classes, card.temperatures, card.record)


def _kind_of(head: Head) -> tuple[str, dict[str, object]]:
    """The name of a network's kind, and its configuration."""
    for name, kind in KINDS.items():
        if type(head) is kind.head:
            return name, to_dict(head.config)
    raise InputError(f"{type(head).__name__} is not in the table of heads; add it to heads.store.KINDS")


def _rebuild(card: HeadCard, tensors: dict[str, Tensor], path: Path) -> Head | LinearProbe:
    """The head of a card, with its tensors."""
    if card.kind == LINEAR:
        if set(tensors) != {"weight", "bias", "mean", "scale"}:
            raise InputError(f"{path}: a linear probe has weight, bias, mean and scale, not {', '.join(tensors)}")
        # Copied: what was read is mapped from the file, which may be replaced.
        arrays = [tensors[name].clone().numpy() for name in ("weight", "bias", "mean", "scale")]
        return LinearProbe(arrays[0], arrays[1], arrays[2], arrays[3], card.record)
    if card.kind not in KINDS:
        raise InputError(f"{path}: head {card.kind!r} is unknown{nearest(card.kind, [*KINDS, LINEAR])}")
    kind = KINDS[card.kind]
    with torch.random.fork_rng(devices=[]):
        head = kind.head(from_dict(kind.config, card.config, f"{path}: config"))
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: its tensors are not those of its configuration; get it again") from error
    return head


def _require_classes(outputs: list[int], classes: dict[str, list[str]], where: str) -> None:
    """Refuse names of classes that are more or fewer than the head gives."""
    named = [len(names) for names in classes.values()]
    if named != outputs:
        raise InputError(f"{where}: names of {named} classes for a head that gives {outputs}; name each class once")


def _digest(parts: dict[str, object], tensors: dict[str, Tensor]) -> str:
    """sha256 of what a card says and of every tensor's name, type, shape and bytes."""
    hasher = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        hasher.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()
