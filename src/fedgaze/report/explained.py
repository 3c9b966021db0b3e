"""Explain picture files: a batch in memory at a time, one result a file, whatever a file holds."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedgaze.data import read_image
from fedgaze.errors import FedgazeError
from fedgaze.models import Classifier, find_class
from fedgaze.report.region import find_region
from fedgaze.report.tiles import Tile, side_by_side
from fedgaze.store import OutputFolder
from fedgaze.timing import timed
from fedgaze.xai import (
    Classes,
    Explanation,
    Targets,
    contrast,
    explain,
    find_method,
    overlay,
    probabilities,
    top_k,
)

__all__ = ["How", "Result", "cannot_run", "explain_files", "overlaid", "shown_picture", "toned"]

# Overlays are for people: a digit of 24 pixels is enlarged, a camera's whole resolution reduced.
_SHOWN_AT_LEAST, _SHOWN_AT_MOST = 224, 1024
_COLUMNS = 6
_STRONGEST = 0.99


@dataclass(frozen=True)
class How:
    """How pictures are explained and shown: the words of the command line.

    Attributes:
        methods: Methods' names.
        layers: Layers' names; empty for the automatic choice.
        targets: Classes by name or index; empty for the predicted one.
        top_k: Instead of targets, so many of the likeliest classes.
        against: A class that the (one) target is set against.
        alpha: How much of the heatmap the overlay shows, in [0, 1].
        colormap: A colour map's name; None for the usual one.
        batch_size: How many pictures are explained at once.
        region: A threshold in (0, 1] over which box and mask are found; None for neither.
        multi_label: Whether each class is a yes or no of its own.
        settings: Further arguments of `explain`.
        options: Options of methods; each goes to the methods that have it.
    """

    methods: Sequence[str] = ("gradcam",)
    layers: Sequence[str] = ()
    targets: Sequence[str] = ()
    top_k: int | None = None
    against: str | None = None
    alpha: float = 0.7
    colormap: str | None = None
    batch_size: int = 16
    region: float | None = None
    multi_label: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Picture:
    """A file's picture: as the model sees it, and as a person is shown the same part of it."""

    file: Path
    size: tuple[int, int]
    view: Image.Image
    shown: Image.Image


@dataclass(frozen=True)
class Result:
    """What came of one file.

    Attributes:
        file: The picture.
        records: What is written of it, a JSON line for each method and target.
        error: Why it could not be explained; None if it was.
    """

    file: Path
    records: Sequence[dict[str, Any]]
    error: str | None = None


def explain_files(
    classifier: Classifier, files: Iterable[Path], output: OutputFolder, how: How
) -> Iterator[Result]:
    """Explain pictures and write overlays and heatmaps of each.

    Args:
        classifier: Its model runs on the device that it lies on.
        files: Pictures. One that cannot be read gives a `Result` with an error.
        output: Where overlays and heatmaps go.
        how: See `How`.

    Yields:
        One result a file, in the order of the files.

    Raises:
        FedgazeError: A method, an option, a layer, a target or the colour map does not exist, or a
            result cannot be written.
    """
    job = _Job.of(classifier, output, how)
    waiting: list[_Picture] = []
    for file in files:
        try:
            picture = read_image(file)
        except FedgazeError as error:
            yield from job.explain(waiting)
            waiting = []
            yield _failed(file, str(error))
            continue
        # Pictures that keep their own size can only share a batch with those of the same size.
        view = classifier.preprocess.view(picture)
        if waiting and (len(waiting) == how.batch_size or view.size != waiting[0].view.size):
            yield from job.explain(waiting)
            waiting = []
        shown = shown_picture(classifier.preprocess.frame(picture), view)
        waiting.append(_Picture(file, picture.size, view, shown))
    yield from job.explain(waiting)


