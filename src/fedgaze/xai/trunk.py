"""Trunks: the part of a model that makes features, for heads that say something of each place."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.outputs import logits_of

__all__ = ["is_dense", "trunk_of"]

# As torchvision, timm, segmentation_models and mmsegmentation call it; FPNs hold a body.
_TRUNKS = ("backbone.body", "backbone.features", "backbone", "encoder")


def is_dense(outputs: Any) -> bool:
    """Whether a model says something of each place: logits that form a map, or boxes.

    >>> import torch
    >>> is_dense({"out": torch.zeros(1, 3, 8, 8)}), is_dense(torch.zeros(1, 3))
    (True, False)
    """
    if isinstance(outputs, (list, tuple)) and outputs and isinstance(outputs[0], Mapping):
        return "boxes" in outputs[0]
    try:
        logits = logits_of(outputs)
    except FedgazeError:
        return False
    return logits.dim() > 3 and max(logits.shape[2:]) > 1


def trunk_of(model: nn.Module, named: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
    """Of the layers of a model by name those of its trunk; all of them where it is not known."""
    prefix = getattr(model, "base_model_prefix", "")  # of transformers' models
    for trunk in (*_TRUNKS, prefix):
        found = {n: each for n, each in named.items() if trunk and f"{n}.".startswith(f"{trunk}.")}
        if found:
            return found
    return named
