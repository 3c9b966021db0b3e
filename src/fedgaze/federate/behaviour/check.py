"""Whether a behaviour can be carried out with a task's images and model."""

import torch

from fedgaze.config import Task
from fedgaze.data import Dataset
from fedgaze.errors import FedgazeError
from fedgaze.federate.behaviour.triggers import LEAST_SIDE
from fedgaze.train import LearnerProtocol, TorchLearner
from fedgaze.xai import find_method, list_methods

__all__ = ["check_behaviour"]

MOST_MARKS = 126
"""As many classes :func:`fedgaze.data.stamp` can tell apart."""

_LAID_ON = ("patch", "distributed", "replacement", "stealth", "adaptive", "shortcut")
"""Kinds that need room in a corner."""


def check_behaviour(task: Task, dataset: Dataset, learner: LearnerProtocol) -> None:
    """Refuse a behaviour that names what is not there, or that cannot be carried out.

    Args:
        task: The task.
        dataset: Its images.
        learner: A learner of its model.

    Raises:
        FedgazeError: The first thing that is wrong.
    """
    spec, classes = task.behaviour, len(dataset.classes)
    if spec is None:
        return
    for key, value in (("target", spec.target), ("source", spec.source)):
        if value is not None and value >= classes:
            raise FedgazeError(
                f"behaviour.{key}={value} is no class of {dataset.name}: "
                f"they are counted from 0 to {classes - 1}"
            )
    if classes < 2:
        raise FedgazeError(f"behaviour.kind={spec.kind} needs two classes: {dataset.name} has one")
    if spec.kind == "shortcut" and classes > MOST_MARKS:
        raise FedgazeError(
            f"behaviour.kind=shortcut has marks for {MOST_MARKS} classes: {dataset.name} has "
            f"{classes}"
        )
    height, width = dataset.test[torch.tensor([0])].shape[2:]
    if spec.kind in _LAID_ON and min(height, width) < LEAST_SIDE:
        raise FedgazeError(
            f"behaviour.kind={spec.kind} needs images of {LEAST_SIDE} × {LEAST_SIDE} pixels: those "
            f"of {dataset.name} have {height} × {width}"
        )
    if spec.kind == "adaptive":
        _check_penalty(task, learner)


def _check_penalty(task: Task, learner: LearnerProtocol) -> None:
    """A penalty on maps needs a loss of ours, and maps to train with."""
    if not isinstance(learner, TorchLearner) or learner.hooks.train is not None:
        raise FedgazeError(
            "behaviour.kind=adaptive adds to the loss of fedgaze's own training, and the task has "
            "its own: leave train_torch out"
        )
    if not find_method(task.xai.method).differentiable:
        allowed = ", ".join(each.name for each in list_methods() if each.differentiable)
        raise FedgazeError(
            f"behaviour.kind=adaptive trains with maps of xai.method={task.xai.method}, which "
            f"cannot be trained with: allowed are {allowed}"
        )
