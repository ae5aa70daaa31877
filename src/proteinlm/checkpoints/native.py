"""Our own layout: one safetensors file whose metadata says what the tensors are.

In: a model. Out: `NAME.safetensors` with metadata `format`, `format_version`, `architecture`, `config` (JSON),
`digest`, `name` and `licence`; and back. Written under a temporary name and renamed; used only if the digest is right.
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
from proteinlm.checkpoints.files import atomic_file, read_metadata, read_safetensors, write_safetensors
from proteinlm.config import from_dict, nearest, to_dict
from proteinlm.errors import InputError
from proteinlm.models import ARCHITECTURES, ModelConfig
from proteinlm.models.base import ProteinModel

FORMAT = "proteinlm"
FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Card:
    """What a native file says of itself beside its tensors.

    Args:
        name, licence: of the model. digest: what `digest_of` must give.
    """

    name: str
    licence: str
    digest: str


def is_native(path: Path) -> bool:
    """Whether a safetensors file is of our own layout."""
    return read_metadata(path).get("format") == FORMAT


def write(model: ProteinModel, path: Path, name: str, licence: str, dtype: torch.dtype) -> None:
    """Write a model as one file, atomically; `dtype` is how its numbers are stored.

    Raises:
        InputError: the model was prepared for inference, or the file cannot be written.
    """
    architecture, config = architecture_of(model)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "config": json.dumps(to_dict(config)),
        "digest": digest_of(model, dtype),
        "name": name,
        "licence": licence,
    }
    tensors = {key: tensor.to(dtype) for key, tensor in weights_of(model).items()}
    with atomic_file(path) as temporary:
        write_safetensors(temporary, tensors, metadata)


def read(path: Path) -> tuple[Contents, Card]:
    """Read a file of our own layout. The digest is checked by the caller, once the model stands.

    Raises:
        InputError: the file is damaged, newer than this version, or not of our layout.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is not a file of {FORMAT}; for a Hugging Face model give its folder with config.json")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {metadata.get('format_version')}, read here: {FORMAT_VERSION}; update {FORMAT}"
        )
    architecture = metadata.get("architecture", "")
    if architecture not in ARCHITECTURES:
        raise InputError(f"{path}: architecture {architecture!r} is unknown{nearest(architecture, ARCHITECTURES)}")
    try:
        values = json.loads(metadata.get("config", ""))
    except ValueError as error:
        raise InputError(f"{path}: its configuration is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: its configuration is not a JSON object")
    config: ModelConfig = from_dict(ARCHITECTURES[architecture].config, values, f"{path}: config")
    require_layers(config.num_layers, count_layers(tensors, "layers."), str(path))
    contents = Contents(architecture, config, tensors, str(path))
    return contents, Card(
        metadata.get("name", path.stem), metadata.get("licence", "unknown"), metadata.get("digest", "")
    )
