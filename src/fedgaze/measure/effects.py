"""Faithfulness, as agreement of what pixels are said to do with what they do.

As in `fedgaze.measure.faithfulness`; but what changes is the score that is explained (of classes
the logit), maps may be signed, and attributions ``(N, C, *size)`` may stand for heatmaps.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest
from fedgaze.measure.perturbation import (
    Baseline,
    asked,
    correlation,
    cuts_of,
    parts_of,
    ranks,
    where_defined,
)
from fedgaze.xai import Runner, baseline_of

__all__ = ["faithfulness_correlation", "faithfulness_estimate", "infidelity", "sensitivity_n"]

PERTURBATIONS = ("noise", "square")
SIZES = (0.01, 0.03, 0.1, 0.3)


def faithfulness_correlation(
    runner: Runner,
    heatmaps: Tensor,
    *,
    share: float = 0.1,
    samples: int = 50,
    baseline: Baseline = "mean",
    seed: int = 0,
) -> Tensor:
    """Whether sets of pixels that are said to weigh more take more of the score with them.

    ``corr_S(sum_(i in S) h_i, f(x) - f(x without S))`` over random sets S of one size: Bhatt,
    Weller and Moura, "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020.
    Quantus takes 100 sets of 224 numbers: so few of an image's take hardly anything.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)`` or ``(N, C, *size)``.
        share: Of the pixels, that are in a set.
        samples: How many sets; the same for all images.
        baseline: What takes the place of their pixels.
        seed: Of the sets.

    Returns:
        ``(N,)`` in [-1, 1], higher is better. Costs samples + 1.
    """
    return sensitivity_n(
        runner, heatmaps, sizes=(share,), samples=samples, baseline=baseline, seed=seed
    )


def sensitivity_n(
    runner: Runner,
    heatmaps: Tensor,
    *,
    sizes: Sequence[float] = SIZES,
    samples: int = 20,
    baseline: Baseline = "mean",
    seed: int = 0,
) -> Tensor:
    """The correlation of `faithfulness_correlation` for sets of several sizes, on average.

    Ancona et al., "Towards Better Understanding of Gradient-based Attribution Methods for Deep
    Neural Networks", ICLR 2018: ``corr_S`` for each n = |S| on a logarithmic scale, with
    100 random sets each. A size at which it has no value (the score does not move) is left out of
    the mean. Quantus takes the strongest pixels, a window after the other, in place of random sets.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)`` or ``(N, C, *size)``.
        sizes: n, as shares of the pixels.
        samples: Sets of each size; the same for all images.
        baseline: What takes the place of their pixels.
        seed: Of the sets.

    Returns:
        ``(N,)`` in [-1, 1], higher is better. Costs sizes · samples + 1.
    """
    if samples < 2:
        raise FedgazeError(f"samples is {samples}; allowed is 2 and more")
    maps = _summed(runner, heatmaps)
    device = maps.device
    counts = parts_of(sizes, maps.shape[1], device).repeat_interleave(samples)
    sets = torch.stack(
        [
            torch.randperm(maps.shape[1], generator=runner.generator(seed + index), device=device)
            .argsort()
            .lt(count)
            for index, count in enumerate(counts)
        ]
    )
    fall = _falls(runner, baseline, lambda _, v: sets[v], len(sets))
    weight = maps @ sets.to(maps.dtype).T
    found = correlation(
        weight.unflatten(1, (len(sizes), samples)), fall.unflatten(1, (len(sizes), samples))
    )
    return where_defined(found.nanmean(1), maps)


def faithfulness_estimate(
    runner: Runner, heatmaps: Tensor, *, steps: int = 50, baseline: Baseline = "mean"
) -> Tensor:
    """Whether pixels that are said to weigh more take more of the score with them, each alone.

    ``corr_k(sum_(i in G_k) h_i, f(x) - f(x without G_k))`` where the groups G_k cut the pixels,
    from the strongest to the weakest, into equal parts: Alvarez-Melis and Jaakkola, "Towards Robust
    Interpretability with Self-Explaining Neural Networks", NeurIPS 2018, who have one
    feature in each group, as Quantus has by default.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)`` or ``(N, C, *size)``.
        steps: How many groups, at least 2.
        baseline: What takes the place of their pixels.

    Returns:
        ``(N,)`` in [-1, 1], higher is better. Costs steps + 1.
    """
    maps = _summed(runner, heatmaps)
    if steps < 2:
        raise FedgazeError(f"steps is {steps}; allowed is 2 and more")
    cuts = cuts_of(maps.shape[1], steps, maps.device)
    place = ranks(maps)

    def group(n: Tensor, v: Tensor) -> Tensor:
        return (place[n] >= cuts[v][:, None]) & (place[n] < cuts[v + 1][:, None])

    fall = _falls(runner, baseline, group, len(cuts) - 1)
    ordered = maps.sort(1, descending=True).values.double().cumsum(1)
    reached = torch.cat([torch.zeros_like(ordered[:, :1]), ordered], 1)[:, cuts]
    return where_defined(correlation(reached.diff(dim=1), fall.double()).to(fall), maps)


def infidelity(  # noqa: PLR0913 - each has a default that most people keep
    runner: Runner,
    heatmaps: Tensor,
    *,
    perturbation: str = "square",
    samples: int = 50,
    sigma: float = 0.2,
    side: float = 0.25,
    baseline: Baseline = "mean",
    scaled: bool = True,
    seed: int = 0,
) -> Tensor:
    """By how much a map misses what changes of the image do to the score.

    ``E_I[(I · h - (f(x) - f(x - I)))^2]``: Yeh et al., "On the (In)fidelity and Sensitivity of
    Explanations", NeurIPS 2019, Definition 2.1. With ``"noise"`` I is normal noise (their noisy
    baseline), with ``"square"`` x less its baseline within a square at a random place, and else
    zero (their square removal). A heatmap has no unit: with ``scaled``, h is first multiplied by
    the number that makes the mean least, ``E[(I · h) d] / E[(I · h)^2]`` with
    ``d = f(x) - f(x - I)``, and the mean divided by ``E[d^2]``, which is what a map of zeros has: 0
    is a perfect map, 1 one that says nothing. Captum's ``normalize=True`` scales h too, but leaves
    the unit of the score; its value is ours times ``E[d^2]``.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)``, of which each channel has its share, or ``(N, C, *size)``.
        perturbation: ``"square"`` or ``"noise"``.
        samples: How many I; the same for all images.
        sigma: The standard deviation of the noise.
        side: That of the square, as a share of each side of the image.
        baseline: What x less I shows within the square.
        scaled: Whether the unit of the map is left out.
        seed: Of what is random.

    Returns:
        ``(N,)``, not negative (scaled: in [0, 1]), lower is better. Costs samples + 1.
    """
    if perturbation not in PERTURBATIONS:
        raise FedgazeError(
            f"perturbation is {perturbation!r}; allowed are {', '.join(PERTURBATIONS)}"
            f"{nearest(perturbation, PERTURBATIONS)}"
        )
    images = runner.images
    maps = _each_number(runner, heatmaps)
    away = images - baseline_of(images, baseline)
    squares = _squares(runner, samples, side, seed)

    def changes(n: Tensor, v: Tensor) -> Tensor:
        if perturbation == "noise":
            return runner.noise(v + seed) * sigma
        return away[n] * squares[v][:, None]

    # The products with the map are noted while the variants are made.
    products = maps.new_zeros(len(runner), samples + 1)

    def changed(n: Tensor, v: Tensor) -> Tensor:
        some = v > 0
        made = images[n].clone()
        if some.any():
            index, which = n[some], v[some]
            change = changes(index, which - 1)
            made[some] -= change
            products[index, which] = (change * maps[index]).flatten(1).sum(1).to(products)
        return made

    scores = asked(runner, changed, samples + 1)
    fall, product = scores[:, :1] - scores[:, 1:], products[:, 1:]
    if scaled:
        factor = (product * fall).mean(1) / product.square().mean(1)
        missed = (product * factor[:, None] - fall).square().mean(1)
        return where_defined(missed / fall.square().mean(1), maps)
    return where_defined((product - fall).square().mean(1), maps)


def _falls(
    runner: Runner, baseline: Baseline, chosen: Callable[[Tensor, Tensor], Tensor], count: int
) -> Tensor:
    """``(N, count)``: how far the score falls without the pixels that are chosen."""
    others = baseline_of(runner.images, baseline)
    size = runner.images.shape[2:]

    def changed(n: Tensor, v: Tensor) -> Tensor:
        gone = chosen(n, (v - 1).clamp(min=0)) & (v > 0)[:, None]
        return torch.where(gone.view(-1, 1, *size), others[n], runner.images[n])

    scores = asked(runner, changed, count + 1)
    return scores[:, :1] - scores[:, 1:]


def _summed(runner: Runner, heatmaps: Tensor) -> Tensor:
    """A number a pixel: ``(N, P)``."""
    return _each_number(runner, heatmaps).sum(1).flatten(1)


def _each_number(runner: Runner, heatmaps: Tensor) -> Tensor:
    """A number for each of the images: ``(N, C, *size)``."""
    shape = runner.images.shape
    if tuple(heatmaps.shape) == tuple(shape):
        return heatmaps
    if tuple(heatmaps.shape) != (shape[0], *shape[2:]):
        raise FedgazeError(
            f"heatmaps have the shape {tuple(heatmaps.shape)}; allowed are "
            f"{(shape[0], *shape[2:])} and {tuple(shape)}"
        )
    return (heatmaps / shape[1])[:, None].expand(shape)


def _squares(runner: Runner, samples: int, side: float, seed: int) -> Tensor:
    """Squares at random places, wholly within the image: bool ``(samples, *size)``."""
    size = runner.images.shape[2:]
    generator = runner.generator(seed)
    device = runner.images.device
    inside = torch.ones(samples, *size, dtype=torch.bool, device=device)
    for axis, length in enumerate(size):
        wide = min(length, max(1, round(side * length)))
        start = torch.randint(length - wide + 1, (samples, 1), generator=generator, device=device)
        at = torch.arange(length, device=device)
        here = (at >= start) & (at < start + wide)
        inside &= here.view(samples, *[length if a == axis else 1 for a in range(len(size))])
    return inside
