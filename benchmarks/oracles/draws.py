"""The random numbers that fedgaze draws: an oracle has to draw the same ones.

Variant v has numbers of its own, from torch's generator with the seed 0xFED6 + v.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oracles.cases import Array

SEED = 0xFED6


def normal(shape: tuple[int, ...], v: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED + v))


def noisy(images: Tensor, v: int, noise: float = 0.15) -> Tensor:
    """Images plus noise, a share of the range of each: Smilkov et al., 2017."""
    drawn = normal(tuple(images.shape[1:]), v)
    return torch.stack([each + noise * (each.max() - each.min()) * drawn for each in images])


def rise_masks(count: int, cells: int, keep: float, size: tuple[int, int]) -> Array:
    """Masks ``(count, H, W)`` of RISE, Section 3.2: a grid, enlarged by one cell more, and cut."""
    generator = torch.Generator().manual_seed(SEED)
    grid = (torch.rand(count, cells, cells, generator=generator) < keep).double()
    cell = [-(-side // cells) for side in size]
    cuts = [torch.randint(each, (count,), generator=generator).tolist() for each in cell]
    whole = tuple((cells + 1) * each for each in cell)
    masks = []
    for each, top, left in zip(grid, *cuts, strict=True):
        large = F.interpolate(each[None, None], whole, mode="bilinear")[0, 0]
        masks.append(large[top : top + size[0], left : left + size[1]].numpy())
    return np.stack(masks)
