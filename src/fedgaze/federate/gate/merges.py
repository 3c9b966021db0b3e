"""What a round's merge would be without one update: seen before anything is merged."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgaze.federate.gate.light import under_other_light
from fedgaze.federate.gate.marks import Predict, chances_of
from fedgaze.train import State

__all__ = ["Certainty", "Merges", "certainty_of", "leave_one_out"]

STRIDE = 3
"""Of so many images one is seen under other light."""
LEAST = 1e-3
"""Probabilities below this count as this: a single image is not to outweigh all others."""


@dataclass(frozen=True, eq=False)
class Certainty:
    """How sure a model is of the probe's images.

    Attributes:
        plain: The logarithm of the probability of each image's class, ``(N,)``.
        light: How much greater it is under other light, ``(T, n)``, of every third image; None
            where that was not tried.
    """

    plain: Tensor
    light: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Merges:
    """How sure merges of a round's updates are, each update counted alike.

    Attributes:
        together: The merge of all.
        without: The merge of all but one, for each; None for those that are in none.
    """

    together: Certainty
    without: Sequence[Certainty | None]


def certainty_of(predict: Predict, images: Tensor, labels: Tensor, *, light: bool) -> Certainty:
    """See how sure a model is.

    Args:
        predict: The model in eval mode.
        images: ``(N, C, H, W)`` in [0, 1].
        labels: ``(N,)``.
        light: Whether other light is tried, too.
    """
    if not light:
        sure = chances_of(predict, images).gather(1, labels[:, None])[:, 0]
        return Certainty(sure.clamp(min=LEAST).log())
    lit = under_other_light(images[::STRIDE])
    every = torch.cat([images, lit.flatten(0, 1)])
    index = torch.cat([labels, labels[::STRIDE].repeat(len(lit))])
    sure = chances_of(predict, every).gather(1, index[:, None]).clamp(min=LEAST).log()
    plain, other = sure[: len(images), 0], sure[len(images) :].view(len(lit), -1)
    return Certainty(plain, other - plain[::STRIDE])


def leave_one_out(states: Sequence[State]) -> tuple[State, list[State]]:
    """The mean of states, and the means of all but one.

    Args:
        states: At least two.

    Returns:
        What is no floating point number is the first state's.
    """
    count = len(states)
    sums = {
        name: torch.stack([each[name].double() for each in states]).sum(0)
        for name, value in states[0].items()
        if value.is_floating_point()
    }

    def mean(missing: State | None) -> State:
        def of(name: str, value: Tensor) -> Tensor:
            if name not in sums:
                return value
            if missing is None:
                return (sums[name] / count).to(value.dtype)
            return ((sums[name] - missing[name].double()) / (count - 1)).to(value.dtype)

        return {name: of(name, value) for name, value in states[0].items()}

    return mean(None), [mean(each) for each in states]
