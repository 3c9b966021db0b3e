"""Scores made of several: a map that is good in one way only is not good.

A single measure can be won by a map that says nothing: one that is 1 everywhere has no drop, one of
a single pixel no complexity. The harmonic mean is low if one of its parts is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.measure.agreement import pearson
from fedgaze.measure.faithfulness import average_drop
from fedgaze.measure.imputation import road
from fedgaze.measure.perturbation import where_defined
from fedgaze.xai import Runner

__all__ = ["Explain", "adcc", "arcc", "classes_of", "coherency", "mean_heat"]

Explain = Callable[[Tensor, Tensor], Tensor]
"""Images ``(m, C, *size)`` and the classes to explain ``(m,)`` to heatmaps ``(m, *size)``."""


def coherency(runner: Runner, heatmaps: Tensor, explain: Explain) -> Tensor:
    """Whether the image, dimmed by its heatmap, has the same heatmap again.

    ``(1 + corr(h(x · h(x)), h(x))) / 2`` with Pearson's correlation (of signed maps, only what is
    positive dims the image): Poppi et al., "Revisiting The
    Evaluation of Class Activation Mapping for Explainability", CVPR Workshops 2021.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)``, at most 1.
        explain: How they were made.

    Returns:
        ``(N,)`` in [0, 1], higher is better; NaN where one of the maps is the same everywhere.
        Costs one explanation.
    """
    classes = classes_of(runner)
    dimmed = runner.images * heatmaps.clamp(min=0)[:, None].to(runner.images)
    return (1 + pearson(explain(dimmed, classes), heatmaps)) / 2


def mean_heat(heatmaps: Tensor) -> Tensor:
    """How much of the image is hot: ``1/P sum_p |h_p|``, the complexity of ADCC.

    Poppi et al. (see `coherency`): the L1 norm, here over the number of pixels.

    Args:
        heatmaps: ``(N, *size)`` in [0, 1].

    Returns:
        ``(N,)`` in [0, 1], lower is better; NaN where the map is the same everywhere. Costs none.
    """
    return where_defined(heatmaps.abs().flatten(1).mean(1), heatmaps)


def adcc(runner: Runner, heatmaps: Tensor, explain: Explain) -> Tensor:
    """Average drop, coherency and complexity as one.

    ``3 / (1/coherency + 1/(1 - complexity) + 1/(1 - drop))``: Poppi et al. (see
    `coherency`); of each image, where the paper says it of their means.

    Returns:
        ``(N,)`` in [0, 1], higher is better. Costs 2, and one explanation.
    """
    parts = [coherency(runner, heatmaps, explain), 1 - mean_heat(heatmaps)]
    return _harmonic([*parts, 1 - average_drop(runner, heatmaps)])


def arcc(runner: Runner, heatmaps: Tensor, explain: Explain) -> Tensor:
    """ROAD, coherency and complexity as one: as `adcc`, with ROAD in the place of the drop.

    After Domeniconi et al., "How to Evaluate and Refine your CAM", arXiv 2605.14641, 2026, who find
    average drop to mislead where ROAD does not. `road`, in [-1, 1], enters as (1 + road) / 2.

    Returns:
        ``(N,)`` in [0, 1], higher is better. Costs 10, and one explanation.
    """
    parts = [coherency(runner, heatmaps, explain), 1 - mean_heat(heatmaps)]
    return _harmonic([*parts, (1 + road(runner, heatmaps)) / 2])


def _harmonic(parts: list[Tensor]) -> Tensor:
    stacked = torch.stack([each.float() for each in parts])
    # A part of zero makes the mean zero; NaN stays NaN.
    return len(parts) / (1 / stacked.clamp(min=0)).sum(0)


def classes_of(runner: Runner) -> Tensor:
    """The one class of each image: ``(N,)``.

    Raises:
        FedgazeError: There are several, or something else is explained.
    """
    classes = runner.classes
    if classes is None or classes.shape[1] != 1:
        raise FedgazeError("maps are explained again for one class an image; give targets")
    return classes[:, 0]
