"""Ridge regression from frozen features, exact, in two passes over any number of rows.

In: blocks of features with one or several numbers per row, and groups (`heads.rows.Block`; NaN where unknown). Out: a
`RidgeRegression`, the optimum that scikit-learn's Ridge has on standardised features, with a strength chosen on
held-out groups. All that is needed of the rows are sums over each fold, so that choosing costs no further pass.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.heads.rows import Block, as_tensor, centred, folds_of, survey


@dataclass(frozen=True)
class RidgeOptions:
    """How a ridge regression is fitted.

    Args:
        strengths: of strength |weights|² beside the sum of squared errors (alpha in scikit-learn). With several, the
            best on held-out groups is taken. folds: of whole groups. seed: of the folds.
    """

    strengths: tuple[float, ...] = (1e5, 1e4, 1e3, 1e2, 1e1, 1e0, 1e-1)
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise InputError(f"strengths {self.strengths}: at least one is needed, and each must be above 0")
        if self.folds < 2:
            raise InputError(f"{self.folds} folds hold nothing out; 2 or more are needed")


@dataclass(frozen=True)
class RidgeRegression:
    """A fitted ridge regression.

    Attributes:
        weight_DM: of standardised features. bias_M. mean_D, scale_D: of the features. All fp32.
        record: rows, strength, and the mean squared errors on held-out groups that it was chosen by.
    """

    weight_DM: np.ndarray
    bias_M: np.ndarray
    mean_D: np.ndarray
    scale_D: np.ndarray
    record: dict[str, object] = field(default_factory=dict)

    def predict(self, features_ND: np.ndarray) -> np.ndarray:
        """Predicted numbers, fp32, shape (N, M).

        >>> x = np.arange(20.0)[:, None]
        >>> found = fit([Block(x, 3 * x[:, 0] + 1, np.arange(20))], RidgeOptions(strengths=(1e-6,)))
        >>> found.predict(np.array([[7.0]])).round(3).tolist()
        [[22.0]]
        """
        if features_ND.ndim != 2 or features_ND.shape[1] != len(self.mean_D):
            raise InputError(f"features of shape {features_ND.shape}; this was fitted on {len(self.mean_D)} features")
        x_ND = (as_tensor(features_ND).float().numpy() - self.mean_D) / self.scale_D
        predicted_NM: np.ndarray = x_ND @ self.weight_DM + self.bias_M
        return predicted_NM


@dataclass
class _Sums:
    """Sums over some rows, in fp64: rows, features, targets, and their products."""

    rows: float
    x_D: Tensor
    y_M: Tensor
    xx_DD: Tensor
    xy_DM: Tensor
    yy_M: Tensor

    @classmethod
    def zeros(cls, width: int, targets: int) -> "_Sums":
        shapes = ((width,), (targets,), (width, width), (width, targets), (targets,))
        return cls(0, *(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(self, x_ND: Tensor, y_NM: Tensor) -> None:
        """Take in some rows. Products are of fp32, their sum over chunks is fp64."""
        self.rows += len(x_ND)
        self.x_D += x_ND.sum(0, dtype=torch.float64)
        self.y_M += y_NM.sum(0)
        self.xx_DD += x_ND.T @ x_ND
        self.xy_DM += x_ND.T @ y_NM.float()
        self.yy_M += (y_NM**2).sum(0)

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(*(mine + theirs for mine, theirs in zip(self._all(), other._all(), strict=True)))

    def __sub__(self, other: "_Sums") -> "_Sums":
        return _Sums(*(mine - theirs for mine, theirs in zip(self._all(), other._all(), strict=True)))

    def _all(self) -> tuple[Any, ...]:
        return self.rows, self.x_D, self.y_M, self.xx_DD, self.xy_DM, self.yy_M


class _Path:
    """The optimum for any strength, from one eigendecomposition."""

    def __init__(self, sums: _Sums, scale_D: Tensor) -> None:
        self.x_D, self.y_M, self.scale_D = sums.x_D / sums.rows, sums.y_M / sums.rows, scale_D
        xx_DD = sums.xx_DD - torch.outer(sums.x_D, self.x_D)
        self.values_D, self.vectors_DD = torch.linalg.eigh(xx_DD / torch.outer(scale_D, scale_D))
        xy_DM = (sums.xy_DM - torch.outer(sums.x_D, self.y_M)) / scale_D[:, None]
        self.turned_DM = self.vectors_DD.T @ xy_DM

    def at(self, strength: float) -> tuple[Tensor, Tensor]:
        """Weights (D, M) of features that are centred but not scaled, and the bias (M,)."""
        shrunk_DM = self.turned_DM / (self.values_D.clamp(min=0) + strength)[:, None]
        weight_DM = self.vectors_DD @ shrunk_DM / self.scale_D[:, None]
        return weight_DM, self.y_M - self.x_D @ weight_DM


def fit(blocks: Iterable[Block], options: RidgeOptions) -> RidgeRegression:
    """Fit a ridge regression to all targets with one strength.

    Memory: a D x D matrix in fp64 for each fold.

    Args:
        blocks: rows, targets as floats, and groups; gone through twice. options: see `RidgeOptions`.

    Raises:
        InputError: as `heads.rows.survey`, fewer groups than folds, or targets that are not floats.
    """
    found = survey(blocks)
    if found.targets_N.dtype.kind != "f":
        raise InputError(f"targets are {found.targets_N.dtype}; regression needs floats, classes a linear probe")
    y_NM = torch.from_numpy(found.targets_N.reshape(found.rows, -1).astype(np.float64))
    # Sums of squares are taken around the mean, where they lose nothing.
    mean_M = y_NM.mean(0)
    several = len(options.strengths) > 1
    random = np.random.default_rng(options.seed)
    fold_N = folds_of(found.groups_N, options.folds, random) if several else np.zeros(found.rows, np.int64)
    parts = _sums_by_fold(blocks, found.mean_D, y_NM - mean_M, torch.from_numpy(fold_N))
    total = sum(parts[1:], start=parts[0])
    strength = options.strengths[0]
    errors: dict[str, float] = {}
    if several:
        errors = _held_out(total, parts, found.scale_D, options.strengths)
        strength = min(options.strengths, key=lambda one: errors[f"{one:g}"])
    weight_DM, bias_M = _Path(total, found.scale_D).at(strength)
    record: dict[str, object] = {"strength": strength, "squared_error_held_out": errors, "rows": found.rows}
    arrays = [(weight_DM * found.scale_D[:, None]), bias_M + mean_M, found.mean_D, found.scale_D]
    weight, bias, mean, scale = (tensor.float().numpy() for tensor in arrays)
    return RidgeRegression(weight, bias, mean, scale, record)


def _sums_by_fold(blocks: Iterable[Block], mean_D: Tensor, y_NM: Tensor, fold_N: Tensor) -> list[_Sums]:
    """Sums over the rows of each fold, in one pass."""
    parts = [_Sums.zeros(len(mean_D), y_NM.shape[1]) for _ in range(int(fold_N.max()) + 1)]
    start = 0
    for x_ND in centred(blocks, mean_D):
        rows = slice(start, start := start + len(x_ND))
        if start > len(y_NM):
            break
        for fold, part in enumerate(parts):
            mine = fold_N[rows] == fold
            if bool(mine.any()):
                part.add(x_ND[mine], y_NM[rows][mine])
    if start != len(y_NM):
        raise InputError(f"a pass over the blocks gave other rows than the first, which gave {len(y_NM)}")
    return parts


def _held_out(total: _Sums, parts: list[_Sums], scale_D: Tensor, strengths: tuple[float, ...]) -> dict[str, float]:
    """Mean squared error on held-out folds for each strength, summed over targets, from the sums alone."""
    errors = dict.fromkeys((f"{strength:g}" for strength in strengths), 0.0)
    for part in parts:
        path = _Path(total - part, scale_D)
        for strength in strengths:
            w_DM, b_M = path.at(strength)
            # |y - x w - b|² multiplied out.
            squares = part.yy_M.sum() + (w_DM * (part.xx_DD @ w_DM)).sum() + part.rows * (b_M**2).sum()
            crossed = (w_DM * part.xy_DM).sum() + (b_M * part.y_M).sum() - (part.x_D @ w_DM * b_M).sum()
            errors[f"{strength:g}"] += float(squares - 2 * crossed) / total.rows
    return errors
