"""Data sets of the Hugging Face Hub, by flwr-datasets."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fedgaze.data.dataset import Dataset, Images, StackedImages
from fedgaze.data.images import as_seen
from fedgaze.data.split import hold_out
from fedgaze.errors import FedgazeError, nearest

__all__ = ["HUB", "load_hub"]

HUB = "flwr:"
SIZE = 224
GREY = {"1", "L", "LA", "I", "I;16", "F"}
"""Pillow's modes without colour."""
LOOKED_AT = 256
"""How many images are looked at to know whether all are of one size."""
IN_MEMORY = 2**30
"""Bytes of images that are unpacked once; more stay packed until they are asked for."""


@dataclass(frozen=True, eq=False)
class TableImages:
    """Images in a column of a table, unpacked when they are asked for.

    Attributes:
        table: A ``datasets.Dataset`` of that one column.
        column: Its name.
        rows: Which rows, ``(N,)``.
        labels: Class indices ``(N,)``.
        size: Height and width to which images are brought.
        channels: 3 for colour, 1 for grey.
    """

    table: Any
    column: str
    rows: Tensor
    labels: Tensor
    size: tuple[int, int]
    channels: int

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at the indices ``(n,)``: float32 ``(n, C, H, W)`` in [0, 1]."""
        return self.pixels(indices) / 255

    def select(self, indices: Tensor, labels: Tensor) -> "TableImages":
        """Only these images, with these labels."""
        return replace(self, rows=self.rows[indices], labels=labels)

    def pixels(self, indices: Tensor) -> Tensor:
        """The images at the indices ``(n,)``: uint8 ``(n, C, H, W)``."""
        from torchvision.transforms.v2.functional import pil_to_tensor

        pictures = _pictures(self.table, self.column, self.rows[indices].tolist())
        return torch.stack([pil_to_tensor(self._brought(each)) for each in pictures])

    def _brought(self, picture: Image.Image) -> Image.Image:
        picture = as_seen(picture).convert("L" if self.channels == 1 else "RGB")
        width, height = self.size[::-1]
        if picture.size == (width, height):
            return picture
        return ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)


def load_hub(
    name: str, root: Path | None = None, seed: int = 0, partition_by: str | None = None
) -> Dataset:
    """A data set of the hub, or of a folder with its files.

    Of its splits ``train`` is what clients share and ``test`` (else ``validation`` or ``valid``,
    else a fifth of the others) is held out. Images of one size stay as they are; others are brought
    to 224 × 224: scaled, and the middle kept. Classes are those of the column ``label``, else of
    the first that holds class labels.

    Args:
        name: ``OWNER/NAME``, with ``:SUBSET`` where the set has several.
        root: A folder with the set's files; by default the hub is asked.
        seed: Chooses the fifth.
        partition_by: The column to group the training images by.

    Raises:
        FedgazeError: flwr-datasets is not installed, the hub cannot be reached and no root is
            given, or the set has no images with classes or no such column.
    """
    train, test = _splits(name, root)
    image, label = _image_column(name, train), _label_column(name, train)
    if test is None:
        kept, held = hold_out(len(train), seed)
        train, test = train.select(kept.tolist()), train.select(held.tolist())
    labels, classes = _labels(name, train, test, label)
    size, channels = _shape(train, image)

    def images(table: Any, own: Tensor) -> Images:
        rows, only = torch.arange(len(table)), table.select_columns([image])
        return _stacked(TableImages(only, image, rows, own, size, channels))

    return Dataset(
        name,
        images(train, labels[0]),
        images(test, labels[1]),
        classes,
        groups=None if partition_by is None else _groups(name, train, partition_by),
    )


def _splits(name: str, root: Path | None) -> tuple[Any, Any]:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # it is read when flwr_datasets is
    try:
        from flwr_datasets import FederatedDataset
    except ImportError:
        raise FedgazeError(
            f"dataset.name={HUB}{name} needs flwr-datasets: pip install 'fedgaze[datasets]'"
        ) from None
    if root is not None and not root.is_dir():
        raise FedgazeError(f"dataset.root={root} is no folder with the files of {HUB}{name}")
    where, _, subset = name.partition(":")
    source = FederatedDataset(
        dataset=str(root.resolve()) if root else where,
        subset=subset or None,
        partitioners={},
        shuffle=False,
    )
    try:
        train = source.load_split("train")
    # The hub, the network and the reader of files each fail in their own ways.
    except Exception as error:
        why = str(error).strip().partition("\n")[0].rstrip(".")
        cure = "" if root else "; dataset.root may name a folder with its files"
        raise FedgazeError(f"dataset.name={HUB}{name} could not be loaded: {why}{cure}") from error
    for split in ("test", "validation", "valid"):
        with suppress(ValueError):  # it has no such split
            return train, source.load_split(split)
    return train, None


def _values(table: Any, column: str) -> list[Any]:
    values: list[Any] = table.select_columns([column])[:][column]
    return values


def _groups(name: str, table: Any, column: str) -> list[str | int]:
    if column not in table.column_names:
        raise FedgazeError(
            f"dataset.partition_by={column}: {HUB}{name} has the columns "
            f"{', '.join(table.column_names)}{nearest(column, table.column_names)}"
        )
    return _values(table, column)


def _image_column(name: str, table: Any) -> str:
    from datasets import Image as Pictures

    for column, feature in table.features.items():
        if isinstance(feature, Pictures):
            return str(column)
    raise FedgazeError(
        f"dataset.name={HUB}{name} has no column of images; it has {', '.join(table.column_names)}"
    )


def _label_column(name: str, table: Any) -> str:
    from datasets import ClassLabel

    classes = [each for each, kind in table.features.items() if isinstance(kind, ClassLabel)]
    for column in ("label", *classes):
        if column in table.column_names:
            return str(column)
    raise FedgazeError(
        f"dataset.name={HUB}{name} has no column label and none of class labels; it has "
        f"{', '.join(table.column_names)}"
    )


def _labels(
    name: str, train: Any, test: Any, column: str
) -> tuple[tuple[Tensor, Tensor], tuple[str, ...]]:
    from datasets import ClassLabel

    values = [np.asarray(_values(part, column)) for part in (train, test)]
    feature = train.features[column]
    if isinstance(feature, ClassLabel):
        known, classes = np.arange(feature.num_classes), tuple(map(str, feature.names))
    else:
        known = np.unique(np.concatenate(values))
        classes = tuple(map(str, known))
    if not all(np.isin(each, known).all() for each in values):
        raise FedgazeError(f"dataset.name={HUB}{name} has images without a label in {column}")
    first, second = (torch.from_numpy(np.searchsorted(known, each)) for each in values)
    return (first, second), classes


def _pictures(table: Any, column: str, rows: list[int]) -> list[Image.Image]:
    try:
        pictures: list[Image.Image] = table[rows][column]
    # A damaged picture is met with whatever its bytes lead a decoder to.
    except Exception as error:
        raise FedgazeError(f"an image of the column {column} cannot be read") from error
    if any(each is None for each in pictures):
        raise FedgazeError(f"a row has no image in the column {column}")
    return pictures


def _shape(table: Any, column: str) -> tuple[tuple[int, int], int]:
    """Height, width and channels that suit a table's images."""
    some = np.unique(np.linspace(0, len(table) - 1, LOOKED_AT).astype(int)).tolist()
    pictures = _pictures(table.select_columns([column]), column, some)
    sizes = {each.size for each in pictures}
    width, height = sizes.pop() if len(sizes) == 1 else (SIZE, SIZE)
    return (height, width), 1 if {each.mode for each in pictures} <= GREY else 3


def _stacked(images: TableImages) -> Images:
    count, (height, width) = len(images.labels), images.size
    if count * images.channels * height * width > IN_MEMORY:
        return images
    parts = [images.pixels(each) for each in torch.arange(count).split(1024)]
    return StackedImages(torch.cat(parts), images.labels)
