"""The loop that trains a network on frozen features, and stops when held-out proteins no longer gain.

In: a head, training and validation proteins with labels, a seed. Out: the head with its best weights, in place, and a
record of what happened. Labels of -1 count nowhere. Test proteins have no part in any of it.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from proteinlm.errors import InputError
from proteinlm.heads.batches import BatchSize, Examples, batches_of, collate
from proteinlm.heads.layers import Head
from proteinlm.heads.rows import UNLABELLED
from proteinlm.inference import return_freed_memory

CLIP = 1.0
"""Largest norm of a gradient; recurrent layers need it now and then."""

MOST_MEASURED = 200
"""Proteins whose residues give the mean and scale of the features."""


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained.

    Args:
        epochs: at most. patience: epochs without a lower validation loss before it ends.
        learning_rate, weight_decay: of AdamW. size: what fits in a batch.
        seed: of order, dropout and crops. bf16: multiply in bfloat16; weights and sums stay fp32.
    """

    epochs: int = 50
    patience: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    size: BatchSize = field(default_factory=BatchSize)
    seed: int = 0
    bf16: bool = False


@dataclass
class History:
    """What happened in training.

    Attributes:
        train_loss, validation_loss: mean cross-entropy in nats, summed over tasks, of each epoch.
        best_epoch: whose weights were kept, counted from 1.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best_epoch: int = 0


def bf16_pays() -> bool:
    """Whether this processor multiplies in bf16."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def fit(head: Head, train: Examples, validation: Examples, options: TrainOptions) -> History:
    """Train a head in place; it ends with the weights of the epoch whose validation loss was lowest.

    Args:
        head: new, from `network.build`. train, validation: of different proteins. options: see `TrainOptions`.

    Raises:
        InputError: labels that do not fit the head, no validation label of a task, or a loss that is not finite.

    >>> from proteinlm.heads.network import FnnConfig, PooledFnn, build
    >>> random = np.random.default_rng(0)
    >>> labels = [np.array([number % 2]) for number in range(40)]
    >>> features = [random.standard_normal((3, 2)) + label for label in labels]
    >>> head = build(PooledFnn, FnnConfig(width=2, outputs={"membrane": 2}), seed=0)
    >>> history = fit(head, Examples(features[:30], labels[:30]), Examples(features[30:], labels[30:]), TrainOptions())
    >>> history.validation_loss[history.best_epoch - 1] < history.validation_loss[0]
    True
    """
    device = head.mean_D.device
    standardise(head, train, options.seed)
    order, random = np.random.default_rng(options.seed), torch.Generator(device).manual_seed(options.seed)
    optimiser = torch.optim.AdamW(
        head.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=device.type == "cpu"
    )
    history, best, best_state = History(), math.inf, copy.deepcopy(head.state_dict())
    for epoch in range(1, options.epochs + 1):
        totals = np.zeros((len(head.outputs), 2))
        for batch, labels_RM in batches_of(train, head.level, options.size, order):
            with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
                logits = head(batch.to(device), random)
            sums = losses(head, logits, labels_RM.to(device))
            optimiser.zero_grad()
            mean = torch.stack([total / count for total, count in sums if count] or [logits[0].sum() * 0]).sum()
            mean.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), CLIP)
            optimiser.step()
            totals += [[total.item(), count] for total, count in sums]
        history.train_loss.append(_mean(totals))
        history.validation_loss.append(evaluate(head, validation, options))
        return_freed_memory()
        if not math.isfinite(history.train_loss[-1] + history.validation_loss[-1]):
            raise InputError(
                f"the loss of epoch {epoch} is not finite; use a lower learning rate or check the features"
            )
        if history.validation_loss[-1] < best:
            best, best_state, history.best_epoch = history.validation_loss[-1], copy.deepcopy(head.state_dict()), epoch
        elif epoch - history.best_epoch >= options.patience:
            break
    head.load_state_dict(best_state)
    return history


