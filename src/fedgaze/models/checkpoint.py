"""Load weights from a file, all of them or none, and never anything but weights."""

import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedgaze.errors import FedgazeError, nearest

__all__ = ["load_checkpoint", "load_weights", "read_checkpoint"]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# What DataParallel, torch.compile and Lightning put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the weights that a file holds, by name, on the CPU.

    ``.safetensors`` is read as such, every other file by ``torch.load(weights_only=True)``. A
    dictionary's entry ``state_dict``, ``model_state_dict``, ``model`` or ``net`` is unwrapped.

    Raises:
        FedgazeError: There is no such file, it is damaged, it asks for Python code to be run, or it
            holds something else than named tensors.
    """
    if not path.is_file():
        raise FedgazeError(f"the checkpoint {path} is not a file")
    held = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    while isinstance(held, Mapping):
        inner = [held[key] for key in _WRAPPERS if isinstance(held.get(key), Mapping)]
        if not inner:
            break
        held = inner[0]
    if not isinstance(held, Mapping) or not held:
        raise FedgazeError(f"{path} holds no weights by name, but a {type(held).__name__}")
    for key, value in held.items():
        if not isinstance(value, Tensor):
            raise FedgazeError(
                f"{path} holds no weights by name: its '{key}' is a {type(value).__name__}"
            )
    return {str(key): value for key, value in held.items()}


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a file of weights into a model; the model's own dtypes and devices stay.

    Raises:
        FedgazeError: As in `read_checkpoint` and `load_weights`; the model is then unchanged.
    """
    load_weights(model, read_checkpoint(path), str(path))


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load named weights into a model, every one of them, or leave the model as it is.

    The prefixes ``module.``, ``_orig_mod.`` and ``model.`` are taken off where every name has them
    and the model's own names do not.

    Args:
        model: Is changed in place.
        weights: By name, of any floating dtype.
        origin: What the weights are called in an error.

    Raises:
        FedgazeError: A name is missing or unexpected, or a shape differs.
    """
    own = model.state_dict()
    found = _without_prefixes(weights, own)
    # Files from before PyTorch 0.4 lack BatchNorm's counter, which changes no output.
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in own]
    if missing or unexpected:
        raise FedgazeError(
            f"{origin} does not fit {type(model).__name__}: "
            + " and ".join(
                f"{len(keys)} of {total} weights are {word}, first '{keys[0]}'"
                + nearest(keys[0], others).replace("; did you mean", "; the nearest is").rstrip("?")
                for keys, total, word, others in (
                    (missing, len(own), "missing in the file", unexpected),
                    (unexpected, len(found), "unknown to the model", missing),
                )
                if keys
            )
        )
    # A lazy layer takes its shape from the weights.
    misfits = [key for key in found if not is_lazy(own[key]) and found[key].shape != own[key].shape]
    if misfits:
        key = misfits[0]
        raise FedgazeError(
            f"{origin} does not fit {type(model).__name__}: {len(misfits)} of {len(found)} weights "
            f"have another shape, first '{key}', which is {_shape(found[key])} in the file and "
            f"{_shape(own[key])} in the model"
        )
    model.load_state_dict({**own, **found})


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise FedgazeError(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say, the sentences below say
            return torch.load(path, map_location="cpu", weights_only=True)
    # Bytes that are no checkpoint are met with whatever the first of them lead the reader to.
    except Exception as error:
        asked = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if asked is not None:
            why = f"holds more than weights: loading it would run {asked[1]}, so it is refused"
        elif "TorchScript" in str(error):
            why = "is a TorchScript archive, which holds code, so it is refused"
        else:
            raise FedgazeError(f"{path} is not a whole checkpoint that torch can read") from error
        raise FedgazeError(f"{path} {why}; save model.state_dict() instead") from error


def _without_prefixes(weights: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    found = dict(weights)
    while True:
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in found) and not all(
                key.startswith(prefix) for key in own
            ):
                found = {key.removeprefix(prefix): value for key, value in found.items()}
                break
        else:
            return found


def _shape(tensor: Tensor) -> str:
    return "×".join(str(side) for side in tensor.shape) or "a single number"
