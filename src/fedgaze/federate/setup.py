"""Everything that a task names, found and checked before anything starts or is written."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgaze.config import Task, parse_task
from fedgaze.data import (
    HUB,
    Dataset,
    Images,
    load_dataset,
    partition,
    probe_indices,
    read_folder,
)
from fedgaze.errors import FedgazeError, nearest
from fedgaze.federate.behaviour import check_behaviour, divided
from fedgaze.federate.gate import check_gate
from fedgaze.federate.privacy import check_privacy
from fedgaze.federate.selection import check_selection
from fedgaze.federate.strategies import resolve_strategy
from fedgaze.models import build_model, choose_device, task_object
from fedgaze.store import check_storage, check_tracker, no_room
from fedgaze.train import LEARNERS, LearnerProtocol, TorchLearner, find_hooks
from fedgaze.xai import find_method, resolve_layers

__all__ = ["NO_ROOM", "Setup", "prepare", "reason", "seeded", "setup_of", "threads"]

NO_ROOM = "the disk is full"


@dataclass(frozen=True)
class Setup:
    """A task with what it names: the same at the server and at each client.

    Attributes:
        task: The task.
        dataset: Its images.
        device: Where its models run.
    """

    task: Task
    dataset: Dataset
    device: torch.device

    def new_learner(self) -> LearnerProtocol:
        """A learner with the task's first weights: the same for everybody."""
        task = self.task
        with seeded(task.random_seed):
            model = build_model(
                task.model.target,
                None if task.model.target else task.model.name,
                task.model.arguments,
                task_dir=task.directory,
                num_classes=len(self.dataset.classes),
            )
        return LEARNERS[task.model_type](task, model.to(self.device), find_hooks(task))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        _, channels, height, width = self.dataset.test[torch.tensor([0])].shape
        return channels, height, width

    @cached_property
    def parts(self) -> list[Tensor]:
        """The indices of each client's training images."""
        spec = self.task.dataset
        if spec.partition == "own":
            return [torch.arange(len(self.dataset.train.labels))] * self.task.num_clients
        parts = partition(
            self.dataset.train.labels,
            self.task.num_clients,
            spec.partition,
            spec.alpha or 1.0,
            self.task.random_seed,
            spec.shards_per_client or 2,
            self.dataset.groups,
        )
        return divided(self.task, self.dataset, parts)

    @cached_property
    def server_probe(self) -> tuple[Images, Tensor]:
        """The server's probe set: images and which of them, ordered by class."""
        spec = self.task.xai
        images = self.dataset.test
        if spec.probe is not None:
            images = self._read_probe(spec.probe)
        return images, probe_indices(images.labels, spec.samples_per_class, self.task.random_seed)

    def _read_probe(self, folder: Path) -> Images:
        channels, _, width = self.image_shape
        images, names = read_folder(folder, width, channels)
        for name in names:
            if name not in self.dataset.classes:
                raise FedgazeError(
                    f"xai.probe={folder} has a class '{name}' that {self.dataset.name} has not"
                    f"{nearest(name, self.dataset.classes)}"
                )
        numbers = torch.tensor([self.dataset.classes.index(name) for name in names])
        return images.select(torch.arange(len(images.labels)), numbers[images.labels])


def wanted_trackers(task: Task) -> list[str]:
    """The trackers that the task asks for, by its newer or its older key."""
    older = ["wandb"] if task.wandb.use else []
    return list(dict.fromkeys([*task.trackers, *older]))


def prepare(task: Task) -> Setup:
    """Find what a task names and check that it works together. Nothing is written.

    Raises:
        FedgazeError: The first thing that is wrong.
    """
    if task.engine == "simulation" and find_spec("ray") is None:
        raise FedgazeError(
            "engine=simulation needs Ray: pip install 'fedgaze[simulation]', or use engine=local"
        )
    if task.model_type not in LEARNERS:
        raise FedgazeError(
            f"model_type={task.model_type} has no learner in this version of fedgaze: allowed is "
            f"{', '.join(LEARNERS)}"
        )
    check_gate(task)
    for tracker in wanted_trackers(task):
        check_tracker(tracker)
    if task.storage is not None:
        check_storage(task.storage)
    kind, arguments = resolve_strategy(task)
    check_privacy(task, kind, arguments["min_train_nodes"])
    method = find_method(task.xai.method)
    method.check_options(task.xai.options)
    setup = Setup(task, _load(task), choose_device(task.device))
    learner = setup.new_learner()
    _check_kept(task, learner)
    check_selection(task, own_test=find_hooks(task).test is not None)
    if task.xai.enabled and method.layers and isinstance(learner, TorchLearner):
        try:
            resolve_layers(learner.model, task.xai.layer)
        except FedgazeError as error:
            raise FedgazeError(f"xai.layer={task.xai.layer}: {error}") from None
    if len(setup.dataset.test.labels) < 2:
        raise FedgazeError(f"dataset.name={task.dataset.name} has no held-out images to judge by")
    _ = setup.parts, setup.server_probe
    check_behaviour(task, setup.dataset, learner)
    _try(setup, learner)
    return setup


