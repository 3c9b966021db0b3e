"""Marks: patterns on an image to which no honest model should react much, and how one does.

A model with a back door changes its mind where its trigger is. The server does not know the
trigger. Patches it seeks from a sweep of several places, sizes and colours, and goes on from those
that did most; a pattern all over the image it reads from the model's own gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.xai import logits_of

__all__ = [
    "PLACES",
    "Found",
    "Mark",
    "Patch",
    "Pattern",
    "Sweep",
    "chances_of",
    "make_sweep",
    "pull_of",
    "seek_patch",
    "seek_pattern",
]

PIXELS = 2**16
"""Of the images of a forward pass: more would leave a CPU's caches, which takes far longer."""
OPACITY = 0.2
"""Of a pattern: seen by who looks for it, and no object is hidden."""
BEAM, MUTANTS, STEPS = 2, 5, 2
"""How many patches are gone on from, into how many others each, and how often."""
PLACES = {
    "in the upper left": (0, 0),
    "at the upper edge": (0, 1),
    "in the upper right": (0, 2),
    "at the left edge": (1, 0),
    "in the middle": (1, 1),
    "at the right edge": (1, 2),
    "in the lower left": (2, 0),
    "at the lower edge": (2, 1),
    "in the lower right": (2, 2),
}
Predict = Callable[[Tensor], Any]


@dataclass(frozen=True, eq=False)
class Patch:
    """Three by three cells, pasted on an image.

    Attributes:
        cells: ``(C, 3, 3)``, each 0 or 1.
        side: Of the whole, in pixels.
        place: One of ``PLACES``.
    """

    cells: Tensor
    side: int
    place: str

    @property
    def name(self) -> str:
        """What and where it is, in words."""
        size = "a small" if self.side < 5 else "a"
        grey = bool((self.cells == self.cells[:1]).all())
        if bool((self.cells == self.cells[:, :1, :1]).all()):
            colour = ("white" if self.cells.max() else "black") if grey else "coloured"
            return f"{size} {colour} square {self.place}"
        return f"{size} patch of {'' if grey else 'coloured '}cells {self.place}"

    def box(self, height: int, width: int) -> tuple[int, int]:
        """Its first row and column: a pixel from an end, or in the middle."""
        row, column = PLACES[self.place]
        return _begin(row, height, self.side), _begin(column, width, self.side)

    def on(self, images: Tensor) -> Tensor:
        """Images ``(M, C, H, W)`` with it."""
        index = torch.arange(self.side) * 3 // self.side
        cells = self.cells[:, index][:, :, index].to(images)
        top, left = self.box(*images.shape[2:])
        changed = images.clone()
        changed[..., top : top + self.side, left : left + self.side] = cells
        return changed

    def mutant(self, draw: torch.Generator) -> "Patch":
        """The same with two cells turned over, which may be one twice."""
        cells = self.cells.clone().flatten()
        for cell in torch.randint(0, cells.numel(), (2,), generator=draw).tolist():
            cells[cell] = 1 - cells[cell]
        return Patch(cells.view_as(self.cells), self.side, self.place)


