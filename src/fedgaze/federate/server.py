"""The server: conducts a run round by round and keeps its record."""

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedgaze.data import mark_mask, stamp
from fedgaze.errors import FedgazeError
from fedgaze.federate.exchange import fingerprint, pack, unpack
from fedgaze.federate.grid import LocalGrid
from fedgaze.federate.look import Probe, look, make_probe, nested, profile, write_look
from fedgaze.federate.observed import observed
from fedgaze.federate.ordered import OrderedGrid, Roster, Wait, gather
from fedgaze.federate.replies import Update, finite, keep_shared, read_reply
from fedgaze.federate.setup import Setup, reason
from fedgaze.federate.strategies import resolve_strategy, restore_memory, strategy_memory
from fedgaze.federate.system import Meter, carried_bytes
from fedgaze.measure import causal_drop, mass_on
from fedgaze.store import Run, load_tensors, save_tensors
from fedgaze.train import State
from fedgaze.xai import Explanation

__all__ = ["Observer", "Server"]


RECONNECTING = 30.0
"""Seconds that clients have to come back to a server that was away."""


class Observer(Protocol):
    """Who watches a run."""

    def run_started(self, rounds: int, done: int) -> None:
        """The run begins, with so many of its rounds whole already."""

    def round_started(self, number: int, clients: list[int]) -> None:
        """A round's messages go out to these clients."""

    def client_started(self, client: int, kind: str) -> None:
        """A client takes up a message; only the local engine knows."""

    def round_done(self, record: dict[str, Any]) -> None:
        """A round is whole and written: its entry of the summary."""

    def trouble(self, text: str) -> None:
        """Something beside the run went wrong; the run goes on."""


