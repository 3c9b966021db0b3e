"""A server and its strategy without clients: a test says what the clients answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from tests.federate.conftest import Silent
from torch import Tensor

from fedgaze.config import parse_task
from fedgaze.federate import prepare
from fedgaze.federate.exchange import pack, unpack
from fedgaze.federate.server import Server
from fedgaze.store import Run
from fedgaze.train import State

TOY = """
import torch
from torch import nn

class Toy(nn.Module):
    '''Two weights, and what the task adds.'''

    def __init__(self, scalar=False, norm=False, bulk=0):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        if scalar:
            self.scale = nn.Parameter(torch.tensor(1.0))
        if bulk:
            self.bulk = nn.Parameter(torch.zeros(bulk))
        if norm:
            self.norm = nn.BatchNorm1d(2)

    def forward(self, images):
        logits = images.mean((1, 2, 3))[:, None] * self.w
        if hasattr(self, "scale"):
            logits = logits * self.scale
        return self.norm(logits) if hasattr(self, "norm") else logits

def train_torch(model, loader, epochs, cfg):
    '''Gradient descent on |w - 4|² / 2: the images do not matter.'''
    optimiser = torch.optim.SGD(model.parameters(), lr=cfg.learning_rate)
    for _ in range(epochs):
        optimiser.zero_grad()
        ((model.w - 4).square().sum() / 2).backward()
        optimiser.step()
"""

Answer = Sequence[float] | Mapping[str, Tensor] | None
"""What a client answers: its ``w``, or all of its state, or an error."""


class Nodes(Grid):
    """Nodes that are there, and nothing else."""

    def __init__(self, count: int) -> None:
        self.there = [100 + number for number in range(count)]

    def get_node_ids(self) -> list[int]:
        return self.there

    def _none(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    set_run = create_message = push_messages = pull_messages = send_and_receive = _none
    run = property(_none)


class Known:
    """Knows the nodes without asking."""

    def __init__(self, numbers: dict[int, int]) -> None:
        self._numbers = numbers

    def numbers(self, *_: Any) -> dict[int, int]:
        return self._numbers

    def name(self, client: int) -> str:
        return str(client)


class Bench:
    """A task's server, ready for its first round.

    Args:
        folder: Where the run's record and the toy model's file go.
        clients: How many there are.
        model: Arguments of the toy model.
        task: Further keys of the task.
    """

    def __init__(self, folder: Path, clients: int, model: dict[str, Any], **task: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "models.py").write_text(TOY)
        values: dict[str, Any] = {
            "model": {"_target_": "models.Toy", **model},
            "dataset": {"classes": ["1", "7"]},
            "num_clients": clients,
            "xai": {"enabled": False},
        }
        setup = prepare(parse_task(values | task, folder))
        run = Run.create(folder / "run", setup.task.public(), setup.dataset.classes)
        self.server = Server(setup, run, Silent())
        self.nodes = Nodes(clients)
        self.server.roster = Known({node: i for i, node in enumerate(self.nodes.there)})
        self.strategy = self.server.new_strategy(0)
        self.number = 0
        self.state: State = self.server.like
        self.sent: list[Message] = []
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

    def send(self) -> list[int]:
        """Begin a round; returns the clients that are to train."""
        self.number += 1
        messages = self.strategy.configure_train(
            self.number, pack(self.state), ConfigRecord(), self.nodes
        )
        self.sent = list(messages)
        return [self.server.numbers[each.metadata.dst_node_id] for each in self.sent]

    def round(
        self, answers: Sequence[Answer], samples: Sequence[int], **numbers: Sequence[float]
    ) -> State:
        """A whole round.

        Args:
            answers: Of the clients, in their order.
            samples: How many images each says it has.
            numbers: What else each says, by name.

        Returns:
            The merged state; it is what the next round sends.
        """
        self.send()
        replies = []
        for i, (message, answer) in enumerate(zip(self.sent, answers, strict=True)):
            if answer is None:
                replies.append(Message(Error(1, "no"), reply_to=message))
                continue
            given = answer if isinstance(answer, Mapping) else {"w": torch.tensor(answer)}
            said = {name: values[i] for name, values in numbers.items()}
            metrics = MetricRecord({"num-examples": samples[i], **said})
            content = RecordDict({"arrays": pack({**self.state, **given}), "metrics": metrics})
            replies.append(Message(content, reply_to=message))
        merged, _ = self.strategy.aggregate_train(self.number, replies[::-1])
        if merged is not None:
            self.state = unpack(merged, self.server.like)
        return self.state

    @property
    def w(self) -> list[float]:
        """The two weights as they are now."""
        values: list[float] = self.state["w"].tolist()
        return values
