"""Evaluate picture files: a batch in memory at a time, a line a picture in the record."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fedgaze._version import __version__
from fedgaze.data import Box, match_files, read_image
from fedgaze.errors import FedgazeError
from fedgaze.measure import (
    Batch,
    Change,
    Heatmaps,
    Maker,
    Metric,
    columns_of,
    evaluate,
    find_metric,
    maker_of,
)
from fedgaze.models import Classifier, find_class
from fedgaze.report.evaluation.boxes import Boxes, masks, stacked
from fedgaze.report.evaluation.record import EvaluationRecord
from fedgaze.report.explained import cannot_run, overlaid, shown_picture, toned
from fedgaze.report.pictures import webp
from fedgaze.store import write_bytes
from fedgaze.xai import find_method, logits_of, predictions, probabilities, resolve_layers

__all__ = ["BASELINES", "Evaluation", "Judge", "open_evaluation"]

T = TypeVar("T")
BASELINES = ("noise", "edges", "centre")
TARGETS = ("predicted", "folder", "box")
_SAMPLES, _SIDE = 60, 224


@dataclass(frozen=True)
class Judge:
    """What is evaluated: the words of the command line.

    Attributes:
        methods: Methods' names.
        metrics: Metrics' names.
        layer: The layer that is explained; None for the automatic choice.
        target: ``predicted``, ``folder`` (the class that the picture's folder is called after),
            ``box`` (the likeliest class that its boxes are of), or a class.
        boxes: By a picture's name, see `match_files`; None where nobody knows.
        box_classes: By a box's label, the classes that it is of, where names do not say it; None
            lets boxes of no class count for whichever class is explained.
        groups: By a picture's name, likewise, what it belongs to.
        change: What is done to pictures before they are explained again.
        baselines: Whether noise, edges and the centre are judged beside.
        options: Options of methods; each goes to the methods that have it.
        metric_options: By metric, its options.
        batch_size: How many pictures are judged at once.
        memory: As for `explain`.
        seed: Of what is drawn.
    """

    methods: Sequence[str]
    metrics: Sequence[str]
    layer: str | None = None
    target: str = "predicted"
    boxes: Mapping[str, Sequence[Box]] | None = None
    box_classes: Mapping[str, tuple[int, ...]] | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    change: Change | None = None
    baselines: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    metric_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    batch_size: int = 8
    memory: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Seen:
    """A file's picture: as the model sees it, and as a person is shown the same part of it."""

    index: int
    file: Path
    view: Image.Image
    shown: Image.Image
    frame: tuple[int, int, int, int]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that is ready to run, checked.

    Attributes:
        classifier: The model.
        root: The folder of the pictures.
        files: Its pictures.
        judge: See `Judge`.
        makers: Whose heatmaps are judged.
        metrics: By what.
        boxes: Where objects are; None where nobody knows.
        groups: By file, what it belongs to.
        record: Where it is written down, with what an earlier run has done.
    """

    classifier: Classifier
    root: Path
    files: Sequence[Path]
    judge: Judge
    makers: Sequence[Maker]
    metrics: Sequence[tuple[Metric, Mapping[str, Any]]]
    boxes: Boxes | None
    groups: Mapping[Path, str]
    record: EvaluationRecord

    def run(self) -> Iterator[list[dict[str, Any]]]:
        """Judge what is not yet judged.

        Yields:
            The lines of each batch, once they are written down.

        Raises:
            FedgazeError: A target cannot be found, or the record cannot be written.
        """
        size = self.judge.batch_size
        done = len(self.record.lines) // size * size
        if len(self.record.lines) < len(self.files):
            self.record.keep(done)
            self.record.begin()
        for start in range(len(self.record.lines), len(self.files), size):
            lines = self._batch(start, self.files[start : start + size])
            self.record.add(lines)
            yield lines

    def _batch(self, start: int, files: Sequence[Path]) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        by_size: dict[tuple[int, int], list[_Seen]] = {}
        preprocess = self.classifier.preprocess
        for index, file in enumerate(files, start):
            try:
                picture = read_image(file)
            except FedgazeError as error:
                found[index] = {"file": self._name(file), "error": str(error)}
                continue
            view = preprocess.view(picture)
            shown = shown_picture(preprocess.frame(picture), view)
            frame = preprocess.frame_box(picture.size)
            by_size.setdefault(view.size, []).append(_Seen(index, file, view, shown, frame))
        for (width, height), seen in by_size.items():
            try:
                lines = self._judged(seen)
            except FedgazeError:
                raise
            # A model that takes only pictures of one size, or more memory than there is.
            except RuntimeError as error:
                why = cannot_run(error, preprocess.channels, height, width)
                lines = [
                    {"file": self._name(each.file), "error": f"{each.file}: {why}"} for each in seen
                ]
            found |= {each.index: line for each, line in zip(seen, lines, strict=True)}
        return [found[index] for index in sorted(found)]

    def _judged(self, seen: Sequence[_Seen]) -> list[dict[str, Any]]:
        classifier = self.classifier
        device = next(classifier.model.parameters(), torch.empty(0)).device
        images = torch.stack([classifier.preprocess.tensor(each.view) for each in seen]).to(device)
        with torch.no_grad():
            logits = logits_of(classifier.model(images))
        chances, said = probabilities(logits).cpu(), predictions(logits).tolist()
        targets = [
            self._target(each.file, guess, row)
            for each, guess, row in zip(seen, said, chances, strict=True)
        ]
        lines = []
        for each, guess, target, row in zip(seen, said, targets, chances, strict=True):
            line: dict[str, Any] = {
                "file": self._name(each.file),
                "target": self._named(target, row),
                "predicted": self._named(guess, row),
                "boxes": self._boxes(each, target),
                "values": {},
                "reasons": {},
            }
            if each.file in self.groups:
                line["group"] = self.groups[each.file]
            lines.append(line)
        boxes = stacked([line["boxes"] for line in lines])
        batch = Batch(
            images,
            self._pictures(images),
            torch.tensor(targets, device=device),
            masks(boxes, (images.shape[2], images.shape[3])).to(device),
            boxes.to(device),
        )
        changed = None
        if self.judge.change is not None:
            changed = self.judge.change(classifier.model, batch)
            self._note_change(changed.images, seen, lines)
        memory = self.judge.memory
        for made in evaluate(classifier.model, batch, self.makers, self.metrics, changed, memory):
            self._take(made, seen, lines)
        return lines

    def _note_change(
        self, images: Tensor, seen: Sequence[_Seen], lines: list[dict[str, Any]]
    ) -> None:
        """Write what the model says of changed images, and some of these."""
        with torch.no_grad():
            logits = logits_of(self.classifier.model(images))
        chances, said = probabilities(logits).cpu(), predictions(logits).tolist()
        pictures = (self._pictures(images) * 255).round().to(torch.uint8).cpu()
        rows = zip(seen, lines, said, chances, pictures, strict=True)
        for each, line, guess, row, pixels in rows:
            line["changed"] = self._named(guess, row)
            if each.index in self._sampled():
                array = pixels.permute(1, 2, 0).numpy()
                picture = Image.fromarray(array[..., 0] if len(pixels) == 1 else array)
                kept = self._kept(each, "changed", picture, line["boxes"])
                line.setdefault("pictures", {})["changed"] = kept

    def _take(self, made: Heatmaps, seen: Sequence[_Seen], lines: list[dict[str, Any]]) -> None:
        """Write what came of one maker into the lines, and its overlays of some pictures."""
        name = made.maker.name
        for row, line in enumerate(lines):
            found = {metric: values[row] for metric, values in made.values.items()}
            line["values"][name] = {metric: each.number for metric, each in found.items()}
            reasons = {metric: each.reason for metric, each in found.items() if each.reason}
            if reasons:
                line["reasons"][name] = reasons
        for row, each in enumerate(seen):
            if made.maps is None or each.index not in self._sampled():
                continue
            kinds = {"": made.maps, ".changed": made.changed}
            lines[row].setdefault("pictures", {})["original"] = self._kept(
                each, "original", each.shown, lines[row]["boxes"]
            )
            for kind, maps in kinds.items():
                if maps is None:
                    continue
                heat = maps[row].detach().float().cpu()
                heat = toned(heat) if made.maker.fine else heat
                picture = overlaid(each.shown, heat)
                lines[row]["pictures"][name + kind] = self._kept(
                    each, name + kind, picture, lines[row]["boxes"]
                )

    def _sampled(self) -> set[int]:
        """The pictures that the page shows, evenly over all: as many as fit into it."""
        each = 1 + len(self.makers) * (1 if self.judge.change is None else 2)
        count = min(len(self.files), max(4, _SAMPLES // each))
        return {round(i * (len(self.files) - 1) / max(1, count - 1)) for i in range(count)}

    def _kept(self, seen: _Seen, name: str, picture: Image.Image, boxes: Sequence[Any]) -> str:
        """Write a small picture with its boxes, and return where it lies below the record."""
        small = picture.convert("RGB")
        small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        draw = ImageDraw.Draw(small)
        across, down = small.width / seen.view.width, small.height / seen.view.height
        for left, top, right, bottom in boxes:
            x, y = left * across, top * down
            # A line of three pixels round the smallest box, too.
            end_x, end_y = max(right * across - 1, x + 2), max(bottom * down - 1, y + 2)
            draw.rectangle([x, y, end_x, end_y], outline="#000000", width=3)
            draw.rectangle([x + 1, y + 1, end_x - 1, end_y - 1], outline="#ffffff")
        path = f"pictures/{seen.index:05d}.{name}.webp"
        write_bytes(self.record.folder / path, webp(small, 80))
        return path

    def _pictures(self, images: Tensor) -> Tensor:
        preprocess = self.classifier.preprocess
        mean, std = (
            images.new_tensor(each).view(-1, 1, 1) for each in (preprocess.mean, preprocess.std)
        )
        return (images * std + mean).clamp(0, 1)

    def _target(self, file: Path, predicted: int, chances: Tensor) -> int:
        target, classes = self.judge.target, self.classifier.classes
        if target == "folder":
            return find_class(file.parent.name, classes, len(chances))
        if target == "box":
            found = None if self.boxes is None else self.boxes.likeliest(file, chances)
            return predicted if found is None else found
        return predicted if target == "predicted" else find_class(target, classes, len(chances))

    def _boxes(self, seen: _Seen, target: int) -> list[Any]:
        if self.boxes is None:
            return []
        return self.boxes.seen(seen.file, target, seen.frame, seen.view.size)

    def _named(self, index: int, chances: Tensor) -> dict[str, Any]:
        label, chance = self.classifier.label(index), round(float(chances[index]), 6)
        return {"class": index, "label": label, "probability": chance}

    def _name(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()


def open_evaluation(
    classifier: Classifier, root: Path, files: Sequence[Path], output: Path, judge: Judge
) -> Evaluation:
    """Check what is asked for, and open its record.

    Args:
        classifier: Its model runs on the device that it lies on.
        root: The folder of the pictures.
        files: Its pictures, in their order.
        output: The record's folder. One that holds a record of the same is gone on with.
        judge: See `Judge`.

    Raises:
        FedgazeError: A name, an option or a target does not exist, or the folder holds another
            record.
    """
    metrics = _metrics(judge)
    makers = _makers(judge)
    if judge.layer not in (None, "auto"):
        resolve_layers(classifier.model, judge.layer)
    if judge.target not in TARGETS:
        find_class(judge.target, classifier.classes)
    if judge.target == "box" and judge.boxes is None:
        raise FedgazeError("--target box needs --boxes, which say where objects are")
    boxes = None
    if judge.boxes is not None:
        boxes = Boxes.of(_known(judge.boxes, root, files, "boxes"), classifier, judge.box_classes)
    groups = _known(judge.groups, root, files, "groups") if judge.groups else {}
    known = None
    if boxes is not None:
        by_name = {file.relative_to(root).as_posix(): each for file, each in boxes.of_file.items()}
        known = _hash(repr((sorted(by_name.items()), sorted(boxes.classes.items()))))
    change = judge.change
    columns = columns_of([each for each, _ in metrics], None if change is None else change.name)
    asked = {
        "fedgaze": __version__,
        "model": classifier.name,
        "weights": _digest(classifier),
        "preprocess": repr(classifier.preprocess),
        "folder": str(root.resolve()),
        "files": [file.relative_to(root).as_posix() for file in files],
        "makers": [
            {"name": each.name, "layer": each.layer, "baseline": each.baseline} for each in makers
        ],
        "columns": [asdict(each) for each in columns],
        "target": judge.target,
        "boxes": known,
        "labels of no class": [] if boxes is None else boxes.unknown,
        "boxes of no class": boxes
        and ("count for none" if boxes.strict else "count for any class"),
        "groups": {file.relative_to(root).as_posix(): group for file, group in groups.items()},
        "change": None if change is None else asdict(change),
        "options": dict(judge.options),
        "metric options": {name: dict(each) for name, each in judge.metric_options.items()},
        "batch size": judge.batch_size,
        "seed": judge.seed,
    }
    record = EvaluationRecord(output, asked)
    return Evaluation(classifier, root, files, judge, makers, metrics, boxes, groups, record)


def _known(by_name: Mapping[str, T], root: Path, files: Sequence[Path], what: str) -> dict[Path, T]:
    """What is known of each file."""
    found = match_files(by_name, files)
    if not found:
        raise FedgazeError(
            f"none of the pictures in {root} is named in the {what}: they are called "
            f"{files[0].name} and so on, the {what} are of {next(iter(by_name))} and so on"
        )
    return {file: by_name[found[file]] for file in files if file in found}


def _metrics(judge: Judge) -> list[tuple[Metric, Mapping[str, Any]]]:
    found = [find_metric(name) for name in dict.fromkeys(judge.metrics)]
    for name in judge.metric_options:
        if name not in [each.name for each in found]:
            raise FedgazeError(f"--metric-option is for {name}, which is not measured")
    chosen: list[tuple[Metric, Mapping[str, Any]]] = []
    for metric in found:
        options = metric.read_options(judge.metric_options.get(metric.name, {}))
        if "seed" in metric.options:
            options.setdefault("seed", judge.seed)
        chosen.append((metric, options))
    return chosen


def _makers(judge: Judge) -> list[Maker]:
    names = list(dict.fromkeys(judge.methods))
    methods = {name: find_method(name) for name in names if name not in BASELINES}
    for option in judge.options:
        if not any(option in each.options for each in methods.values()):
            for each in methods.values():
                each.check_options({option: None})
    if judge.layer is not None and not any(each.layers for each in methods.values()):
        raise FedgazeError(f"{', '.join(methods)} explains no layer; leave --layer out")
    makers = []
    for name in names:
        own = methods[name].options if name in methods else {}
        options = {key: each for key, each in judge.options.items() if key in own}
        makers.append(maker_of(name, judge.layer, **options))
    if judge.baselines:
        makers += [maker_of(name) for name in BASELINES if name not in names]
    return makers


def _digest(classifier: Classifier) -> str:
    """A fingerprint of the weights."""
    digest = hashlib.sha256()
    for name, value in classifier.model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
