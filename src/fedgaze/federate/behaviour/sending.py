"""What misbehaving clients send instead of what they trained."""

from collections.abc import Collection

import torch

from fedgaze.federate.exchange import weights_of
from fedgaze.train import State

__all__ = ["clipped", "length", "noisy", "scaled"]

USUAL_NOISE = 0.1
"""Standard deviation of a free rider's noise, by that of the weights it is added to. A round of
honest training moved the convolutions of DigitsNet by 0.01 to 0.4 of it: enough to pass for work,
and too little to harm."""


def scaled(received: State, trained: State, statistics: Collection[str], factor: float) -> State:
    """An update made longer: ``received + factor · (trained - received)``.

    Model replacement (Bagdasaryan et al. 2020, arXiv:1807.00459, Eq. 3). Statistics and whole
    numbers are sent as they are: a variance scaled so can fall below zero.

    Args:
        received: The weights before training.
        trained: The weights after it.
        statistics: See :meth:`fedgaze.train.LearnerProtocol.statistics`.
        factor: How many times as long.
    """
    return trained | {
        name: received[name] + factor * (value - received[name])
        for name, value in weights_of(trained, statistics).items()
    }


def clipped(received: State, trained: State, statistics: Collection[str], norm: float) -> State:
    """An update made no longer than a norm, in the direction that it has.

    Args:
        received: The weights before training.
        trained: The weights after it.
        statistics: See :meth:`fedgaze.train.LearnerProtocol.statistics`.
        norm: The most that :func:`length` may be.
    """
    own = length(received, trained, statistics)
    return trained if own <= norm else scaled(received, trained, statistics, norm / own)


def length(received: State, trained: State, statistics: Collection[str]) -> float:
    """The Euclidean norm of an update, all its weights together."""
    moved = [
        (value.double() - received[name].double()).square().sum()
        for name, value in weights_of(trained, statistics).items()
    ]
    return torch.stack(moved).sum().sqrt().item()


def noisy(
    received: State, statistics: Collection[str], scale: float, generator: torch.Generator
) -> State:
    """Weights with Gaussian noise, of a tenth of each tensor's own standard deviation by default.

    So a tensor whose values are all alike, such as a new bias, stays as it is; and so do statistics
    and whole numbers.

    Args:
        received: The weights.
        statistics: See :meth:`fedgaze.train.LearnerProtocol.statistics`.
        scale: How many times as much.
        generator: Of the noise.
    """
    noise = {}
    for name, value in weights_of(received, statistics).items():
        spread = scale * USUAL_NOISE * value.float().std(correction=0)
        drawn = torch.randn(value.shape, generator=generator)
        noise[name] = value + (spread * drawn).to(value.dtype)
    return received | noise
