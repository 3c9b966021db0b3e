"""A folder of images a class, and a table beside them that says what each belongs to."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import torch
from torch import Tensor

from fedgaze.data.dataset import Dataset
from fedgaze.data.images import fit_picture, read_image
from fedgaze.data.split import hold_out
from fedgaze.errors import FedgazeError, nearest

__all__ = ["load_folder", "read_folder"]

TABLE, FILE_NAME = "metadata.csv", "file_name"
"""As the image folders of the Hugging Face Hub have them."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images that stay on the disk until they are asked for."""

    paths: Sequence[Path]
    labels: Tensor
    size: int
    channels: int = 3

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images at the indices ``(n,)``: float32 ``(n, channels, size, size)`` in [0, 1]."""
        return torch.stack([self._read(self.paths[i]) for i in indices.tolist()])

    def select(self, indices: Tensor, labels: Tensor) -> "ImageFiles":
        """Only these images, with these labels."""
        return replace(self, paths=[self.paths[i] for i in indices.tolist()], labels=labels)

    def _read(self, path: Path) -> Tensor:
        return fit_picture(read_image(path), (self.size, self.size), self.channels)


def load_folder(
    root: Path | None, seed: int = 0, size: int = 224, partition_by: str | None = None
) -> Dataset:
    """A folder with one folder of images a class, or with such folders in ``train`` and ``test``.

    Args:
        root: The folder.
        seed: Chooses the fifth that is held out where there is no folder ``test``.
        size: Height and width to which images are brought.
        partition_by: What to group the training images by: a column of the table ``metadata.csv``
            beside the folders of the classes (or, beside ``train`` and ``test``). Its column
            ``file_name`` has the images' paths, from where the table lies.

    Raises:
        FedgazeError: The folder, its classes or the groups are missing.
    """
    if root is None:
        raise FedgazeError("dataset.root is missing: a folder with one folder of images a class")
    if (root / "train").is_dir() and (root / "test").is_dir():
        train, classes = read_folder(root / "train", size)
        test, others = read_folder(root / "test", size)
        if classes != others:
            odd = ", ".join(sorted(set(classes) ^ set(others)))
            raise FedgazeError(f"{root}: train and test differ in classes: {odd}")
    else:
        images, classes = read_folder(root, size)
        kept, held = hold_out(len(images.labels), seed)
        train, test = (images.select(each, images.labels[each]) for each in (kept, held))
    groups = None if partition_by is None else _groups(root, train.paths, partition_by)
    return Dataset(root.name, train, test, classes, groups=groups)


def read_folder(root: Path, size: int, channels: int = 3) -> tuple[ImageFiles, tuple[str, ...]]:
    """The images of a folder with one folder a class, and the classes' names.

    Args:
        root: The folder.
        size: Height and width to which images are brought.
        channels: 3 for colour, 1 for grey.

    Raises:
        FedgazeError: The folder or its classes are missing.
    """
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(root))
    except FileNotFoundError as error:
        raise FedgazeError(f"{root} is no folder of images a class: {error}") from None
    paths = [Path(path) for path, _ in found.samples]
    return ImageFiles(paths, torch.tensor(found.targets), size, channels), tuple(found.classes)


def _groups(root: Path, paths: Sequence[Path], column: str) -> list[str]:
    """What a column of the table says of each of the files."""
    inside = root / "train" / TABLE
    file = inside if inside.is_file() else root / TABLE
    said = _column(file, column)
    groups = []
    for path in paths:
        name = path.relative_to(file.parent).as_posix()
        if not said.get(name):
            told = "nothing of" if name in said else "no line for"
            close = "" if name in said else nearest(name, said)
            raise FedgazeError(f"dataset.partition_by={column}: {file} has {told} {name}{close}")
        groups.append(said[name])
    return groups


def _column(file: Path, column: str) -> dict[str, str]:
    """A column of a table by the names of its files."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, strict=True)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except FileNotFoundError:
        raise FedgazeError(
            f"dataset.partition_by={column} is a column of {file}, which is not there: a table "
            f"with a column {FILE_NAME} and a line for each training image"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FedgazeError(f"{file} cannot be read as a table: {error}") from error
    for wanted in (FILE_NAME, column):
        if wanted not in columns:
            raise FedgazeError(
                f"dataset.partition_by={column}: {file} has no column {wanted}; it has "
                f"{', '.join(columns)}{nearest(wanted, columns)}"
            )
    said: dict[str, str] = {}
    for row in rows:
        name = PureWindowsPath(row[FILE_NAME] or "").as_posix()  # slashes may lean either way
        value = (row[column] or "").strip()
        if said.setdefault(name, value) != value:
            raise FedgazeError(
                f"{file} says of {name} that its {column} is {said[name]} and {value}"
            )
    return said
