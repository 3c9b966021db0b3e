"""Heatmaps that know nothing of the model: what any method has to beat."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BASELINES", "centre", "edges", "noise"]


def edges(images: Tensor) -> Tensor:
    """Where the image has edges: the length of its Sobel gradient, over all channels.

    Args:
        images: ``(N, C, H, W)``.

    Returns:
        ``(N, H, W)`` in [0, 1].
    """
    grey = images.float().mean(1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    smooth, step = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    kernels = torch.stack([smooth.outer(step), step.outer(smooth)])[:, None].to(grey)
    return _peaked(F.conv2d(padded, kernels).norm(dim=1))


def centre(images: Tensor) -> Tensor:
    """The middle of the image: a Gaussian with a standard deviation of a quarter of each side.

    Photographs show their object in the middle, so that this is hard to beat by pointing.

    Args:
        images: ``(N, C, H, W)``.

    Returns:
        ``(N, H, W)`` in [0, 1].
    """
    falls = []
    for length in images.shape[2:]:
        at = (torch.arange(length, device=images.device) + 0.5) / length - 0.5
        falls.append(torch.exp(-((at / 0.25) ** 2) / 2))
    return _peaked(falls[0].outer(falls[1])[None].expand(len(images), -1, -1))


def noise(images: Tensor) -> Tensor:
    """Numbers drawn at random on a grid of 7 x 7, enlarged as the map of a layer is.

    Args:
        images: ``(N, C, H, W)``.

    Returns:
        ``(N, H, W)`` in [0, 1], the same whenever it is asked for the same number of images.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(len(images), 1, 7, 7, generator=generator).to(images.device)
    return _peaked(F.interpolate(drawn, tuple(images.shape[2:]), mode="bilinear")[:, 0])


def _peaked(maps: Tensor) -> Tensor:
    peak = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(peak > 0, peak, 1)


BASELINES = {"noise": noise, "edges": edges, "centre": centre}
