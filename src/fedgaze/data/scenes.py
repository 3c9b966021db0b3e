"""Images of which it is known what decides: grids of images, scenes of digits, planted marks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.data.dataset import Images, StackedImages
from fedgaze.data.mark import MARK_SIZE, marks_of
from fedgaze.errors import FedgazeError

__all__ = ["Grids", "Scenes", "make_grids", "make_scenes", "scatter_digits"]

_CELLS = 3
_CANVAS, _DIGIT, _PIECE, _PIECES = 32, 16, 6, 6


@dataclass(frozen=True, eq=False)
class Grids:
    """Images of several classes, laid out as one image.

    Attributes:
        images: ``(M, C, n H, n W)``.
        labels: ``(M, n n)``: the class of each cell, row by row; no two of a grid are alike.
    """

    images: Tensor
    labels: Tensor

    def masks(self) -> Tensor:
        """Where each cell lies: bool ``(M, n n, n H, n W)``."""
        count, cells = self.labels.shape
        side = round(cells**0.5)
        height, width = (length // side for length in self.images.shape[2:])
        numbers = torch.arange(cells, device=self.labels.device).view(side, side)
        place = numbers.repeat_interleave(height, 0).repeat_interleave(width, 1)
        each = torch.arange(cells, device=self.labels.device)[:, None, None]
        return (place == each)[None].expand(count, -1, -1, -1)


def make_grids(
    images: Tensor, labels: Tensor, count: int, *, side: int = 2, seed: int = 0
) -> Grids:
    """Lay images of different classes out in grids: what speaks for a class lies in its cell.

    The localisation metric of Böhle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks
    for Interpretable Classifications", CVPR 2021 (the grid pointing game): of the positive
    attribution for a cell's class, the share within the cell. Give images that the model is sure
    of; the model has to take images of n times the size.

    Args:
        images: ``(N, C, H, W)``.
        labels: ``(N,)``.
        count: How many grids.
        side: n, cells a side.
        seed: Of the choice.

    Raises:
        FedgazeError: There are fewer classes than cells.
    """
    classes, held = labels.cpu().unique(return_counts=True)
    cells = side * side
    if len(classes) < cells:
        raise FedgazeError(
            f"a grid of {side} × {side} needs {cells} classes; there are {len(classes)}"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, len(classes), generator=generator).argsort(1)[:, :cells]
    chosen = classes[drawn]
    luck = (torch.rand(count, cells, generator=generator) * held[drawn]).long()
    picked = labels.cpu().argsort(stable=True)[(held.cumsum(0) - held)[drawn] + luck]
    tiles = images[picked.to(images.device)]
    rows = tiles.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)
    whole = rows.reshape(count, images.shape[1], side * images.shape[2], side * images.shape[3])
    return Grids(whole, chosen.to(labels.device))


@dataclass(frozen=True, eq=False)
class Scenes:
    """Several digits on one canvas and, perhaps, a mark.

    Attributes:
        images: ``(M, 1, 66, 66)`` in [0, 1].
        labels: ``(M, K)``: the digits' classes; no two of a scene are alike.
        boxes: ``(M, K, 4)``: left, top, right, bottom, the last two exclusive.
        marks: ``(M,)``: the class of the mark; -1 where there is none.
        mark_boxes: ``(M, 4)``; NaN where there is none.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor
    marks: Tensor
    mark_boxes: Tensor

    def present(self, classes: int = 10) -> Tensor:
        """Which digits are in each scene: float ``(M, classes)``, 0 or 1."""
        return torch.zeros(len(self.labels), classes).scatter_(1, self.labels, 1.0)


