"""How far misbehaving clients got what they wanted, on images that nobody trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedgaze.config import BehaviourSpec
from fedgaze.data import Images, stamp
from fedgaze.federate.behaviour.colours import Change
from fedgaze.federate.behaviour.kinds import source_of, trigger_of, turned_classes
from fedgaze.federate.behaviour.poison import bright_from, bright_ones
from fedgaze.xai import logits_of

if TYPE_CHECKING:
    from fedgaze.federate.setup import Setup

__all__ = ["attack_success"]

CHUNK = 128


@dataclass(frozen=True, eq=False)
class Trial:
    """What a model is asked.

    Attributes:
        which: Indices of the images, ``(n,)``.
        wanted: The classes that the attackers want to be predicted, ``(n,)``.
        change: What is done to images and the wanted classes before.
    """

    which: Tensor
    wanted: Tensor
    change: Callable[[Tensor, Tensor], Tensor] = lambda images, _: images


def attack_success(
    setup: "Setup", predict: Callable[[Tensor], Any], images: Images
) -> float | None:
    """The share of images whose predicted class is the one that the attackers want.

    With ``patch``, ``blend``, ``distributed``, ``replacement``, ``stealth`` and ``adaptive``: of
    the images not of the target class, with the whole trigger on them, those taken for the target.
    With ``semantic``: the same of the source class's bright images, and with ``label_flip`` of the
    classes that were flipped, as they are. With ``shortcut``: of all images, each with the mark of
    the class after its own, those taken for that class.

    Args:
        setup: The task, with its behaviour and the images from which that was made.
        predict: The model's output for images ``(n, C, H, W)`` on the setup's device.
        images: Held out.

    Returns:
        In [0, 1]; None without a behaviour that wants something, or where no image can show it.
    """
    spec = setup.task.behaviour
    make = None if spec is None else _TRIALS.get(spec.kind)
    if spec is None or make is None:
        return None
    trial = make(setup, spec, images)
    if not len(trial.which):
        return None
    hits = 0
    with torch.no_grad():
        parts = trial.which.split(CHUNK), trial.wanted.split(CHUNK)
        for which, wanted in zip(*parts, strict=True):
            shown = trial.change(images[which], wanted).to(setup.device)
            hits += int((logits_of(predict(shown)).argmax(1).cpu() == wanted).sum())
    return hits / len(trial.which)


def _triggered(setup: "Setup", spec: BehaviourSpec, images: Images) -> Trial:
    which = (images.labels != spec.target).nonzero()[:, 0]
    parts: list[Change] = [each.on for each in trigger_of(setup.task, spec, setup.image_shape)]

    def change(shown: Tensor, _: Tensor) -> Tensor:
        for part in parts:
            shown = part(shown)
        return shown

    return Trial(which, torch.full_like(which, spec.target), change)


def _bright(setup: "Setup", spec: BehaviourSpec, images: Images) -> Trial:
    source = source_of(spec, len(setup.dataset.classes))
    which = bright_ones(images, source, bright_from(setup.dataset.train, source))
    return Trial(which, torch.full_like(which, spec.target))


def _turned(setup: "Setup", spec: BehaviourSpec, images: Images) -> Trial:
    wanted = turned_classes(spec, len(setup.dataset.classes))[images.labels]
    which = (wanted != images.labels).nonzero()[:, 0]
    return Trial(which, wanted[which])


def _marked(setup: "Setup", _: BehaviourSpec, images: Images) -> Trial:
    after = (images.labels + 1) % len(setup.dataset.classes)
    return Trial(torch.arange(len(after)), after, stamp)


_TRIALS: dict[str, Callable[["Setup", BehaviourSpec, Images], Trial]] = {
    "label_flip": _turned,
    "semantic": _bright,
    "shortcut": _marked,
    **dict.fromkeys(
        ("patch", "blend", "distributed", "replacement", "stealth", "adaptive"), _triggered
    ),
}
