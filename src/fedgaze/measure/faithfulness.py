"""Does the model need what the heatmap shows?"""

import torch
from torch import Tensor, nn

from fedgaze.xai import logits_of

__all__ = ["causal_drop", "fill", "region_drop", "strongest"]


def causal_drop(with_region: Tensor, without_region: Tensor, targets: Tensor) -> Tensor:
    """What a region is worth to a class: ``max(0, p_c(x) - p_c(x without R))``.

    The drop of Average Drop (Chattopadhay et al. 2018, arXiv:1710.11063, section 4.1), in
    probability and not as a part of ``p_c(x)``, so that a class of no weight cannot dominate.

    Args:
        with_region: Logits of the images, ``(N, classes)``.
        without_region: Logits of the same images without the region, ``(N, classes)``.
        targets: The classes ``c``, ``(N,)``.

    Returns:
        ``(N,)`` in [0, 1]; high means that the class hangs on the region.

    >>> logits = torch.tensor([[0.0, 0.0]])
    >>> causal_drop(logits + torch.tensor([[30.0, 0.0]]), logits, torch.tensor([0])).item()
    0.5
    """
    rows = torch.arange(len(targets), device=targets.device)
    before, after = (each.softmax(1)[rows, targets] for each in (with_region, without_region))
    return (before - after).clamp(min=0)


def region_drop(
    model: nn.Module, images: Tensor, mask: Tensor, targets: Tensor, logits: Tensor
) -> Tensor:
    """The :func:`causal_drop` of a region that is filled as :func:`fill` does. One forward pass.

    Args:
        model: In eval mode.
        images: ``(N, C, H, W)``.
        mask: The region, bool ``(N, H, W)``.
        targets: ``(N,)``.
        logits: The model's logits of the images, ``(N, classes)``.

    Returns:
        ``(N,)`` in [0, 1]; NaN where the mask is empty.
    """
    with torch.no_grad():
        drop = causal_drop(logits, logits_of(model(fill(images, mask))), targets)
    return torch.where(mask.flatten(1).any(1), drop, torch.nan)


def fill(images: Tensor, mask: Tensor) -> Tensor:
    """Replace a region by the mean colour of the rest of its image.

    On a written digit that is its paper; on a photograph a flat patch, which is itself unusual:
    compare drops between models, not with nothing.

    Args:
        images: ``(N, C, H, W)``.
        mask: bool ``(N, H, W)``; where it covers the whole image, the image's own mean fills it.
    """
    rest = (~mask | mask.flatten(1).all(1)[:, None, None])[:, None]
    mean = (images * rest).sum((2, 3), keepdim=True) / rest.sum((2, 3), keepdim=True)
    return torch.where(mask[:, None], mean, images)


def strongest(heatmaps: Tensor, part: float = 0.1) -> Tensor:
    """Where a heatmap is strongest: the given part of the pixels.

    Args:
        heatmaps: ``(N, H, W)``, not negative.
        part: In (0, 1]; at least one pixel.

    Returns:
        bool ``(N, H, W)``; ties at the threshold are in, pixels without heat are not.
    """
    flat = heatmaps.flatten(1)
    count = max(1, round(part * flat.shape[1]))
    threshold = flat.topk(count, dim=1).values[:, -1, None, None]
    return (heatmaps >= threshold) & (heatmaps > 0)
