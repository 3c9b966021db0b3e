"""A run's model built again: from its task, and from nothing but exported files."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.config import Task
from fedgaze.errors import FedgazeError
from fedgaze.federate.setup import reason, seeded
from fedgaze.models import (
    build_model,
    build_script,
    load_weights,
    own_files,
    plan_model,
    task_object,
    without_weights,
)
from fedgaze.train import State
from fedgaze.xai import logits_of

__all__ = ["LOGITS", "Rebuilt", "configuration", "rebuild", "tried", "without_paths"]

LOGITS = "model(images)"
SCRIPT = "architecture"
"""The module that builds the model; a sign is added where a file of the task is called so."""


@dataclass
class Rebuilt:
    """The model, and what it takes to build it elsewhere.

    Attributes:
        model: On the CPU, in evaluation mode, with the weights; None where it cannot be built.
        trouble: Why not.
        script: The text of a file that builds it; None where it cannot be written.
        module: What that file is called, without ``.py``.
        library: As the Hugging Face Hub calls it.
        own: The task's own files that it needs, by path.
    """

    model: nn.Module | None = None
    trouble: str | None = None
    script: str | None = None
    module: str = SCRIPT
    library: str = "pytorch"
    own: dict[str, bytes] = field(default_factory=dict)


def rebuild(task: Task, classes: int, state: State, origin: str) -> Rebuilt:
    """Build a run's model with its weights, and find what it takes to build it elsewhere.

    Args:
        task: The run's; published weights that it began with are not fetched again.
        classes: How many the run has.
        state: The weights.
        origin: What the weights are called in a sentence.
    """
    built = Rebuilt()
    target, name = task.model.target, None if task.model.target else task.model.name
    given: dict[str, Any] = {"task_dir": task.directory, "num_classes": classes}
    try:
        builder, arguments = plan_model(target, name, task.model.arguments, **given)
        arguments = without_weights(builder, arguments)
        if builder.source in ("timm", "transformers"):
            built.library = builder.source
        if builder.source == "task" and task.directory is not None:
            for each in own_files(task.directory, builder.name.rpartition(".")[0]):
                built.own[each.as_posix()] = (task.directory / each).read_bytes()
        while f"{built.module}.py" in built.own:
            built.module += "_"
        # Parts that are drawn at random and are no weights are as they were in the run.
        with seeded(task.random_seed):
            model = build_model(target, name, arguments, **given)
        built.script = build_script(builder, arguments, model)
        load_weights(model, state, origin)
        built.model = model.cpu().eval()
    except FedgazeError as error:
        built.trouble = without_paths(str(error), task)
        if task.directory is not None and not task.directory.is_dir():
            built.trouble = (
                f"the model’s own code, {task.model.target}, was not at hand: the task’s directory "
                "has moved or was removed (fedgaze export --task-dir says where it is)"
            )
    return built


def without_paths(text: str, task: Task) -> str:
    """A text without where a task's own files lie on this machine."""
    if task.directory is not None:
        for directory in (task.directory, task.directory.resolve()):
            text = text.replace(f"{directory}/", "").replace(str(directory), "the task")
    return text


def configuration(model: Any, classes: Sequence[str]) -> dict[str, Any]:
    """A transformers model's ``config.json``, with the names of the classes."""
    held: dict[str, Any] = json.loads(model.config.to_json_string())
    held.pop("_name_or_path", None)  # somebody's folder
    held["architectures"] = [type(model).__name__]
    if model.config.num_labels == len(classes):
        held["id2label"] = {str(index): name for index, name in enumerate(classes)}
        held["label2id"] = {name: index for index, name in enumerate(classes)}
    return held


def tried(folder: Path, module: str, state: State, shape: tuple[int, int, int] | None) -> str:
    """Build the model from nothing but exported files, load the weights, and run it.

    Args:
        folder: The export.
        module: Its file with ``build()``.
        state: The weights.
        shape: Of an image; None where nobody knows, and then it is not run.

    Returns:
        Python that takes the logits from the model's output for ``images``.

    Raises:
        FedgazeError: It cannot be done; the sentence says why.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        # Not in the export itself, where Python would leave its own files.
        shutil.copytree(folder, elsewhere, dirs_exist_ok=True, ignore=_no_code)
        try:
            model = task_object(Path(elsewhere), f"{module}.build")()
            load_weights(model, state, "the file of weights")
            if shape is None:
                return LOGITS
            with torch.no_grad():
                return _logits(model.eval()(torch.zeros(1, *shape)))
        # The task's own code may ask for anything that is not here, such as a file beside it.
        except Exception as error:
            why = reason(error)
            for place in (Path(elsewhere).resolve(), elsewhere):
                why = why.replace(f"{place}/", "")
            raise FedgazeError(
                f"the model cannot be built from the files here alone: {why}"
            ) from error


def _no_code(_: str, names: list[str]) -> list[str]:
    """Files that building a model does not need."""
    return [each for each in names if Path(each).suffix not in ("", ".py", ".json")]


def _logits(outputs: Any) -> str:
    found = logits_of(outputs)
    if isinstance(outputs, Tensor):
        return LOGITS
    if isinstance(outputs, Mapping):
        key = next(key for key, value in outputs.items() if value is found)
        return f"{LOGITS}[{json.dumps(key)}]"
    return f"{LOGITS}[0]" if isinstance(outputs, (tuple, list)) else f"{LOGITS}.logits"