@dataclass(frozen=True)
class _Job:
    """What is the same for all pictures, checked."""

    classifier: Classifier
    output: OutputFolder
    how: How
    targets: Targets
    runs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, classifier: Classifier, output: OutputFolder, how: How) -> "_Job":
        methods = {name: find_method(name) for name in how.methods}
        for option in how.options:
            if not any(option in method.options for method in methods.values()):
                next(iter(methods.values())).check_options({option: None})
        runs = {
            name: {
                "layers": (list(how.layers) or None) if method.layers else None,
                **how.settings,
                **{key: each for key, each in how.options.items() if key in method.options},
            }
            for name, method in methods.items()
        }
        if how.layers and not any(method.layers for method in methods.values()):
            raise FedgazeError(f"{', '.join(methods)} explains no layer; leave --layer out")
        return cls(classifier, output, how, _targets(classifier, how), runs)

    def explain(self, batch: Sequence[_Picture]) -> Iterator[Result]:
        """Explain pictures of one size, and write what is to be seen of them."""
        if not batch:
            return
        classifier = self.classifier
        device = next(classifier.model.parameters(), torch.empty(0)).device
        inputs = torch.stack([classifier.preprocess.tensor(each.view) for each in batch])
        try:
            found = {}
            for name, run in self.runs.items():
                with timed(f"{len(batch)} heatmaps by {name} on {device}"):
                    found[name] = explain(
                        classifier.model, inputs.to(device), name, self.targets, **run
                    )
        except FedgazeError:
            raise
        # A model that takes only pictures of one size, or more memory than there is.
        except RuntimeError as error:
            why = cannot_run(error, *inputs.shape[1:])
            for each in batch:
                yield _failed(each.file, f"{each.file}: {why}")
            return
        for index, picture in enumerate(batch):
            yield Result(picture.file, self._written(picture, index, found))

    def _written(
        self, picture: _Picture, index: int, found: Mapping[str, Explanation]
    ) -> list[dict[str, Any]]:
        files: dict[str, Callable[[BinaryIO], object]] = {}
        records: list[dict[str, Any]] = []
        tiles: list[Tile] = []
        rows = {
            name: (explanation.images == index).nonzero()[:, 0].tolist()
            for name, explanation in found.items()
        }
        single = sum(map(len, rows.values())) == 1
        for rank in range(max(map(len, rows.values()))):
            for number, (name, explanation) in enumerate(found.items()):
                row = rows[name][rank]
                record = {"file": str(picture.file), **self._record(explanation, index, row, name)}
                middle = "" if single else f".{name}{_of_target(explanation, row)}"
                shown, written = self._files(middle, picture, explanation, row, record)
                files |= written
                records.append(record)
                if number == 0:
                    predicted = record["predicted"]
                    note = f"{predicted['label']} {predicted['probability']:.1%}"
                    tiles.append(Tile(picture.shown, picture.file.name, note))
                explained = record["explained"] or {"label": "score"}
                tiles.append(Tile(shown, name, explained["label"]))
        if not single:
            columns = _COLUMNS if len(tiles) == 1 + len(found) else 1 + len(found)
            files[".side_by_side.png"] = _png(side_by_side(tiles, columns))
        paths = self.output.write_together(picture.file.stem, files)
        for record in records:
            for key, suffix in record.pop("suffixes").items():
                record[key] = paths[suffix].name
            if not single:
                record["side_by_side"] = paths[".side_by_side.png"].name
        return records

    def _files(
        self,
        middle: str,
        picture: _Picture,
        explanation: Explanation,
        row: int,
        record: dict[str, Any],
    ) -> tuple[Image.Image, dict[str, Callable[[BinaryIO], object]]]:
        """The overlay, and what is written of one map; where it lies is noted in the record."""
        heatmap = explanation.heatmaps[row].detach().float().cpu()
        drawn = toned(heatmap) if explanation.attributions is not None else heatmap
        shown = self._coloured(picture.shown, drawn, self.how.alpha)
        alone = self._coloured(Image.new("RGB", (drawn.shape[1], drawn.shape[0])), drawn, 1.0)
        files: dict[str, Callable[[BinaryIO], object]] = {
            f"{middle}.overlay.png": _png(shown),
            f"{middle}.heatmap.npy": partial(np.save, arr=heatmap.numpy()),
            f"{middle}.heatmap.png": _png(alone),
        }
        record["suffixes"] = {
            "overlay": f"{middle}.overlay.png",
            "heatmap": f"{middle}.heatmap.npy",
            "heatmap_picture": f"{middle}.heatmap.png",
        }
        if self.how.region is not None:
            seen = self.classifier.preprocess.frame_box(picture.size)
            region = find_region(heatmap, self.how.region, picture.size, seen)
            files[f"{middle}.mask.png"] = _png(Image.fromarray(region.mask))
            record["suffixes"]["mask"] = f"{middle}.mask.png"
            record["box"] = None if region.box is None else list(region.box)
        return shown, files

    def _coloured(self, picture: Image.Image, heatmap: Tensor, alpha: float) -> Image.Image:
        colours = {} if self.how.colormap is None else {"colormap": self.how.colormap}
        return overlaid(picture, heatmap, alpha=alpha, **colours)

    def _record(
        self, explanation: Explanation, index: int, row: int, method: str
    ) -> dict[str, Any]:
        logits = explanation.logits[index : index + 1]
        chances = probabilities(logits, multi_label=self.how.multi_label)[0]

        def named(wanted: int) -> dict[str, Any]:
            return {
                "class": wanted,
                "label": self.classifier.label(wanted),
                "probability": round(float(chances[wanted]), 6),
            }

        explained = None if explanation.targets is None else int(explanation.targets[row])
        record = {
            "predicted": named(int(explanation.predicted[index])),
            "explained": None if explained is None else named(explained),
            "model": self.classifier.name,
            "method": method,
            "layers": list(explanation.layers),
            "flags": list(explanation.flags[row]),
        }
        if self.how.against is not None:
            record["against"] = named(find_class(self.how.against, self.classifier.classes))
        if explanation.precision != "full":
            record["precision"] = explanation.precision
        return record


