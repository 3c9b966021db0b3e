"""The region over a threshold, in the pixels of the picture's file."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Region", "find_region"]


@dataclass(frozen=True)
class Region:
    """Where a heatmap is hot.

    Attributes:
        mask: ``(height, width)`` of the picture, uint8: 255 where the threshold is reached, else 0.
        box: (left, top, right, bottom), the last two exclusive: round the connected part of the
            mask that holds the heatmap's maximum; None where the mask is empty.
    """

    mask: NDArray[np.uint8]
    box: tuple[int, int, int, int] | None


def find_region(
    heatmap: Tensor, threshold: float, size: tuple[int, int], seen: tuple[int, int, int, int]
) -> Region:
    """Find what lies over a threshold.

    Args:
        heatmap: ``(H, W)``, at most 1.
        threshold: In (0, 1].
        size: The picture's width and height.
        seen: Which part of the picture the heatmap lies over: (left, top, right, bottom). It may
            reach over the edge.
    """
    from scipy.ndimage import find_objects, label

    left, top, right, bottom = seen
    heat = F.interpolate(
        heatmap.detach().float()[None, None], (bottom - top, right - left), mode="bilinear"
    )[0, 0].cpu()
    part = Image.fromarray((heat >= threshold).numpy().astype(np.uint8) * 255)
    whole = Image.new("L", size)
    whole.paste(part, (left, top))
    mask = np.asarray(whole)
    warmth = Image.new("F", size, -2.0)
    warmth.paste(Image.fromarray(heat.numpy()), (left, top))
    hottest = np.unravel_index(np.asarray(warmth).argmax(), mask.shape)
    parts, _ = label(mask)
    number = int(parts[hottest])
    if number == 0:
        return Region(mask, None)
    rows, columns = find_objects(parts)[number - 1]
    return Region(mask, (columns.start, rows.start, columns.stop, rows.stop))
