"""How much of the image does the heatmap use?"""

import math

import torch
from torch import Tensor

__all__ = ["entropy"]


def entropy(heatmaps: Tensor) -> Tensor:
    """How evenly a heatmap is spread: its Shannon entropy over that of an even map.

    ``-sum_p q_p ln q_p / ln(HW)`` with ``q = h / sum h`` (complexity: Bhatt, Weller and Moura 2020,
    arXiv:2005.00631, Definition 4, here as a part of its maximum so that sizes compare).

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
