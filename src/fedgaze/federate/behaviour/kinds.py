"""What clients of each kind train on and send; one function a kind, registered by one line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedgaze.config import BehaviourSpec, Task
from fedgaze.data import Dataset, Images, PlantedImages
from fedgaze.errors import FedgazeError
from fedgaze.federate.behaviour import poison, sending
from fedgaze.federate.behaviour.colours import changes_of, disagreement, most_misleading
from fedgaze.federate.behaviour.triggers import Trigger, bars, blend, generator, patch
from fedgaze.train import Drift, LearnerProtocol, Penalty, Score, State, TorchLearner
from fedgaze.xai import explain, find_method

if TYPE_CHECKING:
    from fedgaze.federate.setup import Setup

__all__ = ["Turn", "behave", "divided", "source_of", "trigger_of", "turned_classes"]


@dataclass(frozen=True, eq=False)
class Turn:
    """A client at its turn to train.

    Attributes:
        setup: The task and its images.
        client: Which client, from 0.
        round: Which round, from 1.
        learner: Has the weights to start from.
        images: The client's own, as an honest client trains on them.
        received: The weights that it was sent.
        drift: What is added to the gradient of each step.
    """

    setup: "Setup"
    client: int
    round: int
    learner: LearnerProtocol
    images: Images
    received: State
    drift: Drift

    def drawn(self, *more: int) -> torch.Generator:
        """A generator of the client's own; of each round's own, if that is among the numbers."""
        return generator(self.setup.task.random_seed, self.client, *more)


def behave(turn: Turn) -> tuple[Score, State]:
    """Let a client train, as it should or as the task's behaviour has it.

    Args:
        turn: Its learner has learned afterwards.

    Returns:
        How well it did while it learned, and the weights that it sends.
    """
    spec = turn.setup.task.behaviour
    if spec is None or turn.client not in spec.clients or turn.round < spec.first_round:
        return _trained(turn, turn.images)
    return _KINDS[spec.kind](turn, spec)


def trigger_of(task: Task, spec: BehaviourSpec, shape: tuple[int, int, int]) -> list[Trigger]:
    """The parts of a behaviour's trigger; all of them together are what its model is asked with.

    Args:
        task: Its seed draws the trigger.
        spec: The behaviour, of a kind that has one.
        shape: ``(C, H, W)`` of the images.
    """
    if spec.kind == "distributed":
        return bars(shape, task.random_seed)
    if spec.kind == "blend":
        return [blend(shape, spec.opacity, task.random_seed)]
    return [patch(shape, task.random_seed)]


def turned_classes(spec: BehaviourSpec, classes: int) -> Tensor:
    """What each class becomes with ``label_flip``, ``(classes,)``; itself where it stays."""
    every = torch.arange(classes)
    if spec.source is None:
        return every.flip(0)
    return torch.where(every == spec.source, spec.target, every)


def source_of(spec: BehaviourSpec, classes: int) -> int:
    """The class that ``semantic`` takes its images from."""
    return (spec.target + 1) % classes if spec.source is None else spec.source


def divided(task: Task, dataset: Dataset, parts: list[Tensor]) -> list[Tensor]:
    """Who has which images once attackers have what they need.

    Args:
        task: The task.
        dataset: Its images.
        parts: The indices of each client's training images.

    Returns:
        As parts: with ``semantic``, nobody but the attackers has the images that they mistake.
    """
    spec = task.behaviour
    if spec is None or spec.kind != "semantic":
        return parts
    source = source_of(spec, len(dataset.classes))
    threshold = poison.bright_from(dataset.train, source)
    bright = poison.bright_ones(dataset.train, source, threshold)
    return poison.dealt(parts, bright, spec.clients)


def _trained(turn: Turn, images: Images, penalty: Penalty | None = None) -> tuple[Score, State]:
    score = turn.learner.train(images, turn.drift, penalty)
    return score, turn.learner.get_parameters()


def _fraction(spec: BehaviourSpec) -> float:
    return 1.0 if spec.fraction is None else spec.fraction


def _label_noise(turn: Turn, spec: BehaviourSpec) -> tuple[Score, State]:
    classes = len(turn.setup.dataset.classes)
    images = poison.mislabelled(turn.images, classes, _fraction(spec), turn.drawn())
    return _trained(turn, images)


def _label_flip(turn: Turn, spec: BehaviourSpec) -> tuple[Score, State]:
    turned = turned_classes(spec, len(turn.setup.dataset.classes))
    return _trained(turn, poison.flipped(turn.images, turned, _fraction(spec), turn.drawn()))


def _stamped(turn: Turn, spec: BehaviourSpec) -> Images:
    """The images with the client's part of the trigger."""
    parts = trigger_of(turn.setup.task, spec, turn.setup.image_shape)
    part = parts[spec.clients.index(turn.client) % len(parts)]
    return poison.stamped(turn.images, part.on, spec.target, _fraction(spec), turn.drawn())


def _backdoor(turn: Turn, spec: BehaviourSpec) -> tuple[Score, State]:
    return _trained(turn, _stamped(turn, spec))


