"""Randomisation: does the heatmap depend on what the model has learnt, and on the class?

A method whose maps stay the same when the model's weights are random explains the image, and not
the model. Costs are explanations an image.
"""

import copy
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError, nearest
from fedgaze.measure.agreement import spearman, ssim
from fedgaze.measure.composite import Explain, classes_of
from fedgaze.xai import Runner

__all__ = [
    "SIMILARITIES",
    "parameter_randomisation",
    "random_logit",
    "randomisation_curve",
    "randomised",
]

T = TypeVar("T")
Similarity = Callable[[Tensor, Tensor], Tensor]
SIMILARITIES: dict[str, Similarity] = {"ssim": ssim, "spearman": spearman}
ORDERS = ("cascading", "independent")

ExplainModel = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""A model, images ``(m, C, *size)`` and classes ``(m,)`` to heatmaps ``(m, *size)``."""


def randomisation_curve(  # noqa: PLR0913 - what was explained, and how
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    heatmaps: Tensor,
    explain_model: ExplainModel,
    *,
    order: str = "cascading",
    similarity: str = "spearman",
    seed: int = 0,
) -> Tensor:
    """How alike maps are to the first ones while the weights become random, layer by layer.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018: from the last layer
    down to the first, which stay random (cascading) or get their weights back (independent).

    Args:
        model: The model; it is left as it is.
        images: ``(N, C, *size)``.
        classes: ``(N,)``.
        heatmaps: ``(N, *size)``.
        explain_model: How they were made, of whatever model.
        order: ``"cascading"`` or ``"independent"``.
        similarity: ``"spearman"`` or ``"ssim"``. SSIM is high where both maps are empty.
        seed: Of the random weights.

    Returns:
        ``(N, L)`` in [-1, 1]: after each of the L layers, from the last down. NaN where a map is
        the same everywhere. Costs L.
    """
    compare = _named("similarity", similarity, SIMILARITIES)
    found = [
        compare(explain_model(changed, images, classes), heatmaps)
        for _, changed in randomised(model, order=order, seed=seed)
    ]
    return torch.stack(found, 1)


def parameter_randomisation(  # noqa: PLR0913 - what was explained, and how
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    heatmaps: Tensor,
    explain_model: ExplainModel,
    *,
    order: str = "cascading",
    similarity: str = "spearman",
    seed: int = 0,
) -> Tensor:
    """The mean of `randomisation_curve` over the layers at which it has a value.

    Returns:
        ``(N,)`` in [-1, 1], lower is better. Costs as many explanations as there are layers.
    """
    how = {"order": order, "similarity": similarity}
    found = randomisation_curve(model, images, classes, heatmaps, explain_model, **how, seed=seed)
    return found.nanmean(1)


def random_logit(
    runner: Runner,
    heatmaps: Tensor,
    explain: Explain,
    *,
    similarity: str = "spearman",
    seed: int = 0,
) -> Tensor:
    """How alike the maps of the class and of another, drawn at random, are.

    Sixt, Granz and Landgraf, "When Explanations Lie: Why Many Modified BP Attributions Fail", ICML
    2020.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)``.
        explain: How they were made.
        similarity: As for `parameter_randomisation`.
        seed: Of the other classes.

    Returns:
        ``(N,)``, lower is better; NaN where a map is the same everywhere. Costs 1.

    Raises:
        FedgazeError: The model knows one class only.
    """
    compare = _named("similarity", similarity, SIMILARITIES)
    classes, known = classes_of(runner), max(2, runner.logits.shape[1])
    generator = runner.generator(seed)
    steps = torch.randint(1, known, classes.shape, generator=generator, device=classes.device)
    return compare(explain(runner.images, (classes + steps) % known), heatmaps)


def randomised(
    model: nn.Module, *, order: str = "cascading", seed: int = 0
) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a model whose layers are random, from the last layer down.

    A layer's weights are drawn as when it was made (``reset_parameters``); of layers that cannot do
    that, the parameters are shuffled.

    Args:
        model: It is left as it is.
        order: ``"cascading"`` or ``"independent"``.
        seed: Of the weights. The random state outside is left as it is.

    Yields:
        The layer's name and the model, which is good until the next one is asked for.
    """
    _named("order", order, dict.fromkeys(ORDERS))
    changed = copy.deepcopy(model)
    names = [name for name, module in model.named_modules() if _has_weights(module)]
    for index, name in enumerate(reversed(names)):
        if order == "independent":
            changed = copy.deepcopy(model)
        with torch.random.fork_rng(devices=_devices(model)):
            # One of its own for each layer, and none that the model may have been made with.
            torch.manual_seed(0xFED6 + 1000 * seed + index)
            _reset(changed.get_submodule(name))
        yield name, changed


def _has_weights(module: nn.Module) -> bool:
    return any(each is not None for each in module._parameters.values())  # noqa: SLF001


@torch.no_grad()
def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in module.parameters(recurse=False):
        mixed = torch.randperm(parameter.numel()).to(parameter.device)
        parameter.copy_(parameter.flatten()[mixed].view_as(parameter))


def _devices(model: nn.Module) -> list[torch.device]:
    return list({each.device for each in model.parameters() if each.is_cuda})


def _named(what: str, given: str, allowed: dict[str, T]) -> T:
    if given not in allowed:
        raise FedgazeError(
            f"{what} is {given!r}; allowed are {', '.join(allowed)}{nearest(given, allowed)}"
        )
    return allowed[given]
