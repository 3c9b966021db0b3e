"""Separation: how well classes are told apart by what a layer holds of images."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedgaze.errors import FedgazeError, nearest

__all__ = ["PROJECTIONS", "Projection", "neighbours_hit", "project", "silhouettes"]

Array = NDArray[np.float32]
Projection = Literal["pca", "tsne", "umap"]
PROJECTIONS = ("pca", "tsne", "umap")


def neighbours_hit(
    features: Array, labels: NDArray[np.int64], *, neighbours: int = 10
) -> NDArray[np.bool_]:
    """Which images their nearest neighbours would put into the right class, without themselves.

    Each image is given the class that most of its k nearest others have, by cosine similarity; of
    classes alike the nearer one's. The mean is the leave-one-out accuracy of k nearest neighbours
    (Cover and Hart, "Nearest Neighbor Pattern Classification", IEEE Transactions on Information
    Theory 1967).

    Args:
        features: ``(N, K)``.
        labels: ``(N,)``, from 0 on.
        neighbours: k, less than N.

    Returns:
        bool ``(N,)``.

    Raises:
        FedgazeError: There are not so many others.
    """
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= neighbours < len(features):
        raise FedgazeError(
            f"neighbours is {neighbours}; allowed is 1 to {len(features) - 1}, one less than "
            "there are images"
        )
    # Of the same directions, Euclidean distances have the order of cosines, and are faster.
    found = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(_directions(features))
    votes = labels[found.kneighbors(return_distance=False)]
    counts = np.zeros((len(labels), int(labels.max()) + 1))
    rows = np.arange(len(labels))
    for place in range(neighbours):
        # Less than one vote in all, so that it only settles a draw.
        counts[rows, votes[:, place]] += 1 + (neighbours - place) / (neighbours + 1) ** 2
    return np.asarray(counts.argmax(1) == labels)


def silhouettes(features: Array, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much nearer each image is to its own class than to the next: the silhouette.

    ``(b - a) / max(a, b)``, a being the mean cosine distance to the others of its class, b that to
    the nearest other class: Rousseeuw, "Silhouettes: A Graphical Aid to the Interpretation and
    Validation of Cluster Analysis", Journal of Computational and Applied Mathematics 1987.

    Args:
        features: ``(N, K)``.
        labels: ``(N,)``, of two classes at least.

    Returns:
        ``(N,)`` in [-1, 1]; 0 for the only image of a class.
    """
    from sklearn.metrics import silhouette_samples

    found: NDArray[np.float64] = silhouette_samples(_directions(features), labels, metric="cosine")
    return found


def project(features: Array, how: Projection, *, seed: int = 0) -> NDArray[np.float64]:
    """Features in two dimensions, for looking at.

    ``pca`` keeps as much variance as a plane can; ``tsne`` (van der Maaten and Hinton, JMLR 2008)
    and ``umap`` (McInnes, Healy and Melville, arXiv 1802.03426, 2018) keep neighbours together, and
    say nothing of distances between groups. Both begin with 50 principal components.

    Args:
        features: ``(N, K)``, N from 3 on.
        how: ``"pca"``, ``"tsne"`` or ``"umap"``.
        seed: Of what is drawn at random.

    Returns:
        ``(N, 2)``.

    Raises:
        FedgazeError: There is no such projection, or umap-learn is missing.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if how not in PROJECTIONS:
        raise FedgazeError(
            f"there is no projection {how!r}; allowed are {', '.join(PROJECTIONS)}"
            f"{nearest(how, PROJECTIONS)}"
        )
    values = _directions(features).astype(np.float64)
    parts = min(2 if how == "pca" else 50, *values.shape)
    # Of features that are all alike, scikit-learn divides by their variance.
    with np.errstate(invalid="ignore"):
        reduced = PCA(parts, random_state=seed).fit_transform(values)
    if how == "tsne":
        near = min(30.0, (len(values) - 1) / 3)
        reduced = TSNE(perplexity=near, init="pca", random_state=seed).fit_transform(reduced)
    elif how == "umap":
        reduced = _umap(reduced, seed)
    if reduced.shape[1] < 2:
        reduced = np.pad(reduced, ((0, 0), (0, 2 - reduced.shape[1])))
    return np.asarray(reduced, dtype=np.float64)


def _umap(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    try:
        from umap import UMAP
    except ModuleNotFoundError as error:
        raise FedgazeError(
            "--project umap needs umap-learn, which is not installed: pip install 'fedgaze[umap]'"
        ) from error
    near = min(15, len(values) - 1)
    found: NDArray[np.float64] = UMAP(
        n_neighbors=near, random_state=seed, n_jobs=1, init="pca"
    ).fit_transform(values)
    return found


def _directions(features: Array) -> Array:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(norms > 0, norms, 1), dtype=np.float32)
