"""Occlusion: what the score loses where a part of the image is covered."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.methods.inputs import at_least
from fedgaze.xai.runner import Runner

__all__ = ["occlusion"]


def occlusion(
    runner: Runner,
    *,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    baseline: float | Tensor = 0.0,
    probability: bool = True,
) -> Tensor:
    """Cover each part of the image in turn, and see what the score loses.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section
    4.2: a grey square moves over the image, and the probability of the class is watched. A pixel's
    value is the mean of what was lost over all windows that cover it; the paper draws the
    probability at the centre of the window instead.

    Windows start at the first corner and go on until all is covered; the last may reach over the
    border, as in Captum, whose `Occlusion` gives the same values for each channel. Zero is the grey
    of the paper where images are normalised to a mean of zero.

    Args:
        runner: The model and images.
        window: Its size in pixels, the same or one for each direction; None for a seventh of the
            image.
        stride: How far it moves; None for half of the window.
        baseline: What covers the image: a number, or a tensor that broadcasts to ``(C, *size)``.
        probability: Whether the score is the probability of a class, where a class is explained.

    Returns:
        ``(N, S, *size)``, signed: negative where the score rises when a pixel is covered.

    Raises:
        FedgazeError: A window or stride is out of its range.
    """
    images = runner.images
    size = tuple(images.shape[2:])
    windows = _sizes("window", [-(-each // 7) for each in size] if window is None else window, size)
    halves = [-(-each // 2) for each in windows]
    strides = _sizes("stride", halves if stride is None else stride, windows)
    # One matrix (places, positions) a direction: which positions the window covers at each place.
    covers = [_covered(*each, images.device) for each in zip(size, windows, strides, strict=True)]
    places = [len(each) for each in covers]
    cover = torch.as_tensor(baseline).to(images)
    _check_baseline(cover, images)

    def covered(n: Tensor, v: Tensor) -> Tensor:
        at = torch.unravel_index(v, places)
        rows = [
            each[where].view(-1, *_axis(each.shape[1], dim, len(size)))
            for dim, (each, where) in enumerate(zip(covers, at, strict=True))
        ]
        return torch.where(reduce(torch.logical_and, rows)[:, None], cover, images[n])

    count = reduce(lambda a, b: a * b, places)
    before = wide(runner.scores(lambda n, v: images[n], 1, probability=probability))  # noqa: ARG005
    lost = before - wide(runner.scores(covered, count, probability=probability))
    found: Tensor = lost.unflatten(2, places)
    for each in covers:
        # The mean over the windows that cover a position is a mean in each direction.
        share = each.to(found.dtype) / each.sum(0)
        found = torch.tensordot(found, share, dims=([2], [0]))
    return found


def _sizes(what: str, given: int | Sequence[int], most: Sequence[int]) -> list[int]:
    sizes = [given] * len(most) if isinstance(given, int) else list(given)
    if len(sizes) != len(most):
        raise FedgazeError(
            f"{what} has {len(sizes)} numbers for {len(most)} directions; allowed is one for each"
        )
    for each, limit in zip(sizes, most, strict=True):
        if at_least(what, each, 1) > limit:
            raise FedgazeError(f"{what} is {each}; allowed is 1 to {limit}, so that all is covered")
    return sizes


def _covered(length: int, window: int, stride: int, device: torch.device) -> Tensor:
    starts = torch.arange(-(-(length - window) // stride) + 1, device=device)[:, None] * stride
    at = torch.arange(length, device=device)
    return (at >= starts) & (at < starts + window)


def _axis(length: int, dim: int, dims: int) -> list[int]:
    return [length if each == dim else 1 for each in range(dims)]


def _check_baseline(cover: Tensor, images: Tensor) -> None:
    shape = tuple(images.shape[1:])
    try:
        fits = torch.broadcast_shapes(cover.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise FedgazeError(
            f"baseline has the shape {tuple(cover.shape)}; allowed is a number, or what broadcasts "
            f"to an image {shape}"
        )
