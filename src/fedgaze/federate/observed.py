"""A strategy of Flower's, watched: the server sees each reply before it is merged."""

from collections.abc import Iterable
from copy import deepcopy
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedgaze.federate.merging import Aggregate
from fedgaze.federate.replies import finite
from fedgaze.federate.selection import shown_only

if TYPE_CHECKING:
    from fedgaze.federate.server import Server

__all__ = ["observed"]


def observed(kind: type[Strategy], server: "Server", done: int) -> type[Strategy]:
    """Make a strategy class that shows the server what goes out and what comes back.

    Args:
        kind: The strategy class.
        server: Chooses who trains, is shown messages and replies, and says what is merged.
        done: Rounds of an earlier process; Flower counts from 1 again, the strategy goes on.
    """

    class Observed(kind):  # type: ignore[valid-type, misc]
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            number = server_round + done
            part = server.merging.part(arrays)
            with shown_only(self, grid, server.choose(number, grid)) as chosen:
                messages = list(super().configure_train(number, part, config, chosen))
            return server.open_round(number, arrays, messages)

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            number = server_round + done

            def aggregate_of(strategy: Observed) -> Aggregate:
                def aggregate(updates: list[Message]) -> ArrayRecord | None:
                    merged: ArrayRecord | None
                    merged, _ = super(Observed, strategy).aggregate_train(number, updates)
                    return merged

                return aggregate

            updates = server.read_updates(list(replies))
            server.weigh(updates, lambda: aggregate_of(deepcopy(self)))
            return server.merge(updates, aggregate_of(self)), None

        def configure_evaluate(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            number = server_round + done
            nodes = server.choose_judges(number, grid, self)
            if not nodes:
                return []
            with shown_only(self, grid, nodes) as chosen:
                messages = list(super().configure_evaluate(number, arrays, config, chosen))
            return server.address(messages, arrays)

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
