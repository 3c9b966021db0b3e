"""What a strategy remembers from round to round, taken down as tensors and given back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

__all__ = ["restore_memory", "strategy_memory"]


def strategy_memory(strategy: Strategy) -> dict[str, Tensor]:
    """What a strategy remembers (momentum and such), as named tensors.

    A name is the attribute's kind, its name, the place and the key: ``dict/m_t/000003/fc.weight``.
    Places matter: FedAvgM pairs arrays by their order. Single numbers are taken down where the
    strategy's ``remembered`` names them.
    """
    memory: dict[str, Tensor] = {
        f"number/{name}/000000/": torch.tensor(getattr(strategy, name), dtype=torch.float64)
        for name in getattr(strategy, "remembered", ())
    }
    for name, value in vars(strategy).items():
        kind, arrays = _arrays(value)
        if all(isinstance(each, np.ndarray | np.generic) for each in arrays.values()):
            for place, (key, array) in enumerate(arrays.items()):
                memory[f"{kind}/{name}/{place:06}/{key}"] = torch.from_numpy(np.array(array))
    return memory


def _arrays(value: Any) -> tuple[str, dict[str, Any]]:
    match value:
        case ArrayRecord():
            return "record", {key: array.numpy() for key, array in value.items()}
        case dict():
            return "dict", value
        case list():
            return "list", {str(place): each for place, each in enumerate(value)}
        case _:
            return "none", {}


def restore_memory(strategy: Strategy, memory: Mapping[str, Tensor]) -> None:
    """Give a strategy back what :func:`strategy_memory` took down."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(memory):
        kind, name, _, key = path.split("/", 3)
        found.setdefault((kind, name), {})[key] = memory[path].numpy()
    for (kind, name), arrays in found.items():
        restored: Any = arrays
        if kind == "list":
            restored = list(arrays.values())
        elif kind == "number":
            restored = float(arrays[""])
        elif kind == "record":
            restored = ArrayRecord({key: Array(array) for key, array in arrays.items()})
        setattr(strategy, name, restored)
