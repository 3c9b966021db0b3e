"""The learner for PyTorch, with a task's own training and test loops where it has them."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler
from torch.utils.data import Dataset as TorchDataset

from fedgaze.config import Task
from fedgaze.data import Images
from fedgaze.errors import FedgazeError
from fedgaze.models import last_own_line, task_module
from fedgaze.train.drift import Drift, held_back
from fedgaze.train.learner import State
from fedgaze.train.loop import Penalty, Score, evaluate, train
from fedgaze.train.norms import Counts, counts_of, normalisation
from fedgaze.train.steps import watched_steps
from fedgaze.xai import Explanation, explain, find_method

__all__ = ["Hooks", "TorchLearner", "find_hooks"]


@dataclass(frozen=True)
class Hooks:
    """A task's own loops, for what it leaves out ours is taken.

    Attributes:
        train: ``train_torch(model, loader, epochs, cfg)``; trains in place, or returns the model.
        test: ``test_torch(model, loader, cfg)``; returns the loss, the accuracy in [0, 1], and
            further metrics by name or None.
        directory: Where they were found.
    """

    train: Callable[..., Any] | None = None
    test: Callable[..., Any] | None = None
    directory: Path | None = None


def find_hooks(task: Task) -> Hooks:
    """Find ``train_torch`` and ``test_torch`` in the file that defines a task's model.

    Where one takes no argument at all, it is called, and what it returns is the function.

    Raises:
        FedgazeError: One of them is no function.
    """
    directory, target = task.directory, task.model.target or ""
    file = target.rpartition(".")[0] or "models"
    if directory is None or not (directory / f"{file.replace('.', '/')}.py").is_file():
        return Hooks()
    names = vars(task_module(directory, file))
    found = {}
    for kind in ("train", "test"):
        hook = names.get(f"{kind}_torch")
        if hook is not None and not callable(hook):
            raise FedgazeError(f"{file}.{kind}_torch is {hook!r}: a function is allowed")
        if hook is not None and not inspect.signature(hook).parameters:
            hook = hook()
        found[kind] = hook
    return Hooks(found["train"], found["test"], directory)


class TorchLearner:
    """A PyTorch model; see :class:`fedgaze.train.LearnerProtocol`.

    Args:
        task: How it trains and explains itself.
        model: Where it is, the images go.
        hooks: The task's own loops.
    """

    def __init__(self, task: Task, model: nn.Module, hooks: Hooks) -> None:
        self.task = task
        self.model = model
        self.hooks = hooks
        stays = task.server.strategy.short == "fedbn"
        self._kept = normalisation(model) if stays else frozenset()

    def get_parameters(self) -> State:
        """All parameters and buffers, BatchNorm's statistics among them; FedBN leaves those out."""
        return self._state(kept=False)

    def get_kept(self) -> State:
        """With FedBN the weights and statistics of all normalisation layers."""
        return self._state(kept=True)

    def _state(self, *, kept: bool) -> State:
        state = self.model.state_dict()
        return {
            name: value.detach().cpu().clone()
            for name, value in state.items()
            if (name in self._kept) == kept
        }

    def statistics(self) -> frozenset[str]:
        """The buffers."""
        weights = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return frozenset(self.model.state_dict()) - weights - self._kept

    def set_parameters(self, state: State) -> None:
        """Take over what :meth:`get_parameters` gave."""
        self.model.load_state_dict({**self.get_kept(), **state})

    def set_kept(self, state: State) -> None:
        """Take over what :meth:`get_kept` gave; of nothing, all stays as it is."""
        if state:
            self.model.load_state_dict({**self.get_parameters(), **state})

    def train(self, images: Images, drift: Drift, penalty: Penalty | None = None) -> Score:
        """Train with the task's ``train_torch``, or with its optimiser and cross-entropy.

        Raises:
            FedgazeError: Controls were given, and the steps are not plain SGD's; or a penalty, and
                the loss is the task's own.
        """
        if not drift.controls:
            return self._train(images, drift, penalty)
        with watched_steps(self.model) as steps:
            score = self._train(images, drift, penalty)
        if steps.others or not steps.rates:
            seen = steps.others[0] if steps.others else "no optimiser of torch"
            raise FedgazeError(f"SCAFFOLD needs steps of plain SGD; this training took {seen}")
        return replace(score, rates=steps.rates)

    def _train(self, images: Images, drift: Drift, penalty: Penalty | None) -> Score:
        task = self.task
        if self.hooks.train is None:
            return train(
                self.model,
                images,
                epochs=task.num_epochs,
                batch_size=task.batch_size,
                learning_rate=task.learning_rate,
                optimizer=task.optimizer,
                drift=drift,
                penalty=penalty,
            )
        if penalty is not None:
            raise FedgazeError("a penalty needs fedgaze's own training, and the task has its own")
        loader = _loader(images, task.batch_size, shuffled=True)
        self.model.train()
        with held_back(self.model, drift):
            result = self._call(self.hooks.train, loader, task.num_epochs)
        if isinstance(result, nn.Module) and result is not self.model:
            self.model.load_state_dict(result.state_dict())
        return self.evaluate(images)

    def evaluate(self, images: Images) -> Score:
        """Judge with the task's ``test_torch``, or by accuracy and cross-entropy."""
        if self.hooks.test is None:
            return evaluate(self.model, images)
        self.model.eval()
        result = self._call(self.hooks.test, _loader(images, self.task.batch_size, shuffled=False))
        return _score(result)

    def explain(self, images: Tensor, labels: Tensor) -> Explanation:
        """Explain as ``xai`` says; only what speaks for a class, as measures of mass need it."""
        spec = self.task.xai
        layers = spec.layer if find_method(spec.method).layers else None
        return explain(self.model, images, spec.method, labels, layers, relu=True, **spec.options)

    def predict(self, images: Tensor) -> Any:
        """The model's output, in eval mode."""
        self.model.eval()
        return self.model(images)

    def count(self, images: Tensor) -> Counts | None:
        """What the first BatchNorm with running statistics sees; with FedBN nobody gets it."""
        found = counts_of(self.model, lambda: self.predict(images))
        return None if found is None or not self.statistics().issuperset(found.names) else found

    def _call(self, hook: Callable[..., Any], *arguments: Any) -> Any:
        from omegaconf import OmegaConf

        config = OmegaConf.create(self.task.public())
        try:
            return hook(self.model, *arguments, config)
        except Exception as error:
            where = self.hooks.directory and last_own_line(error, self.hooks.directory)
            name = getattr(hook, "__name__", "the task's own loop")
            raise FedgazeError(f"{where or name}: {type(error).__name__}: {error}") from error


