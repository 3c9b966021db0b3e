"""The client: trains on its own images, judges and explains itself, and says what it may say."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedgaze.config import Share, Task
from fedgaze.data import Images, PlantedImages, hold_back, probe_indices
from fedgaze.errors import FedgazeError
from fedgaze.federate.ask import Answer, Question, answer, read_question
from fedgaze.federate.exchange import fingerprint, pack, unpack
from fedgaze.federate.look import Probe, look, make_probe, profile, write_look
from fedgaze.federate.setup import Setup, reason, seeded, setup_of, threads
from fedgaze.federate.system import Meter, carried_bytes
from fedgaze.store import load_tensors, save_tensors
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


def client_app(task: Task, home: Path, terms: Terms = NO_TERMS) -> ClientApp:
    """Flower's ClientApp for a task.

    Args:
        task: Checked by :func:`fedgaze.federate.prepare` before.
        home: Where clients keep their files: each in ``clients/client_<c>`` and, for heatmaps,
            in the task's ``xai.save_dir``.
        terms: What holds beyond the task.
    """
    task = task.model_copy(update={"xai": task.xai.capped(terms.share)}).in_directory(
        task.directory
    )
    app = ClientApp()

    def client(context: Context) -> Client:
        return Client(setup_of(task, terms.classes), int(context.node_config["partition-id"]), home)

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        config: dict[str, Any] = dict(message.content.config_records["config"])
        proximal_mu = float(config.get("proximal-mu", 0.0))
        worker = client(context)
        meter = Meter(worker.setup.device)
        reply = worker.train(arrays, config["server-round"], proximal_mu)
        traffic = {
            "received_bytes": carried_bytes(message.content),
            "sent_bytes": carried_bytes(reply),
        }
        reply["system"] = ConfigRecord({**meter.read(), **traffic, "threads": task.resources.cpu})
        return Message(reply, reply_to=message)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        return Message(client(context).evaluate(arrays), reply_to=message)

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
        task = setup.task
        own = setup.parts[number]
        images: Images = setup.dataset.train.select(own, setup.dataset.train.labels[own])
        plant = task.dataset.plant
        if plant and number in plant.clients:
            images = PlantedImages.some(images, plant.fraction, task.random_seed + number)
        kept, held = hold_back(images.labels, task.dataset.validation_split, task.random_seed)
        self.training: Images = images.select(kept, images.labels[kept])
        self.validation: Images = images.select(held, images.labels[held])

    def train(self, arrays: ArrayRecord, number: int, proximal_mu: float = 0.0) -> RecordDict:
        """Train from the received weights, judge and explain the result, answer.

        Args:
            arrays: The global weights.
            number: The round, from 1.
            proximal_mu: FedProx's, 0 for none.

        Returns:
            ``arrays`` (weights), ``metrics`` (numbers that Flower averages), ``client`` (who), and
            as far as the task lets it: ``profile`` (scalars), ``shared`` (files) and ``failed``.
        """
        task = self.setup.task
        learner = self.setup.new_learner()
        received = unpack(arrays, learner.get_parameters())
        with threads(task.resources.cpu), seeded(task.random_seed, number, self.number):
            learner.set_parameters(received)
            trained = learner.train(self.training, Drift(proximal_mu))
            valid = learner.evaluate(self.validation)
            state = learner.get_parameters()
            save_tensors(self._local_model(number), state)
            reply = RecordDict(
                {
                    "arrays": pack(state),
                    "metrics": MetricRecord(
                        {
                            "num-examples": len(self.training.labels),
                            **_named("train", trained),
                            **_named("validation", valid),
                        }
                    ),
                    "client": ConfigRecord({"client": self.number}),
                }
            )
            if task.xai.enabled and task.xai.run_location in ("client", "both"):
                try:
                    self._explain(learner, number, received, state, reply)
                except Exception as error:  # noqa: BLE001 - a failing explanation ends no training
                    reply.config_records["client"]["failed"] = reason(error)
        return reply

    def evaluate(self, arrays: ArrayRecord) -> RecordDict:
        """Judge the given weights on the client's validation images.

        Args:
            arrays: The global weights.

        Returns:
            ``metrics``: accuracy, loss and the number of images.
        """
        learner = self.setup.new_learner()
        learner.set_parameters(unpack(arrays, learner.get_parameters()))
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
        received: State,
        trained: State,
        reply: RecordDict,
    ) -> None:
        """Explain the probe set with both weights, write it at home, add what may leave."""
        spec = self.setup.task.xai
        probe = self._probe()
        learner.set_parameters(received)
        before = look(learner, probe)
        learner.set_parameters(trained)
        after = look(learner, probe, before.explanation)
        files = write_look(
            self.home / spec.save_dir / f"round_{number}" / f"client_{self.number}",
            {"trained": after, "received": before},
            self.setup.dataset.classes,
            client=self.number,
            round=number,
            weights_sha256={"trained": fingerprint(trained), "received": fingerprint(received)},
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
