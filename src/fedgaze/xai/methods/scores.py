"""Scores that some methods explain in place of a class's logit."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.methods.cam import wide

__all__ = ["finer_scores", "rest_scores", "similar_classes"]

WEIGHTINGS = ("mean", "softmax")


def rest_scores(logits: Tensor, classes: Tensor) -> Tensor:
    """Logit plus logarithm of the probability: the residual softmax target-class score, ReST.

    ``y_c + log softmax(y)_c``: what ShapleyCAM explains (Cai, "CAMs as Shapley Value-based
    Explainers", arXiv 2501.06261, 2025). It has curvature where the logit has none.

    Args:
        logits: ``(N, C)``.
        classes: ``(N,)``, whole numbers.

    Returns:
        ``(N,)``, in float32 at least.

    >>> rest_scores(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    tensor([0.6867])
    """
    y = wide(logits)
    return (y + y.log_softmax(1)).gather(1, classes[:, None])[:, 0]


def similar_classes(linear_weight: Tensor, classes: Tensor, *, count: int = 3) -> Tensor:
    """The classes whose weights in the classifier point the most in the same direction.

    Args:
        linear_weight: ``(C, K)``: of the last linear layer.
        classes: ``(N,)``, whole numbers.
        count: How many, of those that there are.

    Returns:
        ``(N, count)``: other classes, the most similar (by the cosine) first.

    >>> w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    >>> similar_classes(w, torch.tensor([0]), count=2)
    tensor([[2, 1]])
    """
    directions = F.normalize(wide(linear_weight), dim=1)
    return _nearest_others(-directions[classes] @ directions.T, classes, count)


def finer_scores(
    logits: Tensor,
    classes: Tensor,
    *,
    alpha: float = 0.6,
    count: int = 3,
    weighting: str = "mean",
    others: Tensor | None = None,
) -> Tensor:
    """What sets a class apart from those like it: the score that Finer-CAM explains.

    ``y_c - alpha y_d``, for the mean over the similar classes d: Zhang et al., "Finer-CAM: Spotting
    the Difference Reveals Finer Details for Visual Explanation", CVPR 2025. Explained by Grad-CAM,
    it gives the paper's map ``relu(1/T sum_d sum_k w_k^(c,d) A_k)`` with
    ``w_k^(c,d) = mean_ij d(y_c - alpha y_d)/dA_kij``, as the comparisons are averaged before the
    relu; other methods of weights serve as well. The paper writes gamma for alpha.

    Similar classes are those whose logits are nearest to that of the class; see `similar_classes`
    for others. The authors' first code and torchcam average as this does, with alpha 0.6 and three
    classes; the authors' later code, which is pytorch-grad-cam's, has alpha 1 and averages by the
    probabilities of the similar classes, and the gradient goes through these, too.

    Args:
        logits: ``(N, C)``: y.
        classes: ``(N,)``, whole numbers: c.
        alpha: How much of what is shared is taken away; 0 explains the logit itself.
        count: With how many classes it is compared, of those that there are: T.
        weighting: ``"mean"``, or ``"softmax"`` for the probabilities.
        others: ``(N, T)``: the classes to compare with; takes the place of count.

    Returns:
        ``(N,)``, in float32 at least.

    Raises:
        FedgazeError: There is no class to compare with, or no such weighting.

    >>> y = torch.tensor([[5.0, 4.0, 1.0, -1.0]])
    >>> finer_scores(y, torch.tensor([0]), alpha=1.0, count=2)  # 5 - (4 + 1) / 2
    tensor([2.5000])
    """
    if weighting not in WEIGHTINGS:
        raise FedgazeError(
            f"there is no weighting {weighting!r}; allowed are {', '.join(WEIGHTINGS)}"
            f"{nearest(str(weighting), WEIGHTINGS)}"
        )
    y = wide(logits)
    own = y.gather(1, classes[:, None])
    if others is None:
        with torch.no_grad():
            others = _nearest_others((y - own).abs(), classes, count)
    contrasts = own - alpha * y.gather(1, others)
    if weighting == "mean":
        return contrasts.mean(1)
    return (contrasts * y.gather(1, others).softmax(1)).sum(1)


def _nearest_others(distances: Tensor, classes: Tensor, count: int) -> Tensor:
    """Of ``(N, C)``, the classes with the smallest distances, without the class itself."""
    if count < 1 or distances.shape[1] < 2:
        raise FedgazeError(
            f"there are {distances.shape[1]} classes and {count} of them to compare with; allowed "
            "is 1 or more, where there are at least 2 classes"
        )
    elsewhere = distances.scatter(1, classes[:, None], torch.inf)
    # Stable, so that ties are broken in the same way everywhere.
    order = elsewhere.argsort(dim=1, stable=True)
    return order[:, : min(count, distances.shape[1] - 1)]
