"""SCAFFOLD: the server knows where each client drifts to, and has it steer against that.

Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1 with option II. The server keeps a control
``c``, each client ``i`` of ``N`` its own ``c_i``, both zero at first. A client that received ``x``
takes plain steps of SGD ``y = y - η (g(y) - c_i + c)`` (:class:`fedgaze.train.Drift`), and then

    c_i⁺ = c_i - c + (x - y) / Σ η          (line 12 ii; over K steps of one rate Σ η is K η)

It sends ``y`` and ``c_i⁺ - c_i``. The server, from the clients ``S`` of the round, makes

    x = x + η_g · mean(y - x)               (lines 16, 17)
    c = c + |S| / N · mean(c_i⁺ - c_i)

Means are plain ones: every client counts the same, however many images it has.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedgaze.train import State

__all__ = ["Scaffold", "Steering"]

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, eq=False)
class Steering:
    """The client's side; without controls it steers nowhere.

    Attributes:
        server: ``c`` by a weight's name.
        own: ``c_i``.
    """

    server: State
    own: State

    @property
    def shifts(self) -> State:
        """What is added to the gradients: ``c - c_i``."""
        return {name: self.server[name] - own for name, own in self.own.items()}

    def after(self, received: State, trained: State, rates: Mapping[str, float]) -> State:
        """The client's control after its training: ``c_i⁺``.

        Args:
            received: ``x``.
            trained: ``y``.
            rates: ``Σ η``; a weight that took no step keeps its control.
        """
        return {
            name: (received[name] - trained[name]) / rates[name] - (self.server[name] - own)
            if rates.get(name)
            else own
            for name, own in self.own.items()
        }


class Scaffold(FedAvg):
    """The server's side.

    Args:
        population: ``N``, how many clients there are.
        server_learning_rate: ``η_g``.
        options: Of Flower's FedAvg.
    """

    def __init__(
        self, *, population: int, server_learning_rate: float = 1.0, **options: Any
    ) -> None:
        super().__init__(**options)
        self.population = population
        self.server_learning_rate = server_learning_rate
        self.control: Arrays = {}
        self._sent: Arrays = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the control along."""
        self._sent = _numpy(arrays)
        self.control = self.control or {name: np.zeros_like(x) for name, x in self._sent.items()}
        messages = list(super().configure_train(server_round, arrays, config, grid))
        control = _record(self.control)
        for message in messages:
            message.content["control"] = control
        return messages

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002 - Flower's signature
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge weights and controls; each reply has both, and numbers that do not count here."""
        contents = [reply.content for reply in replies]
        weights = [_numpy(content.array_records["arrays"]) for content in contents]
        controls = [_numpy(content.array_records["control"]) for content in contents]
        merged = {}
        for name, x in self._sent.items():
            steps = sum(y[name].astype(np.float64) - x for y in weights) / len(weights)
            merged[name] = (x + self.server_learning_rate * steps).astype(x.dtype)
            moved = sum(change[name].astype(np.float64) for change in controls)
            self.control[name] = (self.control[name] + moved / self.population).astype(x.dtype)
        self._sent = {}
        return _record(merged), None


def _numpy(arrays: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in arrays.items()}


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})
