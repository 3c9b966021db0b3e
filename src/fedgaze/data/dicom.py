"""Medical images: DICOM files, as a viewer shows them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedgaze.errors import FedgazeError

__all__ = ["is_dicom", "read_dicom"]

_MAGIC = b"DICM"
_SUFFIXES = {".dcm", ".dicom"}


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or by the mark that follows its preamble."""
    if path.suffix.lower() in _SUFFIXES:
        return True
    with path.open("rb") as file:
        file.seek(128)
        return file.read(len(_MAGIC)) == _MAGIC


def read_dicom(path: Path) -> Image.Image:
    """Read a DICOM file as a viewer shows it.

    Stored values go through the modality's rescaling and the first window that the file names, or,
    where it names none, are stretched from the lowest to the highest. MONOCHROME1, in which low
    values are bright, is inverted. Of several frames the middle one is read.

    Returns:
        Mode ``L`` or ``RGB``.

    Raises:
        FedgazeError: pydicom is not installed, or the file has no image that it can decode.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_modality_lut, apply_windowing, convert_color_space
    except ImportError:
        raise FedgazeError(
            f"{path} is DICOM, which needs pydicom: pip install 'fedgaze[medical]'"
        ) from None
    try:
        dataset = dcmread(path, force=path.suffix.lower() in _SUFFIXES)
        pixels = dataset.pixel_array
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            pixels = pixels[len(pixels) // 2]
        space = str(dataset.PhotometricInterpretation)
        if pixels.ndim == 3:
            coloured = convert_color_space(pixels, space, "RGB") if "YBR" in space else pixels
            return Image.fromarray(coloured.astype(np.uint8), "RGB")
        values = apply_modality_lut(pixels, dataset).astype(np.float64)
        lowest, highest = values.min(), values.max()
        if "WindowCenter" in dataset:
            # The ends of the window, whichever of the standard's functions it has.
            lowest, highest = apply_windowing(np.array([-1e12, 1e12]), dataset)
            values = apply_windowing(values, dataset)
        return Image.fromarray(_scaled(values, lowest, highest, space == "MONOCHROME1"))
    # A damaged file is met with whatever its bytes lead a decoder to.
    except Exception as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise FedgazeError(f"{path} is not a DICOM image that can be read: {why}") from error


def _scaled(values: Any, lowest: float, highest: float, inverted: bool) -> Any:
    width = highest - lowest
    share = (values - lowest) / width if width > 0 else np.zeros_like(values)
    return np.rint(255 * (1 - share if inverted else share)).astype(np.uint8)