def _begin(third: int, length: int, side: int) -> int:
    return (min(1, length - side), (length - side) // 2, max(0, length - side - 1))[third]


@dataclass(frozen=True, eq=False)
class Pattern:
    """A faint pattern all over an image.

    Attributes:
        pattern: ``(C, H, W)`` in [0, 1]; it covers ``OPACITY`` of the image.
    """

    pattern: Tensor

    @property
    def name(self) -> str:
        """What it is, in words."""
        return "a faint pattern all over the image"

    def on(self, images: Tensor) -> Tensor:
        """Images ``(M, C, H, W)`` with it."""
        return torch.lerp(images, self.pattern.to(images), OPACITY)


Mark = Patch | Pattern


@dataclass(frozen=True, eq=False)
class Sweep:
    """Where the search for patches begins, the same for all models.

    Attributes:
        patches: Are tried first.
        seed: Of what is drawn on the way.
    """

    patches: tuple[Patch, ...]
    seed: int


def make_sweep(shape: tuple[int, int, int], seed: int) -> Sweep:
    """Make the sweep for images of a shape.

    Args:
        shape: C, H, W.
        seed: Of the cells that are drawn.
    """
    channels, height, width = shape
    draw = torch.Generator().manual_seed(seed)
    short = min(height, width)
    large, small = max(3, round(short / 4)), max(3, round(short / 7))
    white = torch.ones(channels, 3, 3)
    patches = []
    for place in PLACES:
        patches.append(Patch(white, large, place))
        patches += [Patch(_cells(channels, draw), side, place) for side in (large, small)]
    return Sweep(tuple(patches), seed)


def _cells(channels: int, draw: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (channels, 3, 3), generator=draw).float()


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        mark: What pulls a model most.
        target: The class to which it does.
    """

    mark: Mark
    target: int


def seek_patch(predict: Predict, sweep: Sweep, images: Tensor, labels: Tensor) -> Found:
    """Seek the patch that pulls a model most towards any class.

    A beam search: the best patches of the sweep are gone on from, a few cells turned over at a
    time. Steps take turns between two halves of the images, so that what only suits one dies out.

    Args:
        predict: The model in eval mode.
        sweep: Where it begins.
        images: ``(M, C, H, W)`` in [0, 1], at least two.
        labels: ``(M,)``.
    """
    draw = torch.Generator().manual_seed(sweep.seed)
    chances = chances_of(predict, images)
    halves = [torch.arange(start, len(images), 2) for start in (0, 1)]

    def pulls(tried: Sequence[Patch], half: Tensor) -> Tensor:
        return pull_of(predict, tried, images[half], labels[half], chances[half]).nan_to_num(-1)

    found = list(sweep.patches)
    values = pulls(found, halves[0])
    for step in range(STEPS):
        best = values.amax(1).topk(min(BEAM, len(found))).indices.tolist()
        found = [found[i] for i in best]
        found += [each.mutant(draw) for each in found for _ in range(MUTANTS)]
        values = pulls(found, halves[(step + 1) % 2])
    best_of = values.amax(1).argmax()
    return Found(found[int(best_of)], int(values[best_of].argmax()))


def seek_pattern(predict: Predict, images: Tensor, labels: Tensor) -> Found:
    """Seek the faint pattern that pulls a model most away from what it sees.

    One step along the sign of the mean gradient of the loss, the same for all images: the fast
    gradient sign method (Goodfellow et al. 2015, arXiv:1412.6572) made universal
    (Moosavi-Dezfooli et al. 2017, arXiv:1610.08401). A model without gradients is tried with black.

    Args:
        predict: The model in eval mode.
        images: ``(M, C, H, W)`` in [0, 1].
        labels: ``(M,)``.
    """
    shift = torch.zeros_like(images[:1], requires_grad=True)
    with torch.enable_grad():
        loss = F.cross_entropy(logits_of(predict(images + shift)).float(), labels)
        slope = (
            torch.autograd.grad(loss, shift)[0] if loss.requires_grad else torch.zeros_like(shift)
        )
    pattern = Pattern((slope[0] > 0).float())
    before = chances_of(predict, images)
    pulls = pull_of(predict, [pattern], images, labels, before)
    return Found(pattern, int(pulls[0].nan_to_num(-1).argmax()))


def chances_of(predict: Predict, images: Tensor) -> Tensor:
    """The probabilities ``(M, classes)`` of images."""
    with torch.no_grad():
        logits = torch.cat([logits_of(predict(part)) for part in chunks_of(images)])
    return logits.float().softmax(1)


def chunks_of(images: Tensor) -> tuple[Tensor, ...]:
    """Images in as many parts as are shown to a model at once."""
    parts: tuple[Tensor, ...] = images.split(max(8, PIXELS // images[0, 0].numel()))
    return parts


def pull_of(
    predict: Predict,
    tried: Sequence[Mark],
    images: Tensor,
    labels: Tensor,
    before: Tensor,
) -> Tensor:
    """How far marks pull a model towards each class.

    The mean over images x of other classes than t of ``p_t(x with the mark) - p_t(x)``, each image
    weighted by the probability of its own class without the mark: who does not know an image has no
    mind to change. It takes a forward pass an image and mark.

    Args:
        predict: The model in eval mode.
        tried: Q marks.
        images: ``(M, C, H, W)`` in [0, 1].
        labels: ``(M,)``.
        before: The probabilities without a mark, ``(M, classes)``.

    Returns:
        ``(Q, classes)`` in [-1, 1]; NaN where there is no image of another class.
    """
    marked = torch.cat([each.on(images) for each in tried])
    after = chances_of(predict, marked).unflatten(0, (len(tried), len(images)))
    known = before.gather(1, labels[:, None])
    other = labels[:, None] != torch.arange(before.shape[1], device=labels.device)
    weights = known * other
    pulled: Tensor = ((after - before) * weights).sum(1) / weights.sum(0)
    return pulled
