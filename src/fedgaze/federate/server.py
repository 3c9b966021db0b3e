"""The server: conducts a run round by round and keeps its record."""

import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import QFedAvg, Strategy
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.federate.behaviour import attack_success
from fedgaze.federate.contribution import weigh
from fedgaze.federate.exchange import pack, same, unpack, weights_of
from fedgaze.federate.gatekeeping import Gatekeeper
from fedgaze.federate.grid import LocalGrid
from fedgaze.federate.limits import lacking
from fedgaze.federate.look import Look
from fedgaze.federate.memory import restore_memory, strategy_memory
from fedgaze.federate.merging import Aggregate, Merging
from fedgaze.federate.observed import observed
from fedgaze.federate.onlooker import Onlooker
from fedgaze.federate.ordered import AskedRoster, Roster, Wait, gather
from fedgaze.federate.privacy import check_budget, private, spent
from fedgaze.federate.replies import Asked, Update, finite, keep_shared, read_reply
from fedgaze.federate.scaffold import Scaffold
from fedgaze.federate.selection import choose, choose_judges, last_rounds
from fedgaze.federate.setup import NO_ROOM, Setup
from fedgaze.federate.strategies import resolve_strategy
from fedgaze.federate.system import Meter, carried_bytes
from fedgaze.store import Run, load_tensors, save_tensors
from fedgaze.train import State

__all__ = ["Observer", "Server"]


