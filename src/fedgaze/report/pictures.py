"""Pictures small enough to travel inside one page."""

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["Album", "Array", "colour_scale", "data_uri", "heat_picture", "thumbnail", "webp"]

Array = np.ndarray[Any, np.dtype[np.float32]]


def thumbnail(file: Path, side: int) -> bytes | None:
    """A picture as WebP, at most so many pixels a side; None where it cannot be read."""
    try:
        state = file.stat()
    except OSError:
        return None
    return _thumbnail(file, side, state.st_mtime_ns, state.st_size)


# A run's report is written after each round; a thumbnail takes a kilobyte or two.
@lru_cache(maxsize=4096)
def _thumbnail(file: Path, side: int, _mtime_ns: int, _size: int) -> bytes | None:
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return webp(picture, 70)


def webp(picture: Image.Image, quality: int) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def data_uri(webp: bytes) -> str:
    """A picture as an address that needs no network."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


class Album:
    """Thumbnails, each kept once however often it is shown.

    Attributes:
        pictures: Addresses, in the order of their indices.
        size: Characters that they take together.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self.pictures: list[str] = []
        self.size = 0
        self._known: dict[bytes, int] = {}

    def add(self, file: Path) -> int | None:
        """Take a picture in and return its index; None where it cannot be read."""
        content = thumbnail(file, self.side)
        if content is None:
            return None
        if content not in self._known:
            self._known[content] = len(self.pictures)
            self.pictures.append(data_uri(content))
            self.size += len(self.pictures[-1])
        return self._known[content]


def colour_scale() -> str:
    """The colours of heat from none to most, as the average maps show them: a data URI."""
    return heat_picture(np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(8, 0), 256)


def heat_picture(values: Array, side: int) -> str:
    """A map in the colours of the overlays, on black instead of on a picture."""
    import torch

    from fedgaze.xai import overlay

    height, width = values.shape
    size = (round(side * width / max(values.shape)), round(side * height / max(values.shape)))
    enlarged = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC))
    heat = torch.from_numpy(enlarged.clip(0, 1))
    coloured = overlay(torch.zeros(1, 3, *heat.shape), heat, alpha=1.0)[0].numpy()
    return data_uri(webp(Image.fromarray(coloured), 80))
