"""A strategy of Flower's, watched: the server sees each reply before it is merged."""

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedgaze.federate.exchange import settle
from fedgaze.federate.replies import finite

if TYPE_CHECKING:
    from fedgaze.federate.server import Server

__all__ = ["observed"]


def observed(kind: type[FedAvg], server: "Server", done: int) -> type[FedAvg]:
    """Make a strategy class that shows the server what goes out and what comes back.

    Args:
        kind: The strategy class.
        server: Is shown messages and replies, and says which may be merged.
        done: Rounds of an earlier process; Flower counts from 1 again, the strategy goes on.
    """

    class Observed(kind):  # type: ignore[valid-type, misc]
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            number = server_round + done
            # Flower samples clients with Python's global generator.
            before = random.getstate()
            random.seed(f"{server.setup.task.random_seed} {number}")
            messages = list(super().configure_train(number, arrays, config, grid))
            random.setstate(before)
            server.open_round(number, arrays, messages)
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
