"""Complexity: how much of the image does the heatmap use? None costs a forward pass."""

import math

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError

__all__ = ["effective_complexity", "entropy", "gini", "total_variation"]


def entropy(heatmaps: Tensor) -> Tensor:
    """How evenly a heatmap is spread: its Shannon entropy over that of an even map.

    ``-sum_p q_p ln q_p / ln(HW)`` with ``q = h / sum h`` (complexity: Bhatt, Weller and Moura 2020,
    arXiv:2005.00631, here as a part of its maximum so that sizes compare).

    Args:
        heatmaps: ``(N, H, W)``, not negative, at least two pixels.

    Returns:
        ``(N,)`` in [0, 1]: 0 for a single pixel, 1 for an even map; NaN where the map is zero.

    >>> entropy(torch.ones(1, 4, 4)).item()
    1.0
    """
    flat = heatmaps.flatten(1)
    shares = flat / flat.sum(1, keepdim=True)
    nats: Tensor = torch.special.entr(shares).sum(1)
    return nats / math.log(flat.shape[1])


def gini(heatmaps: Tensor) -> Tensor:
    """How unevenly a heatmap is spread: the Gini index of its absolute values.

    ``1 - 2 sum_k (|h|_(k) / |h|_1) (P - k + 1/2) / P`` with the values in rising order: Hurley and
    Rickard, "Comparing Measures of Sparsity", IEEE Transactions on Information Theory 2009; for
    explanations Chalasani et al., "Concise Explanations of Neural Networks using Adversarial
    Training", ICML 2020. Quantus's Sparseness is the same.

    Args:
        heatmaps: ``(N, *size)``.

    Returns:
        ``(N,)`` in [0, 1 - 1/P], higher is sparser; NaN where the map is zero. Costs none.

    >>> gini(torch.tensor([[[0.0, 0.0, 0.0, 1.0]], [[1.0, 1.0, 1.0, 1.0]]])).tolist()
    [0.75, 0.0]
    """
    values = heatmaps.abs().flatten(1).double().sort(1).values
    count = values.shape[1]
    k = torch.arange(1, count + 1, device=values.device, dtype=values.dtype)
    shares = values / values.sum(1, keepdim=True)
    return (1 - 2 * (shares * (count - k + 0.5) / count).sum(1)).to(heatmaps.dtype)


def effective_complexity(heatmaps: Tensor, *, share: float = 0.9) -> Tensor:
    """The least part of the pixels that holds so much of the heatmap's mass.

    ``min k: sum of the k largest |h| >= share · sum |h|``, over P: after Nguyen and Martinez, "On
    Quantitative Aspects of Model Interpretability", arXiv 2007.07584, 2020, who ask for the fewest
    features that keep the score. Quantus counts the values above 1e-5.

    Args:
        heatmaps: ``(N, *size)``.
        share: Of the mass, in (0, 1].

    Returns:
        ``(N,)`` in (0, 1], lower is more concise; NaN where the map is zero. Costs none.

    Raises:
        FedgazeError: The share is out of its range.
    """
    if not 0 < share <= 1:
        raise FedgazeError(f"share is {share}; allowed is above 0, up to 1")
    held = heatmaps.abs().flatten(1).double().sort(1, descending=True).values.cumsum(1)
    total = held[:, -1:]
    # What is missing by rounding alone is not missing.
    fewer = (held < share * total * (1 - 1e-6)).sum(1)
    found = (fewer + 1) / held.shape[1]
    return found.to(heatmaps.dtype).masked_fill(total[:, 0] == 0, torch.nan)


def total_variation(heatmaps: Tensor) -> Tensor:
    """How ragged a heatmap is: the mean absolute step from a pixel to the next, over its mean.

    ``(mean |h_(y+1,x) - h_(y,x)| + mean |h_(y,x+1) - h_(y,x)|) / mean |h|``: the anisotropic total
    variation (Rudin, Osher and Fatemi, Physica D 1992), without the unit of the map.

    Args:
        heatmaps: ``(N, *size)``.

    Returns:
        ``(N,)``, not negative, lower is smoother; NaN where the map is zero. Costs none.
    """
    axes = range(1, heatmaps.dim())
    steps = [heatmaps.diff(dim=axis).abs().flatten(1).mean(1) for axis in axes]
    return torch.stack(steps).nansum(0) / heatmaps.abs().flatten(1).mean(1)
