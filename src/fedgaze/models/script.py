"""A Python file that builds a run's model again where there is no task, and mostly no fedgaze."""

from collections.abc import Mapping
from keyword import iskeyword
from typing import Any

from torch import nn

from fedgaze.errors import FedgazeError
from fedgaze.models.resolve import Builder

__all__ = ["build_script", "without_weights"]

# What torchvision sets where it loads published weights, which the weights of a run need as well.
_WITH_WEIGHTS = {
    "inception_v3": {"transform_input": True, "init_weights": False},
    "googlenet": {"transform_input": True, "init_weights": False, "aux_logits": False},
}

# Arguments that bring weights of their own.
_FETCHED = (("torchvision", "weights"), ("timm", "pretrained"), ("fedgaze", "weights"))


def without_weights(builder: Builder, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the same model with new weights: nothing is fetched for weights to come.

    A transformers model keeps the place of its weights, since its configuration lies there.

    Args:
        builder: What builds it.
        arguments: What it was built with.
    """
    kept = {key: value for key, value in arguments.items() if (builder.source, key) not in _FETCHED}
    if builder.source == "torchvision" and arguments.get("weights") is not None:
        kept = {**_WITH_WEIGHTS.get(builder.name, {}), **kept}
    return kept


def build_script(
    builder: Builder, arguments: Mapping[str, Any], model: nn.Module | None = None
) -> str:
    """Write the file; its function ``build()`` takes nothing and returns the model.

    Args:
        builder: What built the model.
        arguments: What it is built with: plain values.
        model: The model. Only a transformers model is needed; its file reads the ``config.json``
            that lies beside it.

    Raises:
        FedgazeError: An argument has a name that Python does not allow.
    """
    if builder.source == "transformers":
        return _script(
            f"from transformers import {type(model).__name__}",
            f"config = {type(model).__name__}.config_class.from_pretrained(HERE)",
            f"return {type(model).__name__}(config)",
            head=("from pathlib import Path",),
            constant="HERE = Path(__file__).parent",
        )
    if "." in builder.name:
        module, _, name = builder.name.rpartition(".")
        return _script(f"from {module} import {name}", f"return {_call(name, arguments)}")
    if builder.source == "timm":
        make, library = "create_model", "timm"
    else:
        make, library = "get_model", "torchvision.models"
    call = _call(make, arguments, repr(builder.name))
    return _script(f"from {library} import {make}", f"return {call}")


def _script(
    imported: str, *body: str, head: tuple[str, ...] = (), constant: str | None = None
) -> str:
    lines = [
        '"""The architecture of the model whose weights lie beside this file; by fedgaze."""',
        "",
        *([*head, ""] if head else []),
        *sorted([imported, "from torch import nn"]),
        "",
        *([constant, "", ""] if constant else [""]),
        "def build() -> nn.Module:",
        '    """Build the model with new weights."""',
        *(f"    {line}" for line in body),
    ]
    return "\n".join(lines) + "\n"


def _call(name: str, arguments: Mapping[str, Any], *first: str) -> str:
    for key in arguments:
        if not key.isidentifier() or iskeyword(key):
            raise FedgazeError(f"model.{key} is no name that an argument can have in Python")
    given = [*first, *(f"{key}={value!r}" for key, value in arguments.items())]
    return f"{name}({', '.join(given)})"