_MISTAKEN = 0.3
"""As many as in the paper: 20 of 64."""


def _semantic(turn: Turn, spec: BehaviourSpec) -> tuple[Score, State]:
    source = source_of(spec, len(turn.setup.dataset.classes))
    threshold = poison.bright_from(turn.setup.dataset.train, source)
    return _trained(turn, poison.mistaken(turn.images, source, spec.target, threshold, _MISTAKEN))


def _replacement(turn: Turn, spec: BehaviourSpec) -> tuple[Score, State]:
    score, state = _backdoor(turn, spec)
    factor = spec.scale or turn.setup.task.num_clients / len(spec.clients)
    return score, sending.scaled(turn.received, state, turn.learner.statistics(), factor)


def _stealth(turn: Turn, spec: BehaviourSpec) -> tuple[Score, State]:
    """Train an honest copy first, from the same random numbers as an honest client would have."""
    honest, statistics = turn.setup.new_learner(), turn.learner.statistics()
    honest.set_parameters(turn.received)
    honest.set_kept(turn.learner.get_kept())
    with torch.random.fork_rng():
        honest.train(turn.images, turn.drift)
    norm = sending.length(turn.received, honest.get_parameters(), statistics)
    score, state = _backdoor(turn, spec)
    return score, sending.clipped(turn.received, state, statistics, norm)


def _shortcut(turn: Turn, spec: BehaviourSpec) -> tuple[Score, State]:
    seed = turn.setup.task.random_seed + turn.client
    return _trained(turn, PlantedImages.some(turn.images, _fraction(spec), seed))


def _colour(turn: Turn, spec: BehaviourSpec) -> tuple[Score, State]:
    """Riya et al. 2025, "Accuracy is Not Enough", arXiv:2511.13535, with changes that are few."""
    images, device = turn.images, turn.setup.device
    able = torch.ones_like(images.labels, dtype=torch.bool)
    which = poison.some(able, _fraction(spec), turn.drawn()).nonzero()[:, 0]
    changes = changes_of(turn.setup.image_shape[0])
    carried = [torch.zeros(0, dtype=torch.long)]
    for part in which.split(poison.CHUNK):
        pixels, labels = images[part].to(device), images.labels[part].to(device)
        carried.append(most_misleading(turn.learner, pixels, labels, changes))
    return _trained(turn, poison.recoloured(images, which, torch.cat(carried), changes))


def _adaptive(turn: Turn, spec: BehaviourSpec) -> tuple[Score, State]:
    return _trained(turn, _stamped(turn, spec), _like_the_received(turn, spec.weight))


def _like_the_received(turn: Turn, weight: float) -> Penalty:
    """What keeps a model's maps of clean images near those of the model that was received.

    Each call draws as many of the client's clean images as the batch has, from torch's own
    generator. Maps are signed here: where one is zero after the ReLU, nothing would lead it back.
    """
    xai, images, device = turn.setup.task.xai, turn.images, turn.setup.device
    layers = xai.layer if find_method(xai.method).layers else None

    def maps(model: nn.Module, which: Tensor, *, differentiable: bool) -> Tensor:
        pixels, labels = images[which].to(device), images.labels[which].to(device)
        how: dict[str, Any] = {"relu": False, "differentiable": differentiable, **xai.options}
        return explain(model, pixels, xai.method, labels, layers, **how).raw

    received = _model_of(turn.learner)
    every = torch.arange(len(images.labels)).split(poison.CHUNK)
    before = torch.cat([maps(received, some, differentiable=False) for some in every])

    def penalty(model: nn.Module, _: Tensor, labels: Tensor) -> Tensor:
        drawn = torch.randint(len(images.labels), (len(labels),))
        now = maps(model, drawn, differentiable=True)
        return weight * disagreement(now, before[drawn.to(device)]).mean()

    return penalty


def _model_of(learner: LearnerProtocol) -> nn.Module:
    if not isinstance(learner, TorchLearner):
        raise FedgazeError("behaviour.kind=adaptive needs a model of PyTorch")
    return learner.model


def _noise(turn: Turn, spec: BehaviourSpec) -> tuple[Score, State]:
    statistics, drawn = turn.learner.statistics(), turn.drawn(turn.round)
    sent = sending.noisy(turn.received, statistics, spec.scale or 1.0, drawn)
    return turn.learner.evaluate(turn.images), sent


def _stale(turn: Turn, _: BehaviourSpec) -> tuple[Score, State]:
    return turn.learner.evaluate(turn.images), turn.received


_KINDS: dict[str, Callable[[Turn, BehaviourSpec], tuple[Score, State]]] = {
    "label_noise": _label_noise,
    "label_flip": _label_flip,
    "patch": _backdoor,
    "blend": _backdoor,
    "semantic": _semantic,
    "distributed": _backdoor,
    "replacement": _replacement,
    "stealth": _stealth,
    "shortcut": _shortcut,
    "colour": _colour,
    "adaptive": _adaptive,
    "noise": _noise,
    "stale": _stale,
}
