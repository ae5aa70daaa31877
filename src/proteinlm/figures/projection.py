"""Vectors in the plane: principal components and t-SNE by scikit-learn; and how often neighbours are of one kind.

In: vectors, a generator or a seed. Out: coordinates. The same vectors and seed give the same coordinates on the same
machine: both methods run exactly, without threads of their own.
"""

import numpy as np
from jaxtyping import Float

from proteinlm.errors import InputError
from proteinlm.tasks.homology import unit

PERPLEXITY = 30.0
"""Of t-SNE, where there are points enough; scikit-learn's and the original's default."""


def principal_components(
    vectors_ND: Float[np.ndarray, "N D"],
) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "2"]]:
    """Coordinates along the two directions of most variance, and the share of the variance along each.

    >>> places, shares = principal_components(np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]))
    >>> np.abs(places[:, 0]).round(6).tolist(), shares.round(6).tolist()
    ([2.0, 0.0, 2.0], [1.0, 0.0])
    """
    from sklearn.decomposition import PCA

    if len(vectors_ND) < 2 or vectors_ND.shape[1] < 2:
        raise InputError(f"vectors of shape {vectors_ND.shape} span no plane; two of two channels are needed")
    method = PCA(n_components=2, svd_solver="full")
    places_N2 = method.fit_transform(vectors_ND.astype(np.float64))
    return places_N2, method.explained_variance_ratio_


def t_sne(vectors_ND: Float[np.ndarray, "N D"], seed: int, perplexity: float = PERPLEXITY) -> Float[np.ndarray, "N 2"]:
    """Neighbours by cosine put next to each other, from the principal components on.

    Args:
        vectors_ND: fp32 or fp64. seed: of the method. perplexity: neighbours that count, at most a third of the points.

    Raises:
        InputError: fewer than 4 points.
    """
    from sklearn.manifold import TSNE

    if len(vectors_ND) < 4:
        raise InputError(f"{len(vectors_ND)} points make no map; 4 or more are needed")
    method = TSNE(
        perplexity=min(perplexity, (len(vectors_ND) - 1) / 3),
        metric="cosine",
        init="pca",
        method="exact",
        random_state=seed,
    )
    places_N2: np.ndarray = method.fit_transform(vectors_ND.astype(np.float64))
    return places_N2


def nearest_alike(vectors_ND: Float[np.ndarray, "N D"], labels: list[str]) -> list[int]:
    """1 for each vector whose nearest other by cosine has its label, else 0; of equally near ones the first counts.

    >>> nearest_alike(np.array([[1.0, 0], [1, 0.1], [0, 1]]), ["a", "a", "b"])
    [1, 1, 0]
    """
    unit_ND = unit(vectors_ND.astype(np.float64))
    cosine_NN = unit_ND @ unit_ND.T
    np.fill_diagonal(cosine_NN, -np.inf)
    return [int(labels[nearest] == labels[row]) for row, nearest in enumerate(cosine_NN.argmax(axis=1))]
