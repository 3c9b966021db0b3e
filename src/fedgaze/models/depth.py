"""Layers by how deep they lie: the first, the middle, the last."""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import auto_layer, map_layers, resolve_layers

__all__ = ["layers_by_depth"]

DEPTHS = ("first", "middle", "last")
FEW = 3


def layers_by_depth(model: nn.Module, wanted: Sequence[str], images: Tensor) -> dict[str, str]:
    """Find layers by name or by depth, among those that ran and have height and width.

    ``first``, ``middle`` and ``last`` are chosen from the model's Conv2d, in the order in which
    they run; of a model with less than three, such as a transformer, from the blocks that it is
    built of: the outermost modules of a class of which there are three and more, and the last is
    the automatic choice (see `fedgaze.xai.auto_layer`).

    Args:
        model: The model.
        wanted: ``first``, ``middle``, ``last``, ``auto``, or what `resolve_layers` takes.
        images: ``(N, C, H, W)``, on the model's device.

    Returns:
        The layer's name by what was asked for; ``auto`` stays as it is.

    Raises:
        FedgazeError: There is no such layer.
    """
    found: dict[str, str] = {}
    candidates: list[str] = []
    for word in wanted:
        if word == "auto":
            found[word] = word
        elif word in DEPTHS and word not in dict(model.named_children()):
            candidates = candidates or _candidates(model, images)
            places = {"first": 0, "middle": len(candidates) // 2, "last": -1}
            of_blocks = not isinstance(model.get_submodule(candidates[-1]), nn.Conv2d)
            # After its last block a transformer reads one token, and the others weigh nothing.
            last_block = word == "last" and of_blocks
            found[word] = auto_layer(model, images) if last_block else candidates[places[word]]
        else:
            (found[word],) = resolve_layers(model, word)
    return found


def _candidates(model: nn.Module, images: Tensor) -> list[str]:
    maps = map_layers(model, images)
    named = dict(model.named_modules())
    convolutions = [name for name in maps if isinstance(named.get(name), nn.Conv2d)]
    if len(convolutions) >= FEW:
        return convolutions
    parts = {
        name: type(named[name])
        for name in maps
        if name in named and any(named[name].children()) and not _container(named[name])
    }
    repeated = {name: kind for name, kind in parts.items() if [*parts.values()].count(kind) >= FEW}
    outer = {
        name: kind
        for name, kind in repeated.items()
        if not any(name.startswith(f"{other}.") for other in repeated)
    }
    if outer:
        ((most, _),) = Counter(outer.values()).most_common(1)
        return [name for name, kind in outer.items() if kind is most]
    if not convolutions:
        raise FedgazeError(
            "the model has no layer that lies over the image; name one that does, or auto"
        )
    return convolutions


def _container(module: nn.Module) -> bool:
    """Whether it is no part of its own, but only holds others."""
    return type(module) in {nn.Sequential, nn.ModuleList}
