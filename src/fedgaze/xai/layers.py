"""Layers: from what a person calls them to modules."""

import operator
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import SupportsIndex

from torch import nn

from fedgaze.errors import FedgazeError, nearest

__all__ = [
    "Layer",
    "Layers",
    "layer_names",
    "list_layers",
    "named_layers",
    "plain_names",
    "resolve_layers",
    "unwrap",
]

Layer = str | int | nn.Module
Layers = Layer | Sequence[Layer] | None


def unwrap(model: nn.Module) -> nn.Module:
    """Take off what only spreads or compiles a model, so that layers keep their own names."""
    spread = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = getattr(model, "module" if spread else "_orig_mod", None)
    return unwrap(inner) if isinstance(inner, nn.Module) else model


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name all modules below the model; parts compiled on their own go by their plain names."""
    return plain_names(dict(model.named_modules(remove_duplicate=False)))


def plain_names(named: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """What `named_layers` makes of a model's ``named_modules``."""
    plain = {name.replace("._orig_mod", ""): module for name, module in named.items()}
    del plain[""]
    return plain


def list_layers(model: nn.Module) -> tuple[str, ...]:
    """Name the layers of a model, in the order in which it defines them.

    >>> list_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU())))
    ('0', '1', '1.0')
    """
    return tuple(named_layers(unwrap(model)))


def resolve_layers(model: nn.Module, layers: Layers = None) -> dict[str, nn.Module]:
    """Find layers without running the model.

    Args:
        model: The model.
        layers: One layer or several, each a name (``"layer4"``, ``"features.3"``), the index of a
            Conv2d in the order of definition (an integer, or a string such as ``"-1"``),
            ``"first"``, ``"middle"`` or ``"last"`` of the Conv2d, or a module of the model. What
            is the name of a layer is taken as that. ``None`` or ``"auto"`` is left out here: it is
            known only when the model runs; see `auto_layer`.

    Returns:
        Modules by name, each once, in the order given.

    Raises:
        FedgazeError: A layer does not exist.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> list(resolve_layers(model, ["last", "1"]))
    ['0', '1']
    """
    named = named_layers(unwrap(model))
    return {name: named[name] for name in layer_names(named, layers) if name is not None}


def layer_names(named: Mapping[str, nn.Module], layers: Layers) -> list[str | None]:
    """Names of layers, as `resolve_layers` finds them; None for the automatic choice."""
    wanted: list[Layer | None] = []
    if isinstance(layers, Sequence) and not isinstance(layers, str):
        wanted.extend(layers)
    else:
        wanted.append(layers)
    if not wanted:
        raise FedgazeError("no layer was given; leave layers out for the automatic choice")
    return [
        None if layer is None or (layer == "auto" and "auto" not in named) else _name(layer, named)
        for layer in wanted
    ]


def _name(layer: Layer, named: Mapping[str, nn.Module]) -> str:
    if isinstance(layer, str) and layer in named:
        return layer
    names: dict[nn.Module, str] = {}
    for name, module in named.items():
        names.setdefault(module, name)
    if isinstance(layer, nn.Module):
        if (inner := unwrap(layer)) in names:
            return names[inner]
        raise FedgazeError(f"the {type(layer).__name__} given as a layer is not part of the model")
    convolutions = [name for module, name in names.items() if isinstance(module, nn.Conv2d)]
    index = _conv_index(layer, len(convolutions))
    if index is None:
        raise _unknown(layer, named, len(convolutions))
    if not -len(convolutions) <= index < len(convolutions):
        raise FedgazeError(f"there is no Conv2d {layer}: the model has {len(convolutions)}")
    return convolutions[index]


def _conv_index(layer: object, count: int) -> int | None:
    """Which Conv2d is meant; None if it is none at all."""
    if isinstance(layer, str):
        if layer.removeprefix("-").isdecimal():
            return int(layer)
        return {"first": 0, "middle": count // 2, "last": -1}.get(layer)
    if isinstance(layer, SupportsIndex) and not isinstance(layer, bool):
        return operator.index(layer)
    return None


def _unknown(layer: object, named: Mapping[str, nn.Module], convolutions: int) -> FedgazeError:
    name = layer if isinstance(layer, str) else repr(layer)
    close = get_close_matches(name, named, n=5) or [n for n in named if "." not in n][:8]
    return FedgazeError(
        f"the model has no layer {layer!r}; allowed are first, middle, last, auto, the index of "
        f"one of its {convolutions} Conv2d, or a name such as {', '.join(close)}"
        f"{nearest(name, named)}"
    )
