"""Contacts from frozen features: two linear projections; and from attention maps: a sparse logistic regression.

In: residue features of proteins, or their attention maps, with contacts of some structures. Out: a `PairProjection`
head, trained by `heads.fitting`; or the weight of every map and a bias, which a checkpoint then carries
(`models.contacts.ContactHead` applies them). Both need few parameters: what they find was in the features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.heads.batches import FeatureBatch
from proteinlm.heads.layers import Head, Random
from proteinlm.heads.network import pair_logits
from proteinlm.models.contacts import average_product_correction

MINIMUM_SEPARATION = 6
"""Residues nearer than this along the chain touch anyhow; nothing is fitted on them (papers.md 8.1)."""

STRENGTH = 0.15
"""Of the L1 penalty beside the sum of cross-entropies over pairs (papers.md 8.1)."""


FIRST_BIAS = -4.0
"""Log odds of a contact before training: of the pairs that are fitted on, some two in a hundred touch."""


@dataclass(frozen=True)
class PairProjectionConfig:
    """Shape of a `PairProjection`: features of `width`, both projected to `projection`."""

    width: int
    projection: int = 128


class PairProjection(Head):
    """Logit of a contact: the product of two linear maps of the two residues, plus a bias (papers.md 4.2).

    The score of (i, j) is averaged with that of (j, i).
    """

    level = "pair"

    def __init__(self, config: PairProjectionConfig) -> None:
        super().__init__(config.width, {"contact": 2})
        self.config = config
        self.left = nn.Linear(config.width, config.projection, bias=False)
        self.right = nn.Linear(config.width, config.projection, bias=False)
        self.bias = PairBias()

    def forward(self, batch: FeatureBatch, random: Random) -> list[Tensor]:
        x_TD, lengths = self.standardised(batch), batch.lengths_B().tolist()
        left, right = self.left(x_TD).split(lengths), self.right(x_TD).split(lengths)
        scale = self.left.out_features**-0.5
        scores = [a_LC @ b_LC.T * scale for a_LC, b_LC in zip(left, right, strict=True)]
        return [torch.cat([pair_logits(self.bias(score_LL.float())) for score_LL in scores])]


class PairBias(nn.Module):
    """One number, added to every pair; far below 0 at the start, as contacts are few."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, score_LL: Tensor) -> Tensor:
        return score_LL + (FIRST_BIAS + self.weight)


def contact_labels(contacts_LL: np.ndarray, separation: int = MINIMUM_SEPARATION) -> np.ndarray:
    """Labels of residue pairs: those nearer than `separation` along the chain become unknown.

    Args:
        contacts_LL: 1 contact, 0 none, -1 unknown, integers of shape (L, L).

    >>> contact_labels(np.ones((3, 3), int), separation=2).tolist()
    [[-1, -1, 1], [-1, -1, -1], [1, -1, -1]]
    """
    index = np.arange(len(contacts_LL))
    return np.where(np.abs(index[:, None] - index) < separation, -1, contacts_LL)


def pair_features(maps_MLL: Tensor, separation: int = MINIMUM_SEPARATION) -> Tensor:
    """What a pair has in each attention map, symmetrised and corrected, for pairs i < j far enough apart.

    Args:
        maps_MLL: of all layers and heads, layer by layer, BOS and EOS cut off, shape (M, L, L).

    Returns:
        fp32, shape (pairs, M), in the order of `torch.triu_indices(L, L, separation)`.
    """
    maps_MLL = maps_MLL.float()
    corrected_MLL = average_product_correction(maps_MLL + maps_MLL.transpose(1, 2))
    i_P, j_P = torch.triu_indices(maps_MLL.shape[1], maps_MLL.shape[1], separation)
    return corrected_MLL[:, i_P, j_P].T.contiguous()


