"""The client: trains on its own images, judges and explains itself, and says what it may say."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from fedgaze.config import Share, Task
from fedgaze.data import Images, PlantedImages, hold_back, probe_indices
from fedgaze.errors import FedgazeError
from fedgaze.federate.ask import Answer, Question, answer, read_question
from fedgaze.federate.behaviour import Turn, behave
from fedgaze.federate.exchange import fingerprint, pack, same, unpack, weights_of
from fedgaze.federate.kept import Kept
from fedgaze.federate.look import Probe, look, make_probe, profile, write_look
from fedgaze.federate.privacy import clipping_mods
from fedgaze.federate.scaffold import Steering
from fedgaze.federate.setup import NO_ROOM, Setup, reason, seeded, setup_of, threads
from fedgaze.federate.system import Meter, carried_bytes
from fedgaze.store import load_tensors, no_room, save_tensors
from fedgaze.train import Drift, LearnerProtocol, Score, State

__all__ = ["Client", "Terms", "client_app"]


@dataclass(frozen=True)
class Terms:
    """What holds for a client beyond its task.

    Attributes:
        share: What may leave it at most, whatever the task says.
        classes: The federation's, where its own images may lack some.
    """

    share: Share = "overlays"
    classes: tuple[str, ...] | None = None


NO_TERMS = Terms()

SHARE_LIMIT = 512 * 1024
"""Bytes of pictures and maps that one reply carries at most: Flower's state is no file store."""


