"""Find the one thing that builds a model, and nothing else.

A configuration is data that may come from a stranger, yet it names Python objects. So no attribute
is ever followed from one object to the next: every part of ``_target_`` but the last must itself be
a module that lies inside the named library's model package (or a file of the task), and the object
found there must be a model class or one of the library's registered builders.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from torch import nn

from fedgaze.errors import FedgazeError, nearest
from fedgaze.models.taskcode import belongs_to_task, task_object

__all__ = ["OWN_MODELS", "ROOTS", "Builder", "library", "resolve_name", "resolve_target"]

ROOTS = ("torchvision", "timm", "transformers", "fedgaze")
OWN_MODELS = {"DigitsNet": "fedgaze.models.digits", "CifarResNet": "fedgaze.models.cifar"}
"""The models of this package that a configuration may name, and where they are defined."""

Source = Literal["task", "torchvision", "timm", "transformers", "fedgaze"]


@dataclass(frozen=True)
class Builder:
    """What makes a model.

    Attributes:
        make: Called with the arguments of the configuration, returns the model.
        source: Where it comes from.
        name: The library's own name of the architecture, or the dotted name that was given.
        classes_argument: The argument that takes the number of classes, where there is one.
    """

    make: Callable[..., Any]
    source: Source
    name: str
    classes_argument: str | None


def resolve_target(target: str, task_dir: Path | None = None) -> Builder:
    """Find what ``model._target_`` names.

    Allowed are ``torchvision.models…``, ``timm…``, ``transformers…`` and ``fedgaze.models…`` and,
    under any other first name, a file of ``task_dir``. There it may name a subclass of
    ``nn.Module``, a library's registered builder, or a function that the task's file defines.

    Args:
        target: A dotted name such as ``models.Net`` or ``torchvision.models.resnet18``.
        task_dir: The task's own directory, where it has one.

    Raises:
        FedgazeError: The target is not one of these.
    """
    parts = target.split(".")
    for part in parts:
        if not part.isidentifier() or part.startswith("_"):
            raise FedgazeError(
                f"model._target_ '{target}' cannot be used: '{part}' is not a public Python name"
            )
    root = parts[0]
    if len(parts) == 1:
        raise FedgazeError(
            f"model._target_ '{target}' must be a dotted name, as 'models.Net' or "
            "'torchvision.models.resnet18'"
        )
    if root == "torchvision":
        return _torchvision_target(target, parts)
    if root == "timm":
        return _timm_target(target, parts)
    if root == "transformers":
        return _transformers_target(target, parts)
    if root == "fedgaze":
        return _own_target(target, parts)
    return _task_target(target, task_dir)


def resolve_name(name: str) -> Builder:
    """Find what ``model.name`` or ``--model`` names.

    A plain name is looked up in torchvision, then in timm; ``timm:NAME`` in timm only. A dotted
    name of one of the four libraries is a target.

    Raises:
        FedgazeError: Neither library knows the name; the sentence gives the nearest ones.
    """
    if name.partition(".")[0] in ROOTS:
        return resolve_target(name)
    if name.startswith("timm:"):
        return _timm_builder(name.removeprefix("timm:"))
    from torchvision import models

    # Only classifiers: a detector's or a segmenter's output has no one class to explain.
    known = models.list_models(module=models)
    if name in known:
        return Builder(models.get_model_builder(name), "torchvision", name, "num_classes")
    if importlib.util.find_spec("timm") is not None:
        if library("timm").is_model(name):
            return _timm_builder(name)
        known = [*known, *library("timm").list_models()]
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    raise FedgazeError(
        f"no model is called '{name}'"
        + (f"; the nearest are {', '.join(close)}" if close else "")
        + "; a name is torchvision's ('resnet50'), timm's ('timm:vit_tiny_patch16_224'), "
        "a transformers directory ('hf:PATH') or a target ('fedgaze.models.DigitsNet')"
    )


def library(name: str) -> ModuleType:
    """Import timm or transformers, which are extras.

    Raises:
        FedgazeError: It is not installed; the sentence says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise FedgazeError(
            f"this model needs {name}, which is not installed: pip install 'fedgaze[hub]'"
        ) from error


def _torchvision_target(target: str, parts: list[str]) -> Builder:
    from torchvision import models

    if parts[1] != "models" or len(parts) < 3:
        raise _refusal(target, "of torchvision, only torchvision.models can be named")
    builders = {models.get_model_builder(name): name for name in models.list_models()}
    found = _in_module(target, parts)
    if inspect.isfunction(found) and found in builders:
        return Builder(found, "torchvision", builders[found], "num_classes")
    if _is_model_class(found, "torchvision.models"):
        return _of_class(found, "torchvision", target)
    raise _refusal(target, "it is no registered model of torchvision", parts[-1], builders.values())


