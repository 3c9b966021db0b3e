"""ROAD: faithfulness where what is taken away is filled in from around it.

A pixel that is replaced by a constant can be seen to be missing, and its place says something of
the class by itself. Imputed pixels leave hardly a trace.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.measure.perturbation import asked, check_maps, parts_of, ranks, where_defined
from fedgaze.xai import Runner

__all__ = ["impute", "road", "road_lerf", "road_morf"]

SHARES = (0.2, 0.4, 0.6, 0.8)
_TOLERANCE = 1e-5
_MOST_STEPS = 2000
_LEAST = 4


def road_morf(
    runner: Runner,
    heatmaps: Tensor,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    seed: int = 0,
) -> Tensor:
    """How far the probability falls when the strongest pixels are imputed: most relevant first.

    ``1/|S| sum_s (p_c(x) - p_c(x with the strongest s imputed))``: Rong et al., "A Consistent and
    Efficient Evaluation Strategy for Attribution Methods", ICML 2022, whose measure is the accuracy
    over many images. Here, as in pytorch-grad-cam (with the sign turned), it is the probability of
    one. How pixels are imputed: see `impute`.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, H, W)``.
        shares: S, of the pixels.
        noise: Standard deviation of what is added to imputed pixels, so that they cannot be told by
            their evenness.
        seed: Of the noise, which is the same for all images.

    Returns:
        ``(N,)`` in [-1, 1], higher is better. Costs as many as there are shares, and one.
    """
    return _road(runner, heatmaps, shares, noise, seed, ascending=False)


def road_lerf(
    runner: Runner,
    heatmaps: Tensor,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    seed: int = 0,
) -> Tensor:
    """How far the probability falls when the weakest pixels are imputed: least relevant first.

    The rest is as in `road_morf`.

    Returns:
        ``(N,)`` in [-1, 1], lower is better. Costs as many as there are shares, and one.
    """
    return _road(runner, heatmaps, shares, noise, seed, ascending=True)


def road(
    runner: Runner,
    heatmaps: Tensor,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    seed: int = 0,
) -> Tensor:
    """Both orders of ROAD as one: ``(fall of MoRF - fall of LeRF) / 2``.

    As ``ROADCombined`` of pytorch-grad-cam, which says it of the probabilities themselves.

    Returns:
        ``(N,)`` in [-1, 1], higher is better. Costs twice as many as there are shares, and two.
    """
    first = road_morf(runner, heatmaps, shares=shares, noise=noise, seed=seed)
    return (first - road_lerf(runner, heatmaps, shares=shares, noise=noise, seed=seed)) / 2


def _road(
    runner: Runner,
    heatmaps: Tensor,
    shares: Sequence[float],
    noise: float,
    seed: int,
    *,
    ascending: bool,
) -> Tensor:
    check_maps(runner, heatmaps)
    cuts = parts_of(shares, heatmaps[0].numel(), heatmaps.device)
    place = ranks(-heatmaps if ascending else heatmaps)
    cuts = torch.cat([torch.zeros_like(cuts[:1]), cuts])

    def changed(n: Tensor, v: Tensor) -> Tensor:
        gone = (place[n] < cuts[v][:, None]).view(-1, *heatmaps.shape[1:])
        made = impute(runner.images[n], gone)
        return made + noise * runner.noise(v + seed) * gone[:, None]

    found = asked(runner, changed, len(cuts), probability=True)
    return where_defined((found[:, :1] - found[:, 1:]).mean(1), heatmaps)


def impute(images: Tensor, gone: Tensor) -> Tensor:
    """Fill in pixels so that each is the weighted mean of its eight neighbours.

    Of these, the four beside it weigh 1/6 and the four at its corners 1/12, fewer at the border:
    Rong et al. (noisy linear imputation, without the noise). That is a sparse linear
    system, symmetric and positive definite, which conjugate gradients solve for all images at once,
    on their device and for any number of channels; they begin with the solution at half the size,
    and each step takes in those of all smaller sizes. An image of which nothing is left becomes
    zero.

    Args:
        images: ``(N, C, H, W)``.
        gone: bool ``(N, H, W)``: what is to be filled in.

    Returns:
        ``(N, C, H, W)``.
    """
    empty = gone.flatten(1).all(1)[:, None, None, None]
    return torch.where(empty, 0, _solved(images, gone[:, None].to(images.dtype)))


def _solved(images: Tensor, gone: Tensor) -> Tensor:
    """Images in which the pixels of a mask ``(N, 1, H, W)`` solve the system."""
    known = images * (1 - gone)
    around = _neighbours(torch.ones_like(images[:1, :1]))
    masks = _coarser(gone)
    x = _guessed(known, gone) * gone

    def system(values: Tensor) -> Tensor:
        return (around * values - _neighbours(values)) * gone

    right = _neighbours(known) * gone
    residual = right - system(x)
    limit = _TOLERANCE**2 * _dot(right, right)
    direction = wanted = _levelled(residual, masks)
    square = _dot(residual, wanted)
    for _ in range(_MOST_STEPS):
        going = _dot(residual, residual) > limit
        if not going.any():
            break
        image = system(direction)
        curvature = _dot(direction, image)
        step = torch.where(going, square / torch.where(curvature > 0, curvature, 1), 0)
        x = torch.addcmul(x, step, direction)
        residual = torch.addcmul(residual, step, image, value=-1)
        wanted = _levelled(residual, masks)
        before, square = square, _dot(residual, wanted)
        share = square / torch.where(before > 0, before, 1)
        direction = torch.addcmul(wanted, share, direction)
    return known + x


def _coarser(gone: Tensor) -> list[Tensor]:
    """The mask at its own size, and at halves of it: what lies within with its surroundings."""
    found = [gone]
    while min(found[-1].shape[2:]) >= 2 * _LEAST and found[-1].any():
        found.append(1 - F.max_pool2d(1 - found[-1], 4, stride=2, padding=1))
    return found


def _levelled(residual: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """The residual and its halvings as one: what has to be added far from known pixels.

    Bramble, Pasciak and Xu, "Parallel Multilevel Preconditioners", Mathematics of Computation 1990:
    so the number of steps hardly grows with the size of what is gone.
    """
    levels = [residual]
    for mask in masks[1:]:
        levels.append(_scaled(levels[-1], F.conv2d) * mask)
    found = levels.pop()
    while levels:
        finer = levels.pop()
        up = _scaled(found, F.conv_transpose2d)
        up = F.pad(up, (0, finer.shape[3] - up.shape[3], 0, finer.shape[2] - up.shape[2]))
        found = finer + up * masks[len(levels)]
    return found


def _scaled(values: Tensor, how: Callable[..., Tensor]) -> Tensor:
    """Halve or, the exact transpose of it, double the sides, by bilinear weights."""
    line = values.new_tensor([1, 3, 3, 1]) / 4
    planes = values.shape[0] * values.shape[1]
    flat = values.reshape(1, planes, *values.shape[2:])
    kernel = line.outer(line).expand(planes, 1, 4, 4)
    found = how(flat, kernel, stride=2, padding=1, groups=planes)
    return found.view(*values.shape[:2], *found.shape[2:])


def _guessed(known: Tensor, gone: Tensor) -> Tensor:
    """The same of the images at half their size, enlarged: what is far from known pixels."""
    size = known.shape[2:]
    if min(size) < _LEAST or not gone.any():
        return known
    half = [-(-length // 2) for length in size]
    pad = (0, half[1] * 2 - size[1], 0, half[0] * 2 - size[0])
    weight = F.avg_pool2d(F.pad(1 - gone, pad), 2)
    values = F.avg_pool2d(F.pad(known, pad), 2) / torch.where(weight > 0, weight, 1)
    coarse = _solved(values, (weight == 0).to(known.dtype))
    return F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., : size[0], : size[1]]


def _neighbours(values: Tensor) -> Tensor:
    """The weighted sum of the eight neighbours of each pixel that are in the image."""
    kernel = values.new_tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    planes = values.shape[0] * values.shape[1]
    # One convolution with a group a plane, which is fast everywhere.
    flat = values.reshape(1, planes, *values.shape[2:])
    found = F.conv2d(flat, kernel.expand(planes, 1, 3, 3), padding=1, groups=planes)
    return found.view_as(values)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum((2, 3), keepdim=True)
