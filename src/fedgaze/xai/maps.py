"""Raw maps: laid out, judged, fused and brought to the size of images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError

__all__ = ["FUSIONS", "INTERPOLATIONS", "channels_first", "fuse", "is_flat", "to_heatmaps"]

FUSIONS = ("mean", "max", "weighted")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def channels_first(name: str, layer: nn.Module, activations: Tensor) -> bool:
    """Whether a layer's output is ``(N, K, h, w)``; if not, it is ``(N, h, w, K)``.

    Channels come last, as in Swin, where layer normalisation inside the layer goes over the last
    dimension and not over as many channels as the second has.

    Raises:
        FedgazeError: It is no feature map.
    """
    shape = activations.shape
    if activations.dim() != 4:
        hint = "tokens are not supported yet; " if activations.dim() == 3 else ""
        raise FedgazeError(
            f"layer {name!r} returns a tensor of shape {tuple(shape)}; {hint}allowed is a layer "
            "that returns a feature map (N, K, h, w)"
        )
    norms = (part for part in layer.modules() if isinstance(part, nn.LayerNorm))
    widths = {norm.normalized_shape for norm in norms}
    return (shape[3],) not in widths or (shape[1],) in widths


def is_flat(maps: Tensor) -> Tensor:
    """Which of the maps ``(N, h, w)`` are the same everywhere up to rounding: bool ``(N,)``."""
    peak = maps.amax((1, 2))
    return peak - maps.amin((1, 2)) <= 1e-5 * peak


def to_heatmaps(raw: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    """Bring raw maps ``(N, h, w)`` to the size of images and into [0, 1]; flat ones become zero."""
    heatmaps = _resized(_scaled(raw), size, interpolation)
    # Again, since interpolation misses the peak.
    peak = heatmaps.amax((1, 2), keepdim=True)
    return heatmaps / torch.where(peak > 0, peak, 1)


def _scaled(maps: Tensor) -> Tensor:
    peak = maps.amax((1, 2), keepdim=True)
    return torch.where(is_flat(maps)[:, None, None], 0, maps / peak)


def _resized(maps: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    # Bicubic curves overshoot.
    return F.interpolate(maps[:, None], tuple(size), mode=interpolation)[:, 0].clamp_(min=0)


def fuse(maps: Sequence[Tensor], fusion: str, interpolation: str) -> Tensor:
    """Make one map of those of several layers, at the size of the finest.

    Args:
        maps: ``(N, h, w)`` of each layer, in the order in which the layers ran.
        fusion: One of `FUSIONS`; see `explain`.
        interpolation: One of `INTERPOLATIONS`.

    Returns:
        ``(N, h, w)`` in [0, 1].
    """
    finest = max((each.shape[1:] for each in maps), key=lambda size: size.numel())
    stack = torch.stack([_resized(_scaled(each), finest, interpolation) for each in maps])
    if fusion == "max":
        return stack.amax(0)
    weights = torch.ones(len(stack)).to(stack)
    if fusion == "weighted":
        weights = weights.cumsum(0)
    return torch.einsum("l,lnhw->nhw", weights / weights.sum(), stack)
