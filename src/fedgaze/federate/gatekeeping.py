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
from fedgaze.federate.gate import (
    Certainty,
    Counted,
    Decision,
    Found,
    Gate,
    Merges,
    Predict,
    Seen,
    Sight,
    Trial,
    certainty_of,
    count,
    leave_one_out,
    shows_something,
)
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
        moved = torch.stack([_moved(each.state, received) for each in updates])
        clients = tuple(each.client for each in updates)
        profiles = [each.entry.get("explanation", {}) for each in updates]
        if not looks:
            return Seen(clients, vectors, moved, [None] * len(clients), None, profiles)
        received_look = self._onlooker.received
        if not any(looks.get(each) for each in clients):
            return Seen(clients, vectors, moved, [None] * len(clients), received_look, profiles)
        found, sights = self._try_marks(updates, looks)
        merges, counted = self._try_merges(updates, looks)
        return Seen(
            clients, vectors, moved, sights, received_look, profiles, found, merges, counted
        )

    def _step(self, state: State, received: State) -> Tensor:
        """What was learned, as one vector ``(D,)`` float32."""
        moved = [(state[name] - received[name]).flatten() for name in self._learned]
        return torch.cat(moved).float()

    def _predictor(self, state: State) -> Predict:
        self._onlooker.learner.set_parameters(state)
        return self._onlooker.learner.predict

    def _try_marks(
        self, updates: Sequence[Update], looks: Mapping[int, Look | None]
    ) -> tuple[list[tuple[Found, Found]], list[Sight | None]]:
        """Seek marks for each update, and try every one on all of them."""
        draw = np.random.SeedSequence((self._seed, self._onlooker.number)).generate_state(1)[0]
        trial = Trial.drawn(self._onlooker.probe, int(draw))
        seen = {each.client: look for each in updates if (look := looks.get(each.client))}
        own = {
            each.client: trial.sought(self._predictor(each.state))
            for each in updates
            if each.client in seen
        }
        found = [own.get(each.client, next(iter(own.values()))) for each in updates]
        marks = [mark for kind in zip(*found, strict=True) for mark in kind]

        def sight(update: Update) -> Sight:
            pulls = trial.pulls(self._predictor(update.state), marks)
            return Sight(seen[update.client], pulls.unflatten(0, (2, len(found))))

        return found, [sight(each) if each.client in seen else None for each in updates]

    def _try_merges(
        self, updates: Sequence[Update], looks: Mapping[int, Look | None]
    ) -> tuple[Merges | None, Counted | None]:
        """See the merge of all updates that show something, and those without each of them."""
        shown = [each for each in updates if shows_something(looks.get(each.client))]
        if len(shown) < 2:
            return None, None
        probe = self._onlooker.probe
        whole, rest = leave_one_out([each.state for each in shown])
        of_client = {each.client: state for each, state in zip(shown, rest, strict=True)}
        together = self._predictor(whole)
        states = [each.state if each.client in of_client else None for each in updates]
        counted = count(self._onlooker.learner, states, probe.images, probe.labels)

        def certainty(predict: Predict) -> Certainty:
            return certainty_of(predict, probe.images, probe.labels, light=counted is None)

        sure = certainty(together)
        without = {each: certainty(self._predictor(state)) for each, state in of_client.items()}
        return Merges(sure, [without.get(each.client) for each in updates]), counted


def _moved(state: State, received: State) -> Tensor:
    """How far each tensor of a state has moved, ``(L,)``."""
    return torch.stack(
        [
            (state[name].double() - value.double()).norm()
            for name, value in received.items()
            if value.is_floating_point()
        ]
    )


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
