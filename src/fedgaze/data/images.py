"""Read pictures from files as a person sees them: upright, in 8-bit colour, on white."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedgaze.data.dicom import is_dicom, read_dicom
from fedgaze.errors import FedgazeError, nearest

__all__ = ["find_images", "read_image"]

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
            picture = _eight_bit(ImageOps.exif_transpose(opened))
            if picture.has_transparency_data:
                coloured = picture.convert("RGBA")
                white = Image.new("RGBA", coloured.size, "white")
                picture = Image.alpha_composite(white, coloured)
            return picture.convert("RGB")
    # A damaged file is met with whatever its bytes lead a decoder to.
    except Exception as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise FedgazeError(f"{path} is not a picture that can be read{why}") from error


def find_images(directory: Path) -> list[Path]:
    """List the pictures in a directory and in those below it, by name; hidden ones are left out.

    Raises:
        FedgazeError: There is no such directory, or no picture in it.
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
    return found


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
