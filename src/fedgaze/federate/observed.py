"""A strategy of Flower's, watched: the server sees each reply before it is merged."""

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedgaze.federate.exchange import settle
from fedgaze.federate.replies import finite

if TYPE_CHECKING:
    from fedgaze.federate.server import Server

__all__ = ["observed"]

MINIMUMS = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")


def observed(kind: type[FedAvg], server: "Server", done: int) -> type[FedAvg]:
    """Make a strategy class that shows the server what goes out and what comes back.

    Args:
        kind: The strategy class.
        server: Is shown messages and replies, and says which may be merged.
        done: Rounds of an earlier process; Flower counts from 1 again, the strategy goes on.
    """

    class Observed(kind):  # type: ignore[valid-type, misc]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self._asked = {name: getattr(self, name) for name in MINIMUMS}

        def _show(self, grid: Grid) -> Grid:
            """The clients that are there. Flower would wait for ever for those that are not."""
            shown = server.shown(grid)
            there = len(list(shown.get_node_ids()))
            for name, asked in self._asked.items():
                setattr(self, name, min(asked, there))
            return shown

        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            number = server_round + done
            shown = self._show(grid)
            # Flower samples clients with Python's global generator.
            before = random.getstate()
            random.seed(f"{server.setup.task.random_seed} {number}")
            messages = list(super().configure_train(number, arrays, config, shown))
            random.setstate(before)
            server.open_round(number, arrays, messages)
            return messages

        def configure_evaluate(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            if self.fraction_evaluate == 0:
                return []
            shown = self._show(grid)
            messages: Iterable[Message]
            messages = super().configure_evaluate(server_round + done, arrays, config, shown)
            return messages

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            updates = server.read_updates(list(replies))
            arrays, metrics = super().aggregate_train(server_round + done, updates)
            return arrays and settle(arrays, server.like), metrics

        def aggregate_evaluate(
            self, server_round: int, replies: Iterable[Message]
        ) -> MetricRecord | None:
            answers = [reply for reply in replies if not reply.has_error()]
            answers.sort(key=lambda reply: server.numbers[reply.metadata.src_node_id])
            metrics: MetricRecord | None
            metrics = super().aggregate_evaluate(server_round + done, answers)
            if metrics:
                server.record["evaluation"] = {key: finite(metrics[key]) for key in metrics}
            return metrics

    Observed.__name__ = kind.__name__
    return Observed
