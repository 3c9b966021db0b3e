"""Robustness: does the heatmap stay where it is while the image hardly changes?

Maps are made again of changed images, by an `Explain` that makes them as the first ones were made,
and for the same classes. Costs are explanations an image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.measure.composite import Explain, classes_of
from fedgaze.xai import Capture, Runner, resolve_layers

__all__ = [
    "Around",
    "average_sensitivity",
    "local_lipschitz",
    "max_sensitivity",
    "relative_input_stability",
    "relative_output_stability",
    "relative_representation_stability",
]

_LEAST = 1e-6


@dataclass(frozen=True)
class Around:
    """Images round an image: ``x + d`` with d uniform in ``[-r, r]^n``.

    Attributes:
        radius: r, as a part of the image's greatest less its least number.
        samples: How many; d over r is the same for all images.
        seed: Of d.
    """

    radius: float = 0.05
    samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise FedgazeError(f"radius is {self.radius}; allowed is above 0")
        if self.samples < 1:
            raise FedgazeError(f"samples is {self.samples}; allowed is 1 and more")

    def of(self, runner: Runner) -> Iterator[Tensor]:
        """The images ``(N, C, *size)``, one sample after the other."""
        images = runner.images
        every = tuple(range(1, images.dim()))
        reach = self.radius * (images.amax(every, keepdim=True) - images.amin(every, keepdim=True))
        for index in range(self.samples):
            generator = runner.generator(self.seed + index)
            unit = torch.rand(images.shape[1:], generator=generator, device=images.device)
            yield images + reach * (2 * unit - 1).to(images.dtype)


def max_sensitivity(
    runner: Runner, heatmaps: Tensor, explain: Explain, *, around: Around = Around()
) -> Tensor:
    """How far the map moves at most while the image moves within a small cube.

    ``max_d ||h(x + d) - h(x)|| / ||h(x)||``: Yeh et al., "On the (In)fidelity and Sensitivity of
    Explanations", NeurIPS 2019, over the norm of the map, as Captum has it. Norms
    are Euclidean.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)``.
        explain: How they were made.
        around: d.

    Returns:
        ``(N,)``, not negative, lower is better; NaN where the map is zero. Costs samples.
    """
    return _moves(runner, heatmaps, explain, around).amax(1)


def average_sensitivity(
    runner: Runner, heatmaps: Tensor, explain: Explain, *, around: Around = Around()
) -> Tensor:
    """How far the map moves on average while the image moves within a small cube.

    As `max_sensitivity`, with the mean over d: Bhatt, Weller and Moura, "Evaluating and Aggregating
    Feature-based Model Explanations", IJCAI 2020.

    Returns:
        ``(N,)``, not negative, lower is better; NaN where the map is zero. Costs samples.
    """
    return _moves(runner, heatmaps, explain, around).mean(1)


def local_lipschitz(
    runner: Runner, heatmaps: Tensor, explain: Explain, *, around: Around = Around()
) -> Tensor:
    """How much faster the map moves than the image, at most.

    ``max_d ||h(x + d) - h(x)|| / ||d||``: Alvarez-Melis and Jaakkola, "On the Robustness of
    Interpretability Methods", ICML workshop 2018; the rest as in `max_sensitivity`.

    Returns:
        ``(N,)``, not negative, lower is better, in units of the map by those of the images. Costs
        samples.
    """
    classes = classes_of(runner)
    found = [
        _norm(explain(images, classes) - heatmaps) / _norm(images - runner.images)
        for images in around.of(runner)
    ]
    return torch.stack(found, 1).amax(1)


def relative_input_stability(
    runner: Runner, heatmaps: Tensor, explain: Explain, *, around: Around = Around()
) -> Tensor:
    """How much more the map changes than the image does, each relative to itself, at most.

    ``max_x' ||(h(x) - h(x')) / h(x)|| / max(||(x - x') / x||, e)`` over x' of the same predicted
    class: Agarwal et al., "Rethinking Stability for Attribution-based Explanations", arXiv
    2203.06877, 2022. Numbers of zero are divided by e = 1e-6, as in Quantus, so that maps
    with many zeros have large values.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, *size)``.
        explain: How they were made.
        around: x'.

    Returns:
        ``(N,)``, not negative, lower is better; NaN where no x' is predicted as x is. Costs
        samples, and as many forward passes.
    """
    moves = [_norm(_relative(runner.images, each)) for each in around.of(runner)]
    return _stability(runner, heatmaps, explain, around, torch.stack(moves, 1))


def relative_output_stability(
    runner: Runner, heatmaps: Tensor, explain: Explain, *, around: Around = Around()
) -> Tensor:
    """How much more the map changes, relative to itself, than the logits do, at most.

    ``max_x' ||(h(x) - h(x')) / h(x)|| / max(||f(x) - f(x')||, e)``: of the paper of
    `relative_input_stability`; the rest as there.

    Returns:
        ``(N,)``, not negative, lower is better; NaN where no x' is predicted as x is. Costs
        samples, and as many forward passes.
    """
    moves = [_norm(runner.logits - each) for each in _logits(runner, around)]
    return _stability(runner, heatmaps, explain, around, torch.stack(moves, 1))


def relative_representation_stability(
    runner: Runner, heatmaps: Tensor, explain: Explain, layer: str, *, around: Around = Around()
) -> Tensor:
    """How much more the map changes than a layer does, each relative to itself, at most.

    ``max_x' ||(h(x) - h(x')) / h(x)|| / max(||(L(x) - L(x')) / L(x)||, e)`` with the activations L
    of the layer: of the paper of `relative_input_stability`; the rest as there.

    Returns:
        ``(N,)``, not negative, lower is better; NaN where no x' is predicted as x is. Costs
        samples, and twice as many forward passes.
    """
    ((name, module),) = resolve_layers(runner.model, layer).items()

    def activations(images: Tensor) -> Tensor:
        with Capture(runner.model, {name: module}, gradients=False) as capture:
            found = capture.run(images, lambda _: images.new_zeros(len(images)))
        return found.activations[name]

    first = activations(runner.images)
    moves = [_norm(_relative(first, activations(each))) for each in around.of(runner)]
    return _stability(runner, heatmaps, explain, around, torch.stack(moves, 1))


def _moves(runner: Runner, heatmaps: Tensor, explain: Explain, around: Around) -> Tensor:
    """``(N, samples)``: how far each map moved, over its own norm."""
    classes = classes_of(runner)
    found = [_norm(explain(images, classes) - heatmaps) for images in around.of(runner)]
    size = _norm(heatmaps)[:, None]
    return torch.stack(found, 1) / torch.where(size > 0, size, torch.nan)


def _stability(
    runner: Runner, heatmaps: Tensor, explain: Explain, around: Around, moves: Tensor
) -> Tensor:
    classes = classes_of(runner)
    changes = torch.stack(
        [_norm(_relative(heatmaps, explain(images, classes))) for images in around.of(runner)], 1
    )
    said = torch.stack([each.argmax(1) for each in _logits(runner, around)], 1)
    same = said == runner.logits.argmax(1, keepdim=True)
    shares = (changes / moves.clamp(min=_LEAST)).masked_fill(~same, -torch.inf)
    best = shares.amax(1)
    return best.masked_fill(best.isinf(), torch.nan)


def _logits(runner: Runner, around: Around) -> Iterator[Tensor]:
    """``(N, classes)`` of each sample."""
    for images in around.of(runner):

        def made(n: Tensor, _: Tensor, images: Tensor = images) -> Tensor:
            return images[n]

        yield runner.logits_at(made, 1)[:, 0]


def _relative(first: Tensor, second: Tensor) -> Tensor:
    return (first - second) / torch.where(first == 0, _LEAST, first)


def _norm(values: Tensor) -> Tensor:
    found: Tensor = values.flatten(1).norm(dim=1)
    return found
