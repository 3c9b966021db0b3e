"""Data sets by name: bundled digits, torchvision's, MedMNIST's, arrays, a folder, the hub's."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.data.arrays import load_npz
from fedgaze.data.dataset import Dataset, StackedImages
from fedgaze.data.folder import load_folder
from fedgaze.data.hub import HUB, load_hub
from fedgaze.data.medmnist import MEDMNIST, MEDMNIST_ANY, MEDMNIST_REFUSED, load_medmnist
from fedgaze.data.scenes import scatter_digits
from fedgaze.data.split import hold_out
from fedgaze.data.torchvision_sets import load_torchvision
from fedgaze.errors import FedgazeError, nearest

__all__ = ["data_sets", "load_dataset", "load_digits"]

FOLDER = "folder"


def load_dataset(
    name: str, root: Path | None = None, seed: int = 0, partition_by: str | None = None
) -> Dataset:
    """Load a data set by name.

    Args:
        name: One of :func:`data_sets`, or ``flwr:`` and a set of the Hugging Face Hub.
        root: The folder of its files; the bundled digits need none.
        seed: Chooses the held-out images where the data set does not come with them.
        partition_by: The column that says what each training image belongs to, of a folder's or a
            ``flwr:`` set's table.

    Raises:
        FedgazeError: The name is not known, the files are missing and cannot be downloaded, or
            nobody knows what the images belong to.
    """
    if name.startswith(HUB):
        return load_hub(name.removeprefix(HUB), root, seed, partition_by)
    if name == FOLDER:
        return load_folder(root, seed, partition_by=partition_by)
    known = data_sets()
    if name not in (*known, *MEDMNIST_REFUSED):
        raise FedgazeError(
            f"dataset.name={name}: known are {', '.join(known)}, {HUB}OWNER/NAME of the Hugging "
            "Face Hub, and functions of the task's own directory such as data_preparation.load"
            f"{nearest(name, known)}"
        )
    if partition_by is not None:
        raise FedgazeError(
            f"dataset.partition_by={partition_by}: {name} has no table that says what its images "
            f"belong to; {FOLDER} and {HUB} sets have one"
        )
    return _SOURCES[name](root, seed) if name in _SOURCES else load_medmnist(name, root)


def data_sets() -> list[str]:
    """The names that :func:`load_dataset` knows."""
    return [*_SOURCES, *MEDMNIST, MEDMNIST_ANY]


def load_digits(root: Path | None = None, seed: int = 0) -> Dataset:
    """Scikit-learn's 1,797 handwritten digits, on a canvas with room around them.

    The originals (8 × 8, 17 grey levels; Alpaydin and Kaynak, UCI 1998) fill their frame. Here
    they are doubled in size and set into 24 × 24, so that a corner belongs to no digit.

    Args:
        root: Not used: they come with scikit-learn.
        seed: Chooses the fifth that is held out.
    """
    del root
    from sklearn.datasets import load_digits as originals

    pixels, labels = originals(return_X_y=True)
    small = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    doubled = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    images = StackedImages(F.pad(doubled, [4] * 4), torch.as_tensor(labels, dtype=torch.int64))
    kept, held = hold_out(len(labels), seed)
    train, test = (images.select(each, images.labels[each]) for each in (kept, held))
    return Dataset("digits", train, test, tuple("0123456789"), _strokes)


def load_scenes(root: Path | None = None, seed: int = 0) -> Dataset:
    """The bundled digits, each in a scene of 32 × 32 whose label it is and whose box is known.

    Args:
        root: Not used.
        seed: Chooses the fifth that is held out, and draws the scenes.
    """
    digits = load_digits(root, seed)
    generator = torch.Generator().manual_seed(seed)
    train, test = (scatter_digits(part, generator) for part in (digits.train, digits.test))
    return Dataset("scenes", train, test, digits.classes)


def _strokes(images: Tensor) -> Tensor:
    """A written digit's object is its strokes and two pixels around: what a heatmap can resolve."""
    bright = (images.amax(1, keepdim=True) > 0.25).float()
    return F.max_pool2d(bright, 5, stride=1, padding=2)[:, 0] > 0


_SOURCES: dict[str, Callable[[Path | None, int], Dataset]] = {
    "digits": load_digits,
    "scenes": load_scenes,
    "mnist": lambda root, _: load_torchvision("MNIST", root, _strokes),
    "fashion_mnist": lambda root, _: load_torchvision("FashionMNIST", root, _strokes),
    "cifar10": lambda root, _: load_torchvision("CIFAR10", root),
    "cifar100": lambda root, _: load_torchvision("CIFAR100", root),
    "npz": load_npz,
    FOLDER: load_folder,
}
