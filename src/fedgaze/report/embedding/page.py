"""How classes separate from layer to layer: numbers, points, and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedgaze.measure.separation import Projection, neighbours_hit, project, silhouettes
from fedgaze.measure.statistics import summarise
from fedgaze.models import Classifier
from fedgaze.report.embedding.features import Embedding, Labelled
from fedgaze.report.explained import overlaid, toned
from fedgaze.report.html import render
from fedgaze.report.pictures import data_uri, webp
from fedgaze.store import atomic, write_json, write_text
from fedgaze.xai import explain

__all__ = ["Embedded", "write_embedding"]

KNN_MOST, SILHOUETTE_MOST = 10_000, 4_000
_THUMB, _PLOT, _LEAST = 64, 360.0, -0.5
SHAPES = 3
COLOURS = 10


@dataclass(frozen=True)
class Embedded:
    """What was written.

    Attributes:
        page: The page.
        summary: Its numbers, as in ``embedding.json``.
    """

    page: Path
    summary: Mapping[str, Any]


def write_embedding(  # noqa: PLR0913 - what is shown of what, and how
    folder: Path,
    classifier: Classifier,
    pictures: Labelled,
    embedding: Embedding,
    *,
    projection: Projection = "pca",
    method: str = "gradcam",
    points: int = 600,
    neighbours: int = 10,
    seed: int = 0,
) -> Embedded:
    """Measure how classes separate, and write ``embedding.json``, ``points.csv`` and the page.

    Args:
        folder: Where.
        classifier: The model, which explains the pictures that are shown.
        pictures: With labels.
        embedding: Their features.
        projection: How features become a plane.
        method: The heatmaps' method; at its automatic layer, of the predicted class.
        points: How many pictures are shown.
        neighbours: k of the k nearest neighbours.
        seed: Of the choice of pictures and of the projection.

    Raises:
        FedgazeError: There are less than two classes, or too few pictures, or no such method.
    """
    sample = _sample(embedding.labels, KNN_MOST, seed)
    shown = _sample(embedding.labels, points, seed)
    layers = []
    for word, name in embedding.layers.items():
        labels = embedding.labels[sample]
        features = embedding.features(word, sample)
        hits = neighbours_hit(features, labels, neighbours=neighbours)
        few = _sample(labels, SILHOUETTE_MOST, seed)
        widths = silhouettes(features[few], labels[few])
        plane = project(embedding.features(word, shown), projection, seed=seed)
        layers.append(
            {
                "asked": word,
                "layer": name,
                "channels": int(features.shape[1]),
                "knn": summarise(hits.astype(float).tolist(), seed=seed)._asdict(),
                "silhouette": summarise(widths.tolist(), seed=seed)._asdict(),
                "classes": {
                    pictures.classes[label]: float(hits[labels == label].mean())
                    for label in np.unique(labels).tolist()
                },
                "plane": plane,
            }
        )
    summary = {
        "model": classifier.name,
        "pictures": len(embedding.kept),
        "failed": list(embedding.failed),
        "neighbours": neighbours,
        "measured": len(sample),
        "projection": projection,
        "shown": len(shown),
        "layers": [{key: layer[key] for key in layer if key != "plane"} for layer in layers],
        "headline": _headline(layers),
    }
    write_json(folder / "embedding.json", summary)
    _write_points(folder / "points.csv", pictures, embedding, shown, layers)
    thumbs = _thumbs(classifier, pictures, embedding, shown, method)
    page = folder / "report.html"
    write_text(page, _render(summary, layers, pictures, embedding, shown, thumbs, classifier))
    return Embedded(page, summary)


def _sample(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Rows, as many of each class as can be while there are not more than so many."""
    if len(labels) <= most:
        return np.arange(len(labels), dtype=np.int64)
    generator = np.random.default_rng(seed)
    mixed = generator.permutation(len(labels))
    order = np.argsort(labels[mixed], kind="stable")
    grouped = labels[mixed][order]
    starts = np.searchsorted(grouped, grouped)
    # The first of each class, then the second of each, and so on.
    turns = np.lexsort((grouped, np.arange(len(grouped)) - starts))
    found: NDArray[np.int64] = np.sort(mixed[order][turns[:most]]).astype(np.int64)
    return found


def _headline(layers: Sequence[Mapping[str, Any]]) -> str:
    first, last = layers[0], layers[-1]
    accuracies = [layer["knn"]["mean"] for layer in layers]
    if len(layers) == 1:
        return f"{accuracies[0]:.1%} of neighbours agree at {first['layer']}"
    rises = all(b > a for a, b in pairwise(accuracies))
    ends = (
        f"from {accuracies[0]:.1%} at {first['layer']} to {accuracies[-1]:.1%} at {last['layer']}"
    )
    if rises:
        return f"Classes separate with depth: {ends}"
    best = max(layers, key=lambda layer: layer["knn"]["mean"])
    return (
        f"Classes do not separate steadily with depth: {ends}; best at {best['layer']}, "
        f"{best['knn']['mean']:.1%}"
    )


def _write_points(
    path: Path,
    pictures: Labelled,
    embedding: Embedding,
    shown: NDArray[np.int64],
    layers: Sequence[Mapping[str, Any]],
) -> None:
    import pyarrow as pa
    from pyarrow import csv

    rows = [
        {
            "file": pictures.name(int(embedding.kept[row])),
            "label": pictures.classes[int(embedding.labels[row])],
            "predicted": int(embedding.predicted[row]),
            "layer": layer["layer"],
            "x": float(layer["plane"][place, 0]),
            "y": float(layer["plane"][place, 1]),
        }
        for layer in layers
        for place, row in enumerate(shown.tolist())
    ]
    with atomic(path) as temporary:
        csv.write_csv(pa.Table.from_pylist(rows), str(temporary))