def _timm_target(target: str, parts: list[str]) -> Builder:
    timm = library("timm")
    if parts[1:-1] in ([], ["models"]) and timm.is_model(parts[-1]):
        return _timm_builder(parts[-1])
    found: Any = _in_module(target, parts) if parts[1] == "models" and len(parts) > 2 else None
    if inspect.isfunction(found) and timm.is_model(parts[-1]):
        if timm.model_entrypoint(parts[-1]) is found:
            return _timm_builder(parts[-1])
    elif _is_model_class(found, "timm.models"):
        return _of_class(found, "timm", target)
    raise _refusal(target, "it is no registered model of timm", parts[-1], timm.list_models())


def _timm_builder(name: str) -> Builder:
    timm = library("timm")
    # `hf-hub:` and `local-dir:` would take the architecture from somebody's file.
    if ":" in name or "/" in name or not timm.is_model(name):
        raise FedgazeError(f"timm has no model '{name}'{nearest(name, timm.list_models())}")

    def make(**arguments: Any) -> Any:
        return timm.create_model(name, **arguments)

    return Builder(make, "timm", name, "num_classes")


def _transformers_target(target: str, parts: list[str]) -> Builder:
    transformers = library("transformers")
    if len(parts) == 2:
        found: Any = getattr(transformers, parts[1], None)
    else:
        found = _in_module(target, parts) if parts[1] == "models" else None
    if _is_model_class(found, "transformers") and issubclass(found, transformers.PreTrainedModel):
        return Builder(found, "transformers", target, "num_labels")
    allowed = [name for name in dir(transformers) if name.endswith("ForImageClassification")]
    raise _refusal(target, "it is no model class of transformers", parts[-1], allowed)


def _own_target(target: str, parts: list[str]) -> Builder:
    if parts[:2] != ["fedgaze", "models"] or len(parts) != 3 or parts[2] not in OWN_MODELS:
        allowed = ", ".join(f"fedgaze.models.{name}" for name in OWN_MODELS)
        raise _refusal(target, f"of fedgaze there is {allowed}")
    found = getattr(importlib.import_module(OWN_MODELS[parts[2]]), parts[2])
    return _of_class(found, "fedgaze", target)


def _task_target(target: str, task_dir: Path | None) -> Builder:
    if task_dir is None:
        raise _refusal(
            target, f"it must begin with {', '.join(ROOTS)} where there is no task directory"
        )
    top = target.partition(".")[0]
    if not ((task_dir / f"{top}.py").is_file() or (task_dir / top).is_dir()):
        raise _refusal(
            target,
            f"{task_dir} has no {top}.py, and of libraries only {', '.join(ROOTS)} have models",
            top,
            [file.stem for file in task_dir.glob("*.py")],
        )
    found = task_object(task_dir, target)
    if inspect.isclass(found) and issubclass(found, nn.Module):
        return _of_class(found, "task", target)
    if inspect.isfunction(found) and belongs_to_task(found):
        return _of_class(found, "task", target)
    raise _refusal(
        target,
        "in the task's own files, only a subclass of torch.nn.Module or a function that the file "
        "itself defines builds a model",
    )


def _in_module(target: str, parts: list[str]) -> Any:
    """Look the last part up in the module that the others name, following no attribute."""
    path = ".".join(parts[:-1])
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise _refusal(target, f"'{path}' is not a module") from error
    # A library may plant aliases in sys.modules; what answers must be what was asked for.
    if sys.modules.get(path) is not module or module.__name__ != path:
        raise _refusal(target, f"'{path}' is not a module")
    return vars(module).get(parts[-1])


def _is_model_class(value: Any, package: str) -> bool:
    return (
        inspect.isclass(value)
        and issubclass(value, nn.Module)
        and f"{value.__module__}.".startswith(f"{package}.")
    )


def _of_class(make: Callable[..., Any], source: Source, name: str) -> Builder:
    takes = "num_classes" in inspect.signature(make).parameters
    return Builder(make, source, name, "num_classes" if takes else None)


def _refusal(target: str, why: str, part: str = "", allowed: Iterable[str] = ()) -> FedgazeError:
    return FedgazeError(
        f"model._target_ '{target}' does not name a model: {why}{nearest(part, allowed)}"
    )
