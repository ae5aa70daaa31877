"""Whether two programs gave the same vectors: a speed counts only at equal outputs.

In: arrays of one vector per protein, (N, D). Out: the least cosine, or `UnequalOutputs`. NumPy only.
"""

from dataclasses import dataclass

import numpy as np

NORM_TOLERANCE = 0.02
"""Cosine does not see a vector's length; lengths may differ by this share (int8 weights change it by 0.4 %)."""


class UnequalOutputs(AssertionError):
    """A contestant did not compute what the reference computed."""


@dataclass(frozen=True)
class Agreement:
    """How near the vectors of a contestant are to the reference.

    Attributes:
        proteins: how many were compared.
        least_cosine: the smallest cosine of any protein to its reference.
        least_centred_cosine: the same after the reference's mean protein was taken from both; much stricter, because
            all vectors of one model share a large part.
        largest_norm_error: the largest relative difference of lengths.
    """

    proteins: int
    least_cosine: float
    least_centred_cosine: float
    largest_norm_error: float


def cosines(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    """Cosine of each row of `a_ND` with the same row of `b_ND`, in float64."""
    a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
    return (a_ND * b_ND).sum(1) / (np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1))


def nearest(reference_ND: np.ndarray, vectors_ND: np.ndarray) -> np.ndarray:
    """For each vector, the number of the reference row with the largest cosine."""
    unit_ND = reference_ND / np.linalg.norm(reference_ND, axis=1, keepdims=True)
    return (vectors_ND @ unit_ND.T).argmax(1)


def check(name: str, reference_ND: np.ndarray, vectors_ND: np.ndarray, must: float) -> Agreement:
    """Compare a contestant with the reference, protein by protein.

    Args:
        name: of the contestant, for the message. must: every cosine has to exceed it.

    Raises:
        UnequalOutputs: another shape, a number that is none, a cosine at or below `must`, another length, or a
            vector that is nearer to another protein's than to its own.
    """
    if vectors_ND.shape != reference_ND.shape:
        raise UnequalOutputs(f"{name}: vectors of shape {vectors_ND.shape}, the reference has {reference_ND.shape}")
    if not np.isfinite(vectors_ND).all():
        raise UnequalOutputs(f"{name}: {int((~np.isfinite(vectors_ND)).any(1).sum())} vectors hold NaN or infinity")
    cosine_N = cosines(reference_ND, vectors_ND)
    worst = int(cosine_N.argmin())
    if not cosine_N[worst] > must:
        raise UnequalOutputs(
            f"{name}: protein {worst} has cosine {cosine_N[worst]:.7f} to fp32; more than {must} is due"
        )
    norms_N, wanted_N = np.linalg.norm(vectors_ND, axis=1), np.linalg.norm(reference_ND, axis=1)
    error_N = np.abs(norms_N / wanted_N - 1)
    if error_N.max() > NORM_TOLERANCE:
        raise UnequalOutputs(
            f"{name}: the vector of protein {int(error_N.argmax())} is {error_N.max():.1%} too long or short"
        )
    centre_D = reference_ND.mean(0)
    centred_N = cosines(reference_ND - centre_D, vectors_ND - centre_D)
    swapped = nearest(reference_ND - centre_D, vectors_ND - centre_D) != np.arange(len(vectors_ND))
    if swapped.any():
        raise UnequalOutputs(f"{name}: the vector of protein {int(swapped.argmax())} is nearest to another protein's")
    return Agreement(len(vectors_ND), float(cosine_N[worst]), float(centred_N.min()), float(error_N.max()))
