"""Weights on the way between server and client: a model's whole state, checked on both sides."""

import hashlib
from collections.abc import Collection, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.train import State

__all__ = ["fingerprint", "pack", "same", "settle", "unpack", "weights_of"]

# Strategies average, which whole numbers (BatchNorm's counters) do not survive; NumPy has no bf16.
_CARRIED = {torch.float16, torch.float32, torch.float64}


def pack(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Weights and buffers (BatchNorm's among them) as a record that Flower carries.

    What is no float16, float32 or float64 travels as float64, and a single number as a vector of
    one: Flower's clipping changes arrays in place, which NumPy does not do to single numbers.
    """
    return ArrayRecord({name: Array(_carried(value).numpy()) for name, value in state.items()})


def _carried(value: Tensor) -> Tensor:
    value = value.detach().cpu().reshape(value.shape or (1,))
    return value if value.dtype in _CARRIED else value.double()


def unpack(arrays: ArrayRecord, like: Mapping[str, Tensor]) -> State:
    """Read a record back, and refuse what does not fit.

    Args:
        arrays: What came.
        like: A state of the same model, which says names, shapes and dtypes.

    Raises:
        FedgazeError: A name is missing or unknown, a shape or dtype differs, a value is not finite.
    """
    if missing := [name for name in like if name not in arrays]:
        raise FedgazeError(f"the weights lack '{missing[0]}' (and {len(missing) - 1} more)")
    if unknown := [name for name in arrays if name not in like]:
        raise FedgazeError(f"the model has no '{unknown[0]}' (and {len(unknown) - 1} more)")
    state = {}
    for name, expected in like.items():
        value = torch.from_numpy(arrays[name].numpy())
        carried = _carried(expected)
        if value.shape != carried.shape or value.dtype != carried.dtype:
            raise FedgazeError(
                f"'{name}' is {value.dtype} {tuple(value.shape)}, "
                f"not {carried.dtype} {tuple(carried.shape)}"
            )
        if not value.isfinite().all():
            raise FedgazeError(f"'{name}' holds a value that is not finite")
        state[name] = _brought_back(value, expected)
    return state


def weights_of(state: Mapping[str, Tensor], statistics: Collection[str]) -> State:
    """What of a state is learned by steps: no statistics and no whole numbers.

    Args:
        state: A model's state.
        statistics: See :meth:`fedgaze.train.LearnerProtocol.statistics`.
    """
    return {
        name: value
        for name, value in state.items()
        if value.is_floating_point() and name not in statistics
    }


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two states of one model are equal to the bit."""
    return all(torch.equal(value, right[name]) for name, value in left.items())


def settle(arrays: ArrayRecord, like: Mapping[str, Tensor]) -> ArrayRecord:
    """Bring what a strategy computed, often in float64, back to what :func:`pack` makes.

    A strategy with momentum steps beyond the mean, which can leave a variance below zero.

    Args:
        arrays: A strategy's result.
        like: A state of the same model.
    """
    state = {}
    for name, array in arrays.items():
        value = torch.from_numpy(np.array(array.numpy()))
        if name.endswith("running_var"):
            value = value.clamp(min=0)
        state[name] = _brought_back(value, like[name])
    return pack(state)


def _brought_back(value: Tensor, like: Tensor) -> Tensor:
    value = value if like.dtype.is_floating_point else value.round()
    return value.to(like.dtype).reshape(like.shape)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
