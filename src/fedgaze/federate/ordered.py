"""Which node is which client, and nodes in the order of their clients."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun

from fedgaze.errors import FedgazeError

__all__ = ["OrderedGrid", "client_numbers"]


def client_numbers(grid: Grid, clients: int, timeout: float) -> dict[int, int]:
    """Wait for all nodes and ask each which client it is.

    Args:
        grid: Where they are.
        clients: How many have to come.
        timeout: Seconds to wait; Flower itself would wait for ever.

    Returns:
        The client's number by node id.

    Raises:
        FedgazeError: Not all came or answered in time.
    """
    start = time.monotonic()
    while len(nodes := list(grid.get_node_ids())) < clients:
        if time.monotonic() - start > timeout:
            raise FedgazeError(
                f"{len(nodes)} of num_clients={clients} clients came within "
                f"round_timeout={timeout:g} s"
            )
        time.sleep(0.2)
    questions = [Message(RecordDict(), node, "query.identity") for node in nodes]
    numbers = {}
    for reply in grid.send_and_receive(questions, timeout=timeout):
        if reply.has_error():
            raise FedgazeError(f"a client could not say which it is: {reply.error.reason}")
        said: Any = reply.content.config_records["client"]["client"]
        numbers[reply.metadata.src_node_id] = int(said)
    if sorted(numbers.values()) != list(range(clients)):
        raise FedgazeError(
            f"clients 0 to {clients - 1} were asked who they are, and these answered: "
            f"{sorted(numbers.values())}"
        )
    return numbers


class OrderedGrid(Grid):
    """A grid that names its nodes in the order of their clients.

    Node ids are drawn at random in some engines. In this order, one seed chooses the same clients
    in all of them.
    """

    def __init__(self, grid: Grid, numbers: Mapping[int, int]) -> None:
        self._grid = grid
        self._numbers = numbers

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are there, by their clients' numbers."""
        there = [node for node in self._grid.get_node_ids() if node in self._numbers]
        return sorted(there, key=self._numbers.__getitem__)

    def set_run(self, run: FlowerRun) -> None:
        """As the grid inside."""
        self._grid.set_run(run)

    @property
    def run(self) -> FlowerRun:
        """As the grid inside."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As the grid inside."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid inside."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid inside."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As the grid inside."""
        return self._grid.send_and_receive(messages, timeout=timeout)
