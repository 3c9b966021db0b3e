"""Colouring: heatmaps over pictures."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.errors import FedgazeError, nearest

__all__ = [
    "ALPHA",
    "COLORMAP",
    "SIGNED",
    "colour_table",
    "grey",
    "overlay",
    "painted",
    "pictures_of",
]

COLORMAP = "inferno"
"""Perceptually even: a step in heat looks the same anywhere, also without colour vision."""

SIGNED = "RdBu_r"
"""For what speaks for a target (red) and against it (blue): as far apart for all kinds of eyes."""

ALPHA = 0.7


def overlay(
    images: Tensor, heatmaps: Tensor, *, alpha: float = ALPHA, colormap: str = COLORMAP
) -> Tensor:
    """Lay heatmaps over pictures: the hotter, the more colour; what is cold shows the picture.

    Each pixel is ``(1 - w) picture + w colour`` with ``w = alpha * sqrt(abs(heat))``: the root
    keeps middling heat visible on bright pictures. Where a heatmap is negative anywhere, colours
    stand for -1 to 1 in all of them.

    Args:
        images: ``(N, C, H, W)`` or ``(C, H, W)``, grey or RGB, floats in [0, 1] or uint8.
        heatmaps: ``(N, h, w)`` or ``(h, w)`` in [0, 1], or signed in [-1, 1]; brought to the size
            of the images.
        alpha: How strongly the hottest pixel is covered, in [0, 1].
        colormap: The name of a Matplotlib colour map. For signed heatmaps the usual one is
            `SIGNED`, whose middle is white.

    Returns:
        uint8 ``(N, H, W, 3)``, on the device of the heatmaps.

    Raises:
        FedgazeError: Shapes do not fit, or there is no such colour map.

    >>> overlay(torch.ones(1, 2, 2), torch.zeros(2, 2)).shape
    torch.Size([1, 2, 2, 3])
    """
    if not 0 <= alpha <= 1:
        raise FedgazeError(f"alpha is {alpha}; allowed is 0 to 1")
    heat = heatmaps.detach().float()
    heat = heat[None] if heat.dim() == 2 else heat
    signed = bool((heat < 0).any())
    table = colour_table(SIGNED if signed and colormap == COLORMAP else colormap)
    pictures = pictures_of(images, heat)
    if pictures.shape[2:] != heat.shape[1:]:
        heat = F.interpolate(heat[:, None], pictures.shape[2:], mode="bilinear")[:, 0]
    heat = heat.clamp(-1, 1)
    place = (heat + 1) / 2 if signed else heat
    colours = table.to(heat.device)[(place * 255).round().long()]
    return painted(pictures, colours, heat.abs(), alpha)


def pictures_of(images: Tensor, heat: Tensor) -> Tensor:
    """Pictures ``(N, 3 or 1, H, W)`` in [0, 1], beside as many maps ``(N, ..., h, w)``.

    Raises:
        FedgazeError: Shapes do not fit.
    """
    pictures = images.detach().to(heat.device)
    pictures = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures.float()
    pictures = pictures[None] if pictures.dim() == 3 else pictures
    if pictures.dim() != 4 or pictures.shape[1] not in {1, 3} or len(pictures) != len(heat):
        raise FedgazeError(
            f"images of shape {tuple(images.shape)} do not go with heatmaps of shape "
            f"{tuple(heat.shape)}; allowed is (N, C, H, W), grey or RGB, with one heatmap each"
        )
    return pictures.clamp(0, 1)


def grey(pictures: Tensor) -> Tensor:
    """The luminance ``(N, 1, H, W)`` of pictures, grey or RGB (ITU-R BT.601)."""
    if pictures.shape[1] == 1:
        return pictures
    weights = torch.tensor([0.299, 0.587, 0.114]).to(pictures)
    return torch.einsum("nchw,c->nhw", pictures, weights)[:, None]


def painted(pictures: Tensor, colours: Tensor, heat: Tensor, alpha: float) -> Tensor:
    """Pictures ``(N, C, H, W)`` covered by colours ``(N, H, W, 3)``, as `overlay` says."""
    weight = alpha * heat[..., None].sqrt()
    mixed = pictures.permute(0, 2, 3, 1) * (1 - weight) + colours * weight
    return (mixed * 255).round().to(torch.uint8)


@lru_cache(maxsize=16)
def colour_table(colormap: str) -> Tensor:
    """Return the 256 colours ``(256, 3)`` of a Matplotlib colour map, in [0, 1].

    Raises:
        FedgazeError: There is no such colour map.
    """
    from matplotlib import colormaps

    if colormap not in colormaps:
        raise FedgazeError(
            f"there is no colour map {colormap!r}; allowed are those of Matplotlib, such as "
            f"inferno, magma, viridis and turbo{nearest(colormap, colormaps)}"
        )
    steps = torch.linspace(0, 1, 256, dtype=torch.float64).numpy()
    return torch.from_numpy(colormaps[colormap](steps))[:, :3].float()
