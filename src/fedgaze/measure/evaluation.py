"""Evaluate: every metric of every method's heatmaps of a batch of images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.measure.attacks import CORRUPTIONS, agreement, attacked, corrupted
from fedgaze.measure.baselines import BASELINES
from fedgaze.measure.perturbation import same_everywhere
from fedgaze.measure.randomisation import ExplainModel
from fedgaze.measure.registry import Metric
from fedgaze.timing import timed
from fedgaze.xai import explain, find_method, open_runner

__all__ = ["Batch", "Change", "Changed", "Heatmaps", "Maker", "Value", "evaluate", "maker_of"]

ZERO = "the heatmap is the same everywhere"
NO_BOX = "no box of the explained class"
UNDEFINED = "not defined for this image"


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size with what is known of them.

    Attributes:
        images: ``(N, C, H, W)``, as the model takes them.
        pictures: ``(N, C, H, W)`` in [0, 1], before normalisation.
        targets: ``(N,)``: the classes that are explained.
        masks: bool ``(N, H, W)``: where the object is; empty where nobody knows.
        boxes: ``(N, B, 4)``: see `box_iou`; NaN where there is none.
    """

    images: Tensor
    pictures: Tensor
    targets: Tensor
    masks: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Maker:
    """A way to make heatmaps.

    Attributes:
        name: As people write it.
        make: A model, images ``(m, C, H, W)`` and classes ``(m,)`` to heatmaps ``(m, H, W)``.
        layer: The layer that is explained; None for the usual one, or none.
        baseline: Whether it knows nothing of the model.
        fine: Whether it judges each pixel, and not places of a layer.
    """

    name: str
    make: ExplainModel
    layer: str | None = None
    baseline: bool = False
    fine: bool = False


def maker_of(name: str, layer: str | None = None, **settings: Any) -> Maker:
    """A method of fedgaze, or a baseline: ``noise``, ``edges``, ``centre``.

    Args:
        name: Of the method.
        layer: As for `explain`; methods that explain no layer are made without it.
        settings: Further arguments of `explain`, and options of the method.

    Raises:
        FedgazeError: There is no such method.
    """
    if name in BASELINES:
        return Maker(name, lambda _model, images, _classes: BASELINES[name](images), baseline=True)
    method = find_method(name)
    layer = layer if method.layers else None

    def make(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        return explain(model, images, name, classes, layer, **settings).heatmaps

    return Maker(name, make, layer, fine=method.kind == "run" and not method.layers)


class Changed(NamedTuple):
    """What images were made into.

    Attributes:
        name: By what.
        images: ``(N, C, H, W)``, as the model takes them.
    """

    name: str
    images: Tensor


@dataclass(frozen=True)
class Change:
    """What is done to pictures before they are explained again.

    Attributes:
        name: An attack or a corruption of `fedgaze.measure.attacks`.
        epsilon: Of an attack.
        severity: Of a corruption.
        mean: What is taken from pictures before the model sees them.
        std: What they are divided by then.
        seed: Of what is drawn.
    """

    name: str
    epsilon: float = 8 / 255
    severity: int = 1
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    seed: int = 0

    def __call__(self, model: nn.Module, batch: Batch) -> Changed:
        """Change the images of a batch.

        Raises:
            FedgazeError: There is no such change, or it cannot be so strong.
        """
        if self.name in CORRUPTIONS:
            severity, seed = self.severity, self.seed
            made = corrupted(batch.pictures, self.name, severity=severity, seed=seed)
        else:
            made = attacked(
                model,
                batch.pictures,
                batch.targets,
                self.name,
                epsilon=self.epsilon,
                mean=self.mean,
                std=self.std,
                seed=self.seed,
            )
        mean, std = (made.new_tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return Changed(self.name, (made - mean) / std)


class Value(NamedTuple):
    """What a metric says of one heatmap.

    Attributes:
        number: None where it has none.
        reason: Why it has none; empty where it has.
    """

    number: float | None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """What came of one maker.

    Attributes:
        maker: Whose.
        maps: ``(N, H, W)``; None where it could not make them.
        changed: The same of the changed images; None where nothing was changed.
        values: By metric, a value an image.
    """

    maker: Maker
    maps: Tensor | None
    changed: Tensor | None
    values: Mapping[str, Sequence[Value]] = field(default_factory=dict)


def evaluate(
    model: nn.Module,
    batch: Batch,
    makers: Sequence[Maker],
    metrics: Sequence[tuple[Metric, Mapping[str, Any]]],
    changed: Changed | None = None,
    memory: int | str | None = None,
) -> Iterator[Heatmaps]:
    """Judge the heatmaps of all makers on a batch of images.

    Args:
        model: The model, in eval mode.
        batch: The images.
        makers: Whose heatmaps.
        metrics: What is measured, each with its options.
        changed: Also explain these, for the same classes, and say how alike the heatmaps are:
            see `fedgaze.measure.agreement`.
        memory: As for `explain`.

    Yields:
        What came of each maker, in their order. A metric that has no value for an image says why.

    Raises:
        FedgazeError: A metric cannot be computed so at all.
    """
    names = [metric.name for metric, _ in metrics]
    with open_runner(model, batch.images, batch.targets, precision="fast", memory=memory) as runner:
        for maker in makers:
            try:
                with timed(f"{len(batch)} heatmaps by {maker.name}"):
                    maps = maker.make(model, batch.images, batch.targets)
                again = changed and maker.make(model, changed.images, batch.targets)
            except FedgazeError as error:
                failed = [Value(None, f"no heatmap: {error}")] * len(batch)
                yield Heatmaps(maker, None, None, dict.fromkeys(names, failed))
                continue
            given = {
                "runner": runner,
                "heatmaps": maps,
                "explain": partial(maker.make, model),
                "model": model,
                "images": batch.images,
                "classes": batch.targets,
                "explain_model": maker.make,
                "mask": batch.masks,
                "boxes": batch.boxes,
                "pictures": batch.pictures,
                "layer": maker.layer or "last",
            }
            values = {
                metric.name: _values(metric, options, given, batch) for metric, options in metrics
            }
            if changed is not None and again is not None:
                flat = [ZERO if each else "" for each in _flat(maps, again)]
                for name, found in agreement(maps, again).items():
                    values[f"{changed.name}_{name}"] = _told(found, flat)
            yield Heatmaps(maker, maps, again, values)


def _values(
    metric: Metric, options: Mapping[str, Any], given: Mapping[str, Any], batch: Batch
) -> list[Value]:
    reasons = [ZERO if each else "" for each in _flat(given["heatmaps"])]
    if metric.axis == "localisation":
        known = batch.masks.flatten(1).any(1).tolist()
        reasons = [
            reason if there else NO_BOX for reason, there in zip(reasons, known, strict=True)
        ]
    with timed(f"{metric.name} of {len(batch)} heatmaps"):
        found = metric(given, **options)
    return _told(found, reasons)


def _told(found: Tensor, reasons: Sequence[str]) -> list[Value]:
    return [
        Value(None, reason or UNDEFINED) if value != value or abs(value) == torch.inf  # noqa: PLR0124
        else Value(value)
        for value, reason in zip(found.double().tolist(), reasons, strict=True)
    ]  # fmt: skip


def _flat(*maps: Tensor) -> list[bool]:
    """Of which images a map is the same everywhere."""
    found: list[bool] = torch.stack([same_everywhere(each) for each in maps]).any(0).tolist()
    return found
