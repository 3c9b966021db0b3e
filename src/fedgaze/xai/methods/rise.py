"""RISE: the mean of random masks, each weighted by the score of what it keeps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.methods.inputs import at_least
from fedgaze.xai.methods.masks import masked
from fedgaze.xai.runner import Runner

__all__ = ["RandomMasks", "rise"]

_AT_ONCE = 64


def rise(
    runner: Runner,
    *,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    probability: bool = True,
) -> Tensor:
    """Average random masks, each weighted by the score of the image behind it.

    ``S = 1 / (E[M] N) sum_i f(I M_i) M_i``: Petsiuk, Das and Saenko, "RISE: Randomized Input
    Sampling for Explanation of Black-box Models", BMVC 2018, Eq. 6, with ``E[M] = p``, the same at
    every pixel. It is an unbiased estimate of the mean score over masks that keep a pixel, whose
    standard error falls with the square root of the number of masks. The model may be a black box:
    it has one forward pass a mask.

    f is the probability of the class; of targets that are no classes, their score. A score that can
    be negative, or that is high whatever is shown, drowns the map in the noise of the masks.

    Args:
        runner: The model and images.
        masks: N. The paper has 4000 for VGG-16, and 8000 for ResNet-50.
        cells: In each direction of the grid that masks are made from; see `RandomMasks`.
        keep: p: the probability that a cell is kept.
        seed: Of the masks. They are the same for all images and however these are batched.
        probability: Whether f is the probability of a class, where a class is explained.

    Returns:
        ``(N, S, *size)``, not negative where f is not.

    Raises:
        FedgazeError: An option is out of its range.
    """
    at_least("masks", masks, 1)
    drawn = RandomMasks(
        masks, cells, keep, runner.images.shape[2:], runner.generator(at_least("seed", seed, 0))
    )

    def behind(n: Tensor, v: Tensor) -> Tensor:
        return masked(runner.images, n, drawn(v))

    scores = wide(runner.scores(behind, masks, probability=probability))
    found = scores.new_zeros(*scores.shape[:2], *drawn.size)
    for v in torch.arange(masks, device=scores.device).split(_AT_ONCE):
        found += torch.einsum("nsm,m...->ns...", scores[:, :, v], drawn(v).to(scores.dtype))
    return found / (keep * masks)


class RandomMasks:
    """Random masks, made when they are asked for.

    A grid of cells that are each kept (1) with a probability p, or not (0), is enlarged linearly by
    one cell more than the image has, and the image's part of it is cut out at random: section 3.2
    of the paper. A cell has ``ceil(H / cells)`` pixels, as in the authors' code; the paper's floor
    is the same where the cells divide the image, and would leave too little elsewhere. So each
    pixel is kept with the expectation p.

    Args:
        count: How many.
        cells: In each direction.
        keep: p, above 0 and below 1, or 1.
        size: Of the images: ``(H, W)``, or ``(D, H, W)``.
        generator: Draws the cells and where they are cut.

    Raises:
        FedgazeError: An argument is out of its range.

    >>> RandomMasks(5, 2, 0.5, (8, 8), torch.Generator())(torch.tensor([3, 0])).shape
    torch.Size([2, 8, 8])
    """

    def __init__(
        self,
        count: int,
        cells: int,
        keep: float,
        size: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        at_least("cells", cells, 1)
        if not 0 < keep <= 1:
            raise FedgazeError(f"keep is {keep}; allowed is a probability above 0")
        self.size = tuple(size)
        device = generator.device
        grid = torch.rand(count, *[cells] * len(self.size), generator=generator, device=device)
        self._kept = (grid < keep).to(torch.float32)
        cell = [-(-length // cells) for length in self.size]
        self._cuts = [
            torch.randint(each, (count,), generator=generator, device=device) for each in cell
        ]
        self._enlarge = [
            _enlarging(length, each, cells, device)
            for length, each in zip(self.size, cell, strict=True)
        ]

    def __call__(self, v: Tensor) -> Tensor:
        """The masks ``v (m,)``: ``(m, *size)`` in [0, 1], float32."""
        made = self._kept[v]
        for dim, (cuts, enlarge) in enumerate(zip(self._cuts, self._enlarge, strict=True), start=1):
            flat = made.movedim(dim, -1).flatten(1, -2)
            larger = torch.bmm(flat, enlarge[cuts[v]])
            shape = [each for at, each in enumerate(made.shape) if at != dim]
            made = larger.unflatten(1, shape[1:]).movedim(-1, dim)
        return made


def _enlarging(length: int, cell: int, cells: int, device: torch.device) -> Tensor:
    """Linear enlargement by matrices ``(cell, cells, length)``, one for each place of the cut."""
    cut = torch.arange(cell, device=device)[:, None, None]
    pixel = torch.arange(length, device=device)
    read = (pixel + cut + 0.5) * cells / ((cells + 1) * cell) - 0.5
    which = torch.arange(cells, device=device)[:, None]
    return (1 - (read.clamp(0, cells - 1) - which).abs()).clamp(min=0)
