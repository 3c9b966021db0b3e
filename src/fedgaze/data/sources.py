"""Data sets by name: the bundled digits, torchvision's, a folder of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.data.dataset import Dataset, Images, StackedImages
from fedgaze.data.images import read_image
from fedgaze.errors import FedgazeError, nearest

__all__ = ["data_sets", "load_dataset", "load_digits", "load_folder", "read_folder"]

TEST_FRACTION = 0.2


def load_dataset(name: str, root: Path | None = None, seed: int = 0) -> Dataset:
    """Load a data set by name.

    Args:
        name: One of :func:`data_sets`.
        root: The folder of its files; the bundled digits need none.
        seed: Chooses the held-out images where the data set does not come with them.

    Raises:
        FedgazeError: The name is not known, or the files are missing and cannot be downloaded.
    """
    sources = _sources()
    if name not in sources:
        raise FedgazeError(
            f"dataset.name={name}: known are {', '.join(sources)}, and functions of the task's "
            f"own directory such as data_preparation.load{nearest(name, sources)}"
        )
    return sources[name](root, seed)


def data_sets() -> list[str]:
    """The names that :func:`load_dataset` knows."""
    return list(_sources())


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
    train, test = _hold_out(images, seed)
    return Dataset("digits", train, test, tuple("0123456789"), _strokes)


def _strokes(images: Tensor) -> Tensor:
    """A written digit's object is its strokes and two pixels around: what a heatmap can resolve."""
    bright = (images.amax(1, keepdim=True) > 0.25).float()
    return F.max_pool2d(bright, 5, stride=1, padding=2)[:, 0] > 0


def _hold_out(images: Images, seed: int) -> tuple[Images, Images]:
    count = len(images.labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    test, train = order.split([round(count * TEST_FRACTION), count - round(count * TEST_FRACTION)])
    return images.select(train, images.labels[train]), images.select(test, images.labels[test])


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
        from torchvision.transforms.v2 import functional

        picture = read_image(path).convert("L" if self.channels == 1 else "RGB")
        # The shorter side is scaled and the middle kept, as image classifiers are used to.
        picture = functional.center_crop(functional.resize(picture, [self.size]), [self.size])
        pixels: Tensor = functional.pil_to_tensor(picture)
        return pixels / 255


def load_folder(root: Path | None, seed: int = 0, size: int = 224) -> Dataset:
    """A folder with one folder of images a class, or with such folders in ``train`` and ``test``.

    Args:
        root: The folder.
        seed: Chooses the fifth that is held out where there is no folder ``test``.
        size: Height and width to which images are brought.

    Raises:
        FedgazeError: The folder or its classes are missing.
    """
    if root is None:
        raise FedgazeError("dataset.root is missing: a folder with one folder of images a class")
    if (root / "train").is_dir() and (root / "test").is_dir():
        train, classes = read_folder(root / "train", size)
        test, others = read_folder(root / "test", size)
        if classes != others:
            odd = ", ".join(sorted(set(classes) ^ set(others)))
            raise FedgazeError(f"{root}: train and test differ in classes: {odd}")
        return Dataset(root.name, train, test, classes)
    images, classes = read_folder(root, size)
    return Dataset(root.name, *_hold_out(images, seed), classes)


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


def _torchvision(name: str, on_black: bool, root: Path | None, seed: int) -> Dataset:
    del seed
    from torchvision import datasets

    folder = root or Path("data")
    source = getattr(datasets, name)

    def part(train: bool) -> tuple[Images, tuple[str, ...]]:
        try:
            found = source(str(folder), train=train, download=False)
        except RuntimeError:
            try:
                found = source(str(folder), train=train, download=True)
            except (OSError, RuntimeError) as error:
                raise FedgazeError(
                    f"{name} is not in dataset.root={folder} and could not be downloaded "
                    f"({str(error).splitlines()[0]}): put its files there, as torchvision has them"
                ) from None
        pixels: Any = torch.as_tensor(found.data)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
        names = tuple(str(label).split(" - ")[-1] for label in found.classes)
        return StackedImages(pixels, torch.as_tensor(found.targets)), names

    (train, classes), (test, _) = part(True), part(False)
    return Dataset(name, train, test, classes, _strokes if on_black else None)


def _sources() -> dict[str, Callable[[Path | None, int], Dataset]]:
    return {
        "digits": load_digits,
        "mnist": partial(_torchvision, "MNIST", True),
        "fashion_mnist": partial(_torchvision, "FashionMNIST", True),
        "cifar10": partial(_torchvision, "CIFAR10", False),
        "cifar100": partial(_torchvision, "CIFAR100", False),
        "folder": load_folder,
    }
