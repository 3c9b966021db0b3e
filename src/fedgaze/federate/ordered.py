"""Which node is which client, and who is there."""

import math
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun

from fedgaze.errors import FedgazeError

__all__ = [
    "AskedRoster",
    "ForwardingGrid",
    "PromptGrid",
    "Roster",
    "Wait",
    "gather",
]

PAUSE, PAUSE_EACH = 0.4, 0.02
"""Seconds between two looks, and for each answer that is looked for."""


class Roster(Protocol):
    """Says which client a node is."""

    def numbers(self, grid: Grid, nodes: Iterable[int]) -> Mapping[int, int]:
        """The client's number by node id, for those of the nodes that are clients."""

    def name(self, client: int) -> str:
        """What people call a client."""


class AskedRoster:
    """Asks each node once: for engines whose nodes are all one's own.

    Args:
        clients: How many there are; any other number is an error.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, clients: int, timeout: float) -> None:
        self._clients = clients
        self._timeout = timeout
        self._known: dict[int, int] = {}

    def numbers(self, grid: Grid, nodes: Iterable[int]) -> Mapping[int, int]:
        """The client's number by node id.

        Raises:
            FedgazeError: A node could not say, or said what cannot be.
        """
        questions = [
            Message(RecordDict(), node, "query.identity")
            for node in nodes
            if node not in self._known
        ]
        if not questions:
            return self._known
        for reply in grid.send_and_receive(questions, timeout=self._timeout):
            if reply.has_error():
                raise FedgazeError(f"a client could not say which it is: {reply.error.reason}")
            said: Any = reply.content.config_records["client"]["client"]
            # A client that came back without a key is a new node.
            self._known = {node: n for node, n in self._known.items() if n != said}
            self._known[reply.metadata.src_node_id] = int(said)
        if strange := [n for n in self._known.values() if not 0 <= n < self._clients]:
            raise FedgazeError(
                f"a client says that it is number {strange[0]}: there are "
                f"num_clients={self._clients}, counted from 0"
            )
        return self._known

    def name(self, client: int) -> str:
        """Its number is all that is known."""
        return str(client)


@dataclass(frozen=True)
class Wait:
    """How long to wait for how many clients.

    Attributes:
        clients: How many there are in all: when they are there, the wait is over.
        least: So many are enough after ``patience``.
        patience: Seconds.
        timeout: Seconds after which it is given up; Flower itself would wait for ever.
    """

    clients: int
    least: int
    patience: float
    timeout: float


def gather(grid: Grid, roster: Roster, wait: Wait) -> dict[int, int]:
    """Wait for clients.

    Args:
        grid: Where they are.
        roster: Says which node is which client.
        wait: How long, and for how many.

    Returns:
        The client's number by node id, for those that are there.

    Raises:
        FedgazeError: Fewer than ``least`` came in time; the sentence says who is missing.
    """
    start = time.monotonic()
    while True:
        nodes = list(grid.get_node_ids())
        numbers = roster.numbers(grid, nodes)
        count = wait.clients
        there = {node: numbers[node] for node in nodes if numbers.get(node, count) < count}
        waited = time.monotonic() - start
        if len(there) == count or (len(there) >= wait.least and waited >= wait.patience):
            return there
        if waited > wait.timeout:
            missing = sorted(set(range(count)) - set(there.values()))
            names = ", ".join(map(roster.name, missing))
            raise FedgazeError(
                f"{len(there)} of num_clients={count} clients came within {wait.timeout:g} s and "
                f"at least {wait.least} are needed; missing: {names}"
            )
        time.sleep(PAUSE)


class ForwardingGrid(Grid):
    """A grid that hands everything on to another one."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def get_node_ids(self) -> Iterable[int]:
        """As the grid inside."""
        return self._grid.get_node_ids()

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


class PromptGrid(ForwardingGrid):
    """A grid that looks for each answer by itself, and often.

    Flower's own looks every 3 s, and for all at once: an answer whose sender was cut off in the
    middle then holds up those of all others, for minutes beyond any timeout.
    """

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for their answers, or until the time is over."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        sent = list(self._grid.push_messages(list(messages)))
        answers: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()
        over = threading.Event()
        for name in sent:
            look = (name, max(PAUSE, len(sent) * PAUSE_EACH), answers, over)
            threading.Thread(target=self._look_for, args=look, daemon=True).start()
        replies: list[Message] = []
        try:
            while len(replies) < len(sent):
                left = end - time.monotonic()
                answer = answers.get(timeout=None if left == math.inf else max(left, 0.0))
                if isinstance(answer, Exception):
                    raise answer
                replies.append(answer)
        except queue.Empty:
            pass
        finally:
            over.set()
        return replies

    def _look_for(
        self,
        name: str,
        pause: float,
        answers: "queue.SimpleQueue[Message | Exception]",
        over: threading.Event,
    ) -> None:
        while not over.wait(pause):
            try:
                for answer in self._grid.pull_messages([name]):
                    answers.put(answer)
                    return
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                answers.put(error)
                return
