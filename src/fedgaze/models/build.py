"""Build a model from a configuration's words, with arguments checked before it is built."""

import difflib
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fedgaze.errors import FedgazeError, nearest
from fedgaze.models.resolve import Builder, library, resolve_name, resolve_target
from fedgaze.models.taskcode import last_own_line

__all__ = ["MissingWeightsError", "build_model", "plan_model"]

# timm would open files, or other people's repositories, for these.
_TIMM_REFUSED = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
# torchvision warns that these will be initialised otherwise one day; what it does today is theirs.
_WARN_OF_WEIGHTS = ("googlenet", "inception_v3")
_HUB_ARGUMENTS = ("revision", "subfolder", "local_files_only", "ignore_mismatched_sizes")
_UNEXPECTED = re.compile(
    r"(?:(\w+)\.__init__|(\w+))\(\) got an unexpected keyword argument '(\w+)'"
)


class MissingWeightsError(FedgazeError):
    """Published weights lie neither here nor where they could be fetched from."""


def build_model(
    target: str | None = None,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    task_dir: Path | None = None,
    num_classes: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build the model that a task or a command names.

    Args:
        target: ``model._target_``: ``models.Net`` of the task's directory, or a model of
            torchvision, timm, transformers or fedgaze (see `resolve_target`).
        name: ``model.name`` instead: ``resnet50``, ``timm:vit_tiny_patch16_224``, ``hf:PATH``, or a
            target of a library.
        arguments: What the constructor or builder is called with. ``weights`` (torchvision),
            ``pretrained`` (timm) and ``pretrained_model_name_or_path`` (transformers) fetch
            published weights.
        task_dir: The task's own directory.
        num_classes: How many classes the data has. Handed on where the model can be told and the
            arguments do not say; at least 1.
        pretrained: Load the published weights, which may be downloaded.

    Returns:
        The model, in train mode where its weights are new.

    Raises:
        FedgazeError: Nothing of that name may be built, an argument is wrong, the arguments give
            fewer outputs than there are classes, or weights cannot be had.
    """
    builder, given = plan_model(target, name, arguments, task_dir=task_dir, num_classes=num_classes)
    if builder.source == "transformers":
        model = _build_transformers(builder, given)
    else:
        _check(builder, given)
        _give_weights(builder, given, pretrained=pretrained)
        model = _call(builder, given, task_dir)
    if not isinstance(model, nn.Module):
        raise FedgazeError(
            f"{builder.name} built no torch.nn.Module, but this: {type(model).__name__}"
        )
    return model


def plan_model(
    target: str | None = None,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    task_dir: Path | None = None,
    num_classes: int | None = None,
) -> tuple[Builder, dict[str, Any]]:
    """Find what would build a model, and with which arguments; see `build_model`.

    Raises:
        FedgazeError: Nothing of that name may be built, or the arguments give too few outputs.
    """
    if (target is None) == (name is None):
        raise FedgazeError("a model needs exactly one of model._target_ and model.name")
    given = dict(arguments or {})
    if name is not None and name.startswith("hf:"):
        given["pretrained_model_name_or_path"] = name.removeprefix("hf:")
        auto = library("transformers").AutoModelForImageClassification
        builder = Builder(auto, "transformers", name, "num_labels")
    else:
        builder = resolve_target(target, task_dir) if target else resolve_name(str(name))
    _give_classes(builder, given, num_classes)
    return builder, given


def _give_classes(builder: Builder, given: dict[str, Any], num_classes: int | None) -> None:
    if num_classes is None or builder.classes_argument is None:
        return
    said = given.setdefault(builder.classes_argument, num_classes)
    if not isinstance(said, int) or said < num_classes:
        raise FedgazeError(
            f"model.{builder.classes_argument}={said!r} is too few: "
            f"the data has {num_classes} classes"
        )


def _check(builder: Builder, given: dict[str, Any]) -> None:
    """Refuse an argument that the signature does not have, before anything is built."""
    if builder.source == "timm":
        for key in _TIMM_REFUSED:
            if key in given:
                raise FedgazeError(
                    f"model.{key} is not allowed: weights of your own are loaded as a checkpoint"
                )
    parameters = inspect.signature(builder.make).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    allowed = [each.name for each in parameters]
    for key in given:
        if key not in allowed:
            raise _unknown(builder.name, key, allowed)
    for each in parameters:
        needed = each.default is each.empty and each.kind is not each.VAR_POSITIONAL
        if needed and each.name not in given:
            raise FedgazeError(f"{builder.name} needs the argument '{each.name}'")


def _give_weights(builder: Builder, given: dict[str, Any], *, pretrained: bool) -> None:
    if builder.source == "torchvision":
        from torchvision.models import get_model_weights

        if "weights" in inspect.signature(builder.make).parameters:
            allowed = get_model_weights(builder.name)
            word = given.get("weights")
            if pretrained and word is None:
                given["weights"] = allowed.DEFAULT
            elif isinstance(word, str) and word.split(".")[-1] not in allowed.__members__:
                names = list(allowed.__members__)
                raise FedgazeError(
                    f"{builder.name} has no weights '{word}'{nearest(word, names)}; "
                    f"it has {', '.join(names)}"
                )
        if given.get("weights") is None and builder.name in _WARN_OF_WEIGHTS:
            given.setdefault("init_weights", True)
    elif builder.source == "timm" and pretrained:
        given.setdefault("pretrained", True)


def _call(builder: Builder, given: dict[str, Any], task_dir: Path | None) -> Any:
    try:
        return builder.make(**given)
    # URLError, HTTPError and the hub's errors are all OSErrors.
    except OSError as error:
        if given.get("weights") is None and not given.get("pretrained"):
            raise _failed(builder, error, task_dir) from error
        why = getattr(error, "reason", None) or _first_line(error)
        raise MissingWeightsError(
            f"the published weights of {builder.name} could not be fetched ({why}); "
            "give a file of weights with --checkpoint"
        ) from error
    except TypeError as error:
        unexpected = _UNEXPECTED.search(str(error))
        if unexpected and unexpected[3] in given:
            raise _unknown(builder.name, unexpected[3], _allowed(builder, unexpected)) from error
        raise _failed(builder, error, task_dir) from error
    except FedgazeError:
        raise
    # A user's constructor may raise anything at all.
    except Exception as error:
        raise _failed(builder, error, task_dir) from error


def _build_transformers(builder: Builder, given: dict[str, Any]) -> Any:
    """Build from a configuration, or from a directory or repository of weights.

    Only the fields of the model's configuration can be set. ``from_pretrained`` takes much more,
    and among it the leave to run the repository's own code (``trust_remote_code``, attention
    kernels from the hub) and to unpickle (``weights_only``).
    """
    transformers = library("transformers")
    place = given.pop("pretrained_model_name_or_path", None)
    if place is None:
        config_class = builder.make.config_class  # type: ignore[attr-defined]
        fields = _fields(config_class)
        _refuse_others(builder, given, fields)
        try:
            return builder.make(config_class(**given))
        except Exception as error:
            raise _failed(builder, error, None) from error
    local = Path(str(place)).expanduser()
    if local.exists():
        place = str(local)
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(place)):
        raise FedgazeError(f"{place} is not a directory")
    try:
        config = transformers.AutoConfig.from_pretrained(
            place,
            trust_remote_code=False,
            **{key: given[key] for key in _HUB_ARGUMENTS[:3] if key in given},
        )
        _refuse_others(builder, given, [*_fields(type(config)), *_HUB_ARGUMENTS])
        # A new head for the classes of the data is what fine-tuning wants; the body must fit.
        if given.get("num_labels") not in (None, config.num_labels):
            given.setdefault("ignore_mismatched_sizes", True)
        # The automatic class takes no configuration of another kind; a named class must match.
        return builder.make.from_pretrained(  # type: ignore[attr-defined]
            place, trust_remote_code=False, weights_only=True, **given
        )
    except FedgazeError:
        raise
    # What lies there may be anything: no network, another model's weights, a pickle.
    except Exception as error:
        raise FedgazeError(
            f"{builder.name} could not be loaded from '{place}': {_first_line(error)}"
        ) from error


def _fields(config_class: Any) -> list[str]:
    named = inspect.signature(config_class).parameters
    return [key for key in named if key != "kwargs" and not key.startswith("_")] + ["num_labels"]


def _refuse_others(builder: Builder, given: dict[str, Any], allowed: list[str]) -> None:
    for key in given:
        if key not in allowed:
            raise _unknown(builder.name, key, allowed)


def _allowed(builder: Builder, unexpected: re.Match[str]) -> list[str]:
    """List what the class or function takes that refused an argument handed on to it."""
    make = inspect.unwrap(builder.make)
    if builder.source == "timm":
        make = library("timm").model_entrypoint(builder.name)
    module = sys.modules.get(make.__module__)
    inner = getattr(module, unexpected[1] or unexpected[2], None)
    return [*inspect.signature(inner).parameters] if callable(inner) else []


def _unknown(name: str, key: str, allowed: list[str]) -> FedgazeError:
    ordered = difflib.get_close_matches(key, allowed, n=12, cutoff=0.0) if allowed else []
    listed = ", ".join(ordered) + (", …" if len(allowed) > len(ordered) else "")
    return FedgazeError(
        f"{name} takes no argument '{key}'{nearest(key, allowed)}"
        + (f"; it takes {listed}" if listed else "")
    )


def _failed(builder: Builder, error: Exception, task_dir: Path | None) -> FedgazeError:
    where = last_own_line(error, task_dir) if task_dir else None
    return FedgazeError(
        f"{builder.name} could not be built: {type(error).__name__}: {_first_line(error)}"
        + (f" ({where})" if where else "")
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
