"""Local training: what a client does with its own images."""

from collections.abc import Callable

from fedgaze.train.drift import Drift, held_back
from fedgaze.train.learner import LearnerProtocol, State
from fedgaze.train.loop import Penalty, Score, evaluate, train
from fedgaze.train.norms import Counts, normalisation
from fedgaze.train.pytorch import Hooks, TorchLearner, find_hooks

__all__ = [
    "LEARNERS",
    "Counts",
    "Drift",
    "Hooks",
    "LearnerProtocol",
    "Penalty",
    "Score",
    "State",
    "TorchLearner",
    "evaluate",
    "find_hooks",
    "held_back",
    "normalisation",
    "train",
]

LEARNERS: dict[str, Callable[..., LearnerProtocol]] = {"Pytorch": TorchLearner}
"""The learner of each ``model_type``; another library is one more line."""
