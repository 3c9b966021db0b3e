"""The heatmaps of models × layers × methods for each picture."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fedgaze.data import read_image
from fedgaze.errors import FedgazeError
from fedgaze.models import Classifier, find_class, layers_by_depth
from fedgaze.report.explained import cannot_run, overlaid, shown_picture, toned
from fedgaze.timing import timed
from fedgaze.xai import (
    Classes,
    Explanation,
    Method,
    Targets,
    explain,
    find_method,
    probabilities,
    top_k,
)

__all__ = ["Asked", "Cell", "Row", "Subject", "compare"]

_SIDE = 336


@dataclass(frozen=True)
class Asked:
    """What is compared: the words of the command line.

    Attributes:
        methods: Methods' names.
        layers: Names, or ``first``, ``middle``, ``last``, ``auto``.
        targets: ``top1``, ``top3`` and so on, or classes separated by commas.
        multi_label: Whether each class is a yes or no of its own.
        options: Options of methods; each goes to the methods that have it.
        memory: As for `explain`.
    """

    methods: Sequence[str]
    layers: Sequence[str] = ("first", "middle", "last")
    targets: str = "top1"
    multi_label: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: str | None = None


@dataclass(frozen=True)
class Subject:
    """A model that is compared.

    Attributes:
        classifier: The model.
        weights: Where its weights come from, for people.
        random: Whether they are random, so that its maps say nothing of pictures.
    """

    classifier: Classifier
    weights: str
    random: bool = False


@dataclass(frozen=True)
class Cell:
    """One heatmap.

    Attributes:
        picture: The overlay.
        flags: What a person should know before believing it.
    """

    picture: Image.Image
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """The heatmaps of one layer of one model for one class of one picture.

    Attributes:
        file: The picture.
        original: What the model sees of it, for people.
        model: The model's name.
        weights: Where its weights come from.
        random: Whether they are random.
        asked: The layer as it was asked for.
        layer: Its name.
        rank: Which of the picture's explained classes this is, from 0 on.
        target: The explained class: ``class``, ``label``, ``probability``.
        predicted: The predicted class, likewise.
        cells: By method; None of a method that explains no layer, but in the first row.
    """

    file: Path
    original: Image.Image
    model: str
    weights: str
    random: bool
    asked: str
    layer: str
    rank: int
    target: dict[str, Any]
    predicted: dict[str, Any]
    cells: Mapping[str, Cell | None]


def compare(subject: Subject, files: Sequence[Path], asked: Asked) -> Iterator[Row]:
    """Explain pictures by every layer and method.

    Args:
        subject: The model, on the device that it runs on.
        files: Pictures that can be read.
        asked: See `Asked`.

    Yields:
        A row a picture, class and layer.

    Raises:
        FedgazeError: A method, a layer or a class does not exist, or a picture cannot be read.
    """
    methods = {name: find_method(name) for name in asked.methods}
    classifier = subject.classifier
    device = next(classifier.model.parameters(), torch.empty(0)).device
    for file in files:
        picture = read_image(file)
        view = classifier.preprocess.view(picture)
        image = classifier.preprocess.tensor(view)[None].to(device)
        try:
            layers = layers_by_depth(classifier.model, asked.layers, image)
        except FedgazeError as error:
            raise FedgazeError(f"{classifier.name}: {error}") from error
        except RuntimeError as error:
            why = cannot_run(error, *image.shape[1:])
            raise FedgazeError(f"{classifier.name}, {file}: {why}") from error
        shown = shown_picture(classifier.preprocess.frame(picture), view)
        shown.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        found = {
            (name, word): _explained(subject, image, method, layer, asked)
            for name, method in methods.items()
            for word, layer in (layers.items() if method.layers else [(asked.layers[0], None)])
        }
        yield from _rows(subject, file, shown, layers, found, asked)


def _explained(
    subject: Subject, image: torch.Tensor, method: Method, layer: str | None, asked: Asked
) -> Explanation:
    options = {key: each for key, each in asked.options.items() if key in method.options}
    targets = targets_of(asked.targets, subject.classifier)
    model, name = subject.classifier.model, subject.classifier.name
    try:
        with timed(f"{name}, {layer or 'input'}, {method.name}"):
            return explain(
                model, image, method.name, targets, layer, memory=asked.memory, **options
            )
    except FedgazeError as error:
        raise FedgazeError(f"{name}, {method.name}: {error}") from error


def targets_of(word: str, classifier: Classifier) -> Targets:
    """The targets that are called ``top1``, ``top3`` …, or classes separated by commas.

    Raises:
        FedgazeError: There is no such class.
    """
    if word.startswith("top") and word.removeprefix("top").isdecimal():
        return top_k(int(word.removeprefix("top")))
    named = [each.strip() for each in word.split(",") if each.strip()]
    if not named:
        raise FedgazeError(f"--targets is {word!r}; allowed are top1, top3 …, or classes")
    return Classes(torch.tensor([find_class(each, classifier.classes) for each in named]))


def _rows(
    subject: Subject,
    file: Path,
    shown: Image.Image,
    layers: Mapping[str, str],
    found: Mapping[tuple[str, str], Explanation],
    asked: Asked,
) -> Iterator[Row]:
    classifier = subject.classifier
    first = next(iter(found.values()))
    chances = probabilities(first.logits, multi_label=asked.multi_label)[0].cpu()

    def named(index: int) -> dict[str, Any]:
        chance = round(float(chances[index]), 6)
        return {"class": index, "label": classifier.label(index), "probability": chance}

    for rank in range(len(first)):
        for word in layers:
            cells = {
                name: _cell(found[name, word], rank, shown) if (name, word) in found else None
                for name in asked.methods
            }
            explanations = [found[name, word] for name in asked.methods if (name, word) in found]
            names = [name for each in explanations for name in each.layers]
            target = None if first.targets is None else int(first.targets[rank])
            yield Row(
                file=file,
                original=shown,
                model=classifier.name,
                weights=subject.weights,
                random=subject.random,
                asked=word,
                layer=names[0] if names else "input",
                rank=rank,
                target=named(int(first.predicted[0]) if target is None else target),
                predicted=named(int(first.predicted[0])),
                cells=cells,
            )


def _cell(explanation: Explanation, row: int, shown: Image.Image) -> Cell:
    heat = explanation.heatmaps[row].detach().float().cpu()
    heat = toned(heat) if explanation.attributions is not None else heat
    return Cell(overlaid(shown, heat), explanation.flags[row])
