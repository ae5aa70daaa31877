"""On which processes a run trains: one, or many that torchrun started.

In: a model, and what each process has. Out: the module to call, sums over processes, and files on disk. The loop talks
to an `Engine` and does not know how many processes there are.
"""

import abc
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from proteinlm.checkpoints.files import atomic_file, read_torch
from proteinlm.models.base import ProteinModel

STATE = "state.pt"


class Engine(abc.ABC):
    """Subclasses are final.

    Attributes:
        rank, world: which process of how many.
        device: where this process computes.
    """

    rank: int
    world: int
    device: torch.device

    @abc.abstractmethod
    def wrap(self, model: ProteinModel) -> nn.Module:
        """The model on this engine's device, ready to be called and to have its gradients brought together."""

    @abc.abstractmethod
    def accumulating(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """Around one forward and backward pass; gradients need to meet only after the `last` of a step."""

    @abc.abstractmethod
    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes."""

    @abc.abstractmethod
    def save(self, path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer], rest: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all; an older one at `path` is replaced."""

    @abc.abstractmethod
    def saved(self, path: Path) -> bool:
        """Whether a checkpoint of this engine lies at `path`."""

    @abc.abstractmethod
    def load(self, path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> dict[str, Any]:
        """Fill model and optimisers from a checkpoint, and return the rest."""


class SingleEngine(Engine):
    """One process, one device."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world, self.device = 0, 1, device

    def wrap(self, model: ProteinModel) -> nn.Module:
        """See `Engine.wrap`."""
        return model.to(self.device)

    def accumulating(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """See `Engine.accumulating`."""
        return contextlib.nullcontext()

    def total(self, values: Sequence[float]) -> list[float]:
        """See `Engine.total`."""
        return list(values)

    def save(self, path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer], rest: dict[str, Any]) -> None:
        """See `Engine.save`. One file that `torch.load` reads with `weights_only`."""
        state = {
            "model": model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "rest": rest,
        }
        path.mkdir(parents=True, exist_ok=True)
        with atomic_file(path / STATE) as temporary:
            torch.save(state, temporary)

    def saved(self, path: Path) -> bool:
        """See `Engine.saved`."""
        return (path / STATE).exists()

    def load(self, path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> dict[str, Any]:
        """See `Engine.load`."""
        state = read_torch(path / STATE)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        rest: dict[str, Any] = state["rest"]
        return rest
