"""A heatmap over a picture, as code that uses OpenCV draws it."""

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai.classic.opencv import table_of
from fedgaze.xai.classic.pictures import Picture, visible

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["visualize"]


@overload
def visualize(
    image: Picture,
    heatmap: NDArray[Any],
    alpha: float = ...,
    colormap: int | str = ...,
    return_pil: Literal[False] = ...,
) -> NDArray[np.uint8]: ...


@overload
def visualize(
    image: Picture,
    heatmap: NDArray[Any],
    alpha: float = ...,
    colormap: int | str = ...,
    *,
    return_pil: Literal[True],
) -> "Image": ...


def visualize(
    image: Picture,
    heatmap: NDArray[Any],
    alpha: float = 0.5,
    colormap: int | str = 2,
    return_pil: bool = False,
) -> "NDArray[np.uint8] | Image":
    """Lay a heatmap over a picture: ``(1 - alpha) picture + alpha colour``.

    Args:
        image: A PIL image, an array ``(H, W, C)`` or ``(H, W)``, or a tensor ``(C, H, W)`` or
            ``(1, C, H, W)``: RGB or grey, uint8, or floats in [0, 1] (of arrays, also in [0,
            255]). RGB floats beyond that are taken to be normalised with ImageNet's mean and
            standard deviation, and brought back; grey ones are stretched to [0, 1].
        heatmap: ``(h, w)`` in [0, 1], of any size.
        alpha: How much of the colour is seen, in [0, 1].
        colormap: One of OpenCV's codes 0 to 21 (2, the default, is ``cv2.COLORMAP_JET``), or
            the name of a Matplotlib map.
        return_pil: Whether to return a PIL image.

    Returns:
        uint8 ``(H, W, 3)`` in the order BGR, as ``cv2.imwrite`` takes it, at the size of the
        picture; with return_pil an RGB image.

    Raises:
        FedgazeError: An argument cannot be used.
    """
    if not 0 <= alpha <= 1:
        raise FedgazeError(f"alpha is {alpha}; allowed is 0 to 1")
    table = table_of(colormap)
    pixels = visible(image)
    heat = torch.as_tensor(heatmap).detach().cpu().float()
    if heat.dim() != 2:
        raise FedgazeError(f"the heatmap has the shape {tuple(heat.shape)}; allowed is (H, W)")
    heat = F.interpolate(heat[None, None], pixels.shape[1:], mode="bilinear")[0, 0]
    # Cut off, not rounded, as those who call applyColorMap do it.
    colours = table[(heat.nan_to_num().clamp(0, 1) * 255).long()]
    blended = (1 - alpha) * pixels.movedim(0, -1) + alpha * colours
    mixed = (blended * 255).round().to(torch.uint8).numpy()
    if return_pil:
        from PIL.Image import fromarray

        return fromarray(mixed)
    return np.ascontiguousarray(mixed[..., ::-1])
