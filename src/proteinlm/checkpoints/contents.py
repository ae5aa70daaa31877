"""What a checkpoint holds once its layout is forgotten: architecture, configuration, tensors by our own names.

In: `Contents` from a reader. Out: a model, checked tensor by tensor, and its digest. Every layout meets here, so that
the same weights give the same model and the same digest wherever they were read from.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from proteinlm.config import to_dict
from proteinlm.errors import InputError
from proteinlm.models import ARCHITECTURES, ModelConfig, on_meta
from proteinlm.models.base import ProteinModel

STORAGE = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""Number formats that weights may be stored in. Each is widened to fp32 without loss."""

LARGEST_NUMBER = 2**20
"""No published model has a width, depth or inner width near this; a file that claims one is damaged or hostile."""


@dataclasses.dataclass
class Contents:
    """A checkpoint in our own terms.

    Args:
        architecture: key of `models.ARCHITECTURES`.
        config: shape of the model.
        tensors: name in the model's `state_dict` -> tensor.
        source: the file or folder, for messages.
    """

    architecture: str
    config: ModelConfig
    tensors: dict[str, Tensor]
    source: str


def meta_model(architecture: str, config: ModelConfig, source: str) -> ProteinModel:
    """The model that a configuration describes, without memory; refuses sizes that no model has.

    Raises:
        InputError: a size is not positive, too large, or does not divide.
    """
    for name, value in to_dict(config).items():
        if type(value) is int and not 1 <= value <= LARGEST_NUMBER:
            raise InputError(f"{source}: {name} is {value}; a size between 1 and {LARGEST_NUMBER} is needed")
    try:
        return on_meta(architecture, config)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def count_layers(names: Mapping[str, object], prefix: str) -> int:
    """How many layers the names of a file tell of: names that start with `prefix`, then a number and a dot.

    >>> count_layers({"layers.0.bias": 0, "layers.1.bias": 0}, "layers.")
    2
    """
    numbers = [name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def require_layers(claimed: int, found: int, source: str) -> None:
    """Refuse a configuration whose depth is not that of the tensors beside it."""
    if claimed != found:
        raise InputError(
            f"{source}: the configuration says {claimed} layers, the tensors say {found}; they are of two models"
        )


def require_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """Refuse missing and surplus tensors, wrong shapes and number formats.

    Args:
        expected: tensors (on the meta device) of the shapes that the configuration asks for.
        found: tensors of the file, by the same names.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError(f"{source}: {_several(missing)} missing; the file is incomplete or of another architecture")
    surplus = [name for name in found if name not in expected]
    if surplus:
        raise InputError(f"{source}: {_several(surplus)} no part of this architecture; refused rather than ignored")
    for name, like in expected.items():
        tensor = found[name]
        if tensor.shape != like.shape:
            raise InputError(
                f"{source}: tensor {name} has shape {tuple(tensor.shape)}, the configuration needs {tuple(like.shape)}"
            )
        if tensor.dtype not in STORAGE:
            raise InputError(f"{source}: tensor {name} is {tensor.dtype}; fp32, fp16 or bf16 is needed")


def _several(names: list[str]) -> str:
    more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
    return f"tensor {names[0]!r}{more}"


def assemble(contents: Contents) -> tuple[ProteinModel, str]:
    """The model of a checkpoint, in fp32 and evaluation mode, and the number format that the file stored it in.

    Half-precision weights are widened, which loses nothing. Memory: the tensors are taken over, not copied.

    Raises:
        InputError: tensors are missing, surplus or of the wrong shape.
    """
    model = meta_model(contents.architecture, contents.config, contents.source)
    require_names(model.state_dict(), contents.tensors, contents.source)
    stored = min((tensor.dtype for tensor in contents.tensors.values()), key=lambda dtype: dtype.itemsize)
    model.load_state_dict({name: tensor.float() for name, tensor in contents.tensors.items()}, assign=True)
    return model.eval(), STORAGE[stored]


def architecture_of(model: ProteinModel) -> tuple[str, ModelConfig]:
    """The name of a model's architecture, and its configuration."""
    for name, architecture in ARCHITECTURES.items():
        if type(model) is architecture.model:
            config: ModelConfig = model.config  # type: ignore[assignment]
            return name, config
    raise InputError(f"{type(model).__name__} is not in the table of architectures; add it to models.ARCHITECTURES")


def weights_of(model: ProteinModel) -> dict[str, Tensor]:
    """The tensors of a model, by name.

    Raises:
        InputError: the model was prepared for inference and no longer has its weights as they were.
    """
    architecture, config = architecture_of(model)
    expected, tensors = on_meta(architecture, config).state_dict(), model.state_dict()
    if expected.keys() != tensors.keys() or any(tensor.dtype not in STORAGE for tensor in tensors.values()):
        raise InputError("this model was prepared for inference and cannot be written; load it again and write that")
    return tensors


def digest_of(model: ProteinModel, stored: torch.dtype = torch.float32) -> str:
    """sha256 of a model's content: architecture, configuration, and every tensor's name, shape and fp32 values.

    The layout and the number format of the file that the model came from make no difference to it.

    Args:
        model: not prepared for inference.
        stored: number format that the values are rounded to first, as a file that stores them so will give them back.

    >>> from proteinlm.models import build
    >>> digest_of(build("unirep-64", seed=1)) == digest_of(build("unirep-64", seed=1))
    True
    """
    architecture, config = architecture_of(model)
    hasher = hashlib.sha256(json.dumps([architecture, to_dict(config)], sort_keys=True).encode())
    for name, tensor in sorted(weights_of(model).items()):
        hasher.update(json.dumps([name, "float32", list(tensor.shape)]).encode())
        hasher.update(tensor.detach().to(stored).float().cpu().contiguous().numpy().data)
    return hasher.hexdigest()
