"""MedMNIST: medical images of one size, each set in one file as its authors publish it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgaze.data.arrays import read_npz, stacked
from fedgaze.data.dataset import Dataset, StackedImages
from fedgaze.errors import FedgazeError, nearest

__all__ = ["MEDMNIST", "MEDMNIST_ANY", "MEDMNIST_REFUSED", "load_medmnist"]

MEDMNIST_ANY = "medmnist"

_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)

MEDMNIST: dict[str, tuple[str, ...]] = {
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesions",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevi",
        "vascular lesions",
    ),
    "octmnist": (
        "choroidal neovascularization",
        "diabetic macular edema",
        "drusen",
        "normal",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule",
        "Distal Convoluted Tubule",
        "Glomerular endothelial cells",
        "Interstitial endothelial cells",
        "Leukocytes",
        "Podocytes",
        "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}
"""The sets with flat images and one label each, with their classes (Yang et al. 2023, Scientific
Data 10:41)."""

MEDMNIST_REFUSED = {
    "chestmnist": "14 labels an image",
    **{
        f"{each}mnist3d": "volumes"
        for each in ("adrenal", "fracture", "nodule", "organ", "synapse", "vessel")
    },
}
"""The other sets, and what they have that fedgaze does not take."""


def load_medmnist(name: str, root: Path | None) -> Dataset:
    """A set of MedMNIST.

    Its validation images are left out: each client keeps back its own.

    Args:
        name: One of `MEDMNIST`, or ``medmnist`` for whatever the file holds; then classes have
            names where the file's own name begins with that of a known set, else numbers.
        root: The file, such as ``pneumoniamnist.npz`` or ``pneumoniamnist_64.npz``, or a folder
            with one such file. ``data`` by default.

    Raises:
        FedgazeError: There is no such file, or it is not in MedMNIST's layout with flat images and
            one label each.
    """
    if name in MEDMNIST_REFUSED:
        raise FedgazeError(
            f"dataset.name={name}: it has {MEDMNIST_REFUSED[name]}; fedgaze takes the sets with "
            f"flat images and one label each: {', '.join(MEDMNIST)}"
        )
    file = _find(name, root or Path("data"))
    own = file.stem.partition("_")[0]
    known = own if own in MEDMNIST or name == MEDMNIST_ANY else name
    if name not in (MEDMNIST_ANY, known):
        raise FedgazeError(f"dataset.name={name}: {file} is a file of {known}")
    arrays = read_npz(file, _wanted)
    train, test = (_images(file, part, arrays) for part in ("train", "test"))
    classes = MEDMNIST.get(known)
    count = 1 + int(max(train.labels.max(), test.labels.max()))
    if classes is None:
        classes = tuple(map(str, range(count)))
    elif count > len(classes):
        raise FedgazeError(
            f"{file} has labels up to {count - 1}, but {known} has {len(classes)} classes"
        )
    return Dataset(file.stem, train, test, classes)


def _find(name: str, root: Path) -> Path:
    if root.is_file():
        return root
    start = "" if name == MEDMNIST_ANY else name
    found = sorted(each for each in root.glob(f"{start}*.npz") if each.is_file())
    exact = root / f"{name}.npz"
    if exact in found or len(found) == 1:
        return exact if exact in found else found[0]
    if found:
        raise FedgazeError(
            f"dataset.root={root} has {len(found)} files of {name} "
            f"({', '.join(each.name for each in found)}): name the file itself"
        )
    wanted = f"{name}.npz" if start else "a file such as pneumoniamnist.npz"
    there = [each.name for each in root.iterdir()] if root.is_dir() else []
    raise FedgazeError(
        f"dataset.name={name}: dataset.root={root} has not {wanted}; MedMNIST's files are at "
        f"https://medmnist.com{nearest(exact.name, there) if start else ''}"
    )


def _wanted(file: Path, there: Sequence[str]) -> Sequence[str]:
    wanted = [f"{part}_{what}" for part in ("train", "test") for what in ("images", "labels")]
    if missing := [each for each in wanted if each not in there]:
        raise FedgazeError(
            f"{file} is not in MedMNIST's layout: it has {', '.join(there)} and lacks "
            f"{', '.join(missing)}"
        )
    return wanted


def _images(file: Path, part: str, arrays: dict[str, Any]) -> StackedImages:
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise FedgazeError(
            f"{file} has {labels.shape[1]} labels an image, and fedgaze takes sets with one, such "
            "as pneumoniamnist"
        )
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)):
        shape = "x".join(map(str, images.shape[1:]))
        raise FedgazeError(
            f"{file} has images of {shape} ({images.dtype}); allowed are grey ones of two "
            "dimensions and coloured ones of three, of uint8"
        )
    if len(labels) != len(images) or not len(images) or labels.dtype.kind not in "iu":
        raise FedgazeError(
            f"{file} has {len(images)} {part}_images and {len(labels)} {part}_labels "
            f"({labels.dtype}); allowed is a whole number each"
        )
    return stacked(images, labels.reshape(-1))
