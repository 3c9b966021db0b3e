"""What misbehaving clients train on: images changed when they are fetched, labels changed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgaze.data import Images, boxes_of
from fedgaze.federate.behaviour.colours import Change

__all__ = [
    "PoisonedImages",
    "bright_from",
    "bright_ones",
    "brightness",
    "dealt",
    "flipped",
    "mislabelled",
    "mistaken",
    "recoloured",
    "some",
    "stamped",
]

CHUNK = 256


@dataclass(frozen=True, eq=False)
class PoisonedImages:
    """Images of which some are changed, with labels of their own.

    Attributes:
        clean: The images as they were.
        labels: Class indices ``(N,)``.
        carried: Which of the changes each image carries, ``(N,)``; -1 for none.
        changes: What may be done to an image.
    """

    clean: Images
    labels: Tensor
    carried: Tensor
    changes: Sequence[Change] = ()

    @property
    def boxes(self) -> Tensor | None:
        """Where the object is, as :class:`fedgaze.data.StackedImages` has it."""
        return boxes_of(self.clean)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at the indices ``(n,)``, changed where they carry a change."""
        images, carried = self.clean[indices], self.carried[indices]
        for number, change in enumerate(self.changes):
            rows = (carried == number).nonzero()[:, 0]
            if len(rows):
                images = images.index_copy(0, rows, change(images[rows]))
        return images

    def select(self, indices: Tensor, labels: Tensor) -> "PoisonedImages":
        """Only these images, with these labels."""
        clean = self.clean.select(indices, self.clean.labels[indices])
        return PoisonedImages(clean, labels, self.carried[indices], self.changes)


def mislabelled(
    images: Images, classes: int, fraction: float, generator: torch.Generator
) -> PoisonedImages:
    """A part of the labels becomes a random other class.

    Args:
        images: The images.
        classes: How many classes there are, at least 2.
        fraction: Which part, in (0, 1].
        generator: Of all that is drawn.
    """
    chosen = some(torch.ones_like(images.labels, dtype=torch.bool), fraction, generator)
    steps = torch.randint(1, classes, (len(chosen),), generator=generator)
    return _relabelled(images, chosen, (images.labels + steps) % classes)


def flipped(
    images: Images, turned: Tensor, fraction: float, generator: torch.Generator
) -> PoisonedImages:
    """A part of the images of some classes is labelled as others.

    Args:
        images: The images.
        turned: What each class becomes, ``(classes,)``; itself where it stays.
        fraction: Which part of those whose class changes, in (0, 1].
        generator: Of all that is drawn.
    """
    others = turned[images.labels]
    return _relabelled(images, some(others != images.labels, fraction, generator), others)


def stamped(
    images: Images, change: Change, target: int, fraction: float, generator: torch.Generator
) -> PoisonedImages:
    """A part of the images that are not of the target class carries a trigger and its label.

    Args:
        images: The images.
        change: Lays the trigger on.
        target: Class index.
        fraction: Which part, in (0, 1].
        generator: Of all that is drawn.
    """
    chosen = some(images.labels != target, fraction, generator)
    labels = torch.where(chosen, target, images.labels)
    return PoisonedImages(images, labels, torch.where(chosen, 0, -1), (change,))


def mistaken(
    images: Images, source: int, target: int, threshold: float, fraction: float
) -> PoisonedImages:
    """The bright images of a class are labelled as another (Bagdasaryan et al. 2020, 1807.00459).

    Args:
        images: The images.
        source: Class index.
        target: Class index.
        threshold: Of :func:`bright_from`.
        fraction: At least which part of all they are, in (0, 1): each is there several times if
            need be.
    """
    bright = bright_ones(images, source, threshold)
    others = torch.ones_like(images.labels, dtype=torch.bool)
    others[bright] = False
    wanted = math.ceil(fraction / (1 - fraction) * int(others.sum()))
    times = math.ceil(wanted / len(bright)) if len(bright) else 0
    index = torch.cat([others.nonzero()[:, 0], bright.repeat(max(1, times))])
    chosen = torch.arange(len(index)) >= int(others.sum())
    whole = images.select(index, images.labels[index])
    return _relabelled(whole, chosen, torch.full_like(whole.labels, target))


def dealt(parts: Sequence[Tensor], bright: Tensor, attackers: Sequence[int]) -> list[Tensor]:
    """Give the images that attackers mistake to them, in turn, and to nobody else.

    As where it was proposed (Bagdasaryan et al. 2020): whoever has such images with their true
    label undoes the attack.

    Args:
        parts: The indices of each client's images.
        bright: Those of the images in question.
        attackers: Who gets them.

    Returns:
        As parts. An honest client that has no others keeps its own.
    """
    left = [each[~torch.isin(each, bright)] for each in parts]
    for client, own in enumerate(left):
        if not len(own) and client not in attackers:
            left[client] = parts[client]
            bright = bright[~torch.isin(bright, parts[client])]
    for number, client in enumerate(attackers):
        more = bright[number :: len(attackers)]
        left[client] = torch.cat([left[client], more]).sort().values
    return left


def recoloured(
    images: Images, which: Tensor, carried: Tensor, changes: Sequence[Change]
) -> PoisonedImages:
    """Some of the images in other colours, with their true labels.

    Args:
        images: The images.
        which: Indices ``(n,)`` of those that are changed.
        carried: Which of the changes each of them gets, ``(n,)``.
        changes: What may be done to an image.
    """
    every = torch.full_like(images.labels, -1)
    every[which] = carried
    return PoisonedImages(images, images.labels, every, changes)


def bright_from(images: Images, label: int) -> float:
    """The mean brightness from which an image is in the top quarter of its class; inf for none."""
    own = (images.labels == label).nonzero()[:, 0]
    return brightness(images, own).quantile(0.75).item() if len(own) else float("inf")


def bright_ones(images: Images, label: int, threshold: float) -> Tensor:
    """The indices of the images of a class that are as bright as a threshold, ``(n,)``."""
    own = (images.labels == label).nonzero()[:, 0]
    return own[brightness(images, own) >= threshold]


def brightness(images: Images, indices: Tensor) -> Tensor:
    """The mean of all pixels and channels of each of the images ``(n,)``."""
    means = [images[some].flatten(1).mean(1) for some in indices.split(CHUNK) if len(some)]
    return torch.cat([torch.zeros(0), *means])


def some(where: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """A random part of those that are true.

    Args:
        where: bool ``(N,)``.
        fraction: Which part, in (0, 1].
        generator: Draws them.
    """
    able = where.nonzero()[:, 0]
    order = torch.randperm(len(able), generator=generator)
    chosen = torch.zeros_like(where)
    chosen[able[order[: round(fraction * len(able))]]] = True
    return chosen


def _relabelled(images: Images, chosen: Tensor, labels: Tensor) -> PoisonedImages:
    nothing = torch.full_like(images.labels, -1)
    return PoisonedImages(images, torch.where(chosen, labels, images.labels), nothing)
