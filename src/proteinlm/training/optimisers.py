"""Update rules and learning-rate schedules.

In: a model and the recipe's sections. Out: torch optimisers, and the factor on their learning rate at each step.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from proteinlm.training.phases import Stage
from proteinlm.training.recipe import Optimiser, Schedule


class Lamb(torch.optim.Optimizer):
    """Adam whose update of each tensor is scaled to the tensor's own norm (You et al. 2020, algorithm 2).

    With r the bias-corrected Adam ratio and u = r + decay w, a weight moves by rate |w| / |u| u. As in the code of
    ALBERT, vectors (norms, biases), which begin at 0 or 1, are left unscaled; so is a tensor whose norm is 0.

    Args:
        groups: with `weight_decay`, and `scaled` where the update is scaled.
        lr, betas, eps: as for Adam.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "scaled": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the weights from their gradients."""
        assert closure is None, "the loss is not computed again"
        for weight, group in _with_gradients(self):
            self._update(weight, group)

    def _update(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        (beta1, beta2), done = group["betas"], state["step"].item()
        mean: Tensor = state["mean"].lerp_(weight.grad, 1 - beta1)
        square: Tensor = state["square"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
        update = (mean / (1 - beta1**done)) / ((square / (1 - beta2**done)).sqrt() + group["eps"])
        update = update + group["weight_decay"] * weight
        if group["scaled"]:
            ratio = weight.norm() / update.norm()
            # A norm of 0 on either side leaves nothing to scale.
            update = update * torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0)
        weight.sub_(group["lr"] * update)


class Adafactor(torch.optim.Optimizer):
    """Adam without momentum, and with the rows' and the columns' means of squared gradients in place of all of them.

    Algorithms 4 and 5 of Shazeer and Stern (2018) with beta2 = 1 - t^-0.8, as T5's code has them. The step is relative:
    the smaller of the rate and 1 / sqrt(t), times the weight's root mean square, or 1e-3 where that is larger; an
    update's own root mean square is cut to 1. PyTorch's does the same, but takes no matrix of which each process has
    some rows. T5's code keeps all squares where a side is shorter than 128.

    Args:
        groups: with `weight_decay`. lr: the largest rate.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the weights from their gradients."""
        assert closure is None, "the loss is not computed again"
        for weight, group in _with_gradients(self):
            self._update(weight, group)

    def _update(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
        state["step"] += 1
        done = state["step"].item()
        square = weight.grad.square() + 1e-30
        if weight.ndim < 2:
            mean = _moved(state, "squares", square, done)
        else:
            row = _moved(state, "rows", _mean(square, -1), done)
            mean = row * _moved(state, "columns", _mean(square, -2), done) / _mean(row, -2)
        update = weight.grad / mean.sqrt()
        update = update / _root_mean_square(update).clamp(min=1.0)
        rate = min(group["lr"], done**-0.5) * _root_mean_square(weight).clamp(min=1e-3)
        weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(rate * update)


def _with_gradients(optimiser: torch.optim.Optimizer) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
    """The weights that have a gradient, each with the settings of its group."""
    for group in optimiser.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                yield weight, group


def _moved(state: dict[str, Tensor], name: str, now: Tensor, done: float) -> Tensor:
    """The running mean of that name after one more value, with beta2 = 1 - done^-0.8; the first value sets it."""
    state[name] = now.clone() if name not in state else state[name].lerp_(now, done**-0.8)
    return state[name]


def _mean(tensor: Tensor, dim: int) -> Tensor:
    """Mean over a dimension, which is kept; the same on all processes where they share that dimension out."""
    return _whole(tensor.sum(dim, keepdim=True)) / tensor.shape[dim]


def _root_mean_square(tensor: Tensor) -> Tensor:
    return (_whole(tensor.square().sum()) / tensor.numel()).sqrt()


def _whole(sums: Tensor) -> Tensor:
    """Sums of which every process has its part, brought together; any other tensor as it is."""
    if isinstance(sums, DTensor):
        placements = [Replicate() if one.is_partial() else one for one in sums.placements]
        return sums.redistribute(placements=placements)
    return sums


def build_optimisers(model: nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """The optimisers of a model: one alone, or Muon for the matrices inside the layers and AdamW for the rest.

    Muon's updates are scaled to the size of AdamW's (Moonshot 2025), so that one learning rate serves both. Vectors
    (norms, biases) and embeddings are not decayed.

    Args:
        model: parameters that require a gradient are taken.
        settings: the recipe's section.
    """
    inside: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = vectors if parameter.ndim < 2 else inside if ".layers." in f".{name}" else tables
            kind.append(parameter)
    matrices = [one for one in inside if settings.name == "muon" and one.ndim == 2]
    taken = set(map(id, matrices))
    groups: list[dict[str, Any]] = [
        {"params": [one for one in inside if id(one) not in taken], "weight_decay": settings.weight_decay},
        {"params": tables + vectors, "weight_decay": 0.0},
    ]
    rate, betas = settings.learning_rate, (settings.beta1, settings.beta2)
    if settings.name == "lamb":
        groups[1:] = [{"params": tables}, {"params": vectors, "scaled": False}]
        return [Lamb([group for group in groups if group["params"]], rate, betas, settings.epsilon)]
    groups = [group for group in groups if group["params"]]
    if settings.name == "adafactor":
        return [Adafactor(groups, rate)]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=betas, eps=settings.epsilon, fused=True)
    ]
    if settings.name == "muon":
        found.append(
            torch.optim.Muon(
                matrices,
                lr=rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return found


def rate_at(schedule: Schedule, stage: Stage, step: int) -> float:
    """The learning rate of a step.

    Args:
        schedule: its shape and decay. stage: the one that the step, counted from 0, is in.
    """
    shape = replace(schedule, warmup=stage.warmup)
    return stage.learning_rate * rate_factor(
        shape, step - stage.schedule_start, stage.schedule_end - stage.schedule_start
    )


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate of a step as a share of its peak.

    Args:
        schedule: shape, warm-up and decay.
        step: updates made before this one, from 0.
        steps: updates of the whole run.

    >>> [round(rate_factor(Schedule("linear", warmup=2), step, 6), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    done = step + 1
    if done <= schedule.warmup:
        return done / schedule.warmup
    if schedule.shape == "inverse-square-root":
        return math.sqrt(max(schedule.warmup, 1) / done)
    left = (steps - step) / max(1, steps - schedule.warmup)
    if schedule.shape == "linear":
        return min(1.0, left)
    if schedule.shape == "cosine":
        return 0.5 * (1 - math.cos(math.pi * min(1.0, left)))
    if schedule.shape == "warmup-stable-decay" and schedule.decay:
        return min(1.0, (steps - step) / (schedule.decay + 1))
    return 1.0
