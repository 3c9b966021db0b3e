"""The gate at work: what it needs is gathered, and what it decides is done."""

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedgaze.config import Task
from fedgaze.federate.exchange import pack, weights_of
from fedgaze.federate.gate import Decision, Gate, Seen, Sight, Trial
from fedgaze.federate.look import Look
from fedgaze.federate.onlooker import Onlooker
from fedgaze.federate.replies import Update
from fedgaze.federate.setup import reason, threads
from fedgaze.store import Run
from fedgaze.train import State

__all__ = ["Gatekeeper", "towards"]

SECRET = "gate_seed"  # noqa: S105 - a key of run.json


class Gatekeeper:
    """Shows the gate a round's updates, and hands on what it lets through.

    Args:
        onlooker: The server's own look.
        run: The record; in it stands from which seed trials are drawn.

    Attributes:
        seconds: CPU time that the last round's judging took.
    """

    def __init__(self, onlooker: Onlooker, run: Run) -> None:
        self._onlooker = onlooker
        self._task = onlooker.setup.task
        self.seconds = 0.0
        self._gate = Gate(self._task.gate, onlooker.setup.dataset.classes)
        self._seed = run.description.setdefault(SECRET, _secret(self._task))
        self._learned = list(
            weights_of(onlooker.learner.get_parameters(), onlooker.learner.statistics())
        )

    def restore(self, rounds: Iterable[Mapping[str, Any]]) -> None:
        """Remember earlier rounds: see :meth:`fedgaze.federate.gate.Gate.restore`."""
        self._gate.restore(rounds)

    def pass_on(
        self, updates: Sequence[Update], looks: Mapping[int, Look | None], received: State
    ) -> tuple[list[Update], dict[str, Any]]:
        """Judge a round's updates.

        Args:
            updates: All of them, in the order of their clients.
            looks: What the server saw of each; empty where it does not look.
            received: The weights that went out.

        Returns:
            What may be merged, and the round's entry ``gate`` of the record.
        """
        began = time.process_time()
        spec = self._task.gate
        record: dict[str, Any] = {"policy": spec.policy, "threshold": spec.threshold}
        try:
            with threads(self._task.resources.cpu):  # as clients: the same wherever it runs
                decisions = self._gate.judge(self._see(updates, looks, received))
        except Exception as error:  # noqa: BLE001 - a gate that fails ends no training
            record["failed"] = reason(error)
            return ([] if spec.policy == "reject" else list(updates)), record
        finally:
            self.seconds = round(time.process_time() - began, 4)
        record["clients"] = [each.shown() for each in decisions]
        record["spreads"] = self._gate.spreads
        passed = [
            _weakened(update, decision, received)
            for update, decision in zip(updates, decisions, strict=True)
            if decision.factor > 0
        ]
        return passed, record

    def _see(
        self, updates: Sequence[Update], looks: Mapping[int, Look | None], received: State
    ) -> Seen:
        vectors = torch.stack([self._step(each.state, received) for each in updates])
        clients = tuple(each.client for each in updates)
        profiles = [each.entry.get("explanation", {}) for each in updates]
        if not looks:
            return Seen(clients, vectors, [None] * len(clients), None, profiles)
        sights, before = self._try_marks(updates, looks, received)
        return Seen(clients, vectors, sights, before, profiles)

    def _step(self, state: State, received: State) -> Tensor:
        """What was learned, as one vector ``(D,)`` float32."""
        moved = [(state[name] - received[name]).flatten() for name in self._learned]
        return torch.cat(moved).float()

    def _try_marks(
        self, updates: Sequence[Update], looks: Mapping[int, Look | None], received: State
    ) -> tuple[list[Sight | None], Sight]:
        """Seek a patch for each update, and try every one on all of them."""
        learner, number = self._onlooker.learner, self._onlooker.number
        draw = np.random.SeedSequence((self._seed, number)).generate_state(1)[0]
        trial = Trial.drawn(self._onlooker.probe, int(draw))
        learner.set_parameters(received)
        found = {-1: trial.sought(learner.predict)}
        for update in updates:
            if looks.get(update.client) is not None:
                learner.set_parameters(update.state)
                found[update.client] = trial.sought(learner.predict)
        # An update that could not be looked at has no patch; the received model's stands in.
        patches = [found.get(each.client, found[-1]) for each in updates]

        def sight(state: State, shown: Look, client: int) -> Sight:
            learner.set_parameters(state)
            return Sight(shown, found[client], trial.pull(learner.predict, patches))

        sights = [
            None
            if (shown := looks.get(each.client)) is None
            else sight(each.state, shown, each.client)
            for each in updates
        ]
        return sights, sight(received, self._onlooker.received, -1)


def _secret(task: Task) -> int:
    """Who knows the seed knows the marks: where clients are elsewhere, it is the server's own."""
    return secrets.randbits(32) if task.engine == "deployment" else task.random_seed


def _weakened(update: Update, decision: Decision, received: State) -> Update:
    """An update of which only a part is merged."""
    if decision.factor == 1:
        return update
    state = towards(received, update.state, decision.factor)
    message = update.message
    message.content["arrays"] = pack(state)
    if "control" in message.content.array_records:
        control = message.content.array_records["control"]
        message.content["control"] = ArrayRecord(
            {name: _scaled(array, decision.factor) for name, array in control.items()}
        )
    return replace(update, state=state, message=message)


def _scaled(array: Array, factor: float) -> Array:
    values = array.numpy()
    return Array(values * values.dtype.type(factor))


def towards(received: State, trained: State, factor: float) -> State:
    """The received state, and a part of the way from it to a trained one.

    Args:
        received: Where the way begins.
        trained: Where it ends; whole numbers are taken from here.
        factor: Which part of the way.
    """

    def part(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        step = (value.double() - received[name].double()) * factor
        return (received[name].double() + step).to(value.dtype)

    return {name: part(name, value) for name, value in trained.items()}
