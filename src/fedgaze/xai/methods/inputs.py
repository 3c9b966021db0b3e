"""Methods that judge each number of an image by the score's gradients there, at one image or many.

Gradients are added up as they come, a chunk of variants at a time: what is held beside a chunk does
not grow with the number of steps or samples.
"""

from collections.abc import Callable
from math import isfinite

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.methods.paths import baseline_of, quadrature
from fedgaze.xai.runner import Runner

__all__ = [
    "at_least",
    "input_x_gradient",
    "integrated_gradients",
    "noisy",
    "saliency",
    "smooth_grad",
    "var_grad",
]


def saliency(runner: Runner) -> Tensor:
    """The gradient of the score at the image.

    ``dS/dx``: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks: Visualising
    Image Classification Models and Saliency Maps", ICLR workshop 2014, Eq. 3-4; their map is the
    greatest absolute value over the channels of a pixel (Section 3.1). S is the class's logit.

    Captum and the map of this function differ in one thing: there the channels stay apart.

    Returns:
        ``(N, S, C, *size)``, signed.
    """
    return torch.cat([wide(g) for _, _, g in runner.gradients(None)])


def input_x_gradient(runner: Runner) -> Tensor:
    """Each number of the image times its gradient.

    ``x dS/dx``: Shrikumar et al., "Not Just a Black Box: Learning Important Features Through
    Propagating Activation Differences", arXiv 1605.01713, 2016. In a network of rectifiers without
    biases these add up to the score. What is multiplied are the preprocessed images: a number that
    preprocessing makes zero gets zero.

    Returns:
        ``(N, S, C, *size)``, signed.
    """
    return saliency(runner) * wide(runner.images)[:, None]


def integrated_gradients(
    runner: Runner,
    *,
    steps: int = 50,
    baseline: float | str | Tensor = 0.0,
    rule: str = "gausslegendre",
) -> Tensor:
    """The gradients along the straight way from a baseline to the image, times its length.

    ``(x - x') ∫₀¹ dS/dx (x' + a (x - x')) da``: Sundararajan, Taly and Yan, "Axiomatic Attribution
    for Deep Networks", ICML 2017, Eq. 1. Attributions add up to ``S(x) - S(x')`` (completeness, its
    Proposition 1), as nearly as the sum over the steps is the integral.

    The paper's sum (Eq. 3) is ``riemann_right``, which is off by as much as one step changes the
    gradient; Gauss-Legendre nodes, which are Captum's default too, come closer with as few steps.

    Args:
        runner: The model and images.
        steps: In how many points the gradient is taken.
        baseline: x': a number; ``"mean"`` (of each image and channel) or ``"blur"`` (the image
            itself, blurred); or a tensor that broadcasts to ``(C, *size)``. In terms of what the
            model is given: 0 is usually the mean colour of the training images, not black.
        rule: How the integral becomes a sum: ``"gausslegendre"``, ``"trapezoid"``, or
            ``"riemann_right"``.

    Returns:
        ``(N, S, C, *size)``, signed.

    Raises:
        FedgazeError: An option has a value that is not allowed.
    """
    nodes, weights = quadrature(rule, at_least("steps", steps, 1))
    origin = wide(baseline_of(runner.images, baseline))
    way = wide(runner.images) - origin
    places = nodes.to(way)

    def make(n: Tensor, v: Tensor) -> Tensor:
        return (origin[n] + _as(places[v], way) * way[n]).to(runner.images.dtype)

    return way[:, None] * _total(runner, make, weights.to(way))


def smooth_grad(runner: Runner, *, samples: int = 50, noise: float = 0.15) -> Tensor:
    """The mean gradient of noisy versions of the image.

    ``1/n sum_v dS/dx (x + e_v)`` with ``e_v`` from a normal distribution: Smilkov et al.,
    "SmoothGrad: Removing Noise by Adding Noise", ICML workshop 2017, Section 3. The defaults are in
    the range that the paper recommends. The same noise is added to all images, times the range of
    each, so that results repeat and do not depend on what else is in the batch.

    Captum's ``stdevs`` is the standard deviation itself, not a share of the range.

    Args:
        runner: The model and images.
        samples: How many noisy versions: n.
        noise: Standard deviation as a share of the image's greatest less its least number.

    Returns:
        ``(N, S, C, *size)``, signed.

    Raises:
        FedgazeError: An option has a value that is not allowed.
    """
    count = at_least("samples", samples, 1)
    shares = torch.full((count,), 1 / count, device=runner.images.device)
    return _total(runner, noisy(runner, noise), shares)


def var_grad(runner: Runner, *, samples: int = 50, noise: float = 0.15) -> Tensor:
    """The variance of the gradients of noisy versions of the image.

    ``1/n sum_v (g_v - mean g)²`` for the gradients ``g_v`` of `smooth_grad`: Adebayo et al., "Local
    Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter Values", ICLR
    workshop 2018, Section 2 (VarGrad).

    Args:
        runner: The model and images.
        samples: How many noisy versions: n, at least 2.
        noise: As for `smooth_grad`.

    Returns:
        ``(N, S, C, *size)``, not negative.

    Raises:
        FedgazeError: An option has a value that is not allowed.
    """
    count = at_least("samples", samples, 2)
    first = total = squares = torch.empty(0)
    for n, v, gradients in runner.gradients(noisy(runner, noise), count):
        g = wide(gradients)
        if not len(first):
            first, total, squares = (g.new_zeros(len(runner), *g.shape[1:]) for _ in range(3))
        # Less the first, or where the mean is large, nothing of the variance would remain.
        leads = v == 0
        first[n[leads]] = g[leads]
        g = g - first[n]
        total.index_add_(0, n, g)
        squares.index_add_(0, n, g.square_())
    return (squares / count - (total / count).square_()).relu_()


def noisy(runner: Runner, noise: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Make variants of images by adding normal noise; see `smooth_grad`.

    Raises:
        FedgazeError: The noise is no positive number or zero.
    """
    number = isinstance(noise, (int, float)) and not isinstance(noise, bool)
    if not number or not isfinite(noise) or noise < 0:
        raise FedgazeError(
            f"noise is {noise!r}; allowed is a share of the image's range, 0 or more, such as 0.15"
        )
    images = runner.images
    every = tuple(range(1, images.dim()))
    with torch.no_grad():
        deviation = noise * (images.amax(every, keepdim=True) - images.amin(every, keepdim=True))

    def make(n: Tensor, v: Tensor) -> Tensor:
        return images[n] + deviation[n] * runner.noise(v)

    return make


def at_least(what: str, value: int, least: int) -> int:
    """Check an option that counts something.

    Raises:
        FedgazeError: It is no whole number, or too small.

    >>> at_least("steps", 20, 1)
    20
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FedgazeError(f"{what} is {value!r}; allowed is a whole number, {least} or more")
    return value


def _total(runner: Runner, make: Callable[[Tensor, Tensor], Tensor], weights: Tensor) -> Tensor:
    """The weighted sum ``(N, S, C, *size)`` of the gradients at as many variants as weights."""
    total = torch.empty(0)
    for n, v, gradients in runner.gradients(make, len(weights)):
        g = wide(gradients)
        if not len(total):
            total = g.new_zeros(len(runner), *g.shape[1:])
        total.index_add_(0, n, g * _as(weights[v], g))
    return total


def _as(values: Tensor, like: Tensor) -> Tensor:
    """Numbers ``(m,)``, to be broadcast against tensors of m rows."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
