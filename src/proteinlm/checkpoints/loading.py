"""Loading and writing models: the one way in and out of files, whatever their layout.

In: a name or a path. Out: a `Checkpoint` with a model in fp32; and from a model, a file or folder in any of the layouts
of `LAYOUTS`. A path is read by what it holds, never by what it is called.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from proteinlm import models
from proteinlm.checkpoints import fair_esm, huggingface, native
from proteinlm.checkpoints.baselines import NO_WEIGHTS, counts_model, same_shape
from proteinlm.checkpoints.catalogue import (
    HUB_ID,
    is_name,
    published_name,
    require_hub,
    require_preset,
    require_weights,
    unsupported,
)
from proteinlm.checkpoints.contents import Contents, architecture_of, assemble, digest_of, weights_of
from proteinlm.checkpoints.elmo import elmo_weights, read_elmo
from proteinlm.checkpoints.files import kind_of, read_torch
from proteinlm.checkpoints.ngram import is_ngram
from proteinlm.checkpoints.unirep import (
    is_unirep_npy_folder,
    is_unirep_npz,
    read_unirep_npy_folder,
    read_unirep_npz,
    write_unirep_npy_folder,
    write_unirep_npz,
)
from proteinlm.config import nearest, to_dict
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.models.encodings import ENCODINGS, build_encoding
from proteinlm.models.esm import Esm1bConfig
from proteinlm.models.unirep import UniRep

UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class Checkpoint:
    """A model and where it came from.

    Args:
        model: in fp32 and evaluation mode.
        name: published name, or what the file says or is called.
        source: the file or folder that was read.
        digest: sha256 of the model's content; the same for every layout of the same weights (`digest_of`).
        licence: of the weights; "unknown" for a local file that does not say.
        stored: narrowest number format in the file, "fp32", "fp16" or "bf16". Widening to fp32 loses nothing.
    """

    model: ProteinModel
    name: str
    source: str
    digest: str
    licence: str
    stored: str = "fp32"


def load(name_or_path: str | Path, download: bool = False) -> Checkpoint:
    """Load a model by name, or from a file or folder in any layout that is known.

    Args:
        name_or_path: a published name, an alias or an encoding (`models.encodings`); else a path (`./NAME` where it has
            the name of a model), or a Hugging Face id.
        download: fetch the weights from the Hugging Face hub if they are not on this machine.

    Raises:
        InputError: the name is unknown, the weights are not here, or the file cannot be used.

    >>> load("esm2-8n")
    Traceback (most recent call last):
    proteinlm.errors.InputError: there is no file, folder or model 'esm2-8n'; did you mean 'esm2-8m'?
    """
    path = Path(name_or_path).expanduser()
    if not is_name(name_or_path) and path.exists():
        return read(path)
    name = str(name_or_path)
    if name in ENCODINGS:
        model, digest = build_encoding(name)
        return Checkpoint(model, name, name, digest, NO_WEIGHTS)
    known = published_name(name) is not None or unsupported(name) is not None
    if not known and HUB_ID.fullmatch(name) and not path.suffix and not name.startswith("."):
        return dataclasses.replace(read(require_hub(name, download)), name=name)
    published, preset = require_preset(name)
    found = read(require_weights(published, download, name), expected=preset.config)
    _require_shape(found, published, preset)
    return dataclasses.replace(found, name=published, licence=preset.licence)


def _require_shape(checkpoint: Checkpoint, name: str, preset: models.Preset) -> None:
    """Refuse a file that lies where a published model is looked for, but is another one."""
    architecture, config = architecture_of(checkpoint.model)
    free = ("contact_head", "language_head", "head", *preset.uncertain)
    shape, expected = ({k: v for k, v in to_dict(one).items() if k not in free} for one in (config, preset.config))
    if (architecture, shape) != (preset.architecture, expected):
        raise InputError(f"{checkpoint.source} is where {name} is looked for, but holds another model: {config}")


def read(path: Path, expected: models.ModelConfig | None = None) -> Checkpoint:
    """Read a file or folder, by its content.

    Args:
        path: where the weights are.
        expected: the configuration of the model that was asked for by name. Hugging Face's copies of ESM-1v hold a
            contact head of random numbers, since none was ever published; it is left out where ESM-1v was asked for.

    Raises:
        InputError: it is of no known layout, damaged or incomplete.
    """
    target = _find_in_folder(path) if path.is_dir() else path
    if target.is_dir():
        if is_unirep_npy_folder(target):
            return _checkpoint(read_unirep_npy_folder(target), path)
        weights = elmo_weights(target)
        if weights is not None:
            return _assembled(read_elmo(target, weights), path)
        contents = huggingface.read(target)
        drop = isinstance(expected, Esm1bConfig) and not expected.contact_head
        return _assembled(_without_contacts(contents) if drop else contents, path)
    return _read_file(target, path)


def _read_file(file: Path, path: Path) -> Checkpoint:
    kind = kind_of(file)
    if kind == "safetensors" and is_ngram(file):
        model, digest = counts_model(file)
        return Checkpoint(model, path.stem, str(path), digest, UNKNOWN_LICENCE)
    if kind == "safetensors":
        if not native.is_native(file) and (file.parent / "config.json").is_file():
            return read(file.parent)
        contents, card = native.read(file)
        found = _assembled(contents, path)
        if found.digest != card.digest:
            raise InputError(f"{file}: its content does not match its digest; it was changed or damaged, get it again")
        return dataclasses.replace(found, name=card.name, licence=card.licence)
    if kind == "torch":
        content = read_torch(file)
        if fair_esm.is_fair_esm(content):
            return _assembled(fair_esm.read(file, content), path)
        if (file.parent / "config.json").is_file():
            return read(file.parent)
        raise InputError(
            f"{file} is neither a fair-esm checkpoint ('model' with 'args' or 'cfg') nor beside a config.json"
        )
    if kind == "npz" and is_unirep_npz(file):
        return _checkpoint(read_unirep_npz(file), path)
    raise InputError(f"{file} holds NumPy arrays that are not UniRep's; give its .npz, or the folder of its .npy files")


def _find_in_folder(folder: Path) -> Path:
    """The one model in a folder: the folder itself where its files belong together, or the only file of weights."""
    if (folder / "config.json").is_file() or is_unirep_npy_folder(folder) or elmo_weights(folder) is not None:
        return folder
    suffixes = (".safetensors", ".pt", ".npz")
    files = sorted(
        file for file in folder.iterdir() if file.suffix in suffixes and not file.stem.endswith(fair_esm.REGRESSION)
    )
    if len(files) == 1:
        return files[0]
    if files:
        raise InputError(f"{folder} holds {len(files)} models ({files[0].name}, {files[1].name} ...); name one of them")
    raise InputError(
        f"{folder} holds no model: no config.json, .safetensors, .pt or .npz file, no UniRep .npy files, and no "
        "options.json beside an HDF5 file"
    )


def _without_contacts(contents: Contents) -> Contents:
    assert isinstance(contents.config, Esm1bConfig)
    config = dataclasses.replace(contents.config, contact_head=False)
    tensors = {name: tensor for name, tensor in contents.tensors.items() if not name.startswith("contact_head.")}
    return dataclasses.replace(contents, config=config, tensors=tensors)


def _assembled(contents: Contents, path: Path) -> Checkpoint:
    model, stored = assemble(contents)
    return dataclasses.replace(_checkpoint(model, path), stored=stored)


def _checkpoint(model: ProteinModel, path: Path) -> Checkpoint:
    name = path.resolve().name if path.is_dir() else path.stem
    return Checkpoint(model.eval(), name, str(path), digest_of(model), UNKNOWN_LICENCE)


def build(name: str, seed: int = 0) -> ProteinModel:
    """A published model's architecture with random weights, for tests and benchmarks.

    Args:
        name: a published name or an alias. seed: of the weights; the caller's generators are left as they were.

    Raises:
        InputError: the name is unknown.

    >>> build("unirep-64", seed=1).width
    64
    """
    published, _ = require_preset(name)
    return models.build(published, seed)


def untrained(name_or_path: str | Path, seed: int = 0, download: bool = False) -> Checkpoint:
    """The architecture and shape of a model with random weights, named so. Weights of published names are not needed.

    Args:
        name_or_path, download: as for `load`. seed: of the weights; the caller's generators are left as they were.

    Raises:
        InputError: as `load`, or the model has no weights.

    >>> untrained("unirep-64", seed=1).name
    'unirep-64 untrained (seed 1)'
    """
    published = published_name(str(name_or_path)) if is_name(name_or_path) else None
    if published is not None:
        model, name, source = build(published, seed), published, published
    else:
        found = load(name_or_path, download)
        model, name, source = same_shape(found.model, seed), found.name, found.source
    return Checkpoint(model, f"{name} untrained (seed {seed})", source, digest_of(model), NO_WEIGHTS)


def save(model: ProteinModel, path: str | Path, name: str | None = None, licence: str = UNKNOWN_LICENCE) -> None:
    """Write a model in our own layout: one safetensors file with configuration and digest, whole or not at all.

    Args:
        model: not prepared for inference. path: the file; an existing one is replaced. name: else the file's stem.
        licence: of the weights.

    Raises:
        InputError: the model was prepared, or the file cannot be written.
    """
    path = Path(path)
    native.write(model, path, name or path.stem, licence, torch.float32)


def _native(model: ProteinModel, path: Path, dtype: torch.dtype) -> None:
    native.write(model, path, path.stem, UNKNOWN_LICENCE, dtype)


def _unirep(write: Callable[[UniRep, Path], None]) -> Callable[[ProteinModel, Path, torch.dtype], None]:
    def checked(model: ProteinModel, path: Path, dtype: torch.dtype) -> None:
        if not isinstance(model, UniRep):
            raise InputError(f"the UniRep layouts hold UniRep only; this model is {architecture_of(model)[0]}")
        if dtype != torch.float32:
            raise InputError("the UniRep layouts store fp32 only; leave the number format out")
        weights_of(model)
        write(model, path)

    return checked


LAYOUTS: dict[str, Callable[[ProteinModel, Path, torch.dtype], None]] = {
    "native": _native,
    "hf": huggingface.write,
    "fair-esm": fair_esm.write,
    "unirep-npz": _unirep(write_unirep_npz),
    "unirep-npy": _unirep(write_unirep_npy_folder),
}
"""Layouts that `export` writes."""


def export(model: ProteinModel, path: str | Path, layout: str, dtype: torch.dtype = torch.float32) -> None:
    """Write a model in a layout that other software reads.

    Args:
        model: not prepared for inference.
        path: a file for "native", "fair-esm" and "unirep-npz"; a new folder for "hf" and "unirep-npy".
        layout: a key of `LAYOUTS`.
        dtype: number format to store; fp16 and bf16 round, unless the values came from such a file.

    Raises:
        InputError: the layout is unknown, cannot hold this architecture, or the path cannot be written.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r} is unknown{nearest(layout, LAYOUTS) or '; known: ' + ', '.join(LAYOUTS)}")
    LAYOUTS[layout](model, Path(path), dtype)
