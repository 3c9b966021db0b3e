"""The pictures of a run, small enough to travel inside one page."""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedgaze.report.record import mapping, number

__all__ = ["Album", "Shot", "colour_scale", "data_uri", "mean_heat", "read_folder", "thumbnail"]

Array = np.ndarray[Any, np.dtype[np.float32]]

NAME = re.compile(r"[a-z0-9+_-]+?_class_(\d+)(?:_(\d+))?(?:_(received|marked))?\.jpg")


@dataclass(frozen=True)
class Shot:
    """One heatmap of a folder.

    Attributes:
        picture: The overlay's file.
        raw_map: The raw map's file.
        label: The class that is explained.
        weights: ``trained``, ``received`` or ``marked`` (trained, the mark stamped in).
        first: Whether it is its class's first sample.
        predicted: What the model took the image for; None where nobody wrote it down.
        probability: Of the class that is explained.
        measures: Of this one map.
    """

    picture: Path
    raw_map: Path
    label: int
    weights: str
    first: bool
    predicted: str | None = None
    probability: float | None = None
    measures: Mapping[str, Any] | None = None


def read_folder(folder: Path) -> list[Shot]:
    """What lies in a folder of heatmaps, by its manifest or, where a client sent none, by names."""
    try:
        manifest = mapping(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return _by_name(folder)
    shots: list[Shot] = []
    seen: set[tuple[int, str]] = set()
    for each in map(mapping, manifest.get("maps") or []):
        label, weights = each.get("class"), str(each.get("weights"))
        if not isinstance(label, int):
            continue
        predicted = each.get("predicted_name")
        shots.append(
            Shot(
                # Only the name: a manifest may come from a client, and must not point elsewhere.
                folder / Path(str(each.get("picture"))).name,
                folder / Path(str(each.get("raw_map"))).name,
                label,
                weights,
                (label, weights) not in seen,
                None if predicted is None else str(predicted),
                number(each.get("probability")),
                mapping(each.get("measures")),
            )
        )
        seen.add((label, weights))
    return shots


def _by_name(folder: Path) -> list[Shot]:
    matches = [(file, NAME.fullmatch(file.name)) for file in sorted(folder.glob("*.jpg"))]
    return [
        Shot(
            file,
            file.with_suffix(".npy"),
            int(match[1]),
            match[3] or "trained",
            int(match[2] or 0) == 0,
        )
        for file, match in matches
        if match
    ]


def thumbnail(file: Path, side: int) -> bytes | None:
    """A picture as WebP, at most so many pixels a side; None where it cannot be read."""
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _webp(picture, 70)


def _webp(picture: Image.Image, quality: int) -> bytes:
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


def mean_heat(groups: Sequence[Sequence[Shot]], side: int) -> list[str | None]:
    """Each group's maps averaged into one picture, all on one scale.

    A map counts with its share of heat a cell, so that no single image outweighs another.

    Args:
        groups: The shots of each client.
        side: Pixels a side of each picture.

    Returns:
        An address a group; None for a group without maps. All None where shapes differ.
    """
    means = [_mean([_raw(shot) for shot in shots]) for shots in groups]
    known = [each for each in means if each is not None]
    if not known or len({each.shape for each in known}) > 1:
        return [None] * len(groups)
    peak = max(float(each.max()) for each in known)
    return [None if each is None else _heat_picture(each / peak, side) for each in means]


def _raw(shot: Shot) -> Array | None:
    try:
        values = np.load(shot.raw_map, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError):
        return None
    if values.ndim != 2 or not np.isfinite(values).all() or values.min() < 0 or values.sum() <= 0:
        return None
    shares: Array = values / values.sum()
    return shares


def _mean(maps: Sequence[Array | None]) -> Array | None:
    known = [each for each in maps if each is not None]
    if not known or len({each.shape for each in known}) > 1:
        return None
    mean: Array = np.mean(known, axis=0)
    return mean


def colour_scale() -> str:
    """The colours of heat from none to most, as the average maps show them: a data URI."""
    return _heat_picture(np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(8, 0), 256)


def _heat_picture(values: Array, side: int) -> str:
    """A map in the colours of the overlays, on black instead of on a picture."""
    import torch

    from fedgaze.xai import overlay

    height, width = values.shape
    size = (round(side * width / max(values.shape)), round(side * height / max(values.shape)))
    enlarged = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC))
    heat = torch.from_numpy(enlarged.clip(0, 1))
    coloured = overlay(torch.zeros(1, 3, *heat.shape), heat, alpha=1.0)[0].numpy()
    return data_uri(_webp(Image.fromarray(coloured), 80))
