"""Read pictures from files as a person sees them: upright, in 8-bit colour, on white."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path, PurePath, PureWindowsPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fedgaze.data.dicom import is_dicom, read_dicom
from fedgaze.errors import FedgazeError, check_names, nearest

__all__ = ["as_seen", "find_images", "fit_picture", "match_files", "read_image"]

_SUFFIXES = {
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".dcm", ".dicom"
}  # fmt: skip


def read_image(path: Path) -> Image.Image:
    """Read a picture as RGB.

    The camera's note of orientation (EXIF) is followed, what is transparent becomes white, 16-bit
    values are scaled to 8 bits, and of an animation the first frame counts. For DICOM see
    `fedgaze.data.dicom.read_dicom`.

    Raises:
        FedgazeError: There is no such file, or it is no whole picture.
    """
    if not path.is_file():
        there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FedgazeError(f"{path} is not a file{nearest(path.name, there)}")
    if is_dicom(path):
        return read_dicom(path).convert("RGB")
    try:
        with Image.open(path) as opened:
            return as_seen(opened)
    # A damaged file is met with whatever its bytes lead a decoder to.
    except Exception as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise FedgazeError(f"{path} is not a picture that can be read{why}") from error


def as_seen(opened: Image.Image) -> Image.Image:
    """A picture as a person sees it, as RGB; see `read_image`."""
    picture = _eight_bit(ImageOps.exif_transpose(opened))
    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        picture = Image.alpha_composite(white, coloured)
    return picture.convert("RGB")


def fit_picture(picture: Image.Image, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Bring a picture to a model's size: scaled, with the middle kept.

    Args:
        picture: RGB.
        size: Height and width.
        channels: 3 for colour, 1 for grey.

    Returns:
        float32 ``(channels, H, W)`` in [0, 1].
    """
    from torchvision.transforms.v2 import functional

    picture = picture.convert("L" if channels == 1 else "RGB")
    scale = max(size[0] / picture.height, size[1] / picture.width)
    sides = [max(int(picture.height * scale), size[0]), max(int(picture.width * scale), size[1])]
    picture = functional.center_crop(functional.resize(picture, sides), list(size))
    pixels: Tensor = functional.pil_to_tensor(picture)
    return pixels / 255


def find_images(directory: Path) -> list[Path]:
    """List the pictures in a directory and in those below it, by name; hidden ones are left out.

    Raises:
        FedgazeError: There is no such directory, no picture in it, or one whose name no text can
            hold.
    """
    if not directory.is_dir():
        raise FedgazeError(f"{directory} is not a directory")
    found = [
        path
        for path in sorted(directory.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    ]
    if not found:
        kinds = ", ".join(sorted(suffix[1:] for suffix in _SUFFIXES))
        raise FedgazeError(f"{directory} has no picture in it ({kinds})")
    check_names(found)
    return found


def match_files(names: Iterable[str], files: Iterable[Path]) -> dict[Path, str]:
    """Find out which files are meant by names that somebody else wrote down.

    Args:
        names: File names, with some of their folders or without. Slashes may lean either way.
        files: Where the files lie here, below whatever folder.

    Returns:
        By file its name: of those called so, the one that has most folders in common. Files that
        have none are left out.

    Raises:
        FedgazeError: A name may mean several of the files, or a file may be meant by several names.
    """
    called = defaultdict(list)
    for name in names:
        path = PureWindowsPath(name)
        called[path.name].append((path, name))
    found: dict[Path, str] = {}
    closest: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for file in files:
        alike = [(_in_common(file, path), name) for path, name in called.get(file.name, ())]
        most = max((common for common, _ in alike), default=0)
        best = [name for common, name in alike if common == most]
        if len(best) > 1:
            raise FedgazeError(f"{file} may be {best[0]} or {best[1]}; put it into such a folder")
        for name in best:
            closest[name].append((most, file))
    for name, held in closest.items():
        most = max(common for common, _ in held)
        best_files = [file for common, file in held if common == most]
        if len(best_files) > 1:
            raise FedgazeError(
                f"{name} may be {best_files[0]} or {best_files[1]}; say in which folder it lies"
            )
        found[best_files[0]] = name
    return found


def _in_common(one: PurePath, other: PurePath) -> int:
    """How many parts, from the end, two paths have in common."""
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits, which Pillow would cut off at 255."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture, dtype=np.float64)
    if picture.mode.startswith("I;16") or values.max(initial=0.0) > 255:
        values = values / 257
    elif picture.mode == "F" and values.max(initial=0.0) <= 1:
        values = values * 255
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
