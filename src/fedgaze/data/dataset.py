"""What a data set is: images by index, labels, class names, and where the object is if known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest

__all__ = ["Dataset", "Images", "StackedImages"]


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
    """

    pixels: Tensor
    labels: Tensor

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at the indices ``(n,)``: float32 ``(n, C, H, W)`` in [0, 1]."""
        batch = self.pixels[indices]
        return batch / 255 if batch.dtype == torch.uint8 else batch

    def select(self, indices: Tensor, labels: Tensor) -> "StackedImages":
        """Only these images, with these labels."""
        return StackedImages(self.pixels[indices], labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images to train on, held-out images to judge by, and what is known of them.

    Attributes:
        name: What it is called in a record.
        train: What is split over the clients.
        test: Held out: the server's test images and, by default, its probe set.
        classes: Class names by index.
        object_masks: Takes images ``(N, C, H, W)`` in [0, 1] and returns where the object is,
            bool ``(N, H, W)``; None where nobody knows.
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
