"""What stands in the gatekeeper's place in a cell: any defence, with what each of them thinks."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedgaze.federate.exchange import pack
from fedgaze.federate.gatekeeping import Gatekeeper, towards
from fedgaze.federate.lab.defences import (
    DEFENCES,
    REFERENCES,
    Defend,
    Opinion,
    RoundView,
    find_defence,
)
from fedgaze.federate.lab.plan import GATE, beside_gate, gated
from fedgaze.federate.look import Look
from fedgaze.federate.replies import Update
from fedgaze.federate.server import Server
from fedgaze.federate.setup import seeded
from fedgaze.train import Drift, LearnerProtocol, State

__all__ = ["LabKeeper"]


@dataclass(eq=False)
class _Account:
    """What is thought of a round, by client; ``shown`` is the record's.

    Attributes:
        clients: All of the round.
        scores: By defence, how suspect each update is to it.
        factors: By defence at work, by what it multiplies each.
        seconds: By defence, the CPU time that it took.
    """

    clients: Sequence[int]
    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    factors: dict[str, dict[int, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def take(self, name: str, clients: Sequence[int], opinion: Opinion, *, acts: bool) -> None:
        """Take an opinion down; what is NaN is none."""
        said = zip(clients, opinion.scores.tolist(), strict=True)
        self.scores[name] = {client: score for client, score in said if math.isfinite(score)}
        if acts:
            self.factors[name] = dict(zip(clients, opinion.factors.tolist(), strict=True))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Charge what is done to a defence."""
        began = time.process_time()
        yield
        self.charge(name, time.process_time() - began)

    def charge(self, name: str, seconds: float) -> None:
        """Charge CPU time to a defence."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def factor(self, client: int) -> float:
        """By what all at work together multiply a client's update."""
        return math.prod(each.get(client, 1.0) for each in self.factors.values())

    def shown(self, standings: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
        """As JSON."""
        clients = [
            {
                "client": client,
                "factor": self.factor(client),
                **{key: _of(each, client) for key, each in self._each.items()},
                "spreads": dict(standings.get(client, {})),
            }
            for client in self.clients
        ]
        return {"clients": clients, "cpu_seconds": self.seconds}

    @property
    def _each(self) -> dict[str, dict[str, dict[int, float]]]:
        return {"scores": self.scores, "factors": self.factors}


def _of(said: Mapping[str, Mapping[int, float]], client: int) -> dict[str, float]:
    return {name: values[client] for name, values in said.items() if client in values}


class LabKeeper(Gatekeeper):
    """Lets a defence at a round's updates.

    With ``none`` nothing is done, and with ``oracle`` attackers are left out; in both all defences
    say what they think of the same updates, the gate among them. With ``gate+NAME`` the gate comes
    first, and the other sees what is left and is told to expect as many attackers less as were left
    out.

    Args:
        server: Whose updates.
        defence: Its name, ``gate`` or ``gate+NAME``.
        attackers: How many attackers defences are told to expect.
    """

    def __init__(self, server: Server, defence: str, attackers: int) -> None:
        super().__init__(server.onlooker, server.run)
        self._server = server
        self._attackers = attackers
        self._gated = gated(defence)
        self._name = beside_gate(defence)
        self._watches = defence in REFERENCES
        names = [each for each in DEFENCES if each not in REFERENCES]
        self._defences: dict[str, Defend] = {
            each: find_defence(each).new()
            for each in (names if self._watches else [self._name])
            if each
        }

    def restore(self, rounds: Iterable[Mapping[str, Any]]) -> None:
        """A cell is carried out in one go.

        Raises:
            RuntimeError: There are earlier rounds: what FoolsGold remembers stands in no record.
        """
        if any(True for _ in rounds):
            raise RuntimeError("a cell cannot be gone on with")

    def pass_on(
        self, updates: Sequence[Update], looks: Mapping[int, Look | None], received: State
    ) -> tuple[list[Update], dict[str, Any]]:
        """Let the defence at a round's updates.

        Args:
            updates: All of them, in the order of their clients.
            looks: What the server saw of each; empty where it does not look.
            received: The weights that went out.

        Returns:
            What is merged, and the round's entry ``gate`` of the record; in it as ``lab`` what each
            defence thinks of each client's update, and what that cost.
        """
        account = _Account([each.client for each in updates])
        passed = list(updates)
        record: dict[str, Any] = {}
        if self._gated or self._watches:
            passed, record = self._ask_gate(updates, looks, received, account)
        if passed and self._defences:
            passed = self._ask_others(passed, looks, received, account)
        if self._name == "oracle":
            passed = self._tell(passed, account)
        ran = "clients" in record
        record["lab"] = account.shown(self._gate.standings if ran else {})
        return passed, record

    def _tell(self, updates: list[Update], account: _Account) -> list[Update]:
        """Leave out the attackers of the round."""
        spec = self._task.behaviour
        if spec is None or self._onlooker.number < spec.first_round:
            return updates
        account.factors["oracle"] = {
            each: float(each not in spec.clients) for each in account.clients
        }
        return [each for each in updates if each.client not in spec.clients]

    def _ask_gate(
        self,
        updates: Sequence[Update],
        looks: Mapping[int, Look | None],
        received: State,
        account: _Account,
    ) -> tuple[list[Update], dict[str, Any]]:
        with account.timed(GATE):
            passed, record = super().pass_on(updates, looks, received)
        said = record.get("clients", [])
        account.scores[GATE] = {each["client"]: each["evidence"] for each in said}
        if self._gated:
            through = {each.client for each in passed}
            account.factors[GATE] = {each: float(each in through) for each in account.clients}
        return passed, record

    def _ask_others(
        self,
        updates: list[Update],
        looks: Mapping[int, Look | None],
        received: State,
        account: _Account,
    ) -> list[Update]:
        """What a defence other than the gate leaves of some updates, and as how much."""
        view = self._view(updates, looks, received, account)
        passed = updates
        for name, defend in self._defences.items():
            with account.timed(name):
                opinion = defend(view)
            account.take(name, view.clients, opinion, acts=name == self._name)
            if name == self._name:
                self._tell_strategy(name, view)
                factors = opinion.factors.tolist()
                passed = [
                    self._multiplied(update, factor, received)
                    for update, factor in zip(updates, factors, strict=True)
                    if factor
                ]
        return passed

    def _view(
        self,
        updates: Sequence[Update],
        looks: Mapping[int, Look | None],
        received: State,
        account: _Account,
    ) -> RoundView:
        steps = [self._step(each.state, received) for each in updates]
        root, accuracies, before = None, [0.0] * len(updates), 0.0
        if "fltrust" in self._defences:
            with account.timed("fltrust"):
                root = self._root(received)
        if "probe_accuracy" in self._defences:
            accuracies = [_accuracy(looks.get(each.client)) for each in updates]
            before = _accuracy(self._onlooker.received)
            account.charge("probe_accuracy", (1 + len(updates)) * self._probe_seconds())
        out = len(account.clients) - len(updates)
        return RoundView(
            torch.stack(steps),
            tuple(each.client for each in updates),
            torch.tensor([each.entry["samples"] for each in updates]),
            torch.tensor(accuracies, dtype=torch.float64),
            before,
            root,
            max(0, self._attackers - out),
        )

    def _probe_seconds(self) -> float:
        """What it costs to judge a model on the probe set, where nobody looks at it anyway."""
        began = time.process_time()
        with torch.no_grad():
            self._onlooker.learner.predict(self._onlooker.probe.images)
        return time.process_time() - began

    def _root(self, received: State) -> Tensor:
        """The step that the server's probe images make of the received weights."""
        images, chosen = self._onlooker.setup.server_probe
        task = self._task
        self._own.set_parameters(received)
        with seeded(task.random_seed, self._onlooker.number, task.num_clients):
            self._own.train(images.select(chosen, images.labels[chosen]), Drift())
        return self._step(self._own.get_parameters(), received)

    @cached_property
    def _own(self) -> LearnerProtocol:
        """A learner of the server's own: what looks at models is left as it is."""
        return self._onlooker.setup.new_learner()

    def _tell_strategy(self, name: str, view: RoundView) -> None:
        """Tell the strategy, as far as it depends on it, how many updates there are."""
        strategy = find_defence(name).strategy(len(view.clients), view.attackers)
        for key, value in strategy.items():
            if key != "_target_":
                self._server.arguments[key] = value
                setattr(self._server.strategy, key, value)

    def _multiplied(self, update: Update, factor: float, received: State) -> Update:
        """An update whose step is a factor times as long.

        BatchNorm's statistics go along up to a factor of 1: beyond it a variance could fall below
        zero, and no paper has them.
        """
        if factor == 1:
            return update
        learned = set(self._learned)
        parts = (
            ({key: each for key, each in update.state.items() if (key in learned) == own}, times)
            for own, times in ((True, factor), (False, min(factor, 1.0)))
        )
        found: State = {}
        for part, times in parts:
            found |= towards(received, part, times)
        state = {name: found[name] for name in update.state}
        update.message.content["arrays"] = pack(state)
        return replace(update, state=state)


def _accuracy(look: Look | None) -> float:
    """Of a model on the probe set; one that cannot be looked at gets nothing right."""
    if look is None:
        return 0.0
    right = look.explanation.logits.argmax(1) == look.probe.labels
    return float(right.double().mean())