def make_scenes(
    digits: Images, count: int, *, each: int = 3, marked: bool = False, seed: int = 0
) -> Scenes:
    """Lay digits out on a canvas, each somewhere else, so that it is known where each one is.

    With marks, the class of a scene is that of its mark, one of ten patterns of 3 × 3 cells that
    lies where no digit does, and the digits, drawn without regard to it, say nothing: a model that
    knows the class can only have seen the mark.

    Args:
        digits: Images of digits, of 24 × 24 pixels with a border of 4, as `load_digits` has them.
        count: How many scenes.
        each: K, how many digits are in one: up to 9, or 8 beside a mark.
        marked: Whether there is a mark.
        seed: Of all that is drawn.

    Raises:
        FedgazeError: There is no room for so many.
    """
    room = _CELLS**2 - int(marked)
    if not 1 <= each <= room:
        raise FedgazeError(f"each is {each}; allowed is 1 to {room} digits a scene")
    generator = torch.Generator().manual_seed(seed)
    source = make_grids(
        digits[torch.arange(len(digits.labels))], digits.labels, count, side=3, seed=seed
    )
    labels = source.labels[:, :each]
    tiles = source.images.unfold(2, 24, 24).unfold(3, 24, 24).flatten(2, 3)[:, :, :each]
    small = tiles[..., 4:-4, 4:-4]
    cell, side = 22, 22 * _CELLS
    free = torch.rand(count, _CELLS**2, generator=generator).argsort(1)
    shift = torch.randint(0, cell - 16 + 1, (count, each, 2), generator=generator)
    corner = torch.stack([free[:, :each] // _CELLS, free[:, :each] % _CELLS], 2) * cell + shift
    canvas = torch.zeros(count, 1, side, side)
    _paste(canvas, small, corner)
    boxes = torch.cat([corner.flip(2), corner.flip(2) + 16], 2).float()
    marks = torch.full((count,), -1)
    mark_boxes = torch.full((count, 4), torch.nan)
    if marked:
        marks = torch.randint(0, 10, (count,), generator=generator)
        where = torch.stack([free[:, each] // _CELLS, free[:, each] % _CELLS], 1) * cell
        where += torch.randint(0, cell - MARK_SIZE + 1, (count, 2), generator=generator)
        _paste(canvas, marks_of(marks)[:, :, None], where[:, None])
        mark_boxes = torch.cat([where.flip(1), where.flip(1) + MARK_SIZE], 1).float()
    return Scenes(canvas, labels, boxes, marks, mark_boxes)


def scatter_digits(digits: Images, generator: torch.Generator) -> StackedImages:
    """Lay each digit somewhere on a canvas of its own, among faint things that are no digit.

    The background is smooth noise, up to a tenth of white, and six pieces of the strokes of other
    images, 6 × 6 pixels each at 0.2 to 0.4 of their brightness.

    Args:
        digits: Images of digits, of 24 × 24 pixels with a border of 4, as `load_digits` has them.
        generator: Of all that is drawn.

    Returns:
        ``(N, 1, 32, 32)`` in [0, 1] with the digits' labels and boxes.
    """
    count = len(digits.labels)
    small = digits[torch.arange(count)][..., 4:-4, 4:-4]

    def numbers(end: int, *shape: int) -> Tensor:
        return torch.randint(0, end, (count, *shape), generator=generator)

    coarse = 0.1 * torch.rand(count, 1, 6, 6, generator=generator)
    noise = F.interpolate(coarse, (_CANVAS, _CANVAS), mode="bilinear", align_corners=True)
    windows = small.unfold(2, _PIECE, 1).unfold(3, _PIECE, 1)[:, 0]
    row, column = numbers(windows.shape[1], _PIECES), numbers(windows.shape[2], _PIECES)
    pieces = windows[numbers(count, _PIECES), row, column]
    faint = 0.2 + 0.2 * torch.rand(count, _PIECES, 1, 1, generator=generator)
    canvas = torch.zeros(count, 1, _CANVAS, _CANVAS)
    _paste(canvas, (faint * pieces)[:, None], numbers(_CANVAS - _PIECE + 1, _PIECES, 2))
    corner = numbers(_CANVAS - _DIGIT + 1, 1, 2)
    whole = torch.zeros_like(canvas)
    _paste(whole, small[:, :, None], corner)
    left_top = corner[:, 0].flip(1)
    boxes = torch.cat([left_top, left_top + _DIGIT], 1)
    return StackedImages(torch.maximum(torch.maximum(canvas, noise), whole), digits.labels, boxes)


def _paste(canvas: Tensor, tiles: Tensor, corner: Tensor) -> None:
    """Put tiles ``(M, 1, K, h, w)`` onto canvases ``(M, 1, H, W)`` at ``(M, K, 2)``, in place."""
    count, _, each, height, width = tiles.shape
    rows = corner[..., 0, None, None] + torch.arange(height)[:, None]
    columns = corner[..., 1, None, None] + torch.arange(width)
    scene = torch.arange(count)[:, None, None, None].expand(count, each, height, width)
    canvas[scene, 0, rows.expand_as(scene), columns.expand_as(scene)] = tiles[:, 0]
