"""Explain picture files: a batch in memory at a time, one result a file, whatever a file holds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedgaze.data import read_image
from fedgaze.errors import FedgazeError
from fedgaze.models import Classifier, find_class
from fedgaze.store import OutputFolder
from fedgaze.xai import Explanation, explain, overlay

__all__ = ["How", "Result", "explain_files"]

# Overlays are for people: a digit of 24 pixels is enlarged, a camera's whole resolution reduced.
_SHOWN_AT_LEAST, _SHOWN_AT_MOST = 224, 1024


@dataclass(frozen=True)
class How:
    """How pictures are explained and shown: the words of the command line.

    Attributes:
        method: A method's name.
        layers: Layers' names; empty for the automatic choice.
        target: A class by name or index; None for the predicted one.
        alpha: How much of the heatmap the overlay shows, in [0, 1].
        colormap: A colour map's name; None for the usual one.
        batch_size: How many pictures are explained at once.
    """

    method: str
    layers: Sequence[str]
    target: str | None
    alpha: float
    colormap: str | None
    batch_size: int


@dataclass(frozen=True)
class _Picture:
    """A file's picture: as the model sees it, and as a person is shown the same part of it."""

    file: Path
    view: Image.Image
    shown: Image.Image


@dataclass(frozen=True)
class Result:
    """What came of one file.

    Attributes:
        file: The picture.
        record: What is written of it, as one JSON line.
        error: Why it could not be explained; None if it was.
    """

    file: Path
    record: dict[str, Any]
    error: str | None = None


def explain_files(
    classifier: Classifier, files: Iterable[Path], output: OutputFolder, how: How
) -> Iterator[Result]:
    """Explain pictures and write an overlay and a heatmap of each.

    Args:
        classifier: Its model runs on the device that it lies on.
        files: Pictures. One that cannot be read gives a `Result` with an error.
        output: Where overlays and heatmaps go.
        how: See `How`.

    Yields:
        One result a file, in the order of the files.

    Raises:
        FedgazeError: The method, a layer, the target or the colour map does not exist, or a result
            cannot be written.
    """
    target = None if how.target is None else find_class(how.target, classifier.classes)
    waiting: list[_Picture] = []
    for file in files:
        try:
            picture = read_image(file)
        except FedgazeError as error:
            yield from _explain_batch(classifier, waiting, output, how, target)
            waiting = []
            yield _failed(file, str(error))
            continue
        # Pictures that keep their own size can only share a batch with those of the same size.
        view = classifier.preprocess.view(picture)
        if waiting and (len(waiting) == how.batch_size or view.size != waiting[0].view.size):
            yield from _explain_batch(classifier, waiting, output, how, target)
            waiting = []
        waiting.append(_Picture(file, view, _shown(classifier.preprocess.frame(picture), view)))
    yield from _explain_batch(classifier, waiting, output, how, target)


def _explain_batch(
    classifier: Classifier,
    batch: Sequence[_Picture],
    output: OutputFolder,
    how: How,
    target: int | None,
) -> Iterator[Result]:
    if not batch:
        return
    device = next(classifier.model.parameters(), torch.empty(0)).device
    inputs = torch.stack([classifier.preprocess.tensor(each.view) for each in batch])
    try:
        explanation = explain(
            classifier.model,
            inputs.to(device),
            how.method,
            None if target is None else [target] * len(batch),
            list(how.layers) or None,
        )
    except FedgazeError:
        raise
    # A model that takes only pictures of one size, or more memory than there is.
    except RuntimeError as error:
        channels, height, width = inputs.shape[1:]
        why = str(error).strip().partition("\n")[0]
        for each in batch:
            yield _failed(
                each.file,
                f"{each.file}: the model could not run on {channels} × {height} × {width} numbers: "
                f"{why}",
            )
        return
    colours = {} if how.colormap is None else {"colormap": how.colormap}
    for index, (each, heatmap) in enumerate(zip(batch, explanation.heatmaps.cpu(), strict=True)):
        picture = torch.from_numpy(np.array(each.shown.convert("RGB"))).permute(2, 0, 1)
        shown = overlay(picture, heatmap, alpha=how.alpha, **colours)
        paths = output.write_maps(each.file.stem, shown[0].numpy(), heatmap.float().numpy())
        record = {"file": str(each.file), **_record(classifier, explanation, index)}
        yield Result(each.file, record | {"overlay": paths[0].name, "heatmap": paths[1].name})


def _record(classifier: Classifier, explanation: Explanation, index: int) -> dict[str, Any]:
    explained = explanation.predicted if explanation.targets is None else explanation.targets
    probabilities = explanation.logits[index].float().softmax(dim=0)

    def named(wanted: int) -> dict[str, Any]:
        return {
            "class": wanted,
            "label": classifier.label(wanted),
            "probability": round(float(probabilities[wanted]), 6),
        }

    return {
        "predicted": named(int(explanation.predicted[index])),
        "explained": named(int(explained[index])),
        "model": classifier.name,
        "method": explanation.method,
        "layers": list(explanation.layers),
        "flags": list(explanation.flags[index]),
    }


def _shown(frame: Image.Image, view: Image.Image) -> Image.Image:
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
    return Result(file, {"file": str(file), "error": error}, error)
