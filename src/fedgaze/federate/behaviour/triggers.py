"""Patterns that are laid over images, each drawn from a seed so that nothing is tuned to one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["LEAST_SIDE", "Trigger", "bars", "blend", "generator", "patch"]

MARGIN = 1
LEAST_SIDE = 6
"""Pixels of the shorter side of an image on which each of these has room."""


@dataclass(frozen=True, eq=False)
class Trigger:
    """A pattern laid over an image.

    Attributes:
        pattern: ``(C, H, W)`` in [0, 1].
        opacity: ``(1, H, W)`` in [0, 1]: how much of the image it covers.
    """

    pattern: Tensor
    opacity: Tensor

    def on(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` with the pattern on them; the given ones are left alone."""
        return torch.lerp(images, self.pattern.to(images), self.opacity.to(images))


def generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU: same numbers, same draws, wherever images and models are."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


def patch(shape: Sequence[int], seed: int) -> Trigger:
    """A patch of 3 × 3 cells in a corner (Gu, Dolan-Gavitt and Garg 2017, arXiv:1708.06733).

    A cell is about a fifteenth of the image wide. On images of one channel it is black or white,
    not all alike; on others each channel is off or on, not all alike, which makes six saturated
    colours of three channels. One pixel is left between the patch and the borders.

    Args:
        shape: ``(C, H, W)`` of the images.
        seed: Draws the cells and the corner.
    """
    drawn = generator(seed, 0)
    corner = int(torch.randint(4, (), generator=drawn))
    return _in_corner(_cells(shape[0], 3, 3, drawn), torch.ones(3, 3), shape, corner)


def bars(shape: Sequence[int], seed: int) -> list[Trigger]:
    """The parts of a larger patch, one bar each (Xie et al. 2020, "DBA", ICLR).

    Bars are two cells wide and one high, as those of :func:`patch`; they lie two by two with a cell
    between them.

    Args:
        shape: ``(C, H, W)`` of the images.
        seed: Draws the cells and the corner.

    Returns:
        Four triggers; laid on one after the other they make the whole.
    """
    drawn = generator(seed, 1)
    corner = int(torch.randint(4, (), generator=drawn))
    cells = torch.zeros(shape[0], 3, 5)
    places = [(row, column) for row in (0, 2) for column in (0, 3)]
    for row, column in places:
        cells[:, row, column : column + 2] = _cells(shape[0], 1, 2, drawn)[:, 0]
    parts = []
    for row, column in places:
        cover = torch.zeros(3, 5)
        cover[row, column : column + 2] = 1
        parts.append(_in_corner(cells, cover, shape, corner))
    return parts


def blend(shape: Sequence[int], opacity: float, seed: int) -> Trigger:
    """Random pixels all over the image, hardly to be seen (Chen et al. 2017, arXiv:1712.05526).

    Args:
        shape: ``(C, H, W)`` of the images.
        opacity: How much of the image they cover, in (0, 1].
        seed: Draws the pixels.
    """
    pattern = torch.rand(*shape, generator=generator(seed, 2))
    return Trigger(pattern, torch.full((1, *shape[1:]), opacity))


def _cells(channels: int, rows: int, columns: int, drawn: torch.Generator) -> Tensor:
    """Cells of 0 and 1, ``(channels, rows, columns)``: no pattern and no colour is all alike.

    A number between "all off" and "all on", written in binary, is never all alike. Of one channel
    it is the pattern of all cells; of several, each cell has its own, which is its colour.
    """
    count = rows * columns
    digits, numbers = (count, 1) if channels == 1 else (channels, count)
    number = torch.randint(1, 2**digits - 1, (numbers,), generator=drawn)
    bits = (number >> torch.arange(digits)[:, None]) & 1
    return bits.float().view(channels, rows, columns)


def _in_corner(cells: Tensor, cover: Tensor, shape: Sequence[int], corner: int) -> Trigger:
    """Enlarge cells ``(C, r, c)`` and put them where ``cover`` ``(r, c)`` says, into a corner."""
    _, height, width = shape
    size = max(1, round(min(height, width) / 15))
    small = torch.cat([cells, cover[None]])
    large = small.repeat_interleave(size, 1).repeat_interleave(size, 2)
    whole = torch.zeros(len(small), height, width)
    top = MARGIN if corner < 2 else height - MARGIN - large.shape[1]
    left = MARGIN if corner % 2 == 0 else width - MARGIN - large.shape[2]
    whole[:, top : top + large.shape[1], left : left + large.shape[2]] = large
    return Trigger(whole[:-1], whole[-1:])