ABSENT = "was not connected when the round began"
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
        self.roster: Roster = AskedRoster(setup.task.num_clients, setup.task.round_timeout)
        self.learner = setup.new_learner()
        self.like = self.learner.get_parameters()
        self.kind, self.arguments = resolve_strategy(setup.task)
        statistics = self.learner.statistics()
        self.privacy = setup.task.server.privacy
        self.onlooker = Onlooker(setup, run.path, self.learner)
        self.keeper = Gatekeeper(self.onlooker, run) if setup.task.xai.enabled else None
        self.merging = Merging(self.kind, self.like, statistics, private=self.privacy is not None)
        self.asked = self._asked(statistics)
        # What is not in the server's model, it cannot judge.
        self.judged_by_clients = bool(self.learner.get_kept())
        self.numbers: dict[int, int] = {}
        self.strategy: Strategy | None = None
        self._rate = 1.0
        self.absent: list[int] = []
        self.received: State = self.like
        self.record: dict[str, Any] = {}
        self.sent: list[Message] = []
        self.began = 0.0
        self.meter = Meter()
        self.shared_process = False

    def main(self, grid: Grid) -> None:
        """Carry out the rounds that are left, with the clients of a grid."""
        self.shared_process = isinstance(grid, LocalGrid)
        task, done = self.setup.task, self.run.rounds_done
        self.observer.run_started(task.num_rounds, done)
        strategy = self.strategy = self.new_strategy(done)
        if done:
            self.received = unpack(pack(load_tensors(self.run.checkpoint(done))), self.like)
            if (memory := self.run.strategy_state(done)).exists():
                restore_memory(strategy, load_tensors(memory))
            if self.keeper is not None:
                self.keeper.restore(self._history)
        else:
            save_tensors(self.run.checkpoint(0), self.received)
            self.run.summary["initial"] = (
                {} if self.judged_by_clients else self._judge(self.received)
            )
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

    def new_strategy(self, done: int) -> Strategy:
        """The task's strategy, watched, with nothing to remember yet.

        Args:
            done: Rounds of an earlier process.
        """
        if self.privacy is None:
            return observed(self.kind, self, done)(**self.arguments)
        wrapper, arguments = private(self.privacy, self._count)
        arguments["strategy"] = self.kind(**self.arguments)
        return observed(wrapper, self, done)(**arguments)

    def _asked(self, statistics: Collection[str]) -> Asked:
        """What strategy and privacy read in replies beside weights."""
        if self.kind is QFedAvg:
            return Asked(("received_loss",))
        if self.kind is Scaffold:
            return Asked(control=weights_of(self.like, statistics))
        spec = self.privacy
        if spec is not None and (spec.side, spec.clipping) == ("client", "adaptive"):
            return Asked(("norm_bit",))
        return Asked()

    def choose(self, number: int, grid: Grid) -> list[int]:
        """The nodes that train in a round, of those that are there.

        Raises:
            FedgazeError: Nobody is there whom the task would choose.
        """
        there = self._there(grid)
        missed = self._count > len(there)
        self.absent = sorted(set(range(self.setup.task.num_clients)) - set(there)) if missed else []
        chosen = choose(self.setup.task, self._count, number, sorted(there), self._history)
        if not chosen:
            raise FedgazeError(f"round {number} has no client: {len(there)} are there, none chosen")
        check_budget(self.setup.task, self._history, chosen, len(there))
        self._rate = len(chosen) / len(there)
        return [there[client] for client in chosen]

    def choose_judges(self, number: int, grid: Grid, strategy: Strategy) -> list[int]:
        """The nodes that judge the merged model of a round."""
        there = self._there(grid)
        able = set(there)
        if self.judged_by_clients:  # who never trained has nothing of its own to judge with
            able &= set(last_rounds([*self._history, self.record]))
        return [there[client] for client in choose_judges(self.setup.task, strategy, number, able)]

    @property
    def _count(self) -> int:
        """How many clients train in a round when all are there."""
        count: int = self.arguments["min_train_nodes"]
        return count

    @property
    def _history(self) -> list[dict[str, Any]]:
        """The records of the rounds that are whole."""
        rounds: list[dict[str, Any]] = self.run.summary["rounds"]
        return rounds

    def _there(self, grid: Grid) -> dict[int, int]:
        """The node of each client that is there; waits for the least number."""
        return {client: node for node, client in self._gather(grid, 0.0).items()}

    def _gather(self, grid: Grid, patience: float) -> dict[int, int]:
        task = self.setup.task
        wait = Wait(task.num_clients, task.least_clients, patience, task.join_timeout)
        there = gather(grid, self.roster, wait)
        self.numbers |= there
        called = {str(client): self.roster.name(client) for client in there.values()}
        names = {number: name for number, name in called.items() if name != number}
        if names:
            self.run.summary["names"] = self.run.summary.get("names", {}) | names
        return there

    def open_round(
        self, number: int, arrays: ArrayRecord, messages: list[Message]
    ) -> list[Message]:
        """Take down what goes out.

        Args:
            number: The round.
            arrays: The global weights.
            messages: The strategy's.

        Returns:
            The messages in the order of their clients, each with its own content.
        """
        self.began = time.monotonic()
        self.meter = Meter()
        self.received = unpack(arrays, self.like)
        self.onlooker.open_round(number, self.received)
        absent = [{"client": client, "reason": ABSENT} for client in self.absent]
        self.record = {"round": number, "global": {}, "clients": [], "failures": absent}
        self.sent = self.address(messages, arrays)
        clients = [self.numbers[message.metadata.dst_node_id] for message in self.sent]
        sent = sum(carried_bytes(message.content) for message in self.sent)
        self.record["system"] = {"sent_bytes": sent}
        self.observer.round_started(number, clients)
        return self.sent

    def address(self, messages: list[Message], arrays: ArrayRecord) -> list[Message]:
        """Give each message what its client has to know; the strategy's are all the same.

        Args:
            messages: The strategy's.
            arrays: The global weights.

        Returns:
            The messages in the order of their clients.
        """
        last = last_rounds([*self._history, self.record])
        for message in messages:
            config = ConfigRecord({**message.content.config_records["config"]})
            config["last-round"] = last.get(self.numbers[message.metadata.dst_node_id], 0)
            config["judge-received"] = int("received_loss" in self.asked.numbers)
            message.content = RecordDict({**message.content, "arrays": arrays, "config": config})
        return sorted(messages, key=lambda each: self.numbers[each.metadata.dst_node_id])

    def read_updates(self, replies: list[Message]) -> list[Update]:
        """Read, look at and take down each update.

        Returns:
            What may be merged, in the order of the clients.

        Raises:
            FedgazeError: No client gave a usable update.
        """
        updates = self._usable(replies)
        looks: dict[int, Look | None] = {}
        for update in updates:
            self.record["clients"].append(self._entry(update, looks))
        if self.keeper is not None:
            updates, self.record["gate"] = self.keeper.pass_on(updates, looks, self.received)
            self.record["system"]["gate_cpu_seconds"] = self.keeper.seconds
        floor = min(self.setup.task.gate.floor, len(self.sent))
        why = lacking(self.kind.__name__, self.arguments, len(updates))
        if len(updates) < floor:
            why = f"{len(updates)} updates are fewer than gate.floor={floor}"
        if why:
            self.record["not_merged"] = why
            return []
        return updates

    def _usable(self, replies: list[Message]) -> list[Update]:
        """The updates that can be read, and why others cannot."""
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
                updates.append(self._read(reply, client))
            except FedgazeError as error:
                if NO_ROOM in str(error) and self.setup.task.engine != "deployment":
                    # Its disk is ours, too: a resumed run has its update.
                    raise FedgazeError(NO_ROOM) from error
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
        return updates

    def weigh(self, updates: list[Update], fresh: Callable[[], Aggregate]) -> None:
        """Take down what each client adds to the merged model, where the task asks for it.

        Args:
            updates: Of :meth:`read_updates`.
            fresh: Makes a merge by a copy of the strategy as it is before the round's own.
        """
        if self.setup.task.contribution.by == "none" or not updates:
            return

        def value(coalition: frozenset[int]) -> Tensor:
            own = [update for update in updates if update.client in coalition]
            state = self.received
            if own and not lacking(self.kind.__name__, self.arguments, len(own)):
                merged = self.merging.merge(fresh(), own, self.received)
                state = self.received if merged is None else unpack(merged, self.like)
            self.learner.set_parameters(state)
            score = self.learner.evaluate(self.setup.dataset.test)
            return torch.tensor([score.accuracy, score.loss], dtype=torch.float64)

        weigh(self.setup.task, self.record, updates, value)

    def merge(self, updates: list[Update], aggregate: Aggregate) -> ArrayRecord | None:
        """Merge a round's updates, if there are any.

        Args:
            updates: Of :meth:`read_updates`.
            aggregate: The strategy's own.
        """
        if not updates:
            return None
        merged = self.merging.merge(aggregate, updates, self.received)
        if merged is None:
            self.record["not_merged"] = f"{self.kind.__name__} merged nothing"
        return merged

    def _read(self, reply: Message, client: int) -> Update:
        update = read_reply(reply, client, self.like, self.asked)
        if self.privacy and same(update.state, self.received):
            raise FedgazeError("the update changes nothing, and cannot be clipped")
        return update

    def _sender(self, reply: Message) -> int:
        """The node that a reply stands for; an error made by the link names the link itself."""
        if reply.metadata.src_node_id in self.numbers:
            return reply.metadata.src_node_id
        asked = reply.metadata.reply_to_message_id
        return next(
            (m.metadata.dst_node_id for m in self.sent if m.metadata.message_id == asked), -1
        )

    def _entry(self, update: Update, looks: dict[int, Look | None]) -> dict[str, Any]:
        entry = update.entry
        if update.files:
            folder = self.onlooker.folder(f"client_{update.client}")
            keep_shared(self.run.path / folder, update.files)
            entry["explanation"]["folder"] = str(folder)
        if self.onlooker.active:
            name = f"client_{update.client}"
            entry["server_explanation"], looks[update.client] = self.onlooker.look_at(
                update.state, name
            )
        return entry

    def _judge(self, state: State) -> dict[str, Any]:
        self.learner.set_parameters(state)
        score = self.learner.evaluate(self.setup.dataset.test)
        success = attack_success(self.setup, self.learner.predict, self.setup.dataset.test)
        return (
            {"accuracy": finite(score.accuracy), "loss": finite(score.loss)}
            | {name: finite(value) for name, value in score.metrics.items()}
            | ({} if success is None else {"attack_success": success})
        )

    def _close_round(self, state: State, memory: State) -> None:
        if self.judged_by_clients:
            means = self.record.get("evaluation", {})
            self.record["global"] = {key: means.get(key) for key in ("accuracy", "loss")}
            self.record["global"]["judged_by"] = "clients"
        else:
            self.record["global"] = self._judge(state)
        if self.onlooker.active:
            self.record["global"]["explanation"], _ = self.onlooker.look_at(state, "global")
        if self.privacy:
            self.record["privacy"] = {
                "delta": self.privacy.delta,
                "noise_multiplier": self.privacy.noise_multiplier,
                "clipping_norm": getattr(self.strategy, "clipped_to", None),
                "sampling": self.privacy.sampling,
                "sampling_rate": self._rate,
            }
            so_far = spent(self.privacy, [*self._history, self.record])
            self.record["privacy"]["epsilon"] = so_far
        self.record["seconds"] = round(time.monotonic() - self.began, 3)
        self.record["system"] |= self.meter.read() | {"shared_process": self.shared_process}
        self.run.commit(self.record, state, memory)
        for each in self.after_round:
            each(self.record)
        self.observer.round_done(self.record)
