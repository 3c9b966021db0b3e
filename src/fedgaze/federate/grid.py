"""Flower's messages handed over in process: the engine ``local``."""

import copy
import time
from collections.abc import Callable, Iterable
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from fedgaze.federate.setup import reason

__all__ = ["LocalGrid"]

_FAILED = 1  # flwr's ErrorCode.CLIENT_APP_RAISED_EXCEPTION is not public


class LocalGrid(Grid):
    """One node a client, in this process, one after the other.

    Only one at a time can live in a process, since Flower keeps a message's sender in a
    process-wide identity.

    Args:
        app: What each node runs.
        clients: How many nodes there are; node ``c + 1`` is client ``c``.
        on_message: Told the client's number and the message's type before each hand-over.
    """

    def __init__(
        self, app: ClientApp, clients: int, on_message: Callable[[int, str], None]
    ) -> None:
        self._app = app
        self._on_message = on_message
        self._run = FlowerRun.create_empty(run_id=1)
        self._replies: dict[str, Message] = {}
        self._contexts = {
            number + 1: Context(
                run_id=1,
                node_id=number + 1,
                node_config={"partition-id": number, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for number in range(clients)
        }
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

    def set_run(self, run: FlowerRun) -> None:
        """Take the place of the empty run that this grid starts with."""
        self._run = run

    @property
    def run(self) -> FlowerRun:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message as Flower's other grids do."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; they are always there."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let each message's node work on it."""
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies, each once."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver one after the other; a message whose turn comes after the timeout fails."""
        start = time.monotonic()
        replies: list[Message] = []
        for message in messages:
            if timeout is not None and time.monotonic() - start > timeout:
                error = Error(_FAILED, f"round_timeout={timeout:g} s was over before its turn")
                replies.append(Message(error, reply_to=message))
            else:
                replies.extend(self.pull_messages([self._deliver(message)]))
        return replies

    def _deliver(self, message: Message) -> str:
        name = uuid4().hex
        context = self._contexts[message.metadata.dst_node_id]
        self._on_message(int(context.node_config["partition-id"]), message.metadata.message_type)
        # Strategies put one RecordDict into all messages; over a wire each node has its own.
        own = copy.deepcopy(message)
        try:
            reply = self._app(own, context)
        except Exception as error:  # noqa: BLE001 - a client that fails concerns itself only
            reply = Message(Error(_FAILED, reason(error)), reply_to=own)
        self._replies[name] = reply
        return name
