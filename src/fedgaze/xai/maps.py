"""Raw maps: judged, fused and brought to the size of images."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "FUSIONS",
    "INTERPOLATIONS",
    "Extent",
    "extent",
    "fuse",
    "layer_cam_scaled",
    "reduced",
    "resized",
    "to_heatmaps",
]

FUSIONS = ("mean", "max", "weighted", "layercam")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


class Extent(NamedTuple):
    """Of N maps: their largest absolute value, and which are the same everywhere, up to rounding.

    Attributes:
        peak: ``(N,)``.
        flat: bool ``(N,)``.
    """

    peak: Tensor
    flat: Tensor


def extent(maps: Tensor) -> Extent:
    """How far the values of maps ``(N, *s)`` go."""
    values = maps.flatten(1)
    high, low = values.amax(1), values.amin(1)
    peak = torch.maximum(high, -low)
    return Extent(peak, high - low <= 1e-5 * peak)


def reduced(attributions: Tensor, how: Literal["sum", "max_abs"]) -> Tensor:
    """Make maps ``(N, *size)`` of what each number ``(N, C, *size)`` of the images got."""
    return attributions.sum(1) if how == "sum" else attributions.abs().amax(1)


def to_heatmaps(
    raw: Tensor, size: Sequence[int], interpolation: str, known: Extent | None = None
) -> Tensor:
    """Bring raw maps to the size of images and to a peak of 1; flat ones become zero.

    Args:
        raw: ``(N, *s)``.
        size: Of the images, with as many dimensions.
        interpolation: One of `INTERPOLATIONS`; between the slices of volumes, linear too.
        known: The extent of raw, if the caller has it.

    Returns:
        ``(N, *size)`` in [0, 1], or in [-1, 1] where raw is signed.
    """
    heatmaps = resized(_scaled(raw, known), size, interpolation)
    # Again, since interpolation misses the peak.
    return _over(heatmaps, extent(heatmaps).peak)


def fuse(
    maps: Sequence[Tensor], fusion: str, interpolation: str, size: Sequence[int] = ()
) -> Tensor:
    """Make one map of those of several layers, at the size of the finest.

    Args:
        maps: ``(N, *s)`` of each layer, in the order in which the layers ran.
        fusion: One of `FUSIONS`; see `explain`.
        interpolation: One of `INTERPOLATIONS`.
        size: Of the images; ``"layercam"`` needs it, to know which layers are shallow: as the first
            three stages of VGG-16, those whose maps are less than 8 times as coarse as the images.

    Returns:
        ``(N, *s)`` in [0, 1], or in [-1, 1] where the maps are signed.
    """
    finest = max((each.shape[1:] for each in maps), key=lambda size: size.numel())

    def scaled(each: Tensor) -> Tensor:
        shallow = fusion == "layercam" and size[-1] < 8 * each.shape[-1]
        return layer_cam_scaled(each) if shallow else _scaled(each)

    stack = torch.stack([resized(scaled(each), finest, interpolation) for each in maps])
    if fusion in {"max", "layercam"}:
        return stack.amax(0)
    weights = torch.ones(len(stack)).to(stack)
    if fusion == "weighted":
        weights = weights.cumsum(0)
    return torch.einsum("l,ln...->n...", weights / weights.sum(), stack)


def layer_cam_scaled(maps: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Scale a shallow layer's map, so that it counts beside those of deep layers: LayerCAM.

    ``tanh(gamma M / max M)``: Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps
    for Localization", IEEE Transactions on Image Processing, 2021. The authors scale those of the
    first three stages of VGG-16 so, with gamma 2, and fuse the maps of all stages by the
    element-wise maximum. pytorch-grad-cam averages the layers, without the scaling; torchcam takes
    the maximum and scales every layer.

    Args:
        maps: ``(N, *s)``, not negative.
        gamma: How fast middling values rise.

    Returns:
        ``(N, *s)`` in [0, tanh(gamma)]; zero for a map that is zero.

    >>> layer_cam_scaled(torch.tensor([[0.0, 2.0, 4.0], [0.0, 0.0, 0.0]]))
    tensor([[0.0000, 0.7616, 0.9640],
            [0.0000, 0.0000, 0.0000]])
    """
    return torch.tanh(gamma * _scaled(maps))


def _scaled(maps: Tensor, known: Extent | None = None) -> Tensor:
    peak, flat = known or extent(maps)
    return _over(maps, peak).masked_fill(_of_maps(flat, maps), 0)


def _over(maps: Tensor, peak: Tensor) -> Tensor:
    # Never a division by zero, whose gradient would be NaN although nobody takes the value.
    return maps / _of_maps(peak.masked_fill(peak == 0, 1), maps)


def _of_maps(each: Tensor, maps: Tensor) -> Tensor:
    return each.view(-1, *[1] * (maps.dim() - 1))


def resized(maps: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    """Bring maps ``(N, *s)`` to the size of images, as `to_heatmaps` does, with their values."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    mode = {(3, "bilinear"): "trilinear"}.get((len(size), interpolation), interpolation)
    larger = F.interpolate(maps[:, None], tuple(size), mode=mode)[:, 0]
    if mode != "bicubic":
        return larger
    # Its curves overshoot, below zero where nothing was.
    lowest = maps.amin(tuple(range(1, maps.dim())), keepdim=True)
    return larger.clamp(min=lowest.clamp(max=0))
