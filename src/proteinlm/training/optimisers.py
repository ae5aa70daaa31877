"""Update rules and learning-rate schedules.

In: a model and the recipe's sections. Out: torch optimisers, and the factor on their learning rate at each step.
"""

import math
from typing import Any

import torch
from torch import nn

from proteinlm.training.recipe import Optimiser, Schedule


def build_optimisers(model: nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """The optimisers of a model: AdamW alone, or Muon for the matrices inside the layers and AdamW for the rest.

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
    matrices = [] if settings.name == "muon" else inside
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": tables + vectors, "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )
    ]
    if settings.name == "muon":
        found.append(
            torch.optim.Muon(
                inside,
                lr=settings.learning_rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return found


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