def _score(result: Any) -> Score:
    """Read what ``test_torch`` returned."""
    said = "test_torch must return (loss, accuracy) or (loss, accuracy, metrics or None)"
    if not isinstance(result, (tuple, list)) or len(result) not in (2, 3):
        raise FedgazeError(f"{said}, not {result!r}")
    loss, accuracy, *rest = result
    metrics = (rest[0] if rest else None) or {}
    if not isinstance(metrics, Mapping):
        raise FedgazeError(f"{said}, not {result!r}")
    for name in metrics:
        if not re.fullmatch(r"[A-Za-z]\w{0,63}", str(name)) or name in ("loss", "accuracy"):
            raise FedgazeError(
                f"test_torch's metrics hold {name!r}: a name of letters, digits and '_' is allowed,"
                " and neither loss nor accuracy"
            )
    try:
        score = Score(float(accuracy), float(loss), {key: float(metrics[key]) for key in metrics})
    except (TypeError, ValueError):
        raise FedgazeError(f"{said}, all of them numbers, not {result!r}") from None
    if not (math.isnan(score.accuracy) or 0 <= score.accuracy <= 1):
        raise FedgazeError(f"test_torch's accuracy is {score.accuracy:g}: 0 to 1 is allowed")
    return score


class _Batches(TorchDataset[tuple[Tensor, Tensor]]):
    """Images by whole batches, as they are stored; its length is their number."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images.labels)

    def __getitem__(self, indices: Any) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        return self._images[chosen], self._images.labels[chosen]


def _loader(images: Images, size: int, *, shuffled: bool) -> DataLoader[tuple[Tensor, Tensor]]:
    whole = _Batches(images)
    order: Sampler[int] = RandomSampler(whole) if shuffled else SequentialSampler(whole)
    return DataLoader(whole, batch_size=None, sampler=BatchSampler(order, size, drop_last=False))
