"""Explain picture files: a batch in memory at a time, one result a file, whatever a file holds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from fedgaze.cli.outputs import OutputFolder
from fedgaze.data.images import read_image
from fedgaze.errors import FedgazeError
from fedgaze.models import Classifier, find_class
from fedgaze.xai import Explanation, explain

__all__ = ["How", "Result", "explain_files"]


@dataclass(frozen=True)
class How:
    """How pictures are explained and shown: the words of the command line.

    Attributes:
        method: A method's name.
        layers: Layers' names; empty for the automatic choice.
        target: A class by name or index; None for the predicted one.
        alpha: How much of the heatmap the overlay shows, in [0, 1].
        colormap: A colour map's name.
        batch_size: How many pictures are explained at once.
    """

    method: str
    layers: Sequence[str]
    target: str | None
    alpha: float
    colormap: str
    batch_size: int


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
    waiting: list[tuple[Path, Image.Image]] = []
    for file in files:
        try:
            view = classifier.preprocess.view(read_image(file))
        except FedgazeError as error:
            yield from _explain_batch(classifier, waiting, output, how, target)
            waiting = []
            yield _failed(file, str(error))
            continue
        # Pictures that keep their own size can only share a batch with those of the same size.
        if waiting and (len(waiting) == how.batch_size or view.size != waiting[0][1].size):
            yield from _explain_batch(classifier, waiting, output, how, target)
            waiting = []
        waiting.append((file, view))
    yield from _explain_batch(classifier, waiting, output, how, target)


def _explain_batch(
    classifier: Classifier,
    batch: Sequence[tuple[Path, Image.Image]],
    output: OutputFolder,
    how: How,
    target: int | None,
) -> Iterator[Result]:
    if not batch:
        return
    device = next(classifier.model.parameters(), torch.empty(0)).device
    inputs = torch.stack([classifier.preprocess.tensor(view) for _, view in batch])
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
        for file, _ in batch:
            yield _failed(
                file, f"the model could not run on {channels} × {height} × {width} numbers: {why}"
            )
        return
    views = torch.stack([pil_to_tensor(view.convert("RGB")) for _, view in batch])
    overlays = explanation.overlay(views, alpha=how.alpha, colormap=how.colormap)
    for index, (file, _) in enumerate(batch):
        heatmap = explanation.heatmaps[index].float().cpu().numpy()
        paths = output.write_maps(file.stem, overlays[index], heatmap)
        record = {"file": str(file), **_record(classifier, explanation, index)}
        yield Result(file, record | {"overlay": paths[0].name, "heatmap": paths[1].name})


def _record(classifier: Classifier, explanation: Explanation, index: int) -> dict[str, Any]:
    probabilities = explanation.logits[index].float().softmax(dim=0)

    def named(wanted: int) -> dict[str, Any]:
        return {
            "class": wanted,
            "label": classifier.label(wanted),
            "probability": round(float(probabilities[wanted]), 6),
        }

    return {
        "predicted": named(int(explanation.predicted[index])),
        "explained": named(int(explanation.targets[index])),
        "model": classifier.name,
        "method": explanation.method,
        "layers": list(explanation.layers),
        "flags": list(explanation.flags[index]),
    }


def _failed(file: Path, error: str) -> Result:
    return Result(file, {"file": str(file), "error": error}, error)
