"""Methods that explain a layer and take more than one way back, or none at all."""

import torch
from torch import Tensor

from fedgaze.xai.methods.baseline import random_map
from fedgaze.xai.methods.cam import weighted, wide
from fedgaze.xai.methods.higher import (
    exp_derivatives,
    shapley_weights,
    smooth_grad_cam_plus_plus_weights,
)
from fedgaze.xai.methods.inputs import at_least, noisy
from fedgaze.xai.methods.scores import finer_scores
from fedgaze.xai.runner import Runner

__all__ = ["finer", "random", "shapley_cam", "smooth_grad_cam_plus_plus"]


def finer(
    logits: Tensor,
    classes: Tensor,
    *,
    alpha: float = 0.6,
    count: int = 3,
    weighting: str = "mean",
) -> Tensor:
    """The score that Finer-CAM explains; see `finer_scores`."""
    return finer_scores(logits, classes, alpha=alpha, count=count, weighting=weighting)


def shapley_cam(runner: Runner, *, average: bool = True) -> Tensor:
    """The map of `shapley_weights`; signed.

    Args:
        runner: The model and images; its scores are `rest_scores`.
        average: See `shapley_weights`.

    Returns:
        ``(N, S, *s)``.
    """
    activations, gradients, products = runner.curvature()
    maps = [
        weighted(activations, shapley_weights(activations, g, h, average=average), relu=False)
        for g, h in zip(gradients.unbind(1), products.unbind(1), strict=True)
    ]
    return torch.stack(maps, dim=1)


def smooth_grad_cam_plus_plus(
    runner: Runner, *, samples: int = 20, noise: float = 0.15, numerator: str = "first"
) -> Tensor:
    """The map of `smooth_grad_cam_plus_plus_weights`; signed.

    The averages are those of exp(S) g, exp(S) g² and exp(S) g³ over noisy images, divided by the
    average of exp(S), which scales the map and keeps it from overflowing. The paper leaves samples
    and noise to the user; noise is added as in `smooth_grad`. torchcam (as of 0.5) adds noise of a
    standard deviation of 0.3, whatever the range of the image.

    Args:
        runner: The model and images.
        samples: How many noisy versions.
        noise: Standard deviation as a share of the image's greatest less its least number.
        numerator: See `smooth_grad_cam_plus_plus_weights`.

    Returns:
        ``(N, S, *s)``.
    """
    activations = wide(runner.captured(gradients=False).activations)
    count = at_least("samples", samples, 1)
    highest = torch.full_like(wide(runner.clean), -torch.inf)  # of the scores seen so far
    mass = torch.zeros_like(highest)
    sums: list[Tensor] = []
    for n, _, scores, pair in runner.captured_at(noisy(runner, noise), count):
        if pair.gradients is None:
            raise RuntimeError("gradients were asked for")
        g = wide(pair.gradients)
        sums = sums or [g.new_zeros(len(runner), *g.shape[1:]) for _ in range(3)]
        # As in a softmax that is made piece by piece: what was added up is brought to the new
        # highest score before more is added.
        index = n[:, None].expand(-1, highest.shape[1])
        before, highest = highest, highest.scatter_reduce(0, index, wide(scores), "amax")
        # Where nothing came yet, both are minus infinity.
        factor = torch.where(before == highest, 1, (before - highest).exp())
        mass = (mass * factor).index_add(0, n, (wide(scores) - highest[n]).exp())
        derivatives = exp_derivatives(g.flatten(0, 1), (wide(scores) - highest[n]).flatten())
        for total, each in zip(sums, derivatives, strict=True):
            total.mul_(factor.view(*factor.shape, *[1] * (total.dim() - 2)))
            total.index_add_(0, n, each.unflatten(0, g.shape[:2]))
    mass = mass.view(*mass.shape, *[1] * (sums[0].dim() - 2))
    maps = []
    for first, second, third in zip(*((each / mass).unbind(1) for each in sums), strict=True):
        weights = smooth_grad_cam_plus_plus_weights(
            first, second, third, activations, numerator=numerator
        )
        maps.append(weighted(activations, weights, relu=False))
    return torch.stack(maps, dim=1)


def random(runner: Runner, *, seed: int = 0, over: str = "positions") -> Tensor:
    """A map of random numbers; see `random_map`.

    It depends on the image and the seed, and on nothing else: not on the batch, and with
    ``over="positions"`` not on the model either.

    Args:
        runner: The model and images.
        seed: Another one, another map.
        over: See `random_map`.

    Returns:
        ``(N, S, *s)``.
    """
    activations = runner.captured(gradients=False).activations
    seeds = (_digest(runner.images) + at_least("seed", seed, 0)).tolist()
    maps = [
        random_map(each[None], generator=runner.generator(int(own)), over=over)
        for each, own in zip(activations, seeds, strict=True)
    ]
    return torch.cat(maps)[:, None].expand(-1, runner.clean.shape[1], *activations.shape[2:])


def _digest(images: Tensor) -> Tensor:
    """A whole number ``(N,)`` for each image, of 48 bits, that any change of a pixel changes."""
    bits = images.detach().flatten(1).contiguous()
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()]
    numbers = bits.view(whole).long()
    # Odd factors that differ from place to place; sums of whole numbers do not depend on the order.
    places = torch.arange(numbers.shape[1], device=images.device)
    factors = (places * 0x9E3779B97F4A7C1 + 0x2545F4914F6CDD1D) | 1
    mixed = (numbers + places) * factors
    mixed = (mixed ^ (mixed >> 29)) * 0x1D8E4E27C47D124F
    return mixed.sum(1) & (2**48 - 1)
