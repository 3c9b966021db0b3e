"""What a data set is: images by index, labels, class names, and where the object is if known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from fedgaze.data.split import balanced
from fedgaze.errors import FedgazeError, nearest

__all__ = ["Dataset", "Images", "StackedImages", "boxes_of"]


class Images(Protocol):
    """Labelled images that are fetched in batches."""

    @property
    def labels(self) -> Tensor:
        """Class indices ``(N,)``, int64."""

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at the indices ``(n,)``: float32 ``(n, C, H, W)`` in [0, 1]."""

    def select(self, indices: Tensor, labels: Tensor) -> Self:
        """Only these images, with these labels."""


@dataclass(frozen=True, eq=False)
class StackedImages:
    """Images that fit into memory, as one tensor.

    Attributes:
        pixels: ``(N, C, H, W)``, float in [0, 1] or uint8.
        labels: Class indices ``(N,)``.
        boxes: Where the object is, ``(N, 4)``: left, top, right, bottom in pixels, the last two
            exclusive; None where nobody knows.
    """

    pixels: Tensor
    labels: Tensor
    boxes: Tensor | None = None

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at the indices ``(n,)``: float32 ``(n, C, H, W)`` in [0, 1]."""
        batch = self.pixels[indices]
        return batch / 255 if batch.dtype == torch.uint8 else batch

    def select(self, indices: Tensor, labels: Tensor) -> "StackedImages":
        """Only these images, with these labels."""
        boxes = None if self.boxes is None else self.boxes[indices]
        return StackedImages(self.pixels[indices], labels, boxes)


def boxes_of(images: Images) -> Tensor | None:
    """The boxes ``(N, 4)`` of images that know them, as :class:`StackedImages` has them."""
    boxes: Tensor | None = getattr(images, "boxes", None)
    return boxes


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images to train on, held-out images to judge by, and what is known of them.

    Attributes:
        name: What it is called in a record.
        train: What is split over the clients.
        test: Held out: the server's test images and, by default, its probe set.
        classes: Class names by index.
        object_masks: Takes images ``(N, C, H, W)`` in [0, 1] and returns where the object is,
            bool ``(N, H, W)``; None where that cannot be seen from the image.
        groups: What each training image belongs to, such as a writer, a hospital or a device, so
            that ``dataset.partition: natural`` can keep together what belongs together; ``(N,)``
            names or numbers, None where nobody knows.

    Raises:
        FedgazeError: There is not one group an image.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    object_masks: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    groups: Sequence[str | int] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.groups is None:
            return
        known = sum(each is not None for each in self.groups)
        if len(self.groups) != len(self.train.labels) or known < len(self.groups):
            raise FedgazeError(
                f"{self.name} has {len(self.train.labels)} training images and says of {known} "
                "what they belong to; each belongs to one group"
            )

    def masks_of(self, images: Images, indices: Tensor) -> Tensor | None:
        """Where the object is in some images: in the box that they know, else as it can be seen.

        Args:
            images: Of this data set, or whatever was made of them.
            indices: Which, ``(n,)``.

        Returns:
            bool ``(n, H, W)``; None where nobody knows.
        """
        boxes = boxes_of(images)
        if boxes is None:
            return None if self.object_masks is None else self.object_masks(images[indices])
        height, width = images[indices[:1]].shape[2:]
        left, top, right, bottom = boxes[indices].unbind(1)
        down, across = torch.arange(height), torch.arange(width)
        rows = (down >= top[:, None]) & (down < bottom[:, None])
        columns = (across >= left[:, None]) & (across < right[:, None])
        return rows[:, :, None] & columns[:, None, :]

    def limited(self, train: int | None, test: int | None, seed: int) -> "Dataset":
        """The same data set with at most so many images, of each class as many as can be.

        Args:
            train: How many training images; None for all.
            test: How many held-out images.
            seed: Same seed, same choice.
        """

        def part(images: Images, count: int | None) -> tuple[Images, list[int]]:
            chosen = balanced(images.labels, count, seed)
            if len(chosen) < len(images.labels):
                images = images.select(chosen, images.labels[chosen])
            return images, chosen.tolist()

        (kept, numbers), (held, _) = part(self.train, train), part(self.test, test)
        groups = None if self.groups is None else [self.groups[i] for i in numbers]
        return replace(self, train=kept, test=held, groups=groups)

    def numbered_as(self, classes: Sequence[str]) -> "Dataset":
        """The same images with their classes numbered as elsewhere, where there may be more.

        Args:
            classes: Class names by index.

        Raises:
            FedgazeError: The data set has a class that is not among them.
        """
        if tuple(classes) == self.classes:
            return self
        for name in self.classes:
            if name not in classes:
                raise FedgazeError(
                    f"{self.name} has a class '{name}' that the federation has not; it has "
                    f"{', '.join(classes)}{nearest(name, classes)}"
                )
        numbers = torch.tensor([classes.index(name) for name in self.classes])

        def part(images: Images) -> Images:
            return images.select(torch.arange(len(images.labels)), numbers[images.labels])

        return replace(self, train=part(self.train), test=part(self.test), classes=tuple(classes))

    def keep(self, classes: Sequence[str]) -> "Dataset":
        """The same data set with only these classes, in this order.

        Raises:
            FedgazeError: It has no such class, or one is named twice.
        """
        for position, name in enumerate(classes):
            if name not in self.classes:
                raise FedgazeError(
                    f"dataset.classes: {self.name} has no class '{name}'; it has "
                    f"{', '.join(self.classes)}{nearest(name, self.classes)}"
                )
            if name in classes[:position]:
                raise FedgazeError(f"dataset.classes names '{name}' twice")
        chosen = torch.tensor([self.classes.index(name) for name in classes])

        def part(images: Images) -> tuple[Images, list[int]]:
            hits = images.labels[:, None] == chosen
            indices = hits.any(1).nonzero()[:, 0]
            return images.select(indices, hits[indices].int().argmax(1)), indices.tolist()

        (train, kept), (test, _) = part(self.train), part(self.test)
        groups = None if self.groups is None else [self.groups[i] for i in kept]
        return replace(self, train=train, test=test, classes=tuple(classes), groups=groups)