def client_app(
    task: Task, home: Path, terms: Terms = NO_TERMS, mods: Sequence[Mod] = ()
) -> ClientApp:
    """Flower's ClientApp for a task.

    Args:
        task: Checked by :func:`fedgaze.federate.prepare` before.
        home: Where clients keep their files: each in ``clients/client_<c>`` and, for heatmaps,
            in the task's ``xai.save_dir``.
        terms: What holds beyond the task.
        mods: What is done to every message and its answer on the way.
    """
    task = task.model_copy(update={"xai": task.xai.capped(terms.share)}).in_directory(
        task.directory
    )
    app = ClientApp(mods=list(mods))

    def client(context: Context) -> Client:
        return Client(setup_of(task, terms.classes), int(context.node_config["partition-id"]), home)

    @app.train(mods=clipping_mods(task.server.privacy))
    def _train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        config: dict[str, Any] = dict(message.content.config_records["config"])
        order = Order(
            last=int(config.get("last-round", 0)),
            proximal_mu=float(config.get("proximal-mu", 0.0)),
            judge_received=bool(config.get("judge-received", 0)),
            control=message.content.array_records.get("control"),
        )
        worker = client(context)
        meter = Meter(worker.setup.device)
        try:
            reply = worker.train(arrays, config["server-round"], order)
        except OSError as error:
            if no_room(error):
                raise FedgazeError(NO_ROOM) from error
            raise
        traffic = {
            "received_bytes": carried_bytes(message.content),
            "sent_bytes": carried_bytes(reply),
        }
        reply["system"] = ConfigRecord({**meter.read(), **traffic, "threads": task.resources.cpu})
        return Message(reply, reply_to=message)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        config: dict[str, Any] = dict(message.content.config_records["config"])
        reply = client(context).evaluate(arrays, int(config.get("last-round", 0)))
        return Message(reply, reply_to=message)

    @app.query("explain")
    def _explain(message: Message, context: Context) -> Message:
        question = read_question(message.content)
        return Message(client(context).ask(question).packed(), reply_to=message)

    @app.query("identity")
    def _identity(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        content = RecordDict({"client": ConfigRecord({"client": number})})
        return Message(content, reply_to=message)

    return app


@dataclass(frozen=True)
class Order:
    """What a strategy asks of local training.

    Attributes:
        last: The client's last round that counted, 0 for none: what it kept of that one is what
            it starts from.
        proximal_mu: FedProx's, 0 for none.
        judge_received: Whether to judge the received weights on the training images: q-FedAvg
            weighs clients by this loss.
        control: SCAFFOLD's, of the server.
    """

    last: int = 0
    proximal_mu: float = 0.0
    judge_received: bool = False
    control: ArrayRecord | None = None


PLAIN = Order()


@dataclass(frozen=True, eq=False)
class Model:
    """A model as a client has it.

    Attributes:
        weights: What travels.
        kept: What stays at home.
    """

    weights: State
    kept: State

    def give(self, learner: LearnerProtocol) -> None:
        """Let a learner be this model."""
        learner.set_parameters(self.weights)
        learner.set_kept(self.kept)


class Client:
    """One client at work on one message; what it keeps from round to round lies in its folder.

    Args:
        setup: The task and its images.
        number: Which client, from 0.
        home: Where it keeps its files.
    """

    def __init__(self, setup: Setup, number: int, home: Path) -> None:
        self.setup = setup
        self.number = number
        self.home = home
        self._layers = Kept(self.folder / "layers")
        self._controls = Kept(self.folder / "control")
        task = setup.task
        own = setup.parts[number]
        images: Images = setup.dataset.train.select(own, setup.dataset.train.labels[own])
        plant = task.dataset.plant
        if plant and number in plant.clients:
            images = PlantedImages.some(images, plant.fraction, task.random_seed + number)
        kept, held = hold_back(images.labels, task.dataset.validation_split, task.random_seed)
        self.training: Images = images.select(kept, images.labels[kept])
        self.validation: Images = images.select(held, images.labels[held])

    def train(self, arrays: ArrayRecord, number: int, order: Order = PLAIN) -> RecordDict:
        """Train from the received weights, judge and explain the result, answer.

        Args:
            arrays: The global weights.
            number: The round, from 1.
            order: What the strategy asks for.

        Returns:
            ``arrays`` (weights), ``metrics`` (how many images, how well), ``client`` (who), with
            SCAFFOLD ``control`` (how the client's own changed), and as far as the task lets it:
            ``profile`` (scalars), ``shared`` (files) and ``failed``.
        """
        task = self.setup.task
        learner = self.setup.new_learner()
        received = unpack(arrays, learner.get_parameters())
        with threads(task.resources.cpu), seeded(task.random_seed, number, self.number):
            learner.set_parameters(received)
            learner.set_kept(self._layers.load(order.last))
            before = Model(received, learner.get_kept())
            reply = self._learn(learner, number, received, order)
            if task.xai.enabled and task.xai.run_location in ("client", "both"):
                after = Model(learner.get_parameters(), learner.get_kept())
                try:
                    self._explain(learner, number, before, after, reply)
                except Exception as error:
                    if no_room(error) and task.engine != "deployment":
                        raise  # the server's disk, too: the run can be resumed once there is room
                    reply.config_records["client"]["failed"] = reason(error)
        return reply

    def _learn(
        self, learner: LearnerProtocol, number: int, received: State, order: Order
    ) -> RecordDict:
        """Train a learner that has the weights to start from, and keep what stays at home."""
        numbers = {}
        if order.judge_received:
            numbers["received_loss"] = learner.evaluate(self.training).loss
        steering = self._steering(learner, received, order)
        drift = Drift(order.proximal_mu, steering.shifts)
        turn = Turn(self.setup, self.number, number, learner, self.training, received, drift)
        trained, sent = behave(turn)
        valid = learner.evaluate(self.validation)
        state, kept = learner.get_parameters(), learner.get_kept()
        save_tensors(self._local_model(number), state | kept)
        reply = RecordDict(
            {
                "arrays": pack(self._outgoing(sent, received)),
                "metrics": MetricRecord(
                    {
                        "num-examples": len(self.training.labels),
                        **_named("train", trained),
                        **_named("validation", valid),
                        **numbers,
                    }
                ),
                "client": ConfigRecord({"client": self.number}),
            }
        )
        if kept:
            self._layers.save(number, kept, order.last)
        if steering.own:
            control = steering.after(received, state, trained.rates)
            self._controls.save(number, control, order.last)
            reply["control"] = pack({name: control[name] - steering.own[name] for name in control})
        return reply

    def _outgoing(self, state: State, received: State) -> State:
        """What of the trained weights leaves; clipping and noise make no sense of whole numbers."""
        if self.setup.task.server.privacy is None:
            return state
        if same(state, received):
            raise FedgazeError("training changed nothing, and no clipping can make that private")
        return received | weights_of(state, ())

    def _steering(self, learner: LearnerProtocol, received: State, order: Order) -> Steering:
        """SCAFFOLD's controls, without which there is nothing to steer by."""
        if order.control is None:
            return Steering({}, {})
        like = weights_of(received, learner.statistics())
        own = self._controls.load(order.last)
        return Steering(
            unpack(order.control, like),
            own or {name: torch.zeros_like(value) for name, value in like.items()},
        )

    def evaluate(self, arrays: ArrayRecord, last: int = 0) -> RecordDict:
        """Judge the given weights, with what it kept, on the client's validation images.

        Args:
            arrays: The global weights.
            last: The client's last round that counted, 0 for none.

        Returns:
            ``metrics``: accuracy, loss and the number of images.
        """
        learner = self.setup.new_learner()
        learner.set_parameters(unpack(arrays, learner.get_parameters()))
        learner.set_kept(self._layers.load(last))
        with threads(self.setup.task.resources.cpu):
            score = learner.evaluate(self.validation)
        metrics = MetricRecord({"accuracy": score.accuracy, "loss": score.loss})
        metrics["num-examples"] = len(self.validation.labels)
        return RecordDict({"metrics": metrics})

    def ask(self, question: Question) -> Answer:
        """Say where the client's own model looks in a picture, as far as it may be said.

        Args:
            question: Its ``version`` is the round that the model was trained in.

        Raises:
            FedgazeError: There is no such model, or nothing may be said.
        """
        pattern = self._local_model(0).name.replace("_V0.", "_V*.")
        found = {
            int(path.stem.rpartition("_V")[2]): path
            for path in self._local_model(0).parent.glob(pattern)
        }
        version = max(found, default=0) if question.version is None else question.version
        if version not in found:
            rounds = ", ".join(map(str, sorted(found))) or "none"
            raise FedgazeError(f"this client has no model of round {version}; it has {rounds}")
        learner = self.setup.new_learner()
        learner.set_parameters(load_tensors(found[version]))
        with threads(self.setup.task.resources.cpu):
            return answer(self.setup, learner, question, self.setup.task.xai.share)

    @property
    def folder(self) -> Path:
        """The client's own folder."""
        return self.home / "clients" / f"client_{self.number}"

    def _local_model(self, version: int) -> Path:
        task = self.setup.task
        label = re.sub(r"[^\w.-]+", "_", task.model.label)
        return (
            self.folder
            / "local_model"
            / task.task_id
            / f"{label}_local_model_V{version}.safetensors"
        )

    def _probe(self) -> Probe:
        spec = self.setup.task.xai
        chosen = probe_indices(
            self.validation.labels, spec.samples_per_class, self.setup.task.random_seed
        )
        return make_probe(self.setup, self.validation, chosen)

    def _explain(
        self,
        learner: LearnerProtocol,
        number: int,
        received: Model,
        trained: Model,
        reply: RecordDict,
    ) -> None:
        """Explain the probe set with both weights, write it at home, add what may leave."""
        spec = self.setup.task.xai
        probe = self._probe()
        received.give(learner)
        before = look(learner, probe)
        trained.give(learner)
        after = look(learner, probe, before.explanation)
        files = (
            {}
            if not spec.pictures
            else write_look(
                self.home / spec.save_dir / f"round_{number}" / f"client_{self.number}",
                {"trained": after, "received": before},
                self.setup.dataset.classes,
                client=self.number,
                round=number,
                weights_sha256={
                    "trained": fingerprint(trained.weights),
                    "received": fingerprint(received.weights),
                },
            )
        )
        reply.config_records["client"]["explained"] = True
        if spec.share != "none":
            reply["profile"] = MetricRecord({**profile(after)})
        endings = {"maps": (".npy",), "overlays": (".npy", ".jpg")}.get(spec.share, ())
        shared, room = ConfigRecord(), SHARE_LIMIT
        for name in sorted(files):
            if name.endswith(endings or ("\0",)) and len(files[name]) <= room:
                shared[name] = files[name]
                room -= len(files[name])
        if shared:
            reply["shared"] = shared


def _named(part: str, score: Score) -> dict[str, float]:
    values = {"loss": score.loss, "accuracy": score.accuracy, **score.metrics}
    return {f"{part}_{name}": value for name, value in values.items()}
