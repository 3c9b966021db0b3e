"""Agreement: are two heatmaps of one image alike?"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.measure.perturbation import correlation, parts_of, ranks, where_defined

__all__ = ["mass_overlap", "pearson", "spearman", "ssim", "top_k_overlap"]


def mass_overlap(first: Tensor, second: Tensor) -> Tensor:
    """The mass that two maps share once each is scaled to sum 1: ``sum_p min(q_p, r_p)``.

    One minus the total variation distance (histogram intersection: Swain and Ballard 1991).
    Unlike SSIM it does not reward two maps for what both leave empty.

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


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of two maps.

    Args:
        first: ``(N, *size)``.
        second: ``(N, *size)``.

    Returns:
        ``(N,)`` in [-1, 1]; NaN where either map is the same everywhere.
    """
    return correlation(first.flatten(1), second.flatten(1))


def top_k_overlap(first: Tensor, second: Tensor, *, share: float = 0.1) -> Tensor:
    """Which part of the strongest pixels two maps have in common.

    ``|T(a) ∩ T(b)| / |T|``: top-k intersection of Ghorbani, Abid and Zou, "Interpretation of Neural
    Networks Is Fragile", AAAI 2019.

    Args:
        first: ``(N, *size)``.
        second: ``(N, *size)``.
        share: How many of the pixels are the strongest.

    Returns:
        ``(N,)`` in [0, 1]; NaN where either map is the same everywhere.
    """
    count = parts_of([share], first[0].numel(), first.device)
    both = (ranks(first) < count) & (ranks(second) < count)
    return where_defined(where_defined(both.sum(1) / count, first), second)


def ssim(first: Tensor, second: Tensor, *, sigma: float = 1.5) -> Tensor:
    """The structural similarity of two maps.

    The mean of ``(2 m_a m_b + c1)(2 s_ab + c2) / ((m_a^2 + m_b^2 + c1)(s_a^2 + s_b^2 + c2))`` with
    means m, variances s^2 and the covariance s_ab under a Gaussian window of 11 x 11 positions,
    ``c1 = (0.01 L)^2``, ``c2 = (0.03 L)^2``: Wang et al., "Image Quality Assessment: From Error
    Visibility to Structural Similarity", IEEE Transactions on Image Processing 2004, Eq. 13. Only
    windows within the map count. L is 1, or 2 where a map is signed. Two maps that are zero in most
    places are alike there, which SSIM rewards: look at `spearman` and `mass_overlap`, too.

    Args:
        first: ``(N, H, W)`` in [0, 1], or in [-1, 1].
        second: ``(N, H, W)``, as first.
        sigma: Of the window, in pixels.

    Returns:
        ``(N,)`` in [-1, 1]; smaller maps than the window have a smaller one.
    """
    reach = min(11, *[length - (length + 1) % 2 for length in first.shape[1:]])
    signed = bool((first < 0).any() or (second < 0).any())
    c1, c2 = ((each * (2 if signed else 1)) ** 2 for each in (0.01, 0.03))
    places = torch.arange(reach, device=first.device, dtype=first.dtype) - reach // 2
    weights = torch.exp(-((places / sigma) ** 2) / 2)
    weights = weights / weights.sum()
    planes = torch.stack([first, second, first**2, second**2, first * second], 1).flatten(0, 1)
    planes = F.conv2d(planes[:, None], weights.view(1, 1, -1, 1))
    planes = F.conv2d(planes, weights.view(1, 1, 1, -1)).unflatten(0, (-1, 5))[:, :, 0]
    a, b, aa, bb, ab = planes.unbind(1)
    variance_a, variance_b, covariance = aa - a * a, bb - b * b, ab - a * b
    brightness = (2 * a * b + c1) / (a * a + b * b + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    found: Tensor = (brightness * structure).flatten(1).mean(1)
    return found


def _ranks(values: Tensor) -> Tensor:
    """Mean ranks a row: halfway between how many are smaller and how many are not larger."""
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values.contiguous(), side="left")
    upto = torch.searchsorted(ordered, values.contiguous(), side="right")
    return (below + upto).to(torch.float64) / 2
