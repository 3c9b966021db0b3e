"""Does the heatmap lie where it should?"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["border_mass", "mass_on"]


def mass_on(heatmaps: Tensor, mask: Tensor) -> Tensor:
    """The share of a heatmap's mass that lies on a mask.

    ``sum_p∈M h_p / sum_p h_p``: the energy-based pointing game (Wang et al. 2020, Score-CAM,
    arXiv:1910.01279, section 4.2) and, with a mask for a box, relevance mass accuracy (Arras et
    al. 2022, arXiv:2003.07258, Eq. 3).

    Args:
        heatmaps: ``(N, H, W)``, not negative.
        mask: ``(N, H, W)``, bool.

    Returns:
        ``(N,)`` in [0, 1], higher is better for an object's mask; NaN where the map is zero.

    >>> heatmap = torch.tensor([[[3.0, 1.0], [0.0, 0.0]]])
    >>> mass_on(heatmap, torch.tensor([[[True, False], [True, False]]])).item()
    0.75
    """
    return (heatmaps * mask).sum((1, 2)) / heatmaps.sum((1, 2))


def border_mass(heatmaps: Tensor, width: float = 0.125) -> Tensor:
    """The share of a heatmap's mass in a frame along the image's border.

    A map that is even everywhere has ``1 - (1 - 2·width)²``, 0.44 at the default.

    Args:
        heatmaps: ``(N, H, W)``, not negative.
        width: The frame's width as a part of each side, in (0, 0.5); at least one pixel.

    Returns:
        ``(N,)`` in [0, 1]; NaN where the map is zero.

    >>> border_mass(torch.ones(1, 8, 8)).item()
    0.4375
    """
    rows, columns = (max(1, round(side * width)) for side in heatmaps.shape[1:])
    inner = torch.zeros_like(heatmaps[:1, rows:-rows, columns:-columns], dtype=torch.bool)
    frame = F.pad(inner, [columns, columns, rows, rows], value=True)
    return mass_on(heatmaps, frame)
