"""What the readers and writers of Hugging Face folders share; a family is one `model_type` of `config.json`.

In: a folder. Out: its tensors by the names of the file, its fields checked; and back, from tensors and texts to a
folder written whole or not at all. What a family makes of them stands in a file of its own (`hf_esm`, `hf_bert` ...).
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proteinlm.checkpoints.contents import Contents
from proteinlm.checkpoints.files import (
    Kind,
    Tensors,
    atomic_folder,
    kind_of,
    read_json,
    read_safetensors,
    read_torch,
    write_safetensors,
)
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel

WEIGHTS: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
"""Weights files by preference; each may be replaced by `NAME.index.json` and shards."""

Fields = Mapping[str, Any]
"""What `config.json` says."""

Fixed = Mapping[str, tuple[object, ...]]
"""Fields of `config.json` -> the values that are followed; the first is also what a missing field stands for."""


@dataclass(frozen=True)
class Files:
    """A folder to be written.

    Args:
        tensors: of `model.safetensors`, by their names; none, no such file. texts: file name -> JSON object or text.
        binaries: file name -> bytes. folders: folders inside this one.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, object] | str] = field(default_factory=dict)
    binaries: Mapping[str, bytes] = field(default_factory=dict)
    folders: Mapping[str, "Files"] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """How one `model_type` is read and written.

    Args:
        read: a folder and its `config.json` -> contents.
        models: the classes that `write` takes.
        write: a model, and the number format to store -> the files of its folder.
    """

    read: Callable[[Path, Fields], Contents]
    models: tuple[type[ProteinModel], ...]
    write: Callable[[Any, torch.dtype], Files]


def require_fixed(fields: Fields, fixed: Fixed, folder: Path, defaults: Fields | None = None) -> None:
    """Refuse fields that would change the numbers in a way that is not followed.

    Args:
        fields: of `config.json`. fixed: what they may say.
        defaults: what `transformers` assumes for a missing field, if that is not the first value of `fixed`.
    """
    for name, allowed in fixed.items():
        value = fields.get(name, (defaults or {}).get(name, allowed[0]))
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            raise InputError(f"{folder}: config.json says {name} = {value!r}; only {allowed[0]!r} is supported")


def whole_numbers(fields: Fields, names: Mapping[str, str], source: str) -> dict[str, object]:
    """Sizes by our names, from `config.json`; each must be there as a whole number.

    Args:
        fields: of `config.json`. names: our name -> theirs. source: the folder, for messages.
    """
    missing = [name for name in names.values() if type(fields.get(name)) is not int]
    if missing:
        raise InputError(f"{source}: config.json does not say {missing[0]} as a whole number")
    return {ours: fields[theirs] for ours, theirs in names.items()}


def read_weights(folder: Path, prefix: str = "") -> Tensors:
    """Every tensor of a folder, by the names of the file, without `prefix`.

    TensorFlow's words for weight and bias of a norm (`LayerNorm.gamma` and `.beta`), which the first BERT files had and
    `transformers` 5 writes again for some families, become PyTorch's.
    """
    state = _read_state(folder)
    return {_NORM.sub(_plain_norm, name.removeprefix(prefix)): tensor for name, tensor in state.items()}


_NORM_WORDS = {"gamma": "weight", "beta": "bias"}
_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")


def _plain_norm(found: re.Match[str]) -> str:
    return f"LayerNorm.{_NORM_WORDS[found[1]]}"


def _read_state(folder: Path) -> Tensors:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json")
    raise InputError(f"{folder} has a config.json but no weights; {' or '.join(WEIGHTS)} (or its shards) must be there")


def _read_file(path: Path) -> Tensors:
    readers: dict[Kind, Callable[[Path], object]] = {
        "safetensors": lambda file: read_safetensors(file)[0],
        "torch": read_torch,
    }
    kind = kind_of(path)
    state = readers[kind](path) if kind in readers else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold a dictionary of tensors")
    return {str(name): tensor for name, tensor in state.items()}


def _read_shards(index: Path) -> Tensors:
    """All shards that an index names; each must hold exactly the tensors it is said to."""
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise InputError(f"{index} has no 'weight_map' from tensors to files")
    tensors: Tensors = {}
    for shard in sorted(set(shard_of.values())):
        if Path(shard).name != shard:
            raise InputError(f"{index} names the shard {shard!r}; shards must lie in the same folder")
        tensors |= _read_file(index.parent / shard)
    if tensors.keys() != shard_of.keys():
        name = sorted(tensors.keys() ^ shard_of.keys())[0]
        raise InputError(f"{index} and its shards disagree on tensor {name!r}; get the files again")
    return tensors


def refuse_heads(state: Tensors, heads: set[str], source: str) -> None:
    """Refuse fine-tuned heads by name, rather than calling them surplus tensors."""
    found = sorted({name.split(".")[0] for name in state} & heads)
    if found:
        raise InputError(
            f"{source}: the tensors {found[0]}.* belong to a fine-tuned head, which this version cannot run"
        )


def write_files(folder: Path, files: Files) -> None:
    """Write a folder whole or not at all.

    Raises:
        InputError: it exists and is not empty, or cannot be written.
    """
    with atomic_folder(folder) as temporary:
        _fill(temporary, files)


def _fill(folder: Path, files: Files) -> None:
    if files.tensors:
        write_safetensors(folder / "model.safetensors", files.tensors, {"format": "pt"})
    for name, content in files.texts.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    for name, data in files.binaries.items():
        (folder / name).write_bytes(data)
    for name, inner in files.folders.items():
        (folder / name).mkdir()
        _fill(folder / name, inner)
