"""The linear probe: multinomial logistic regression on frozen features, exact, in a few passes over any number of rows.

In: blocks of features with classes and groups (`heads.rows.Block`). Out: a `LinearProbe`, which is the optimum that
scikit-learn's LogisticRegression has on standardised features, with a regularisation that was chosen on held-out groups
of the rows it was given. Linear probes on residues: papers.md 4.2.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.heads.descent import Chunks, Curvature, Found, Loss, minimise
from proteinlm.heads.rows import CHUNK_BYTES, Block, Survey, as_tensor, centred, folds_of, sample_of, survey

ROWS_PER_FEATURE = 10
"""Rows that the curvature is estimated from, for each feature. It steers the descent and does not move the optimum."""

LOOSER = 10.0
"""Fits that only compare strengths stop at this many times the tolerance."""


@dataclass(frozen=True)
class ProbeOptions:
    """How a linear probe is fitted.

    Args:
        classes: how many there are, K. A class without any example is allowed and gets next to no probability.
        strengths: of the penalty strength/2 |weights|² beside the sum of cross-entropies over rows (1/C in
            scikit-learn). With several, the best on held-out groups is taken; with one, that one.
        folds: parts of the rows, by whole groups, of which each in turn is held out to choose the strength.
        selection_rows: the strength is chosen on whole groups of at least so many rows in all, held in memory as fp32.
        tolerance: largest entry of the gradient of the mean cross-entropy at the end (scikit-learn: 1e-4).
        most_passes: a fit that takes more passes over the rows ends with a warning. seed: of folds and samples.
    """

    classes: int
    strengths: tuple[float, ...] = (1e5, 1e4, 1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2)
    folds: int = 3
    selection_rows: int = 200_000
    tolerance: float = 1e-5
    most_passes: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InputError(f"{self.classes} classes leave nothing to tell apart; 2 or more are needed")
        if not self.strengths or min(self.strengths) <= 0:
            raise InputError(f"strengths {self.strengths}: at least one is needed, and each must be above 0")
        if self.folds < 2:
            raise InputError(f"{self.folds} folds hold nothing out; 2 or more are needed")


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear probe.

    Attributes:
        weight_DK: of standardised features, fp32. bias_K: fp32.
        mean_D, scale_D: of the features, fp32.
        record: how it was fitted: rows, strength and the cross-entropies it was chosen by, passes, gradient, loss.
    """

    weight_DK: np.ndarray
    bias_K: np.ndarray
    mean_D: np.ndarray
    scale_D: np.ndarray
    record: dict[str, object] = field(default_factory=dict)

    def logits(self, features_ND: np.ndarray) -> np.ndarray:
        """Unnormalised log-probabilities, fp32, shape (N, K).

        Raises:
            InputError: another number of features than the probe was fitted on.
        """
        if features_ND.ndim != 2 or features_ND.shape[1] != len(self.mean_D):
            raise InputError(
                f"features of shape {features_ND.shape}; this probe was fitted on {len(self.mean_D)} features"
            )
        weight_DK = torch.from_numpy(self.weight_DK / self.scale_D[:, None])
        mean_D, bias_K = torch.from_numpy(self.mean_D), torch.from_numpy(self.bias_K)
        rows = max(64, CHUNK_BYTES // (4 * len(self.mean_D)))
        parts = [
            torch.addmm(bias_K, as_tensor(features_ND[at : at + rows]).float() - mean_D, weight_DK)
            for at in range(0, len(features_ND), rows)
        ]
        return torch.cat(parts).numpy() if parts else np.zeros((0, len(self.bias_K)), np.float32)

    def predict_proba(self, features_ND: np.ndarray) -> np.ndarray:
        """Probability of each class, fp32, shape (N, K).

        >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> block = Block(x, np.array([0, 0, 1, 1]), np.array([1, 2, 3, 4]))
        >>> probe = fit([block], ProbeOptions(classes=2, strengths=(1.0,)))
        >>> probe.predict_proba(x).argmax(1).tolist()
        [0, 0, 1, 1]
        """
        return torch.from_numpy(self.logits(features_ND)).softmax(1).numpy()

    def tensors(self) -> dict[str, Tensor]:
        """What `heads.store` writes."""
        arrays = {"weight": self.weight_DK, "bias": self.bias_K, "mean": self.mean_D, "scale": self.scale_D}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def fit(blocks: Iterable[Block], options: ProbeOptions) -> LinearProbe:
    """Fit a linear probe.

    Passes over the blocks: one for labels and moments, one for the rows that the strength is chosen on, and one for
    each step of the descent, about a dozen. Memory: `selection_rows` rows in fp32, and some 30 bytes a row.

    Args:
        blocks: rows, classes and groups; gone through repeatedly. options: see `ProbeOptions`.

    Raises:
        InputError: a class outside 0..K - 1, fewer groups than folds, features that are not finite, blocks that can be
            gone through only once or that change between passes.

    >>> random = np.random.default_rng(0)
    >>> labels = random.integers(0, 2, size=300)
    >>> block = Block(random.standard_normal((300, 3)) + labels[:, None], labels, np.arange(300))
    >>> probe = fit([block], ProbeOptions(classes=2))
    >>> probe.record["converged"], probe.record["rows"], probe.weight_DK.shape
    (True, 300, (3, 2))
    """
    found = survey(blocks)
    labels_N = _labels(found, options.classes)
    random = np.random.default_rng(options.seed)
    chosen_N = sample_of(found.groups_N, options.selection_rows, random)
    resident_ND = _gather(blocks, found, chosen_N)
    stride = max(1, len(resident_ND) // (ROWS_PER_FEATURE * resident_ND.shape[1]))
    curvature = Curvature(resident_ND[::stride], found.scale_D)

    sample_labels_N = labels_N[torch.from_numpy(chosen_N)]
    everything_N = torch.ones(len(resident_ND), dtype=torch.bool)
    whole = Loss(_resident(resident_ND), found.scale_D, sample_labels_N, everything_N, options.classes)
    strength, start_EK = options.strengths[0], whole.start()
    held_out: dict[str, float] = {}
    if len(options.strengths) > 1:
        fold_N = torch.from_numpy(folds_of(found.groups_N[chosen_N], options.folds, random))
        fitted = [
            Loss(whole.chunks, found.scale_D, sample_labels_N, fold_N != fold, options.classes)
            for fold in range(options.folds)
        ]
        strength, held_out, start_EK = _choose(fitted, curvature, options)
    if not chosen_N.all():
        penalty = strength / whole.rows
        start_EK = minimise(whole, curvature, penalty, start_EK, LOOSER * options.tolerance, 50).coefficients_EK
        del resident_ND
        everything_N = torch.ones(found.rows, dtype=torch.bool)
        whole = Loss(lambda: centred(blocks, found.mean_D), found.scale_D, labels_N, everything_N, options.classes)
    best = minimise(whole, curvature, strength / found.rows, start_EK, options.tolerance, options.most_passes)
    record = {"strength": strength, "cross_entropy_held_out": held_out, "rows_chosen_on": int(chosen_N.sum())}
    return _probe(found, best, record)


def _labels(found: Survey, classes: int) -> Tensor:
    """Classes as int64, each of which is one."""
    if found.targets_N.dtype.kind not in "iu" or found.targets_N.ndim != 1:
        raise InputError(f"classes are {found.targets_N.dtype} of shape {found.targets_N.shape}; one integer per row")
    low, high = int(found.targets_N.min()), int(found.targets_N.max())
    if low < 0 or high >= classes:
        raise InputError(f"class {low if low < 0 else high} is outside 0..{classes - 1}; mark unknown rows with -1")
    return torch.from_numpy(found.targets_N.astype(np.int64))


def _gather(blocks: Iterable[Block], found: Survey, chosen_N: np.ndarray) -> Tensor:
    """The chosen rows, centred, in memory."""
    resident_ND = torch.empty(int(chosen_N.sum()), len(found.mean_D))
    start = filled = 0
    for x_ND in centred(blocks, found.mean_D):
        mine = torch.from_numpy(chosen_N[start : start + len(x_ND)])
        start += len(x_ND)
        if start > found.rows:
            break
        resident_ND[filled : (filled := filled + int(mine.sum()))] = x_ND[mine]
    if start != found.rows:
        raise InputError(f"a pass over the blocks gave other rows than the first, which gave {found.rows}")
    return resident_ND


def _resident(rows_ND: Tensor) -> Chunks:
    """Passes over rows that are in memory already."""
    size = max(64, CHUNK_BYTES // (4 * rows_ND.shape[1]))

    def chunks() -> Iterator[Tensor]:
        return iter(rows_ND.split(size))

    return chunks


def _choose(fitted: list[Loss], curvature: Curvature, options: ProbeOptions) -> tuple[float, dict[str, float], Tensor]:
    """The strength of the lowest cross-entropy on held-out groups, what each scored, and coefficients to start from.

    From the strongest on, each fit starts where the last one ended; the walk ends as soon as it gets worse, since
    weaker penalties fit ever more of what is not there.
    """
    scores: dict[str, float] = {}
    at = [loss.start() for loss in fitted]
    best = (float("inf"), options.strengths[0], at)
    for strength in sorted(options.strengths, reverse=True):
        ends = [
            minimise(loss, curvature, strength / loss.rows, start, LOOSER * options.tolerance, options.most_passes)
            for loss, start in zip(fitted, at, strict=True)
        ]
        left = [len(loss.labels_N) - loss.rows for loss in fitted]
        total = sum(end.evaluation.held_out * rows for end, rows in zip(ends, left, strict=True))
        score = total / sum(left)
        scores[f"{strength:g}"] = score
        at = [end.coefficients_EK for end in ends]
        if score >= best[0]:
            break
        best = (score, strength, at)
    return best[1], scores, torch.stack(best[2]).mean(0)


def _probe(found: Survey, best: Found, record: dict[str, object]) -> LinearProbe:
    if not best.converged:
        warnings.warn(
            f"the linear probe is not at its optimum: after {best.passes} passes the gradient is {best.gradient:.1e}; "
            "allow more passes or a larger tolerance",
            stacklevel=3,
        )
    weight_DK, bias_K = best.coefficients_EK[:-1], best.coefficients_EK[-1]
    record |= {
        "rows": found.rows,
        "groups": len(np.unique(found.groups_N)),
        "passes": best.passes,
        "gradient": best.gradient,
        "loss": best.evaluation.loss,
        "converged": best.converged,
    }
    arrays = [tensor.float().numpy() for tensor in (weight_DK, bias_K, found.mean_D, found.scale_D)]
    return LinearProbe(arrays[0], arrays[1], arrays[2], arrays[3], record)
