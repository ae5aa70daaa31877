"""Files, below any layout: telling what one is by its first bytes, reading it safely, writing it whole or not at all.

In: paths that a user gave. Out: tensors, or an `InputError` of one line that says what is wrong with which file.
Pickles are read by PyTorch's restricted unpickler alone; a file that asks for anything else is refused, not run.
"""

import argparse
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from proteinlm.config import Config, from_dict
from proteinlm.errors import InputError

Kind = Literal["safetensors", "torch", "npz", "npy"]

LARGEST_HEADER = 100_000_000
"""A safetensors file opens with the length of its header in 8 bytes; the format's own limit is 100 MB."""

_OTHER_FORMATS = (
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip file"),
    (b">", "FASTA text"),
)

Tensors = dict[str, Tensor]


def kind_of(path: Path) -> Kind:
    """What a weights file is, by its content.

    Raises:
        InputError: it is missing, empty, damaged, or nothing that holds weights.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise InputError(f"{path} is empty; get it again")
    if head[:4] == b"PK\x03\x04":
        return _kind_of_zip(path)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "torch"
    if head[:6] == b"\x93NUMPY":
        return "npy"
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= LARGEST_HEADER:
        return "safetensors"
    for magic, what in _OTHER_FORMATS:
        if head.startswith(magic):
            raise InputError(f"{path} is {what}, not model weights; give a .safetensors, .pt, .bin or .npz file")
    raise InputError(f"{path} is not a weights file of any known layout; give a .safetensors, .pt, .bin or .npz file")


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path} is truncated or damaged ({_first_line(error)}); get it again") from error
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    raise InputError(f"{path} is a zip archive without weights in it; unpack it, or give another file")


def read_torch(path: Path) -> Any:
    """What a PyTorch file holds: tensors, plain containers, and `argparse.Namespace`, which fair-esm pickles.

    Raises:
        InputError: the file is damaged, or its pickle asks for any other Python object.
    """
    try:
        # An open file: given a path, PyTorch would choose the format by its suffix.
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: {_refusal(str(error))}") from error
    except Exception as error:  # damaged bytes reach the unpickler, which may then fail in any way
        raise InputError(f"{path} is truncated or damaged ({_first_line(error)}); get it again") from error


def _refusal(message: str) -> str:
    """One line from PyTorch's explanation of why it would not unpickle."""
    found = re.search(r"(?:GLOBAL|[Uu]nsupported (?:class|global):?|load) [`']?((?:[A-Za-z_]\w*\.)+\w+)", message)
    if found and "Namespace" not in found.group(1):
        return (
            f"its pickle asks for {found.group(1)}, which is code and not weights; "
            "refused: get the file from its publisher, or convert it to safetensors"
        )
    return "its pickle is damaged or holds more than weights; get the file again, or convert it to safetensors"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        InputError: the file is missing, truncated or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is truncated or damaged ({_first_line(error)}); get it again") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file, without its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is truncated or damaged ({_first_line(error)}); get it again") from error


def read_card(kind: type[Config], text: str, version: int, path: Path) -> Config:
    """What a file of ours says of itself: a JSON object with the fields of `kind`, one of them `format_version`.

    Raises:
        InputError: it is none, is of another version than `version`, or has other fields.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: its metadata is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: its metadata is not a JSON object")
    if (found := values.get("format_version")) != version:
        raise InputError(f"{path} is of format version {found!r}, not of format version {version}; update proteinlm")
    return from_dict(kind, values, f"{path}: metadata")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}; an object is needed")
    return content


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends well; else nothing is left behind.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        to_disk(temporary)
        os.replace(temporary, path)
        to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path}: {_first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its place when the block ends well.

    Raises:
        InputError: `path` exists and is not an empty folder, or cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists and is not an empty folder; remove it or choose another")
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            to_disk(file)
        os.replace(temporary, path)
        to_disk(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Make sure that what was written, or the name of it, survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ordinary_mode() -> int:
    """Who may read and write a new file, by the user's own settings; safetensors lets nobody else read what it writes.

    >>> ordinary_mode() & 0o600 == 0o600
    True
    """
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as they are. Call it on a path from `atomic_file` or `atomic_folder`."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    path.chmod(ordinary_mode())
