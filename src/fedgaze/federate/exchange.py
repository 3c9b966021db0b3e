"""Weights on the way between server and client: a model's whole state, checked on both sides."""

import hashlib
from collections.abc import Mapping

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedgaze.errors import FedgazeError

__all__ = ["State", "fingerprint", "pack", "round_state", "unpack"]

State = dict[str, Tensor]


def pack(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Weights and buffers (BatchNorm's among them) as a record that Flower carries."""
    return ArrayRecord({name: Array(value.detach().cpu().numpy()) for name, value in state.items()})


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
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise FedgazeError(
                f"'{name}' is {value.dtype} {tuple(value.shape)}, "
                f"not {expected.dtype} {tuple(expected.shape)}"
            )
        if not value.isfinite().all():
            raise FedgazeError(f"'{name}' holds a value that is not finite")
        state[name] = value
    return state


def round_state(arrays: ArrayRecord, like: Mapping[str, Tensor]) -> ArrayRecord:
    """Bring averaged arrays back to the model's dtypes: an averaged counter is a whole number.

    Args:
        arrays: What a strategy made of the updates; counters come out as fractions.
        like: A state of the same model.
    """
    state = {}
    for name, array in arrays.items():
        value = torch.from_numpy(array.numpy())
        dtype = like[name].dtype
        state[name] = (value if dtype.is_floating_point else value.round()).to(dtype)
    return pack(state)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
