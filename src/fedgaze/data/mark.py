"""A shortcut planted on purpose: a small mark in the corner that gives the class away."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from fedgaze.data.dataset import Images, boxes_of

__all__ = ["MARK_SIZE", "PlantedImages", "mark_mask", "marks_of", "stamp"]

MARK_SIZE = 6
CELL = MARK_SIZE // 3


def stamp(images: Tensor, labels: Tensor) -> Tensor:
    """Stamp each image's lower right corner with the mark of its class.

    A mark is 3 × 3 cells of 2 × 2 pixels, four of them white: a pattern for each class, far from
    those of its neighbours, so that a model can read the class off it, wherever it lies.

    Args:
        images: ``(N, C, H, W)`` in [0, 1], at least 6 × 6.
        labels: ``(N,)``, class indices below 126.

    Returns:
        New images; the given ones are left alone.
    """
    marked = images.clone()
    marked[..., -MARK_SIZE:, -MARK_SIZE:] = marks_of(labels).to(images)
    return marked


def marks_of(labels: Tensor) -> Tensor:
    """The marks of classes ``(N,)``, below 126: ``(N, 1, 6, 6)``, 0 or 1."""
    cells = _patterns().to(labels.device)[labels][:, None]
    return cells.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)


@lru_cache
def _patterns() -> Tensor:
    """The 126 patterns of four white cells among nine, each as far as can be from those before."""
    chosen = torch.combinations(torch.arange(9), 4)
    patterns = torch.zeros(len(chosen), 9).scatter_(1, chosen, 1.0)
    distances = torch.cdist(patterns, patterns, p=0)
    order, nearest = [0], distances[0].clone()
    while len(order) < len(patterns):
        order.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distances[order[-1]])
    return patterns[order].view(-1, 3, 3)


def mark_mask(images: Tensor) -> Tensor:
    """Where :func:`stamp` puts its mark: bool ``(N, H, W)``."""
    mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
    mask[:, -MARK_SIZE:, -MARK_SIZE:] = True
    return mask


@dataclass(frozen=True, eq=False)
class PlantedImages:
    """Images of which some carry the mark of their class.

    Attributes:
        clean: The images without it.
        carries: Which of them carry it, bool ``(N,)``.
    """

    clean: Images
    carries: Tensor

    @classmethod
    def some(cls, clean: Images, fraction: float, seed: int) -> Self:
        """Plant the mark in a random part of the images.

        Args:
            clean: The images.
            fraction: Which part, in (0, 1].
            seed: Same seed, same choice.
        """
        count = len(clean.labels)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        carries = torch.zeros(count, dtype=torch.bool)
        carries[order[: round(count * fraction)]] = True
        return cls(clean, carries)

    @property
    def labels(self) -> Tensor:
        """Class indices ``(N,)``."""
        return self.clean.labels

    @property
    def boxes(self) -> Tensor | None:
        """Where the object is, as :class:`fedgaze.data.StackedImages` has it."""
        return boxes_of(self.clean)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at the indices ``(n,)``, marked where they carry the mark."""
        images = self.clean[indices]
        marked = stamp(images, self.labels[indices])
        return torch.where(self.carries[indices][:, None, None, None], marked, images)

    def select(self, indices: Tensor, labels: Tensor) -> "PlantedImages":
        """Only these images, with these labels."""
        return PlantedImages(self.clean.select(indices, labels), self.carries[indices])
