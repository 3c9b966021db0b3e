"""The colours of OpenCV's codes, without OpenCV."""

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.colour import colour_table

__all__ = ["OPENCV", "table_of"]

OPENCV = (
    *("autumn", "bone", "jet", "winter", "rainbow", "ocean", "summer", "spring", "cool", "hsv"),
    *("pink", "hot", "parula", "magma", "inferno", "plasma", "viridis", "cividis", "twilight"),
    *("twilight_shifted", "turbo", "deepgreen"),
)
"""What the codes are called, from 0 on."""

Line = Sequence[tuple[float, float]]

_THIRD = (0, 0), (1 / 3, 0), (1, 1)
_TWO_THIRDS = (0, 0), (2 / 3, 0), (1, 1)
_STRAIGHT = (0, 0), (1, 1)
# Those that Matplotlib does not have, or has other: what red, green and blue are at which place,
# straight lines between. All but parula are made of such lines; that one is near it.
_LINES: dict[str, tuple[Line, Line, Line]] = {
    "jet": (
        ((0, 0), (3 / 8, 0), (5 / 8, 1), (7 / 8, 1), (1, 0.5)),
        ((0, 0), (1 / 8, 0), (3 / 8, 1), (5 / 8, 1), (7 / 8, 0), (1, 0)),
        ((0, 0.5), (1 / 8, 1), (3 / 8, 1), (5 / 8, 0), (1, 0)),
    ),
    "rainbow": (
        ((0, 1), (0.4, 1), (0.6, 0), (0.8, 0), (1, 2 / 3)),
        ((0, 0), (0.4, 1), (0.6, 1), (0.8, 0), (1, 0)),
        ((0, 0), (0.6, 0), (0.8, 1), (1, 1)),
    ),
    "hsv": (
        ((0, 1), (1 / 6, 1), (1 / 3, 0), (2 / 3, 0), (5 / 6, 1), (1, 1)),
        ((0, 0), (1 / 6, 1), (1 / 2, 1), (2 / 3, 0), (1, 0)),
        ((0, 0), (1 / 3, 0), (1 / 2, 1), (5 / 6, 1), (1, 0)),
    ),
    "hot": (
        ((0, 0), (0.4, 1), (1, 1)),
        ((0, 0), (0.4, 0), (0.8, 1), (1, 1)),
        ((0, 0), (0.8, 0), (1, 1)),
    ),
    "ocean": (_TWO_THIRDS, _THIRD, _STRAIGHT),
    "deepgreen": (_TWO_THIRDS, _STRAIGHT, _THIRD),
    "parula": (
        (
            (0, 0.21),
            (0.12, 0.01),
            (0.38, 0.03),
            (0.63, 0.59),
            (0.76, 0.86),
            (0.88, 0.99),
            (1, 0.98),
        ),
        ((0, 0.16), (0.13, 0.4), (0.39, 0.66), (0.52, 0.73), (0.76, 0.73), (0.88, 0.82), (1, 0.98)),
        ((0, 0.53), (0.12, 0.88), (0.38, 0.77), (0.64, 0.44), (0.91, 0.15), (1, 0.05)),
    ),
}


def table_of(colormap: int | str) -> Tensor:
    """The 256 colours ``(256, 3)`` of one of OpenCV's codes, or of a name of Matplotlib's.

    Raises:
        FedgazeError: There is no such code or name.
    """
    if isinstance(colormap, str):
        return colour_table(colormap)
    try:
        code = operator.index(colormap)
    except TypeError:
        code = -1
    if not 0 <= code < len(OPENCV):
        raise FedgazeError(
            f"colormap is {colormap!r}; allowed are OpenCV's codes 0 to {len(OPENCV) - 1} (2 is "
            "JET) and the names of Matplotlib's maps"
        )
    lines = _LINES.get(OPENCV[code])
    if lines is None:
        return colour_table(OPENCV[code])
    places = np.linspace(0, 1, 256)
    channels = [np.interp(places, [x for x, _ in line], [y for _, y in line]) for line in lines]
    return torch.from_numpy(np.stack(channels, 1)).float()
