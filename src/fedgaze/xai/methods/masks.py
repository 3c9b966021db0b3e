"""Masks: what parts of images are kept, and images of which only these are kept."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.xai.methods.cam import wide

__all__ = ["blurred", "enlarged", "masked", "mixed", "unit"]

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bring maps to the size of the images, linearly, as `torch.nn.functional.interpolate` does.

    Args:
        maps: ``(m, *s)``.
        size: As many numbers as there are in s.

    Returns:
        ``(m, *size)``, in float32 at least; a tensor of its own, unless the size is the same.
    """
    maps = wide(maps)
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], tuple(size), mode=_MODES[len(size)])[:, 0]


def unit(maps: Tensor) -> Tensor:
    """Scale maps to [0, 1]: ``(A - min A) / (max A - min A)``, each for itself.

    Args:
        maps: ``(m, *s)``.

    Returns:
        ``(m, *s)``; zero where a map is the same everywhere.

    >>> unit(torch.tensor([[1.0, 3.0, 2.0], [4.0, 4.0, 4.0]]))
    tensor([[0.0000, 1.0000, 0.5000],
            [0.0000, 0.0000, 0.0000]])
    """
    dims = tuple(range(1, maps.dim()))
    lowest = maps.amin(dims, keepdim=True)
    span = maps.amax(dims, keepdim=True) - lowest
    return (maps - lowest).div_(torch.where(span > 0, span, 1))


def masked(images: Tensor, n: Tensor, masks: Tensor) -> Tensor:
    """Multiply images by masks.

    Args:
        images: ``(N, C, *size)``.
        n: ``(m,)``: which image each mask is for.
        masks: ``(m, *size)``.

    Returns:
        ``(m, C, *size)``, with the dtype and the order in memory of the images.
    """
    # What indexing returns is new, and so may be overwritten: one tensor of this size is enough.
    return images[n].mul_(masks[:, None].to(images.dtype))


def mixed(images: Tensor, others: Tensor, n: Tensor, masks: Tensor) -> Tensor:
    """Keep images where masks are 1, and show other images ``(N, C, *size)`` where they are 0.

    The rest is as in `masked`.
    """
    return others[n].lerp_(images[n], masks[:, None].to(images.dtype))


def blurred(images: Tensor, kernel: int, sigma: float) -> Tensor:
    """Blur images with a Gaussian that is cut off, mirrored at the borders.

    Args:
        images: ``(N, C, *size)``.
        kernel: Over how many positions in each direction it reaches; odd.
        sigma: Its standard deviation, in positions.

    Returns:
        ``(N, C, *size)``, as the images.

    >>> blurred(torch.tensor([[[0.0, 3.0, 0.0]]]), kernel=3, sigma=100.0).round(decimals=2)
    tensor([[[2., 1., 2.]]])
    """
    found = wide(images)
    for dim, length in enumerate(images.shape[2:], start=2):
        matrix = _blur_matrix(length, kernel, sigma, like=found)
        found = torch.matmul(found.movedim(dim, -1), matrix.T).movedim(-1, dim)
    return torch.empty_like(images).copy_(found)


def _blur_matrix(length: int, kernel: int, sigma: float, like: Tensor) -> Tensor:
    """The matrix ``(length, length)`` that blurs a row of so many positions."""
    reach = torch.arange(kernel, device=like.device) - kernel // 2
    weights = torch.exp(-0.5 * (reach.to(like.dtype) / sigma) ** 2)
    # Mirrored without repeating the border, again and again where the image is small.
    around = max(1, 2 * (length - 1))
    here = torch.arange(length, device=like.device)
    read = (here[:, None] + reach) % around
    read = torch.where(read < length, read, around - read)
    matrix = torch.zeros(length, length, device=like.device, dtype=like.dtype)
    return matrix.scatter_add_(1, read, (weights / weights.sum()).expand(length, -1))
