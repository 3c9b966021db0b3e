"""Marks: changes of an image to which no honest model should react much, and how one does.

A model with a back door changes its mind where its trigger is. The server does not know the
trigger, so it tries a sweep (patches of several places, sizes and colours, faint patterns, changes
of light and colour) and goes on from the patches that did most.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgaze.xai import logits_of

__all__ = ["PLACES", "Change", "Patch", "Sought", "Sweep", "make_sweep", "pull_of", "seek"]

PIXELS = 2**16
"""Of the images of a forward pass: more would leave a CPU's caches, which takes far longer."""
OPACITY = 0.25
"""Of faint patterns."""
BEAM, MUTANTS, STEPS = 3, 6, 2
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
class Change:
    """A change of a whole image: ``clamp(gain · image + shift, 0, 1)``.

    Attributes:
        name: What it is, in words.
        gain: A factor.
        shift: ``(C, H, W)``.
    """

    name: str
    gain: float
    shift: Tensor

    def on(self, images: Tensor) -> Tensor:
        """Images ``(M, C, H, W)`` with it."""
        return (self.gain * images + self.shift.to(images)).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Sweep:
    """What is tried on every model, the same for all.

    Attributes:
        patches: Where the search begins.
        changes: Of whole images.
        seed: Of what is drawn on the way.
    """

    patches: tuple[Patch, ...]
    changes: tuple[Change, ...]
    seed: int


def make_sweep(shape: tuple[int, int, int], seed: int) -> Sweep:
    """Make the sweep for images of a shape.

    Args:
        shape: C, H, W.
        seed: Of what is drawn: cells and patterns.
    """
    channels, height, width = shape
    draw = torch.Generator().manual_seed(seed)
    short = min(height, width)
    large, small = max(3, round(short / 4)), max(3, round(short / 7))
    white = torch.ones(channels, 3, 3)
    patches = []
    for place, thirds in PLACES.items():
        patches.append(Patch(white, large, place))
        patches += [Patch(_cells(channels, draw), side, place) for side in (large, small)]
        if 1 not in thirds:  # a corner
            patches.append(Patch(white, small, place))
            patches.append(Patch(0 * white, large, place))
    period = max(1, round(short / 12))
    upright = (torch.arange(width) // period % 2).float().expand(channels, height, width)
    level = (torch.arange(height) // period % 2).float()[:, None].expand(channels, height, width)
    patterns = {
        "faint noise": torch.rand(channels, height, width, generator=draw),
        "other faint noise": torch.rand(channels, height, width, generator=draw),
        "faint upright stripes": upright,
        "faint level stripes": level,
        "a faint ramp": torch.linspace(0, 1, width).expand(channels, height, width),
    }
    if channels == 3:
        tints = zip(("red", "green", "blue"), torch.eye(3), strict=True)
        patterns |= {f"a {name} tint": tint.view(3, 1, 1).expand(shape) for name, tint in tints}
    even = torch.ones(shape)
    changes = [Change(name, 1 - OPACITY, OPACITY * each) for name, each in patterns.items()]
    changes.append(Change("inverted colours", -1.0, even))
    changes.append(Change("less light", 0.6, 0 * even))
    changes.append(Change("more light", 1.0, 0.25 * even))
    return Sweep(tuple(patches), tuple(changes), seed)


def _cells(channels: int, draw: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (channels, 3, 3), generator=draw).float()


@dataclass(frozen=True, eq=False)
class Sought:
    """What a search found.

    Attributes:
        patch: The patch that pulls a model most.
        target: The class to which it does.
        changes: How far each change of the sweep pulls it towards each class, ``(Q, classes)``.
    """

    patch: Patch
    target: int
    changes: Tensor


def seek(predict: Predict, sweep: Sweep, images: Tensor, labels: Tensor) -> Sought:
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

    def pulls(tried: Sequence[Patch | Change], half: Tensor) -> Tensor:
        return pull_of(predict, tried, images[half], labels[half], chances[half])

    first = pulls([*sweep.patches, *sweep.changes], halves[0])
    changes = first[len(sweep.patches) :]
    found, values = list(sweep.patches), first[: len(sweep.patches)]
    for step in range(STEPS):
        best = values.nan_to_num(-1).amax(1).topk(min(BEAM, len(found))).indices.tolist()
        found = [found[i] for i in best]
        found += [each.mutant(draw) for each in found for _ in range(MUTANTS)]
        values = pulls(found, halves[(step + 1) % 2])
    best_of = values.nan_to_num(-1).amax(1).argmax()
    target = values[best_of].nan_to_num(-1).argmax()
    return Sought(found[int(best_of)], int(target), changes)


def chances_of(predict: Predict, images: Tensor) -> Tensor:
    """The probabilities ``(M, classes)`` of images."""
    chunk = max(8, PIXELS // images[0, 0].numel())
    with torch.no_grad():
        logits = torch.cat([logits_of(predict(part)) for part in images.split(chunk)])
    return logits.float().softmax(1)


def pull_of(
    predict: Predict,
    tried: Sequence[Patch | Change],
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
