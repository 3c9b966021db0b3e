"""Boxes of pictures' files, as the model sees them, and the classes that they are of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fedgaze.data import Box
from fedgaze.errors import FedgazeError
from fedgaze.models import Classifier, find_class

__all__ = ["Boxes", "read_box_classes"]

Frame = tuple[int, int, int, int]


def read_box_classes(path: Path, classes: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Read which classes of the model boxes of a label are of.

    Args:
        path: A YAML or JSON object from labels to a class or a list of classes, by name or index.
        classes: The model's, by index.

    Raises:
        FedgazeError: It cannot be read, or names a class that there is not.
    """
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise FedgazeError(f"the classes of boxes {path} cannot be read: {error}") from error
    if not isinstance(held, Mapping):
        raise FedgazeError(f"{path} should map labels of boxes to classes, such as dog: [beagle]")
    found: dict[str, tuple[int, ...]] = {}
    for label, named in held.items():
        words = named if isinstance(named, list) else [named]
        found[str(label)] = tuple(find_class(str(each), classes) for each in words)
    return found


@dataclass(frozen=True)
class Boxes:
    """Where objects are in the pictures of a folder, and of which classes they are.

    Attributes:
        of_file: By a picture's file.
        classes: By label, the classes of the model.
        strict: Whether boxes whose label is of no class count for none; otherwise they count for
            whichever class is explained.
    """

    of_file: Mapping[Path, Sequence[Box]]
    classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    strict: bool = False

    @classmethod
    def of(
        cls,
        of_file: Mapping[Path, Sequence[Box]],
        classifier: Classifier,
        classes: Mapping[str, tuple[int, ...]] | None,
    ) -> "Boxes":
        """With the classes that are called as boxes are, and those that were given."""
        found = {}
        for label in {box.label for boxes in of_file.values() for box in boxes}:
            try:
                found[label] = (find_class(label, classifier.classes),)
            except FedgazeError:
                continue
        return cls(of_file, found | dict(classes or {}), strict=classes is not None)

    @property
    def unknown(self) -> list[str]:
        """Labels that are of no class."""
        labels = {box.label for boxes in self.of_file.values() for box in boxes}
        return sorted(labels - set(self.classes))

    def likeliest(self, file: Path, chances: Tensor) -> int | None:
        """Of the classes that a picture's boxes are of, the one the model finds likeliest."""
        found = {
            each for box in self.of_file.get(file, ()) for each in self.classes.get(box.label, ())
        }
        return max(found, key=lambda each: float(chances[each])) if found else None

    def seen(self, file: Path, target: int, frame: Frame, size: tuple[int, int]) -> list[Any]:
        """The boxes of a class in a picture, in the pixels of what the model sees.

        Args:
            file: The picture.
            target: The class.
            frame: Which part of the picture the model sees: (left, top, right, bottom).
            size: Width and height of what it sees.

        Returns:
            ``[left, top, right, bottom]`` of each that is seen at least in part.
        """
        across, down = size[0] / (frame[2] - frame[0]), size[1] / (frame[3] - frame[1])
        found = []
        for box in self.of_file.get(file, ()):
            if target not in self.classes.get(box.label, () if self.strict else (target,)):
                continue
            left, right = (_within((each - frame[0]) * across, size[0]) for each in _x(box))
            top, bottom = (_within((each - frame[1]) * down, size[1]) for each in _y(box))
            if left < right and top < bottom:
                found.append([left, top, right, bottom])
        return found


def stacked(boxes: Iterable[Sequence[Any]]) -> Tensor:
    """``(N, B, 4)``, NaN where an image has fewer than B boxes."""
    rows = list(boxes)
    most = max([1, *map(len, rows)])
    none = [float("nan")] * 4
    return torch.tensor([[*row, *[none] * (most - len(row))] for row in rows])


def masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels have their middle in a box: bool ``(N, H, W)``.

    Args:
        boxes: ``(N, B, 4)``, NaN where there is none.
        size: Height and width.
    """
    down, across = (torch.arange(length) + 0.5 for length in size)
    left, top, right, bottom = (each[..., None] for each in boxes.unbind(-1))
    columns = (across >= left) & (across < right)
    rows = (down >= top) & (down < bottom)
    return (rows[..., :, None] & columns[..., None, :]).any(1)


def _x(box: Box) -> tuple[float, float]:
    return box.left, box.right


def _y(box: Box) -> tuple[float, float]:
    return box.top, box.bottom


def _within(place: float, length: int) -> float:
    return min(max(place, 0.0), float(length))
