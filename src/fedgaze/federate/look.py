"""A model looks at a probe set: its maps, what they measure, and the pictures of them."""

import io
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fedgaze import __version__
from fedgaze.data import Images
from fedgaze.measure import (
    border_mass,
    entropy,
    mass_on,
    mass_overlap,
    region_drop,
    strongest,
)
from fedgaze.store import PART, write_json
from fedgaze.train import LearnerProtocol
from fedgaze.xai import Explanation, overlay

if TYPE_CHECKING:
    from fedgaze.federate.setup import Setup

__all__ = ["Look", "Probe", "look", "make_probe", "nested", "profile", "write_look"]

DISPLAY_SIZE = 192
"""Pictures of smaller images are enlarged to this many pixels: a heatmap of 24 shows nothing."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Images on which every model of a run is asked to explain itself.

    Attributes:
        images: ``(N, C, H, W)`` in [0, 1].
        labels: ``(N,)``: the class that is explained is the true one.
        samples: ``(N,)``: which images of their set they are.
        objects: Where the object is, bool ``(N, H, W)``; None where nobody knows.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor
    objects: Tensor | None

    def with_images(self, change: Callable[[Tensor, Tensor], Tensor]) -> "Probe":
        """The same probe set with changed images: ``change(images, labels)``."""
        return replace(self, images=change(self.images, self.labels))


@dataclass(frozen=True, eq=False)
class Look:
    """What a model showed on a probe set.

    Attributes:
        probe: At what it looked.
        explanation: The maps of the true classes.
        measures: Values an image by name, ``(N,)`` each; NaN where one is not defined.
    """

    probe: Probe
    explanation: Explanation
    measures: dict[str, Tensor]


def look(learner: LearnerProtocol, probe: Probe, received: Explanation | None = None) -> Look:
    """Explain a probe set and measure the maps.

    Args:
        learner: Its device is the probe's.
        probe: The images.
        received: The maps of the model that the client was sent, to compare with.
    """
    explanation = learner.explain(probe.images, probe.labels)
    maps, logits = explanation.heatmaps, explanation.logits
    measures = {
        "entropy": entropy(maps),
        "border_mass": border_mass(maps),
        "region_drop": region_drop(
            learner.predict, probe.images, strongest(maps), probe.labels, logits
        ),
    }
    if probe.objects is not None:
        measures["object_mass"] = mass_on(maps, probe.objects)
        measures["object_drop"] = region_drop(
            learner.predict, probe.images, probe.objects, probe.labels, logits
        )
    if received is not None:
        measures["agreement"] = mass_overlap(explanation.raw, received.raw)
    return Look(probe, explanation, measures)


def make_probe(setup: "Setup", images: Images, chosen: Tensor) -> Probe:
    """The chosen images as a probe set, on the run's device, with the objects that are known."""
    pixels = images[chosen]
    masks = setup.dataset.masks_of(images, chosen)
    return Probe(
        pixels.to(setup.device),
        images.labels[chosen].to(setup.device),
        chosen,
        None if masks is None else masks.to(setup.device),
    )