@dataclass(frozen=True)
class ContactRegression:
    """A fitted contact head.

    Attributes:
        weight_M: of each map, layer * heads + head, fp32. bias: of the logit.
        proteins, pairs, contacts: what it was fitted on. passes: over the pairs. gradient: largest violation of the
            conditions of an optimum, per pair.
    """

    weight_M: Tensor
    bias: float
    proteins: int
    pairs: int
    contacts: int
    passes: int
    gradient: float


@dataclass(frozen=True)
class ContactRows:
    """Pairs of one protein, ready to be fitted on.

    Attributes:
        x_PM: what each pair has in each map, fp32. y_P: whether it touches, 0 or 1, fp64.
    """

    x_PM: Tensor
    y_P: Tensor


def contact_rows(maps_MLL: Tensor, contacts_LL: np.ndarray) -> ContactRows:
    """The pairs of a protein whose contacts are known: a small part of its maps, which need not be kept.

    Args:
        maps_MLL: all layers and heads, BOS and EOS cut off, shape (M, L, L).
        contacts_LL: 1, 0 or -1 for unknown, shape (L, L).

    Raises:
        InputError: shapes that do not fit, or maps that are not finite.

    >>> contact_rows(torch.rand(3, 10, 10), np.ones((10, 10), int)).x_PM.shape
    torch.Size([10, 3])
    """
    length = maps_MLL.shape[-1]
    if maps_MLL.ndim != 3 or maps_MLL.shape[1] != length or contacts_LL.shape != (length, length):
        raise InputError(
            f"maps of shape {tuple(maps_MLL.shape)} and contacts of shape {contacts_LL.shape}; "
            "(maps, L, L) and (L, L) are needed"
        )
    if not bool(torch.isfinite(maps_MLL).all()):
        raise InputError("maps that are not finite; take proteins that fit one window")
    y_P = torch.from_numpy(contacts_LL)[tuple(torch.triu_indices(length, length, MINIMUM_SEPARATION))]
    return ContactRows(pair_features(maps_MLL)[y_P >= 0], y_P[y_P >= 0].double())


def fit_contact_regression(
    maps: Iterable[Tensor], contacts: Sequence[np.ndarray], strength: float = STRENGTH, tolerance: float = 1e-6
) -> ContactRegression:
    """Logistic regression with an L1 penalty from attention maps to contacts; 20 proteins are enough (papers.md 8.1).

    Args:
        maps: of each protein, all layers and heads, BOS and EOS cut off, shape (M, L, L).
        contacts: of each protein, 1, 0 or -1 for unknown, shape (L, L).
        strength: λ of λ |weights|₁ beside the sum of cross-entropies (1/C in scikit-learn); the bias is free.
        tolerance: of the conditions of an optimum, per pair.

    Raises:
        InputError: shapes that do not fit, or no contact, or nothing but contacts.

    >>> random = torch.Generator().manual_seed(0)
    >>> maps = [torch.rand(3, 20, 20, generator=random) for _ in range(4)]
    >>> touching = [(one[1] + one[1].T > 1.4).long().numpy() for one in maps]
    >>> found = fit_contact_regression(maps, touching)
    >>> int(found.weight_M.argmax())
    1
    """
    rows = []
    for number, (maps_MLL, contacts_LL) in enumerate(zip(maps, contacts, strict=True)):
        try:
            rows.append(contact_rows(maps_MLL, contacts_LL))
        except InputError as error:
            raise InputError(f"protein {number}: {error}") from error
    return fit_contact_rows(rows, strength, tolerance)


def fit_contact_rows(
    rows: Sequence[ContactRows], strength: float = STRENGTH, tolerance: float = 1e-6
) -> ContactRegression:
    """`fit_contact_regression` of pairs that were taken from the maps already.

    Args:
        rows: of each protein. strength, tolerance: see there.

    Raises:
        InputError: no contact, or nothing but contacts.
    """
    x_PM, y_P = torch.cat([one.x_PM for one in rows]), torch.cat([one.y_P for one in rows])
    touching = int(y_P.sum())
    if not 0 < touching < len(y_P):
        raise InputError(f"{touching} contacts among {len(y_P)} pairs; both kinds are needed to tell them apart")
    weight_M, bias, passes, violation = sparse_logistic(x_PM, y_P, strength, tolerance)
    return ContactRegression(weight_M.float(), bias, len(rows), len(y_P), touching, passes, violation)


