"""On which processes a run trains: one, or many that torchrun started (`distributed`).

In: a model with its objective, and what each process has. Out: the module to call, sums over processes, and files on
disk. The loop talks to an `Engine` and does not know how many processes there are.
"""

import abc
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proteinlm.checkpoints.files import atomic_file, read_torch
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.objectives import Objective
from proteinlm.objectives.base import Loss, Prepared, TargetLosses
from proteinlm.training.recipe import Recipe

STATE = "state.pt"
SHARDS = "shards-"
"""One file of a whole checkpoint; folders of checkpoints in shards."""

NEED_WHOLE_MATRICES = ("muon",)
"""Optimisers that do not take a matrix of which each process has some rows."""

Rest = dict[str, Any]
Accept = Callable[[Rest], None]


class Trainee(nn.Module):
    """A model and what it is to learn as one module, which an engine wraps.

    An objective may call the model, and any method of it, as often as it likes: to the engine it is one forward pass,
    from an example to a loss. Layers in a `ModuleList` are called themselves, never a method of theirs, since a
    sharded engine puts a layer's weights together when the layer is called.

    Args:
        model: keeps its parameters, under their names. objective: of this model's alphabet.
    """

    def __init__(self, model: ProteinModel, objective: Objective[Any]) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, example: Prepared, score: bool = False) -> Loss | dict[str, TargetLosses]:
        """The loss of an example, or the loss of each of its targets."""
        return self.objective.score(self.model, example) if score else self.objective.loss(self.model, example)


@dataclass
class State:
    """The tensors of a run, besides which a checkpoint holds `Rest`: plain values.

    Args:
        model: inside what the engine's `wrap` took. optimisers: of its parameters.
        average: of the weights, by name; None where none is kept.
    """

    model: ProteinModel
    optimisers: list[torch.optim.Optimizer]
    average: dict[str, Tensor] | None = None