def standardise(head: Head, train: Examples, seed: int) -> None:
    """Set the mean and scale of a head's input from the residues of some training proteins."""
    random = np.random.default_rng(seed)
    numbers = np.sort(random.permutation(len(train))[:MOST_MEASURED])
    x_TD = collate([train.features[number] for number in numbers]).features_TD
    if x_TD.shape[1] != len(head.mean_D):
        raise InputError(f"features are {x_TD.shape[1]} wide, this head takes {len(head.mean_D)}")
    variance_D, mean_D = torch.var_mean(x_TD, 0, correction=0)
    if not bool(torch.isfinite(variance_D).all()):
        raise InputError("some features are not finite; check the model, or the precision it was run in")
    scale_D = variance_D.sqrt()
    head.mean_D.copy_(mean_D)
    head.scale_D.copy_(torch.where(scale_D > 1e-6 * mean_D.abs(), scale_D, 1.0))


def losses(head: Head, logits: list[Tensor], labels_RM: Tensor) -> list[tuple[Tensor, int]]:
    """Sum of cross-entropies in nats and number of labels, for each task.

    Raises:
        InputError: labels for another number of tasks, or of a class that there is not.
    """
    if labels_RM.shape[1] != len(logits):
        raise InputError(
            f"labels for {labels_RM.shape[1]} tasks; this head has {len(logits)}: {', '.join(head.outputs)}"
        )
    sums = []
    for (task, classes), logits_RK, labels_R in zip(head.outputs.items(), logits, labels_RM.unbind(1), strict=True):
        low, high = int(labels_R.min()), int(labels_R.max())
        if low < UNLABELLED or high >= classes:
            raise InputError(f"{task}: class {low if low < UNLABELLED else high} is outside 0..{classes - 1}")
        total = F.cross_entropy(logits_RK, labels_R, ignore_index=UNLABELLED, reduction="sum")
        sums.append((total, int((labels_R != UNLABELLED).sum())))
    return sums


def evaluate(head: Head, examples: Examples, options: TrainOptions) -> float:
    """Mean cross-entropy of some proteins in nats, summed over tasks.

    Raises:
        InputError: a task has no label in them.
    """
    device, totals = head.mean_D.device, np.zeros((len(head.outputs), 2))
    order = np.random.default_rng(0)
    with torch.inference_mode():
        for batch, labels_RM in batches_of(examples, head.level, options.size, order):
            with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
                logits = head(batch.to(device), None)
            totals += [[total.item(), count] for total, count in losses(head, logits, labels_RM.to(device))]
    for task, count in zip(head.outputs, totals[:, 1], strict=True):
        if not count:
            raise InputError(f"{task}: no validation protein has a label; give some that have")
    return _mean(totals)


def _mean(totals: np.ndarray) -> float:
    """Sums over counts, added up over tasks; a task without labels adds nothing."""
    return float((totals[:, 0] / np.maximum(totals[:, 1], 1)).sum())


def predict_logits(head: Head, features: Sequence[np.ndarray], residues: int = 8192) -> Iterator[list[np.ndarray]]:
    """Logits of each task for each protein, in order, fp32.

    Args:
        head: trained. features: residue features of each protein, shape (L, D).
        residues: of how many proteins run together; it makes no difference to the numbers beyond rounding.

    Yields:
        per protein, for each task: shape (L, K) per residue, (K,) per protein, (L, L, 2) per pair.
    """
    start = 0
    while start < len(features):
        end, total = start, 0
        while end < len(features) and (end == start or (head.level != "pair" and total <= residues)):
            total, end = total + len(features[end]), end + 1
        together = [features[number] for number in range(start, end)]
        with torch.inference_mode():
            logits = [one.cpu() for one in head(collate(together).to(head.mean_D.device), None)]
        lengths = [len(one) for one in together]
        if head.level == "residue":
            parts = [one.split(lengths) for one in logits]
        elif head.level == "protein":
            parts = [one.unbind(0) for one in logits]
        else:
            parts = [(one.view(lengths[0], lengths[0], -1),) for one in logits]
        for number in range(len(together)):
            yield [part[number].numpy() for part in parts]
        start = end
