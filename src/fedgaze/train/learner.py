"""What a federation asks of a model, whatever library it is written in."""

from typing import Any, Protocol

from torch import Tensor

from fedgaze.data import Images
from fedgaze.train.drift import Drift
from fedgaze.train.loop import Penalty, Score
from fedgaze.train.norms import Counts
from fedgaze.xai import Explanation

__all__ = ["LearnerProtocol", "State"]

State = dict[str, Tensor]
"""What travels between server and clients, by name: floats and whole numbers, on the CPU."""


class LearnerProtocol(Protocol):
    """A model that learns, is judged and explains itself.

    All that the rooms above know of a model goes through these ten. Another library, or adapters
    on a frozen model, is another class with them: what :meth:`get_parameters` leaves out stays at
    home and is never sent. What of it a client has to remember from round to round is its
    :meth:`get_kept`.
    """

    def get_parameters(self) -> State:
        """The parameters that are federated: a copy, on the CPU."""

    def get_kept(self) -> State:
        """What training changes and nobody else gets, a copy, on the CPU; often nothing."""

    def set_kept(self, state: State) -> None:
        """Take over what :meth:`get_kept` gave; of nothing, all stays as it is."""

    def statistics(self) -> frozenset[str]:
        """Which of :meth:`get_parameters` are no weights but counted along, as BatchNorm's mean."""

    def set_parameters(self, state: State) -> None:
        """Take over parameters of the names, shapes and types of :meth:`get_parameters`."""

    def train(self, images: Images, drift: Drift, penalty: Penalty | None = None) -> Score:
        """Learn from images for a round's local epochs.

        Args:
            images: At least one.
            drift: What is added to the gradient of each step.
            penalty: What is added to the loss of each step, where there is anything.

        Returns:
            How well it did while it learned, with the rates of its steps where controls were given.
        """

    def evaluate(self, images: Images) -> Score:
        """Judge it on images, at least one; nothing is learned."""

    def explain(self, images: Tensor, labels: Tensor) -> Explanation:
        """Show where it looks for the labels ``(N,)`` of images ``(N, C, H, W)`` in [0, 1]."""

    def predict(self, images: Tensor) -> Any:
        """Its output for images ``(N, C, H, W)``; :func:`fedgaze.xai.logits_of` reads it."""

    def count(self, images: Tensor) -> Counts | None:
        """What the first of :meth:`statistics` would say of images ``(N, C, H, W)`` in [0, 1].

        None where nothing of the kind is federated.
        """
