"""Which layers of a model lie over the image, and can be explained."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.capture import FirstSize
from fedgaze.xai.layers import named_layers, unwrap
from fedgaze.xai.running import running
from fedgaze.xai.tokens import lay_out, main_tensor

__all__ = ["map_layers"]


def map_layers(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Run a model and list the layers that return a map, in the order in which they ran.

    Args:
        model: The model.
        images: ``(N, C, H, W)``, on its device.

    Returns:
        By name ``(K, h, w)``: channels and positions.

    >>> map_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), torch.zeros(1, 1, 8, 8))
    {'0': (2, 6, 6)}
    """
    model = unwrap(model)
    patches = FirstSize()
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str, layer: nn.Module, _inputs: Any, output: Any) -> None:
        tensor = main_tensor(output)
        if tensor is None or not tensor.is_floating_point():
            return
        size = tuple(images.shape[2:])
        try:
            layout = lay_out(name, layer, tensor, patches.size, size, len(images))
        except FedgazeError:
            return
        shape = tuple(layout.to_map(tensor).shape[1:])
        if shape[1:].count(1) < len(size):
            found.pop(name, None)
            found[name] = shape

    hooks = [(layer, partial(note, name)) for name, layer in named_layers(model).items()]
    with running(model, hooks, patches=patches) as forward, torch.no_grad():
        forward(images)
    return found