def _targets(classifier: Classifier, how: How) -> Targets:
    found = [find_class(word, classifier.classes) for word in how.targets]
    if how.top_k is not None:
        if found or how.against:
            raise FedgazeError("--top-k goes without --target and --against")
        return top_k(how.top_k)
    if how.against is not None:
        if len(found) > 1:
            raise FedgazeError("--against goes with one --target, or with none for the predicted")
        return contrast(found[0] if found else None, find_class(how.against, classifier.classes))
    return Classes(torch.tensor(found)) if found else None


def _of_target(explanation: Explanation, row: int) -> str:
    if explanation.targets is None or len(explanation) == len(explanation.predicted):
        return ""
    return f".{int(explanation.targets[row])}"


def cannot_run(error: RuntimeError, channels: int, height: int, width: int) -> str:
    """Say that a model did not take pictures of a size, and why, in one line."""
    why = str(error).strip().partition("\n")[0]
    return f"the model could not run on {channels} × {height} × {width} numbers: {why}"


def toned(heatmap: Tensor) -> Tensor:
    """What is drawn where each pixel is judged: a few are so strong that no other could be seen."""
    limit = heatmap.abs().flatten().quantile(_STRONGEST)
    return (heatmap / limit).clamp(-1, 1) if limit > 0 else heatmap


def overlaid(picture: Image.Image, heatmap: Tensor, **how: Any) -> Image.Image:
    """A picture under a heatmap ``(H, W)``; further arguments are those of `overlay`."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    return Image.fromarray(overlay(pixels, heatmap, **how)[0].numpy())


def _png(picture: Image.Image) -> Callable[[BinaryIO], object]:
    return partial(picture.save, format="png")


def shown_picture(frame: Image.Image, view: Image.Image) -> Image.Image:
    """Choose what a person is shown: the finer of the two, enlarged or reduced to be looked at."""
    finer = frame if frame.width > view.width else view
    enlarged = -(-_SHOWN_AT_LEAST // max(finer.size))
    if enlarged > 1:
        size = finer.width * enlarged, finer.height * enlarged
        return finer.resize(size, Image.Resampling.NEAREST)
    shown = finer.copy()
    shown.thumbnail((_SHOWN_AT_MOST, _SHOWN_AT_MOST), Image.Resampling.LANCZOS)
    return shown


def _failed(file: Path, error: str) -> Result:
    return Result(file, [{"file": str(file), "error": error}], error)
