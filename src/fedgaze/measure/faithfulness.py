"""Faithfulness: does the model need what the heatmap shows?

Metrics ask the model about changed images, through a `fedgaze.xai.Runner` that holds the model, N
images and one class of each. Heatmaps are ``(N, *size)``; that of an image which is the same
everywhere puts its pixels in no order: NaN. Costs are forward passes an image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedgaze.measure.perturbation import (
    Baseline,
    asked,
    check_maps,
    curve,
    cuts_of,
    parts_of,
    where_defined,
)
from fedgaze.xai import Runner, logits_of

__all__ = [
    "average_drop",
    "causal_drop",
    "comprehensiveness",
    "deletion",
    "fill",
    "increase_in_confidence",
    "insertion",
    "monotonicity",
    "pixel_flipping",
    "region_drop",
    "strongest",
    "sufficiency",
]

BINS = (0.01, 0.05, 0.1, 0.2, 0.5)


def deletion(
    runner: Runner, heatmaps: Tensor, *, steps: int = 50, baseline: Baseline = "mean"
) -> Tensor:
    """The area under the probability of the class while pixels go, the strongest first.

    ``sum_k (p_c(x_k) + p_c(x_(k+1))) / 2 · 1/K``, where x_k is the image without the k/K of its
    pixels that the heatmap puts first: Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling
    for Explanation of Black-box Models", BMVC 2018. The paper's baseline is a constant
    zero, of images whose mean is zero; it has a step a row of pixels.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)``.
        steps: K.
        baseline: What takes a pixel's place: ``"mean"`` of the image by channel, ``"blur"``,
            ``"noise"``, or a number.

    Returns:
        ``(N,)`` in [0, 1], lower is better. Costs steps + 1.
    """
    return _area(runner, heatmaps, steps, baseline, insert=False)


def insertion(
    runner: Runner, heatmaps: Tensor, *, steps: int = 50, baseline: Baseline = "blur"
) -> Tensor:
    """The area under the probability of the class while pixels come, the strongest first.

    As `deletion`, from the baseline to the image. The paper's baseline is the blurred image, since
    sharp edges of what is inserted into an even one look like objects.

    Returns:
        ``(N,)`` in [0, 1], higher is better. Costs steps + 1.
    """
    return _area(runner, heatmaps, steps, baseline, insert=True)


def _area(
    runner: Runner, heatmaps: Tensor, steps: int, baseline: Baseline, *, insert: bool
) -> Tensor:
    check_maps(runner, heatmaps)
    pixels = heatmaps[0].numel()
    cuts = cuts_of(pixels, steps, heatmaps.device)
    found = curve(runner, heatmaps, cuts, baseline, insert=insert)
    return where_defined(torch.trapezoid(found, (cuts / pixels).to(found)), heatmaps)


def pixel_flipping(
    runner: Runner, heatmaps: Tensor, *, steps: int = 50, baseline: Baseline = "mean"
) -> Tensor:
    """How far the probability falls on average while pixels are flipped, the strongest first.

    ``AOPC = 1/(L+1) sum_(k=0..L) (p_c(x_0) - p_c(x_k))``: Samek et al., "Evaluating the
    Visualization of What a Deep Neural Network Has Learned", IEEE Transactions on Neural Networks
    and Learning Systems 2017, Eq. 12; pixel flipping is Bach et al., PLOS ONE 2015. Quantus returns
    the curve itself, or with ``return_auc_per_sample`` its area.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)``.
        steps: L.
        baseline: As for `deletion`.

    Returns:
        ``(N,)`` in [-1, 1], higher is better. Costs steps + 1.
    """
    check_maps(runner, heatmaps)
    cuts = cuts_of(heatmaps[0].numel(), steps, heatmaps.device)
    found = curve(runner, heatmaps, cuts, baseline)
    return where_defined((found[:, :1] - found).mean(1), heatmaps)


def comprehensiveness(
    runner: Runner,
    heatmaps: Tensor,
    *,
    bins: Sequence[float] = BINS,
    baseline: Baseline = "mean",
) -> Tensor:
    """How far the probability falls without what the heatmap shows, on average over its size.

    ``1/|B| sum_k (p_c(x) - p_c(x without r_k))``, where r_k are the strongest of the pixels, k of
    1, 5, 10, 20 and 50 %: DeYoung et al., "ERASER: A Benchmark to Evaluate Rationalized NLP
    Models", ACL 2020 (area over the perturbation curve).

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)``.
        bins: B, as shares of the pixels.
        baseline: As for `deletion`.

    Returns:
        ``(N,)`` in [-1, 1], higher is better. Costs as many as there are bins, and one.
    """
    return _rationale(runner, heatmaps, bins, baseline, insert=False)


def sufficiency(
    runner: Runner,
    heatmaps: Tensor,
    *,
    bins: Sequence[float] = BINS,
    baseline: Baseline = "mean",
) -> Tensor:
    """How far the probability falls if only what the heatmap shows is left.

    ``1/|B| sum_k (p_c(x) - p_c(r_k alone))``; the rest as in `comprehensiveness`. Quantus has
    another metric of this name (Dasgupta et al. 2022: how often images with the same explanation
    have the same class).

    Returns:
        ``(N,)`` in [-1, 1], lower is better. Costs as many as there are bins, and one.
    """
    return _rationale(runner, heatmaps, bins, baseline, insert=True)


def _rationale(
    runner: Runner,
    heatmaps: Tensor,
    bins: Sequence[float],
    baseline: Baseline,
    *,
    insert: bool,
) -> Tensor:
    check_maps(runner, heatmaps)
    pixels = heatmaps[0].numel()
    cuts = parts_of(bins, pixels, heatmaps.device)
    whole = torch.full_like(cuts[:1], pixels if insert else 0)
    found = curve(runner, heatmaps, torch.cat([whole, cuts]), baseline, insert=insert)
    return where_defined((found[:, :1] - found[:, 1:]).mean(1), heatmaps)


def average_drop(runner: Runner, heatmaps: Tensor) -> Tensor:
    """The part of the probability that is lost if the image is dimmed by its heatmap.

    ``max(0, Y - O) / Y`` with ``Y = p_c(x)`` and ``O = p_c(x · h)``: Chattopadhay et al.,
    "Grad-CAM++", WACV 2018. A heatmap that is 1 everywhere has no drop: see
    `adcc` and `arcc`, which count that.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)`` in [0, 1].

    Returns:
        ``(N,)`` in [0, 1], lower is better. Costs 2.
    """
    before, after = _dimmed(runner, heatmaps)
    return where_defined((before - after).clamp(min=0) / before, heatmaps)


def increase_in_confidence(runner: Runner, heatmaps: Tensor) -> Tensor:
    """Whether the model is surer of the image that is dimmed by its heatmap.

    ``1 if O > Y else 0``, as in `average_drop`: of the same paper, where the mean over
    images is called % increase in confidence.

    Returns:
        ``(N,)``, 0 or 1, higher is better. Costs 2.
    """
    before, after = _dimmed(runner, heatmaps)
    return where_defined((after > before).to(before), heatmaps)


def _dimmed(runner: Runner, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    check_maps(runner, heatmaps)
    heat = heatmaps.clamp(min=0)[:, None]

    def changed(n: Tensor, v: Tensor) -> Tensor:
        shown = heat[n].masked_fill(v.view(-1, *[1] * (heat.dim() - 1)) == 0, 1)
        return runner.images[n] * shown.to(runner.images.dtype)

    before, after = asked(runner, changed, 2, probability=True).unbind(1)
    return before, after


def monotonicity(
    runner: Runner,
    heatmaps: Tensor,
    *,
    steps: int = 50,
    baseline: Baseline = "mean",
    strict: bool = False,
) -> Tensor:
    """On which share of the steps the probability does not fall while pixels come, weakest first.

    ``1/K sum_k [p_c(x_k) >= p_c(x_(k-1))]``, x_0 being the baseline. Arya et al., "One Explanation
    Does Not Fit All: A Toolkit and Taxonomy of AI Explainability Techniques", arXiv 1909.03012,
    2019, ask whether all steps are so: ``strict=True``, which on images hardly ever is. Quantus
    (0.6) puts its baseline where it should put pixels of the image: it finds every map monotonic.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)``.
        steps: K.
        baseline: As for `deletion`.
        strict: Whether the answer is 1 if all steps are so, and else 0.

    Returns:
        ``(N,)`` in [0, 1], higher is better. Costs steps + 1.
    """
    check_maps(runner, heatmaps)
    cuts = cuts_of(heatmaps[0].numel(), steps, heatmaps.device)
    found = curve(runner, heatmaps, cuts, baseline, ascending=True, insert=True)
    rises = found.diff(dim=1) >= 0
    return where_defined((rises.all(1) if strict else rises.to(found).mean(1)).to(found), heatmaps)


def causal_drop(with_region: Tensor, without_region: Tensor, targets: Tensor) -> Tensor:
    """What a region is worth to a class: ``max(0, p_c(x) - p_c(x without R))``.

    The drop of Average Drop (Chattopadhay et al. 2018, arXiv:1710.11063), in
    probability and not as a part of ``p_c(x)``, so that a class of no weight cannot dominate.

    Args:
        with_region: Logits of the images, ``(N, classes)``.
        without_region: Logits of the same images without the region, ``(N, classes)``.
        targets: The classes ``c``, ``(N,)``.

    Returns:
        ``(N,)`` in [0, 1]; high means that the class hangs on the region.

    >>> logits = torch.tensor([[0.0, 0.0]])
    >>> causal_drop(logits + torch.tensor([[30.0, 0.0]]), logits, torch.tensor([0])).item()
    0.5
    """
    rows = torch.arange(len(targets), device=targets.device)
    before, after = (each.softmax(1)[rows, targets] for each in (with_region, without_region))
    return (before - after).clamp(min=0)


def region_drop(
    model: Callable[[Tensor], Any], images: Tensor, mask: Tensor, targets: Tensor, logits: Tensor
) -> Tensor:
    """The :func:`causal_drop` of a region that is filled as :func:`fill` does. One forward pass.

    Args:
        model: In eval mode, or a function with its output.
        images: ``(N, C, H, W)``.
        mask: The region, bool ``(N, H, W)``.
        targets: ``(N,)``.
        logits: The model's logits of the images, ``(N, classes)``.

    Returns:
        ``(N,)`` in [0, 1]; NaN where the mask is empty.
    """
    with torch.no_grad():
        drop = causal_drop(logits, logits_of(model(fill(images, mask))), targets)
    return torch.where(mask.flatten(1).any(1), drop, torch.nan)


def fill(images: Tensor, mask: Tensor) -> Tensor:
    """Replace a region by the mean colour of the rest of its image.

    On a written digit that is its paper; on a photograph a flat patch, which is itself unusual:
    compare drops between models, not with nothing.

    Args:
        images: ``(N, C, H, W)``.
        mask: bool ``(N, H, W)``; where it covers the whole image, the image's own mean fills it.
    """
    rest = (~mask | mask.flatten(1).all(1)[:, None, None])[:, None]
    mean = (images * rest).sum((2, 3), keepdim=True) / rest.sum((2, 3), keepdim=True)
    return torch.where(mask[:, None], mean, images)


def strongest(heatmaps: Tensor, part: float = 0.1) -> Tensor:
    """Where a heatmap is strongest: the given part of the pixels.

    Args:
        heatmaps: ``(N, H, W)``, not negative.
        part: In (0, 1]; at least one pixel.

    Returns:
        bool ``(N, H, W)``; ties at the threshold are in, pixels without heat are not.
    """
    flat = heatmaps.flatten(1)
    count = max(1, round(part * flat.shape[1]))
    threshold = flat.topk(count, dim=1).values[:, -1, None, None]
    return (heatmaps >= threshold) & (heatmaps > 0)