class Engine(abc.ABC):
    """Subclasses are final.

    Attributes:
        rank, world: which process of how many.
        device: where this process computes.
        gradient_scale: what a process multiplies its loss with, so that gradients that have been brought together are
            sums over all processes.
    """

    rank: int
    world: int
    device: torch.device
    gradient_scale: float

    @abc.abstractmethod
    def wrap(self, trainee: Trainee) -> nn.Module:
        """The same on this engine's device, ready to be called and to have its gradients brought together.

        The model itself keeps the parameters, under their names; optimisers are made from it afterwards.
        """

    @abc.abstractmethod
    def accumulating(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """Around one forward and backward pass; gradients need to meet only after the `last` of a step."""

    @abc.abstractmethod
    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes."""

    @abc.abstractmethod
    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """Shrink gradients to a common norm of at most `limit`; the norm that they had."""

    @abc.abstractmethod
    def save(self, path: Path, state: State, rest: Rest) -> None:
        """Write a checkpoint into folder `path`, whole or not at all; it replaces an older one.

        Raises:
            InputError: on every process, if one of them cannot write.
        """

    @abc.abstractmethod
    def saved(self, path: Path) -> bool:
        """Whether a checkpoint lies in folder `path`.

        Raises:
            InputError: it was written by an engine whose files this one does not read.
        """

    @abc.abstractmethod
    def load(self, path: Path, state: State, accept: Accept) -> Rest:
        """Fill `state` from a checkpoint and return the rest, which `accept` sees first; it raises to refuse."""

    @abc.abstractmethod
    def weights(self, model: ProteinModel) -> dict[str, Tensor]:
        """The whole state of the model on the CPU; all processes call it, and rank 0 is sure to get an answer."""

    @abc.abstractmethod
    def close(self) -> None:
        """Part from the other processes."""


class SingleEngine(Engine):
    """One process, one device."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world, self.device, self.gradient_scale = 0, 1, device, 1.0

    def wrap(self, trainee: Trainee) -> nn.Module:
        """See `Engine.wrap`."""
        return trainee.to(self.device)

    def accumulating(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """See `Engine.accumulating`."""
        return contextlib.nullcontext()

    def total(self, values: Sequence[float]) -> list[float]:
        """See `Engine.total`."""
        return list(values)

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """See `Engine.clip`."""
        return nn.utils.clip_grad_norm_(parameters, limit).item()

    def save(self, path: Path, state: State, rest: Rest) -> None:
        """See `Engine.save`."""
        write_whole(path, state, rest)

    def saved(self, path: Path) -> bool:
        """See `Engine.saved`."""
        return holds_whole(path)

    def load(self, path: Path, state: State, accept: Accept) -> Rest:
        """See `Engine.load`."""
        return read_whole(path, state, accept)

    def weights(self, model: ProteinModel) -> dict[str, Tensor]:
        """See `Engine.weights`."""
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}

    def close(self) -> None:
        """See `Engine.close`."""


def engine_of(recipe: Recipe, device: torch.device) -> Engine:
    """The engine that a recipe asks for; close it in the end.

    Args:
        recipe: `run.engine` says which. device: a kind of device; of several GPUs each process takes its own.

    Raises:
        InputError: it needs torchrun and was not started by it, or the other way round; or it cannot run the optimiser.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.run.engine == "single":
        if processes > 1:
            raise InputError(
                f"torchrun started {processes} processes, and run.engine is single: each would train alone and write "
                "over the others; set run.engine = ddp or fsdp, or start without torchrun"
            )
        return SingleEngine(device)
    if "LOCAL_RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"run.engine = {recipe.run.engine} needs torchrun: `torchrun --nproc-per-node 2 -m proteinlm.cli pretrain "
            "...`; or set run.engine = single"
        )
    if recipe.run.engine == "fsdp" and recipe.optimiser.name in NEED_WHOLE_MATRICES:
        raise InputError(
            f"optimiser.name = {recipe.optimiser.name} works on whole matrices, and run.engine = fsdp cuts them up; "
            "set run.engine = ddp, or another optimiser"
        )
    from proteinlm.training.distributed import DistributedEngine, ShardedEngine

    return DistributedEngine(device) if recipe.run.engine == "ddp" else ShardedEngine(device)


def write_whole(path: Path, state: State, rest: Rest) -> None:
    """Write one file that `torch.load` reads with `weights_only`.

    Raises:
        InputError: it cannot be written.
    """
    values = {
        "model": state.model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in state.optimisers],
        "average": state.average,
        "rest": rest,
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        with atomic_file(path / STATE) as temporary:
            write_torch(values, temporary)
    except (OSError, InputError) as error:
        raise could_not_save(path, error) from error


def write_torch(values: object, path: Path) -> None:
    """`torch.save`, which answers a full disk with a RuntimeError about positions, here with an OSError."""
    try:
        torch.save(values, path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"PyTorch could not write it, most likely for want of room ({reason})") from error


def could_not_save(path: Path, error: Exception) -> InputError:
    """The one line for a checkpoint that cannot be written."""
    return InputError(
        f"no checkpoint could be saved in {str(path)!r}: {error}; an older one there is whole: make room, and run the "
        "same command again"
    )


def holds_whole(path: Path) -> bool:
    """Whether `path` holds the checkpoint of a model that was not split.

    Raises:
        InputError: it holds one in shards.
    """
    if any(path.glob(f"{SHARDS}*")):
        raise InputError(
            f"{str(path)!r} was written with run.engine = fsdp; go on with it (torchrun with one process will do)"
        )
    return (path / STATE).exists()


def read_whole(path: Path, state: State, accept: Accept) -> Rest:
    """Fill `state` from what `write_whole` wrote."""
    values = read_torch(path / STATE)
    rest: Rest = values["rest"]
    accept(rest)
    state.model.load_state_dict(values["model"])
    for optimiser, saved in zip(state.optimisers, values["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    if state.average is not None:
        for name, tensor in state.average.items():
            tensor.copy_(values["average"][name])
    return rest
