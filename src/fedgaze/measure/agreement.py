"""Do two heatmaps of one image agree?"""

import torch
from torch import Tensor

__all__ = ["mass_overlap", "spearman"]


def mass_overlap(first: Tensor, second: Tensor) -> Tensor:
    """The mass that two maps share once each is scaled to sum 1: ``sum_p min(q_p, r_p)``.

    One minus the total variation distance (histogram intersection: Swain and Ballard 1991,
    Eq. 3). Unlike SSIM it does not reward two maps for what both leave empty.

    Args:
        first: ``(N, H, W)``, not negative.
        second: ``(N, H, W)``, not negative.

    Returns:
        ``(N,)`` in [0, 1], 1 for the same map; NaN where either map is zero.

    >>> a = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    >>> mass_overlap(a, a.roll(1)).item()
    0.5
    """
    q = first.flatten(1) / first.sum((1, 2))[:, None]
    r = second.flatten(1) / second.sum((1, 2))[:, None]
    return torch.minimum(q, r).sum(1)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of two maps, ties at their mean rank.

    Args:
        first: ``(N, H, W)``.
        second: ``(N, H, W)``.

    Returns:
        ``(N,)`` in [-1, 1]; NaN where either map is constant.
    """
    a, b = (_ranks(maps.flatten(1)) for maps in (first, second))
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (a, b))
    covariance: Tensor = (a * b).sum(1)
    return covariance / (a.square().sum(1) * b.square().sum(1)).sqrt()


def _ranks(values: Tensor) -> Tensor:
    """Mean ranks a row: halfway between how many are smaller and how many are not larger."""
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values.contiguous(), side="left")
    upto = torch.searchsorted(ordered, values.contiguous(), side="right")
    return (below + upto).to(torch.float64) / 2
