"""Where a way from a baseline to an image begins, and in which points it is looked at."""

from collections.abc import Callable
from math import isfinite

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.errors import FedgazeError, nearest

__all__ = ["BASELINES", "RULES", "baseline_of", "blurred", "quadrature"]


def baseline_of(images: Tensor, baseline: float | str | Tensor) -> Tensor:
    """Make what images are compared with.

    Args:
        images: ``(N, C, *size)``.
        baseline: A number for all; the name of one of `BASELINES`; or a tensor that broadcasts to
            ``(C, *size)``.

    Returns:
        ``(N, C, *size)``, without a graph.

    Raises:
        FedgazeError: There is no such baseline, or it does not have the images' shape.

    >>> baseline_of(torch.tensor([[[1.0, 3.0]]]), "mean")
    tensor([[[2., 2.]]])
    """
    images = images.detach()
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise FedgazeError(
                f"there is no baseline {baseline!r}; allowed are a number, a tensor, "
                f"{', '.join(BASELINES)}{nearest(baseline, BASELINES)}"
            )
        return BASELINES[baseline](images)
    if isinstance(baseline, Tensor):
        shape = tuple(images.shape[1:])
        try:
            return baseline.detach().to(images).expand(shape).expand_as(images)
        except RuntimeError:
            raise FedgazeError(
                f"the baseline has the shape {tuple(baseline.shape)}; allowed is what broadcasts "
                f"to {shape}, the same for all images"
            ) from None
    if isinstance(baseline, bool) or not isinstance(baseline, (int, float)):
        raise FedgazeError(
            f"baseline is {baseline!r}; allowed are a number, a tensor, {', '.join(BASELINES)}"
        )
    if not isfinite(baseline):
        raise FedgazeError(f"baseline is {baseline}; allowed is a finite number")
    return torch.full_like(images, baseline)


def blurred(images: Tensor, share: float = 0.0625) -> Tensor:
    """Blur images ``(N, C, *size)`` by a Gaussian.

    Args:
        images: What to blur.
        share: The standard deviation as a share of each side. Borders are continued outwards.
    """
    dims = images.dim() - 2
    convolve: Callable[[Tensor, Tensor], Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    flat = images.flatten(0, 1)[:, None]
    for axis, side in enumerate(images.shape[2:]):
        deviation = share * side
        reach = max(1, round(3 * deviation))
        places = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = torch.exp(-((places / deviation) ** 2) / 2)
        shape = [1] * (dims + 2)
        shape[axis + 2] = -1
        margin = [0, 0] * dims
        margin[2 * (dims - 1 - axis)] = margin[2 * (dims - 1 - axis) + 1] = reach
        kernel = (kernel / kernel.sum()).to(flat).view(shape)
        flat = convolve(F.pad(flat, margin, mode="replicate"), kernel)
    return flat.view_as(images)


def _mean(images: Tensor) -> Tensor:
    return images.mean(tuple(range(2, images.dim())), keepdim=True).expand_as(images)


def _noise(images: Tensor) -> Tensor:
    """Normal numbers with the mean and deviation of each channel; the same for all images."""
    every = tuple(range(2, images.dim()))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(images.shape[1:], generator=generator).to(images)
    return images.mean(every, keepdim=True) + images.std(every, keepdim=True) * drawn


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _mean,
    "blur": blurred,
    "noise": _noise,
}


def quadrature(rule: str, count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights that make a sum of an integral from 0 to 1.

    Args:
        rule: One of `RULES`. ``"gausslegendre"`` is exact for polynomials of degree 2 count - 1,
            ``"trapezoid"`` for lines, ``"riemann_right"`` takes the right end of each of count
            parts.
        count: How many nodes.

    Returns:
        Two of ``(count,)``, float64; the weights add up to 1.

    Raises:
        FedgazeError: There is no such rule, or it needs more nodes.

    >>> quadrature("trapezoid", 3)[1].tolist()
    [0.25, 0.5, 0.25]
    """
    if rule not in RULES:
        raise FedgazeError(
            f"there is no rule {rule!r}; allowed are {', '.join(RULES)}{nearest(str(rule), RULES)}"
        )
    return RULES[rule](count)


def _gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    # Golub and Welsch, Math. Comp. 1969: eigenvalues and first components of the eigenvectors of
    # the matrix of the three-term recurrence.
    k = torch.arange(1, count, dtype=torch.float64)
    beside = k / (4 * k**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return (nodes + 1) / 2, vectors[0] ** 2


def _trapezoid(count: int) -> tuple[Tensor, Tensor]:
    if count < 2:
        raise FedgazeError(f"steps is {count}; the trapezoid rule needs 2 or more")
    weights = torch.full((count,), 1 / (count - 1), dtype=torch.float64)
    weights[0] = weights[-1] = weights[0] / 2
    return torch.linspace(0, 1, count, dtype=torch.float64), weights


def _riemann_right(count: int) -> tuple[Tensor, Tensor]:
    ends = torch.arange(1, count + 1, dtype=torch.float64) / count
    return ends, torch.full((count,), 1 / count, dtype=torch.float64)


RULES = {
    "gausslegendre": _gauss_legendre,
    "trapezoid": _trapezoid,
    "riemann_right": _riemann_right,
}
