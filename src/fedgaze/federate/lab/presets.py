"""Data sets that an experiment can name by one word, and how models learn from them."""

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgaze.errors import FedgazeError

__all__ = ["PLACE", "PRESETS", "preset"]

PLACE = "FEDGAZE_DATA"
"""The environment variable that names the folder of local files."""


@dataclass(frozen=True)
class _In:
    """A place below the folder of local files."""

    path: str


_DIGITS_NET = {"_target_": "fedgaze.models.DigitsNet"}
_SMALL = {"limit": 4000, "test_limit": 1000}
_USUAL = {
    "model": _DIGITS_NET,
    "learning_rate": 2e-3,
    "batch_size": 32,
    "num_epochs": 2,
    "num_rounds": 8,
    "xai": {"layer": "conv3"},
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "digits": {**_USUAL, "dataset": {"name": "digits"}},
    "scenes": {**_USUAL, "dataset": {"name": "scenes"}, "num_epochs": 4, "num_rounds": 10},
    "mnist": {**_USUAL, "dataset": {"name": "mnist", "root": _In("mnist"), **_SMALL}},
    "fashion_mnist": {
        **_USUAL,
        "dataset": {"name": "fashion_mnist", "root": _In("fashion_mnist"), **_SMALL},
    },
    # Weights that were trained elsewhere, on other images of the set: learning goes on from them.
    "cifar10": {
        "model": {
            "_target_": "fedgaze.models.CifarResNet",
            "weights": _In("weights/resnet20-12fca82f.th"),
        },
        "dataset": {"name": "npz", "root": _In("arrays/cifar10_test_jpeg_2000.npz")},
        "learning_rate": 5e-4,
        "batch_size": 32,
        "num_epochs": 2,
        "num_rounds": 5,
        "xai": {"layer": "layer3"},
    },
}
"""Keys of a task by the name of the data."""


def preset(name: str | None, changes: Mapping[str, Any], root: Path | None) -> dict[str, Any]:
    """The keys of a task for some data.

    Args:
        name: Of the preset; None for none.
        changes: What overrules it; sections are merged, but for a model with a class of its own.
        root: The folder of local files; by default where ``FEDGAZE_DATA`` says.

    Raises:
        FedgazeError: Local files are needed, and nobody says where they lie.
    """
    values = deepcopy(dict(PRESETS[name])) if name else {}
    for key, value in changes.items():
        old = values.get(key)
        other_model = key == "model" and not {"_target_", "name"}.isdisjoint(value)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not other_model:
            value = {**old, **value}  # noqa: PLW2901 - what is merged takes its place
        values[key] = value
    place = root or (Path(os.environ[PLACE]) if os.environ.get(PLACE) else None)
    return {key: _found(value, str(name), place) for key, value in values.items()}


def _found(value: Any, name: str, place: Path | None) -> Any:
    """Put the folder of local files before whatever lies in it."""
    if isinstance(value, Mapping):
        return {key: _found(each, name, place) for key, each in value.items()}
    if not isinstance(value, _In):
        return value
    if place is None:
        raise FedgazeError(
            f"data={name} needs local files: say where they lie with {PLACE}, or with "
            f"data=[{{name: {name}, root: FOLDER}}]"
        )
    whole = place.expanduser().absolute() / value.path
    if not whole.exists():
        raise FedgazeError(f"data={name} needs {whole}, which is not there")
    return str(whole)