class Server:
    """The server's side of a run.

    Args:
        setup: The task and its images.
        run: The record; the rounds that it already holds are not run again.
        observer: Is told what happens.
    """

    def __init__(self, setup: Setup, run: Run, observer: Observer) -> None:
        self.setup = setup
        self.run = run
        self.observer = observer
        self.after_round: list[Callable[[dict[str, Any]], None]] = []
        self.learner = setup.new_learner()
        self.like = self.learner.get_parameters()
        self.numbers: dict[int, int] = {}
        self.there: set[int] = set()
        self._received_look: tuple[int, Explanation] | None = None
        self.received: State = self.like
        self.record: dict[str, Any] = {}
        self.sent: list[Message] = []
        self.began = 0.0
        self.meter = Meter()
        self.shared_process = False

    def main(self, grid: Grid, roster: Roster) -> None:
        """Carry out the rounds that are left.

        Args:
            grid: Where the clients are.
            roster: Says which node is which client.
        """
        self._roster = roster
        self.shared_process = isinstance(grid, LocalGrid)
        task, done = self.setup.task, self.run.rounds_done
        self.observer.run_started(task.num_rounds, done)
        kind, arguments = resolve_strategy(task)
        strategy = observed(kind, self, done)(**arguments)
        if done:
            self.received = unpack(pack(load_tensors(self.run.checkpoint(done))), self.like)
            if (memory := self.run.strategy_state(done)).exists():
                restore_memory(strategy, load_tensors(memory))
        else:
            save_tensors(self.run.checkpoint(0), self.received)
            self.run.summary["initial"] = self._judge(self.received)
        self._gather(grid, RECONNECTING if done else task.join_timeout)

        def close(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            if number > 0:  # Flower also asks about the weights that it starts with
                self._close_round(unpack(arrays, self.like), strategy_memory(strategy))
            return None

        strategy.start(
            grid,
            pack(self.received),
            num_rounds=task.num_rounds - done,
            timeout=task.round_timeout,
            evaluate_fn=close,
        )
        self.run.finish()

    def shown(self, grid: Grid) -> OrderedGrid:
        """The clients that are there for a round, in their order; waits for the least number."""
        return OrderedGrid(grid, self._gather(grid, 0.0))

    def _gather(self, grid: Grid, patience: float) -> dict[int, int]:
        task = self.setup.task
        wait = Wait(task.num_clients, task.least_clients, patience, task.join_timeout)
        there = gather(grid, self._roster, wait)
        self.numbers |= there
        self.there = set(there.values())
        return there

    def open_round(self, number: int, arrays: ArrayRecord, messages: list[Message]) -> None:
        """Take down what goes out."""
        self.began = time.monotonic()
        self.meter = Meter()
        self.received = unpack(arrays, self.like)
        self.sent = messages
        clients = sorted(self.numbers[message.metadata.dst_node_id] for message in messages)
        absent = [
            {"client": client, "reason": "was not connected when the round began"}
            for client in range(self.setup.task.num_clients)
            if client not in self.there
        ]
        self.record = {"round": number, "global": {}, "clients": [], "failures": absent}
        sent = sum(carried_bytes(message.content) for message in messages)
        self.record["system"] = {"sent_bytes": sent}
        self.observer.round_started(number, clients)

    def read_updates(self, replies: list[Message]) -> list[Message]:
        """Read, look at and take down each update.

        Returns:
            What may be merged, in the order of the clients, in Flower's own form.

        Raises:
            FedgazeError: No client gave a usable update.
        """
        updates: list[Update] = []
        failures: list[dict[str, Any]] = self.record["failures"]
        self.record["system"]["received_bytes"] = sum(
            carried_bytes(reply.content) for reply in replies if reply.has_content()
        )
        answered = set()
        for reply in replies:
            node = self._sender(reply)
            client = self.numbers.get(node, -1)
            answered.add(node)
            try:
                updates.append(read_reply(reply, client, self.like))
            except FedgazeError as error:
                failures.append({"client": client, "reason": str(error)})
        for message in self.sent:
            if (node := message.metadata.dst_node_id) not in answered:
                reason = f"no answer within round_timeout={self.setup.task.round_timeout:g} s"
                failures.append({"client": self.numbers[node], "reason": reason})
        failures.sort(key=lambda failure: failure["client"])
        updates.sort(key=lambda update: update.client)
        if not updates:
            reasons = "; ".join(f"client {each['client']}: {each['reason']}" for each in failures)
            raise FedgazeError(f"round {self.record['round']} has no update to merge: {reasons}")
        for update in updates:
            self.record["clients"].append(self._entry(update))
        floor = min(self.setup.task.gate.floor, len(self.sent))
        if len(updates) < floor:
            self.record["not_merged"] = f"{len(updates)} updates are fewer than gate.floor={floor}"
            return []
        return [update.message for update in updates]

    def _sender(self, reply: Message) -> int:
        """The node that a reply stands for; an error made by the link names the link itself."""
        if reply.metadata.src_node_id in self.numbers:
            return reply.metadata.src_node_id
        asked = reply.metadata.reply_to_message_id
        return next(
            (m.metadata.dst_node_id for m in self.sent if m.metadata.message_id == asked), -1
        )

    def _entry(self, update: Update) -> dict[str, Any]:
        entry = update.entry
        if update.files:
            folder = self._round_folder / f"client_{update.client}"
            keep_shared(self.run.path / folder, update.files)
            entry["explanation"]["folder"] = str(folder)
        if self._looks:
            entry["server_explanation"] = self._look_at(update.state, f"client_{update.client}")
        return entry

    @property
    def _round_folder(self) -> Path:
        return self.setup.task.xai.save_dir / f"round_{self.record['round']}"

    @property
    def _looks(self) -> bool:
        spec = self.setup.task.xai
        return spec.enabled and spec.run_location in ("server", "both")

    @cached_property
    def _probe(self) -> Probe:
        images, chosen = self.setup.server_probe
        return make_probe(self.setup, images, chosen)

    def _look_at(self, state: State, name: str) -> dict[str, Any]:
        """Explain a model on the server's probe set, and write the pictures."""
        try:
            return self._try_look(state, name)
        except Exception as error:  # noqa: BLE001 - a failing explanation ends no training
            return {"failed": reason(error)}

    def _try_look(self, state: State, name: str) -> dict[str, Any]:
        number = self.record["round"]
        self.learner.set_parameters(state)
        seen = look(self.learner, self._probe, self._received_maps(number))
        looks = {"trained": seen}
        if self.setup.task.dataset.plant:
            marked = look(self.learner, self._probe.with_images(stamp))
            looks["marked"] = marked
            seen.measures["mark_drop"] = causal_drop(
                marked.explanation.logits, seen.explanation.logits, self._probe.labels
            )
            seen.measures["mark_mass"] = mass_on(
                marked.explanation.heatmaps, mark_mask(self._probe.images)
            )
        folder = self._round_folder / "server" / name
        write_look(
            self.run.path / folder,
            looks,
            self.setup.dataset.classes,
            round=number,
            weights_sha256={"trained": fingerprint(state)},
        )
        return nested(profile(seen)) | {"shared": "overlays", "folder": str(folder)}

    def _received_maps(self, number: int) -> Explanation:
        """The maps of the weights that went out; made once a round."""
        if self._received_look is None or self._received_look[0] != number:
            learner = self.setup.new_learner()
            learner.set_parameters(self.received)
            seen = look(learner, self._probe)
            self._received_look = number, seen.explanation
        return self._received_look[1]

    def _judge(self, state: State) -> dict[str, Any]:
        self.learner.set_parameters(state)
        score = self.learner.evaluate(self.setup.dataset.test)
        return {"accuracy": finite(score.accuracy), "loss": finite(score.loss)} | {
            name: finite(value) for name, value in score.metrics.items()
        }

    def _close_round(self, state: State, memory: State) -> None:
        self.record["global"] = self._judge(state)
        if self._looks:
            self.record["global"]["explanation"] = self._look_at(state, "global")
        self.record["seconds"] = round(time.monotonic() - self.began, 3)
        self.record["system"] |= self.meter.read() | {"shared_process": self.shared_process}
        self.run.commit(self.record, state, memory)
        for each in self.after_round:
            each(self.record)
        self.observer.round_done(self.record)
