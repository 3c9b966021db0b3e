"""Images and labels in one file of NumPy arrays."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch

from fedgaze.data.dataset import Dataset, StackedImages
from fedgaze.data.split import hold_out
from fedgaze.errors import FedgazeError

__all__ = ["load_npz", "read_npz", "stacked"]

_WHOLE = ("x", "y")
_PARTED = ("x_train", "y_train", "x_test", "y_test")


def load_npz(root: Path | None, seed: int = 0) -> Dataset:
    """A file with the arrays ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test``.

    ``x`` is uint8 ``(N, H, W)`` or ``(N, H, W, C)`` with one or three channels, ``y`` a whole
    number an image. Classes are called as their numbers.

    Args:
        root: The file.
        seed: Chooses the fifth that is held out where the file has no test images.

    Raises:
        FedgazeError: There is no such file, or its arrays are others.
    """
    if root is None:
        raise FedgazeError("dataset.root is missing: an npz file with the arrays x and y")
    if not root.is_file():
        raise FedgazeError(f"dataset.root={root} is not a file: an npz file is allowed")
    arrays = read_npz(root, _wanted)
    if "x" in arrays:
        images = _images(root, arrays, "x", "y")
        kept, held = hold_out(len(images.labels), seed)
        train, test = (images.select(each, images.labels[each]) for each in (kept, held))
    else:
        train = _images(root, arrays, "x_train", "y_train")
        test = _images(root, arrays, "x_test", "y_test")
        if train.pixels.shape[1:] != test.pixels.shape[1:]:
            raise FedgazeError(
                f"{root} has training images of {_sides(arrays['x_train'])} and test images of "
                f"{_sides(arrays['x_test'])}: one size is allowed"
            )
    count = 1 + int(torch.cat([train.labels, test.labels]).max())
    return Dataset(root.stem, train, test, tuple(map(str, range(count))))


def _wanted(file: Path, there: Sequence[str]) -> Sequence[str]:
    wanted = _WHOLE if "x" in there else _PARTED
    if missing := [each for each in wanted if each not in there]:
        raise FedgazeError(
            f"{file} lacks {', '.join(missing)}: it has {', '.join(there)}, and allowed are "
            f"{', '.join(_WHOLE)}, or {', '.join(_PARTED)}"
        )
    return wanted


def read_npz(file: Path, wanted: Callable[[Path, Sequence[str]], Sequence[str]]) -> dict[str, Any]:
    """Read arrays of a file as numpy.savez writes it; nothing in it is run.

    Args:
        file: It.
        wanted: Says which arrays, of those that are there.

    Raises:
        FedgazeError: It is no such file, is damaged, or lacks what is wanted.
    """
    if not is_zipfile(file):
        raise FedgazeError(f"{file} is no npz file, as numpy.savez writes it")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {each: arrays[each] for each in wanted(file, arrays.files)}
    except FedgazeError:
        raise
    # A damaged file is met with whatever its bytes lead a reader to.
    except Exception as error:
        raise FedgazeError(f"{file} cannot be read: {error}") from error


def stacked(images: Any, labels: Any) -> StackedImages:
    """Images ``(N, H, W)`` or ``(N, H, W, C)``, uint8, and labels ``(N,)`` as fedgaze has them."""
    pixels = torch.from_numpy(images)
    return StackedImages(
        pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(labels.astype(np.int64)),
    )


def _images(file: Path, arrays: dict[str, Any], x: str, y: str) -> StackedImages:
    images, labels = arrays[x], arrays[y]
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] in (1, 3))):
        raise FedgazeError(
            f"{file} has {x} of {_sides(images)} ({images.dtype}); allowed are uint8 images "
            "(H, W), or (H, W, C) of one or three channels"
        )
    whole = labels.ndim == 1 and labels.dtype.kind in "iu"
    if not whole or len(labels) != len(images) or not len(images) or labels.min() < 0:
        raise FedgazeError(
            f"{file} has {len(images)} images in {x}, and {y} is {labels.dtype} "
            f"{labels.shape}; allowed is a whole number from 0 for each image"
        )
    return stacked(images, labels)


def _sides(array: Any) -> str:
    return "×".join(map(str, array.shape[1:])) or "single numbers"