def sparse_logistic(x_PM: Tensor, y_P: Tensor, strength: float, tolerance: float) -> tuple[Tensor, float, int, float]:
    """The optimum of L1-penalised logistic regression, by Newton steps whose quadratic is solved by coordinate descent.

    Source: Friedman, Hastie & Tibshirani 2010 (glmnet), with a line search.

    Args:
        x_PM: features, fp32. y_P: 0 or 1. strength: λ beside the sum over rows.

    Returns:
        weights (M,) in fp64, bias, passes over the rows, and the largest violation of optimality per row.
    """
    rows = len(y_P)
    one_PE = torch.cat([x_PM, torch.ones(rows, 1)], 1)
    penalty_E = torch.full((one_PE.shape[1],), strength, dtype=torch.float64)
    penalty_E[-1] = 0.0
    here_E = torch.zeros(one_PE.shape[1], dtype=torch.float64)
    share = float(y_P.mean())
    here_E[-1] = np.log(share / (1 - share))
    loss, violation, passes = _penalised(one_PE, y_P, here_E, penalty_E), float("inf"), 0
    for passes in range(1, 101):
        p_P = torch.sigmoid(one_PE @ here_E.float()).double()
        gradient_E = one_PE.T.mv((p_P - y_P).float()).double()
        slack_E = torch.where(here_E == 0, gradient_E.abs() - penalty_E, (gradient_E + penalty_E * here_E.sign()).abs())
        violation = float(slack_E.clamp(min=0).max()) / rows
        if violation <= tolerance:
            break
        weighted_PE = one_PE * (p_P * (1 - p_P)).sqrt().float()[:, None]
        hessian_EE = (weighted_PE.T @ weighted_PE).double()
        step_E = _coordinate_descent(hessian_EE, gradient_E, here_E, penalty_E) - here_E
        length = 1.0
        while (then := _penalised(one_PE, y_P, here_E + length * step_E, penalty_E)) > loss + 1e-9 * abs(loss):
            length /= 2
            if length < 1e-4:
                return here_E[:-1], float(here_E[-1]), passes, violation
        here_E, loss = here_E + length * step_E, then
    return here_E[:-1], float(here_E[-1]), passes, violation


def _penalised(one_PE: Tensor, y_P: Tensor, at_E: Tensor, penalty_E: Tensor) -> float:
    """Sum of cross-entropies plus penalty."""
    z_P = (one_PE @ at_E.float()).double()
    return float((nn.functional.softplus(z_P) - y_P * z_P).sum() + (penalty_E * at_E.abs()).sum())


def _coordinate_descent(hessian_EE: Tensor, gradient_E: Tensor, start_E: Tensor, penalty_E: Tensor) -> Tensor:
    """The minimum of gradient · (x - start) + (x - start) · hessian · (x - start) / 2 + penalty · |x|."""
    hessian, penalty, x = hessian_EE.numpy(), penalty_E.numpy(), start_E.numpy().copy()
    slope = gradient_E.numpy().copy()
    for _ in range(1000):
        largest = 0.0
        for e in range(len(x)):
            curvature = hessian[e, e]
            if curvature <= 0:
                continue
            wanted = x[e] - slope[e] / curvature
            new = np.sign(wanted) * max(abs(wanted) - penalty[e] / curvature, 0.0)
            change = new - x[e]
            if change != 0:
                slope += hessian[e] * change
                x[e] = new
                largest = max(largest, curvature * change**2)
        # What the best coordinate still gained, in units of the loss.
        if largest < 1e-12:
            break
    return torch.from_numpy(x)
