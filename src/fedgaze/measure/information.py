"""SIC and AIC: how soon the model knows the class again while a blurred image gets sharp."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.measure.composite import classes_of
from fedgaze.measure.perturbation import check_maps, parts_of, ranks, where_defined
from fedgaze.xai import Runner, baseline_of

__all__ = ["aic", "information", "sic"]

SHARES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.21, 0.34, 0.5, 0.75)


def sic(
    runner: Runner, heatmaps: Tensor, pictures: Tensor, *, shares: Sequence[float] = SHARES
) -> Tensor:
    """The area under the probability of the class over the information that the image holds.

    Softmax information curve: Kapishnikov et al., "XRAI: Better Attributions Through Regions",
    ICCV 2019. The strongest pixels are brought back into the blurred image. What is
    then seen holds as much information as its compressed file has bytes. Information and
    probability are scaled so that they are 0 for the blurred and 1 for the whole image, and the
    probability is the highest so far, as in the authors' code. They blur by interpolation between
    random pixels, here it is a Gaussian; and the paper takes the median over images of each point
    of the curve before its area.

    Args:
        runner: The model, images and classes.
        heatmaps: ``(N, H, W)``.
        pictures: ``(N, C, H, W)``, grey or RGB, in [0, 1]: the images before normalisation.
        shares: Of the pixels that are brought back.

    Returns:
        ``(N,)`` in [0, 1], higher is better; NaN where the model is no surer of the image than of
        its blurred version, or blurring takes no information. Costs shares + 2.

    Raises:
        FedgazeError: The pictures are not those of the images.
    """
    logits, known = _curves(runner, heatmaps, pictures, shares)
    wanted = classes_of(runner)[:, None, None].expand(-1, logits.shape[1], 1)
    chances = logits.softmax(2).gather(2, wanted)[:, :, 0]
    return _area(chances, known, heatmaps)


def aic(
    runner: Runner, heatmaps: Tensor, pictures: Tensor, *, shares: Sequence[float] = SHARES
) -> Tensor:
    """The share of the information from which on the model names the class.

    Accuracy information curve: as `sic`, with 1 in the place of the probability where the class is
    the likeliest one, else 0.

    Returns:
        ``(N,)`` in [0, 1], higher is better; NaN where the model does not name the class for the
        image, names it for its blurred version, or blurring takes no information. Costs shares + 2.

    Raises:
        FedgazeError: The pictures are not those of the images.
    """
    logits, known = _curves(runner, heatmaps, pictures, shares)
    named = logits.argmax(2) == classes_of(runner)[:, None]
    return _area(named.float(), known, heatmaps)


def information(pictures: Tensor) -> Tensor:
    """How many bytes pictures take as lossless WebP.

    Args:
        pictures: ``(N, C, H, W)``, grey or RGB, in [0, 1].

    Returns:
        ``(N,)``, on the pictures' device.
    """
    pixels = pictures.detach().mul(255).round().clamp(0, 255).byte().cpu()
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()

    def size(each: Tensor) -> int:
        held = io.BytesIO()
        Image.fromarray(each.numpy()).save(held, "WEBP", lossless=True, quality=0, method=0)
        return held.tell()

    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(size, pixels.unbind(0)))
    return torch.tensor(sizes, dtype=torch.float32, device=pictures.device)


def _curves(
    runner: Runner, heatmaps: Tensor, pictures: Tensor, shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Logits ``(N, steps, classes)`` and information ``(N, steps)``, from blurred to whole."""
    check_maps(runner, heatmaps)
    images = runner.images
    if pictures.shape[0] != len(images) or pictures.shape[2:] != images.shape[2:]:
        raise FedgazeError(
            f"pictures have the shape {tuple(pictures.shape)}; allowed is one of "
            f"{tuple(images.shape[2:])} an image"
        )
    pixels = heatmaps[0].numel()
    some = parts_of(sorted(shares), pixels, heatmaps.device)
    cuts = torch.cat([torch.zeros_like(some[:1]), some, torch.full_like(some[:1], pixels)])
    place = ranks(heatmaps)

    def shown(whole: Tensor, blurred: Tensor, n: Tensor, v: Tensor) -> Tensor:
        back = (place[n] < cuts[v][:, None]).view(-1, 1, *heatmaps.shape[1:])
        return torch.where(back, whole[n], blurred[n])

    blurred = baseline_of(images, "blur")
    logits = runner.logits_at(lambda n, v: shown(images, blurred, n, v), len(cuts))
    seen = baseline_of(pictures, "blur")
    steps = torch.arange(len(cuts), device=heatmaps.device)
    sizes = [
        information(shown(pictures, seen, torch.full_like(steps, row), steps))
        for row in range(len(images))
    ]
    return logits, torch.stack(sizes)


def _area(values: Tensor, known: Tensor, heatmaps: Tensor) -> Tensor:
    def scaled(each: Tensor) -> Tensor:
        return ((each - each[:, :1]) / (each[:, -1:] - each[:, :1])).clamp(0, 1)

    gains = (values[:, -1] > values[:, 0]) & (known[:, -1] > known[:, 0])
    best = scaled(values).cummax(1).values
    # More pixels may compress better: what was known stays known.
    share = scaled(known).cummax(1).values
    area = torch.trapezoid(best, share, dim=1)
    return where_defined(area.masked_fill(~gains, torch.nan), heatmaps)