def _check_kept(task: Task, learner: LearnerProtocol) -> None:
    """With FedBN a server has no client's whole model, so it can neither judge nor explain one."""
    if task.server.strategy.short != "fedbn":
        return
    if not learner.get_kept():
        raise FedgazeError(
            f"server.strategy=FedBN keeps normalisation layers at the clients, and the model "
            f"{task.model.label} has none: use FedAvg"
        )
    if task.contribution.by != "none":
        raise FedgazeError(
            f"contribution={task.contribution.by} is for the server to compute, and with FedBN it "
            "has no whole model: leave it out, or use another strategy"
        )
    if task.xai.enabled and task.xai.run_location != "client":
        raise FedgazeError(
            f"xai.run_location={task.xai.run_location}: with FedBN a client's normalisation layers "
            "never leave it, so only the client can explain its model; set xai.run_location=client"
        )


def _try(setup: Setup, learner: LearnerProtocol) -> None:
    """Run the model and one explanation once, so that a mismatch is told before the run."""
    task = setup.task
    few = setup.dataset.test.select(torch.arange(2), setup.dataset.test.labels[:2])
    try:
        learner.evaluate(few)
        if task.xai.enabled:
            images = few[torch.arange(2)].to(setup.device)
            learner.explain(images, few.labels.to(setup.device))
    except FedgazeError:
        raise
    except Exception as error:
        shape = "x".join(str(side) for side in few[torch.arange(1)].shape[1:])
        raise FedgazeError(
            f"the model {task.model.label} cannot run on an image of {task.dataset.name} ({shape}) "
            f"with {len(setup.dataset.classes)} classes: {str(error).splitlines()[0]}"
        ) from error


def _load(task: Task) -> Dataset:
    spec = task.dataset
    if "." in spec.name and not spec.name.startswith(HUB) and task.directory is not None:
        if spec.partition_by is not None:
            raise FedgazeError(
                f"dataset.partition_by={spec.partition_by}: {spec.name} gives the groups itself, "
                "in its fedgaze.data.Dataset"
            )
        dataset = task_object(task.directory, spec.name)(spec.root, task.random_seed)
        if not isinstance(dataset, Dataset):
            raise FedgazeError(
                f"dataset.name={spec.name} returned {type(dataset).__name__}, "
                "not a fedgaze.data.Dataset"
            )
    else:
        dataset = load_dataset(spec.name, spec.root, task.random_seed, spec.partition_by)
    dataset = dataset.keep(spec.classes) if spec.classes else dataset
    return dataset.limited(spec.limit, spec.test_limit, task.random_seed)


def setup_of(task: Task, classes: tuple[str, ...] | None = None) -> Setup:
    """The setup of a task that was checked before; made once a process.

    Args:
        task: The task.
        classes: The federation's, where a client's own images may lack some, or are in another
            order.

    Raises:
        FedgazeError: The images cannot be read, or are of a class that the federation has not.
    """
    return _cached(json.dumps(task.public()), task.directory, classes)


@lru_cache(maxsize=2)
def _cached(values: str, directory: Path | None, classes: tuple[str, ...] | None) -> Setup:
    task = parse_task(json.loads(values), directory)
    dataset = _load(task)
    if classes is not None:
        dataset = dataset.numbered_as(classes)
    return Setup(task, dataset, choose_device(task.device))


def reason(error: BaseException) -> str:
    """What went wrong, as a record says it: our own sentences need no type before them."""
    if no_room(error):
        return NO_ROOM
    return str(error) if isinstance(error, FedgazeError) else f"{type(error).__name__}: {error}"


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed torch's generators from some numbers; what they were is there again afterwards."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads: sums, and so weights, are the same wherever a client runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
