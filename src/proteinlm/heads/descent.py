"""Multinomial logistic regression to its optimum: L-BFGS whose first guess at the Hessian is nearly right.

In: centred chunks that can be gone through again, the class of each row, and how strongly to regularise. Out:
coefficients in units of standardised features, with the loss and the gradient that they were left at.

The Hessian of the loss is the mean over rows of (diag p - p pᵀ) ⊗ x xᵀ. Taken apart into its two means, it is A ⊗ G:
A (K, K) from the pass that gives the gradient, G (D, D) from a sample of rows; with both diagonalised, (A ⊗ G + λ)⁻¹
costs two small products. L-BFGS corrects what that leaves out. Every evaluation is a pass over all rows, so few of them
matter more than anything else. Shape letters: see `heads.rows`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from proteinlm.errors import InputError

HISTORY = 12
"""Pairs of steps and gradient changes that L-BFGS remembers."""

SLACK = 1e-7
"""Losses of fp32 rows that differ by less than this share are taken for equal."""

Chunks = Callable[[], Iterator[Tensor]]
"""Starts a pass over the rows: centred fp32 chunks, in the same order each time."""


@dataclass(frozen=True)
class Evaluation:
    """What a pass over the rows gives at one set of coefficients.

    Attributes:
        loss: mean cross-entropy of the rows fitted on, in nats, plus penalty.
        gradient_EK: of the loss, shape (D + 1, K); the last row belongs to the intercept.
        curvature_KK: mean of diag p - p pᵀ.
        held_out: mean cross-entropy of the rows not fitted on, in nats; NaN where there are none.
    """

    loss: float
    gradient_EK: Tensor
    curvature_KK: Tensor
    held_out: float


@dataclass
class Found:
    """Where the descent ended.

    Attributes:
        coefficients_EK: shape (D + 1, K), of standardised features; the last row is the intercept.
        evaluation: the last one. passes: how many it took. converged: whether the gradient is within tolerance.
    """

    coefficients_EK: Tensor
    evaluation: Evaluation
    passes: int
    converged: bool

    @property
    def gradient(self) -> float:
        """Largest entry of the gradient."""
        return float(self.evaluation.gradient_EK.abs().max())


class Loss:
    """The penalised mean cross-entropy of some rows, as a function of the coefficients.

    Args:
        chunks: the rows. scale_D: standard deviation of each feature. labels_N: class of each row, int64.
        fitted_N: which rows count, bool; the others are scored and not fitted on.
        classes: how many, K.
    """

    def __init__(self, chunks: Chunks, scale_D: Tensor, labels_N: Tensor, fitted_N: Tensor, classes: int) -> None:
        self.chunks, self.scale_D, self.labels_N, self.fitted_N = chunks, scale_D.double(), labels_N, fitted_N
        self.classes = classes
        self.rows = int(fitted_N.sum())

    def start(self) -> Tensor:
        """No weights, and the intercept of class frequencies; half an example is added to every class."""
        counts_K = torch.bincount(self.labels_N[self.fitted_N], minlength=self.classes).double() + 0.5
        log_K = (counts_K / counts_K.sum()).log()
        return torch.cat(
            [torch.zeros(len(self.scale_D), self.classes, dtype=torch.float64), (log_K - log_K.mean())[None]]
        )

    def at(self, coefficients_EK: Tensor, penalty: float) -> Evaluation:
        """One pass over the rows.

        Args:
            coefficients_EK: where. penalty: λ of the term λ/2 |weights|², beside a mean over rows.

        Raises:
            InputError: the chunks hold another number of rows than there are labels.
        """
        weight_DK = (coefficients_EK[:-1] / self.scale_D[:, None]).float()
        bias_K = coefficients_EK[-1].float()
        gradient_KD = torch.zeros(self.classes, len(self.scale_D), dtype=torch.float64)
        gradient_K, outer_KK = gradient_KD.new_zeros(self.classes), gradient_KD.new_zeros(self.classes, self.classes)
        loss, held_out, start = 0.0, 0.0, 0
        for x_ND in self.chunks():
            rows = slice(start, start := start + len(x_ND))
            labels_N1, fitted_N1 = self.labels_N[rows, None], self.fitted_N[rows, None]
            if len(labels_N1) < len(x_ND):
                break
            log_p_NK = torch.addmm(bias_K, x_ND, weight_DK).log_softmax(1)
            loss_N1 = -log_p_NK.gather(1, labels_N1).double()
            loss += float((loss_N1 * fitted_N1).sum())
            held_out += float((loss_N1 * ~fitted_N1).sum())
            p_NK = log_p_NK.exp_().mul_(fitted_N1)
            outer_KK += p_NK.T @ p_NK
            residual_NK = p_NK.scatter_add_(1, labels_N1, -fitted_N1.float())
            gradient_KD += residual_NK.T @ x_ND
            gradient_K += residual_NK.sum(0)
        if start != len(self.labels_N):
            raise InputError(f"a pass over the blocks gave other rows than the first, which gave {len(self.labels_N)}")
        gradient_EK = torch.cat([(gradient_KD / self.scale_D).T, gradient_K[None]]) / self.rows
        # Residuals of a row sum to 0. What rounding leaves would drift: nothing holds the mean of the intercepts.
        gradient_EK -= gradient_EK.mean(1, keepdim=True)
        gradient_EK[:-1] += penalty * coefficients_EK[:-1]
        left = len(self.labels_N) - self.rows
        return Evaluation(
            loss / self.rows + penalty / 2 * float((coefficients_EK[:-1] ** 2).sum()),
            gradient_EK,
            (torch.diag(outer_KK.sum(1)) - outer_KK) / self.rows,
            held_out / left if left else float("nan"),
        )


class Curvature:
    """The eigenvectors of the correlations of a sample of rows, and with them a good guess at any inverse Hessian.

    Args:
        sample_ND: centred rows. scale_D: standard deviation of each feature.
    """

    def __init__(self, sample_ND: Tensor, scale_D: Tensor) -> None:
        gram_DD = (sample_ND.T @ sample_ND).double() / len(sample_ND)
        values_D, self.vectors_DD = torch.linalg.eigh(gram_DD / torch.outer(scale_D, scale_D))
        self.values_D = values_D.clamp(min=0)

    def solve(self, gradient_EK: Tensor, curvature_KK: Tensor, penalty: float) -> Tensor:
        """(A ⊗ G + λ)⁻¹ times a gradient; the intercept, to which no penalty belongs, has G = 1."""
        values_K, vectors_KK = torch.linalg.eigh(curvature_KK)
        turned_EK = torch.cat([self.vectors_DD.T @ gradient_EK[:-1], gradient_EK[-1:]]) @ vectors_KK
        # All logits may be shifted together: along that direction A is 0, and so is the gradient of the intercept.
        intercept_K = torch.where(values_K > 1e-12, 1 / values_K.clamp(min=1e-12), 0)
        weights_DK = 1 / (self.values_D[:, None] * values_K.clamp(min=0) + penalty)
        solved_EK = turned_EK * torch.cat([weights_DK, intercept_K[None]]) @ vectors_KK.T
        return torch.cat([self.vectors_DD @ solved_EK[:-1], solved_EK[-1:]])


def minimise(
    loss: Loss, curvature: Curvature, penalty: float, start_EK: Tensor, tolerance: float, most_passes: int
) -> Found:
    """Descend until no entry of the gradient is larger than `tolerance`.

    Args:
        loss: what to minimise. curvature: of its rows. penalty: λ. start_EK: where to begin.
        tolerance: largest entry of the gradient of the mean loss. most_passes: give up after so many.
    """
    here_EK, now, passes = start_EK, loss.at(start_EK, penalty), 1
    pairs: list[tuple[Tensor, Tensor]] = []
    while float(now.gradient_EK.abs().max()) > tolerance:
        solve = partial(curvature.solve, curvature_KK=now.curvature_KK, penalty=penalty)
        direction_EK = -_two_loops(now.gradient_EK, pairs, solve)
        slope, length = float((direction_EK * now.gradient_EK).sum()), 1.0
        while passes < most_passes:
            there_EK = here_EK + length * direction_EK
            then, passes = loss.at(there_EK, penalty), passes + 1
            excess = then.loss - now.loss - 1e-4 * length * slope
            if excess <= SLACK * abs(now.loss):
                break
            # The minimum of the parabola through both losses and the slope, kept within reason.
            best = -slope * length**2 / (2 * (then.loss - now.loss - slope * length))
            length = min(max(best, 0.1 * length), 0.5 * length)
        else:
            return Found(here_EK, now, passes, converged=False)
        step_EK, change_EK = there_EK - here_EK, then.gradient_EK - now.gradient_EK
        if float((step_EK * change_EK).sum()) > 0:
            pairs = [*pairs[1 - HISTORY :], (step_EK, change_EK)]
        here_EK, now = there_EK, then
    return Found(here_EK, now, passes, converged=True)


def _two_loops(gradient_EK: Tensor, pairs: list[tuple[Tensor, Tensor]], solve: Callable[[Tensor], Tensor]) -> Tensor:
    """The inverse Hessian of L-BFGS times a gradient (Nocedal & Wright, algorithm 7.4); `solve` is its first guess."""
    q_EK, alphas = gradient_EK.clone(), []
    for step_EK, change_EK in reversed(pairs):
        alpha = (step_EK * q_EK).sum() / (step_EK * change_EK).sum()
        q_EK -= alpha * change_EK
        alphas.append(alpha)
    r_EK = solve(q_EK)
    for (step_EK, change_EK), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = (change_EK * r_EK).sum() / (step_EK * change_EK).sum()
        r_EK += (alpha - beta) * step_EK
    return r_EK
