"""Torchvision's data sets, from its own folders or from the files as they are handed around."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from fedgaze.data.dataset import Dataset, StackedImages
from fedgaze.errors import FedgazeError

__all__ = ["load_torchvision"]


def load_torchvision(
    name: str, root: Path | None, object_masks: Callable[[Tensor], Tensor] | None = None
) -> Dataset:
    """One of torchvision's data sets.

    Args:
        name: Its class there.
        root: A folder as torchvision has it; for MNIST and Fashion-MNIST also one that holds the
            idx files themselves, packed by gzip or not. ``data`` by default. What is not there is
            downloaded.
        object_masks: See :class:`Dataset`.

    Raises:
        FedgazeError: The files are missing and cannot be downloaded, or cannot be read.
    """
    from torchvision import datasets

    source, folder = getattr(datasets, name), root or Path("data")
    if issubclass(source, datasets.MNIST) and _idx_files(source, folder):
        train, test = _read_idx(source, folder)
    else:
        train, test = (_read(source, folder, train=each) for each in (True, False))
    classes = tuple(str(label).split(" - ")[-1] for label in train.classes)
    return Dataset(name, _stacked(train), _stacked(test), classes, object_masks)


def _stacked(found: Any) -> StackedImages:
    pixels = torch.as_tensor(found.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return StackedImages(pixels, torch.as_tensor(found.targets))


def _read(source: Any, folder: Path, *, train: bool) -> Any:
    try:
        return source(str(folder), train=train, download=False)
    except RuntimeError:
        try:
            return source(str(folder), train=train, download=True)
        except (OSError, RuntimeError) as error:
            name = source.__name__
            raise FedgazeError(
                f"{name} is not in dataset.root={folder} and could not be downloaded "
                f"({str(error).splitlines()[0]}): put its files there, as torchvision has them"
            ) from None


def _idx_files(source: Any, folder: Path) -> dict[str, Path]:
    """Which of the set's files lie in a folder itself, by their plain names; packed or not."""
    plain = [name.removesuffix(".gz") for name, _ in source.resources]
    found = [(name, folder / f"{name}{end}") for name in plain for end in (".gz", "")]
    return {name: file for name, file in found if file.is_file()}


def _read_idx(source: Any, folder: Path) -> tuple[Any, Any]:
    """Training and test images by torchvision's own reader, which wants its own plain files."""
    files = _idx_files(source, folder)
    for packed, _ in source.resources:
        if packed.removesuffix(".gz") not in files:
            raise FedgazeError(
                f"dataset.root={folder} holds files of {source.__name__}, but lacks {packed}"
            )
    try:
        with TemporaryDirectory(prefix="fedgaze-") as unpacked:
            raw = Path(unpacked) / source.__name__ / "raw"
            raw.mkdir(parents=True)
            for name, file in files.items():
                opener: Any = gzip.open if file.suffix == ".gz" else Path.open
                with opener(file, "rb") as original, (raw / name).open("wb") as copy:
                    shutil.copyfileobj(original, copy)
            return source(unpacked, train=True), source(unpacked, train=False)
    # A damaged file is met with whatever its bytes lead a reader to.
    except Exception as error:
        raise FedgazeError(
            f"dataset.root={folder} holds files of {source.__name__} that cannot be read: {error}"
        ) from error
