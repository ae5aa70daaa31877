"""Our own layout: one safetensors file whose metadata says what the tensors are.

In: a model. Out: `NAME.safetensors` whose metadata has one entry, `proteinlm`: a JSON object of `format_version`,
`architecture`, `config`, `digest`, `name` and `licence`; and back. Written under a temporary name and renamed; used
only if the digest fits.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from proteinlm.checkpoints.contents import (
    Contents,
    architecture_of,
    count_layers,
    digest_of,
    require_layers,
    weights_of,
)
from proteinlm.checkpoints.files import atomic_file, read_card, read_metadata, read_safetensors, write_safetensors
from proteinlm.config import from_dict, nearest, to_dict
from proteinlm.errors import InputError
from proteinlm.models import ARCHITECTURES, ModelConfig
from proteinlm.models.base import ProteinModel

ENTRY = "proteinlm"
"""Key of the one metadata entry. One, because safetensors writes several in any order, and files should be the same."""

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Card:
    """What a native file says of itself.

    Args:
        architecture: key of `models.ARCHITECTURES`. config: its configuration, as a dictionary.
        digest: what `digest_of` must give. name, licence: of the model. format_version: of this layout.
    """

    architecture: str
    config: dict[str, object]
    digest: str
    name: str
    licence: str
    format_version: int = FORMAT_VERSION


def is_native(path: Path) -> bool:
    """Whether a safetensors file is of our own layout."""
    return ENTRY in read_metadata(path)


def write(model: ProteinModel, path: Path, name: str, licence: str, dtype: torch.dtype) -> None:
    """Write a model as one file, atomically; `dtype` is how its numbers are stored.

    Raises:
        InputError: the model was prepared for inference, or the file cannot be written.
    """
    architecture, config = architecture_of(model)
    tensors = {key: tensor.to(dtype) for key, tensor in weights_of(model).items()}
    card = Card(architecture, to_dict(config), digest_of(model, dtype), name, licence)
    with atomic_file(path) as temporary:
        write_safetensors(temporary, tensors, {ENTRY: json.dumps(to_dict(card))})


def read(path: Path) -> tuple[Contents, Card]:
    """Read a file of our own layout. The digest is checked by the caller, once the model stands.

    Raises:
        InputError: the file is damaged, newer than this version, or not of our layout.
    """
    tensors, metadata = read_safetensors(path)
    if ENTRY not in metadata:
        raise InputError(
            f"{path} is not a file of proteinlm; for a Hugging Face model give its folder with config.json"
        )
    card = _card(metadata[ENTRY], path)
    config: ModelConfig = from_dict(ARCHITECTURES[card.architecture].config, card.config, f"{path}: config")
    for prefix, field in ARCHITECTURES[card.architecture].stacks.items():
        require_layers(to_dict(config)[field], count_layers(tensors, prefix), str(path))
    return Contents(card.architecture, config, tensors, str(path)), card


def _card(text: str, path: Path) -> Card:
    """The card of a file, checked as far as it can be without the tensors."""
    card = read_card(Card, text, FORMAT_VERSION, path)
    if card.architecture not in ARCHITECTURES:
        hint = nearest(card.architecture, ARCHITECTURES)
        raise InputError(f"{path}: architecture {card.architecture!r} is unknown{hint}")
    return card
