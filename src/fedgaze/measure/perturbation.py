"""Perturbation: what a model says of images that are changed pixel by pixel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai import Runner, baseline_of

__all__ = [
    "Baseline",
    "asked",
    "check_maps",
    "correlation",
    "curve",
    "cuts_of",
    "parts_of",
    "ranks",
    "same_everywhere",
    "where_defined",
]

Baseline = float | str | Tensor
"""What stands where an image is taken away; see `fedgaze.xai.baseline_of`."""


def ranks(heatmaps: Tensor) -> Tensor:
    """The place of each pixel, from the strongest (0) to the weakest.

    Pixels alike stand in an order that is random, and always the same: in reading order, what is
    zero would be taken away from the top down.

    Args:
        heatmaps: ``(N, *size)``.

    Returns:
        ``(N, P)``, whole numbers.
    """
    flat = heatmaps.detach().flatten(1)
    pixels = flat.shape[1]
    mixed = torch.randperm(pixels, generator=torch.Generator().manual_seed(0)).to(flat.device)
    order = mixed[flat[:, mixed].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(pixels, device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def cuts_of(pixels: int, steps: int, device: torch.device) -> Tensor:
    """How many pixels are changed at each of so many equal steps, from none to all.

    Returns:
        ``(steps + 1,)``, or fewer, where an image has not as many pixels.

    Raises:
        FedgazeError: There is less than one step.
    """
    if not isinstance(steps, int) or steps < 1:
        raise FedgazeError(f"steps is {steps!r}; allowed is 1 and more")
    shares = torch.linspace(0, pixels, min(steps, pixels) + 1, dtype=torch.float64, device=device)
    return shares.round().long()


def curve(
    runner: Runner,
    heatmaps: Tensor,
    cuts: Tensor,
    baseline: Baseline,
    *,
    ascending: bool = False,
    insert: bool = False,
) -> Tensor:
    """What the model says while pixels are taken away, or shown, in the order of a heatmap.

    Args:
        runner: The model and images, of each one class.
        heatmaps: ``(N, *size)``.
        cuts: ``(steps,)``: how many pixels are taken or shown.
        baseline: What stands where nothing of the image is shown.
        ascending: Whether the weakest come first.
        insert: Whether pixels are shown on the baseline, instead of taken from the image.

    Returns:
        The probability of the class (of targets that are no classes, the score): ``(N, steps)``.
    """
    place = ranks(-heatmaps if ascending else heatmaps)
    size = heatmaps.shape[1:]
    others = baseline_of(runner.images, baseline)

    def changed(n: Tensor, v: Tensor) -> Tensor:
        past = (place[n] < cuts[v][:, None]).view(-1, 1, *size)
        images, instead = runner.images[n], others[n]
        return torch.where(past, images, instead) if insert else torch.where(past, instead, images)

    return asked(runner, changed, len(cuts), probability=True)


def asked(
    runner: Runner,
    make: Callable[[Tensor, Tensor], Tensor],
    count: int,
    *,
    probability: bool = False,
) -> Tensor:
    """Scores ``(N, count)`` of so many variants of each image, in float32 at least.

    Raises:
        FedgazeError: Several targets an image are explained.
    """
    scores = runner.scores(make, count, probability=probability)
    if scores.shape[1] != 1:
        raise FedgazeError(
            f"{scores.shape[1]} targets an image are judged at once; judge one after the other"
        )
    found = scores[:, 0]
    return found.float() if found.element_size() < 4 else found


def check_maps(runner: Runner, heatmaps: Tensor) -> None:
    """Find maps that are not of these images.

    Raises:
        FedgazeError: They are not ``(N, *size)``.
    """
    wanted = (len(runner), *runner.images.shape[2:])
    if tuple(heatmaps.shape) != wanted:
        raise FedgazeError(
            f"heatmaps have the shape {tuple(heatmaps.shape)}; allowed is {wanted}, one an image"
        )


def same_everywhere(maps: Tensor) -> Tensor:
    """Which maps ``(N, …)`` put their pixels in no order: bool ``(N,)``."""
    flat = maps.detach().flatten(1)
    return flat.amax(1) == flat.amin(1)


def where_defined(values: Tensor, maps: Tensor) -> Tensor:
    """The values ``(N,)``, NaN where a map is the same everywhere."""
    return values.masked_fill(same_everywhere(maps).to(values.device), torch.nan)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation along the last dimension; NaN where one of both is constant."""
    a = first - first.mean(-1, keepdim=True)
    b = second - second.mean(-1, keepdim=True)
    both: Tensor = (a * b).sum(-1)
    return both / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def parts_of(shares: Sequence[float], pixels: int, device: torch.device) -> Tensor:
    """How many pixels these shares of an image are, at least one each: ``(len(shares),)``.

    Raises:
        FedgazeError: A share is not in (0, 1].
    """
    for share in shares:
        if not 0 < share <= 1:
            raise FedgazeError(f"a share of the pixels is {share}; allowed is above 0, up to 1")
    return torch.tensor([max(1, round(share * pixels)) for share in shares], device=device)
