"""The heatmaps that lie in a run's folders."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedgaze.report.federated.record import mapping, number
from fedgaze.report.pictures import Array, heat_picture

__all__ = ["Shot", "mean_heat", "read_folder"]

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
        state = (folder / "manifest.json").stat()
        return list(_by_manifest(folder, state.st_mtime_ns, state.st_size))
    except (OSError, ValueError):
        return _by_name(folder)


# A run's report is written after each round, and old rounds' folders do not change.
@lru_cache(maxsize=1024)
def _by_manifest(folder: Path, _mtime_ns: int, _size: int) -> tuple[Shot, ...]:
    manifest = mapping(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
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
    return tuple(shots)


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
    return [None if each is None else heat_picture(each / peak, side) for each in means]


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