def _thumbs(
    classifier: Classifier,
    pictures: Labelled,
    embedding: Embedding,
    shown: NDArray[np.int64],
    method: str,
) -> list[str]:
    """A picture and its overlay side by side, of each shown picture, in batches."""
    device = next(classifier.model.parameters(), torch.empty(0)).device
    found: list[str] = []
    for start in range(0, len(shown), 32):
        rows = shown[start : start + 32].tolist()
        views = [
            classifier.preprocess.view(pictures.picture(int(embedding.kept[row]))) for row in rows
        ]
        sizes = {view.size for view in views}
        groups = [[i for i, view in enumerate(views) if view.size == size] for size in sizes]
        made: dict[int, str] = {}
        for group in groups:
            images = torch.stack([classifier.preprocess.tensor(views[i]) for i in group])
            explanation = explain(classifier.model, images.to(device), method)
            heats = explanation.heatmaps.detach().float().cpu()
            for i, heat in zip(group, heats, strict=True):
                drawn = toned(heat) if explanation.attributions is not None else heat
                made[i] = data_uri(webp(_pair(views[i], drawn), 60))
        found += [made[i] for i in range(len(views))]
    return found


def _pair(view: Image.Image, heat: torch.Tensor) -> Image.Image:
    size = (_THUMB, max(1, round(_THUMB * view.height / view.width)))
    small = view.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    heat = torch.nn.functional.interpolate(heat[None, None], (size[1], size[0]), mode="area")[0, 0]
    both = Image.new("RGB", (2 * size[0], size[1]))
    both.paste(small, (0, 0))
    both.paste(overlaid(small, heat), (size[0], 0))
    return both


def _render(
    summary: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]],
    pictures: Labelled,
    embedding: Embedding,
    shown: NDArray[np.int64],
    thumbs: Sequence[str],
    classifier: Classifier,
) -> str:
    labels = embedding.labels[shown].tolist()
    present = sorted(set(embedding.labels.tolist()))
    places = {label: place for place, label in enumerate(present)}
    said = _Names(classifier, pictures)
    return render(
        "embedding.html.j2",
        scripts=["page/embedding.js"],
        summary=summary,
        accuracy=said.accuracy(embedding),
        plots=[_plot(layer, labels, places) for layer in layers],
        curve=_curve(summary["layers"]),
        legend=[(pictures.classes[label], *_look(places[label])) for label in present],
        classes=[pictures.classes[label] for label in present],
        points=[
            {
                "name": pictures.name(int(embedding.kept[row])),
                "label": pictures.classes[int(embedding.labels[row])],
                "predicted": said.of(int(embedding.predicted[row])),
                "picture": thumb,
            }
            for row, thumb in zip(shown.tolist(), thumbs, strict=True)
        ],
    )


class _Names:
    """What the model's outputs are called, in the pictures' words where it has none of its own."""

    def __init__(self, classifier: Classifier, pictures: Labelled) -> None:
        self._names = classifier.classes or tuple(pictures.classes)
        self._pictures = pictures

    def of(self, output: int) -> str:
        return self._names[output] if output < len(self._names) else str(output)

    def accuracy(self, embedding: Embedding) -> float | None:
        """The share of pictures that the model gets right; None if it knows other classes."""
        classes = self._pictures.classes
        if not set(classes) <= set(self._names):
            return None
        pairs = zip(embedding.predicted.tolist(), embedding.labels.tolist(), strict=True)
        return float(np.mean([self.of(guess) == classes[label] for guess, label in pairs]))


def _look(place: int) -> tuple[int, int]:
    """Colour and shape of a class."""
    return place % COLOURS, place // COLOURS % SHAPES


def _plot(
    layer: Mapping[str, Any], labels: Sequence[int], places: Mapping[int, int]
) -> dict[str, Any]:
    """A layer's points in the pixels of its drawing; each axis fills its side."""
    plane = layer["plane"]
    low, high = plane.min(0), plane.max(0)
    spots = 10 + (plane - low) / np.maximum(high - low, 1e-9) * (_PLOT - 20)
    return {
        "asked": layer["asked"],
        "layer": layer["layer"],
        "channels": layer["channels"],
        "knn": layer["knn"],
        "silhouette": layer["silhouette"],
        "points": [
            (round(float(x), 1), round(_PLOT - float(y), 1), *_look(places[label]))
            for (x, y), label in zip(spots.tolist(), labels, strict=True)
        ],
    }


def _curve(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy and silhouette by layer, in the pixels of a drawing of 640 × 240."""
    left, right, top, bottom = 60.0, 600.0, 20.0, 190.0
    step = (right - left) / max(1, len(layers) - 1)

    def height(value: float) -> float:
        share = (min(max(value, _LEAST), 1.0) - _LEAST) / (1 - _LEAST)
        return bottom - (bottom - top) * share

    lines: dict[str, list[dict[str, float]]] = {}
    for name in ("knn", "silhouette"):
        lines[name] = []
        for place, layer in enumerate(layers):
            value = layer[name]["mean"]
            y = height(value)
            x = left + step * place if len(layers) > 1 else (left + right) / 2
            lines[name].append({"x": round(x, 1), "y": round(y, 1), "value": value})
    return {
        "lines": lines,
        "names": [layer["layer"] for layer in layers],
        "ticks": [(value, round(height(value), 1)) for value in (-0.5, 0, 0.5, 1)],
    }