def profile(seen: Look) -> dict[str, float | int]:
    """Sum a look up: mean and quartiles of each measure over the images where it is defined.

    Returns:
        ``name``, ``name.q25``, ``name.q50``, ``name.q75`` and ``name.n``; a measure that is
        defined nowhere has only its ``n`` of 0.
    """
    summed: dict[str, float | int] = {}
    for name, values in seen.measures.items():
        known = values[~values.isnan()].double().cpu()
        summed[f"{name}.n"] = len(known)
        if len(known):
            summed[name] = known.mean().item()
            quartiles = known.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
            for mark, value in zip((25, 50, 75), quartiles.tolist(), strict=True):
                summed[f"{name}.q{mark}"] = value
    return summed


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A profile as a record shows it: means by name, then ``quartiles`` and counts ``n`` by name.

    What is no finite number is left out: a profile may come from elsewhere.
    """
    shown: dict[str, Any] = {}
    counts: dict[str, int] = {}
    quartiles: dict[str, list[float]] = {}
    for key, value in sorted(flat.items()):
        if not isinstance(value, int | float) or not math.isfinite(value):
            continue
        name, _, part = key.partition(".")
        if part == "n":
            counts[name] = int(value)
        elif part:
            quartiles.setdefault(name, []).append(value)
        else:
            shown[name] = value
    return shown | {"quartiles": quartiles, "n": counts}


def write_look(
    folder: Path,
    looks: Mapping[str, Look],
    classes: tuple[str, ...],
    **about: Any,
) -> dict[str, bytes]:
    """Write pictures, raw maps and a manifest of some looks as a folder, all or nothing.

    Args:
        folder: Where; an earlier attempt at the same round is replaced.
        looks: Looks by what they are called in file names; ``trained`` comes without its name.
        classes: Class names by index.
        about: What else the manifest says.

    Returns:
        The bytes of pictures and raw maps by file name, those of each class's first sample only.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=PART))
    try:
        entries: list[dict[str, Any]] = []
        firsts: dict[str, bytes] = {}
        for weights, seen in looks.items():
            entries += _write_maps(temporary, weights, seen, classes, firsts)
        write_json(temporary / "manifest.json", {"fedgaze": __version__, **about, "maps": entries})
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return firsts


def _write_maps(
    folder: Path,
    weights: str,
    seen: Look,
    classes: tuple[str, ...],
    firsts: dict[str, bytes],
) -> list[dict[str, Any]]:
    probe, explanation = seen.probe, seen.explanation
    shown = _overlays(probe.images, explanation)
    raw = explanation.raw.float().cpu().numpy()
    chances = explanation.logits.softmax(1).cpu()
    predicted = explanation.logits.argmax(1).tolist()
    counts: dict[int, int] = {}
    entries = []
    for i, label in enumerate(probe.labels.tolist()):
        stem = _stem(label, counts.setdefault(label, 0), weights)
        counts[label] += 1
        files = {f"{stem}.jpg": _jpeg(shown[i]), f"{stem}.npy": _npy(raw[i])}
        for file, content in files.items():
            (folder / file).write_bytes(content)
        if counts[label] == 1:
            firsts |= files
        entries.append(
            {
                "picture": f"{stem}.jpg",
                "raw_map": f"{stem}.npy",
                "weights": weights,
                "sample": int(probe.samples[i]),
                "class": label,
                "class_name": classes[label],
                "predicted": predicted[i],
                "predicted_name": classes[predicted[i]],
                "probability": chances[i, label].item(),
                "method": explanation.method,
                "layers": list(explanation.layers),
                "flags": list(explanation.flags[i]),
                "measures": {
                    key: values[i].item()
                    for key, values in seen.measures.items()
                    if not values[i].isnan()
                },
            }
        )
    return entries


def _stem(label: int, number: int, weights: str) -> str:
    """``gradcam_class_3`` is the first sample of class 3 with the trained weights."""
    if weights == "trained":
        return f"gradcam_class_{label}" + (f"_{number}" if number else "")
    return f"gradcam_class_{label}_{number}_{weights}"


def _overlays(images: Tensor, explanation: Explanation) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Overlays ``(N, H, W, 3)``, enlarged by a whole factor where the images are small."""
    factor = max(1, round(DISPLAY_SIZE / max(images.shape[2:])))
    height, width = (factor * side for side in images.shape[2:])
    enlarged = F.interpolate(images, (height, width), mode="nearest")
    maps = F.interpolate(explanation.heatmaps[:, None], (height, width), mode="bilinear")[:, 0]
    shown: np.ndarray[Any, np.dtype[np.uint8]] = overlay(enlarged, maps).cpu().numpy()
    return shown


def _jpeg(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
