"""Layers that lie over the image: which there are, and what they hold on average."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.capture import Capture, FirstSize
from fedgaze.xai.layers import Layer, named_layers, resolve_layers, unwrap
from fedgaze.xai.outputs import logits_of
from fedgaze.xai.running import running
from fedgaze.xai.tokens import lay_out, main_tensor

__all__ = ["layer_means", "map_layers"]


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


def layer_means(
    model: nn.Module, images: Tensor, layers: Sequence[Layer]
) -> tuple[Mapping[str, Tensor], Tensor]:
    """What layers hold of images, averaged over all positions. One forward pass.

    Args:
        model: The model.
        images: ``(N, C, H, W)``, on its device.
        layers: As for `resolve_layers`; each returns a map, or tokens that lie over the image (of
            which those that do not, such as a class token, are left out).

    Returns:
        By the layers' names ``(N, K)``, and the logits.

    Raises:
        FedgazeError: A layer does not exist, or does not lie over the image.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    >>> means, logits = layer_means(model, torch.ones(4, 1, 8, 8), ["0"])
    >>> means["0"].shape, logits.shape
    (torch.Size([4, 2]), torch.Size([4, 72]))
    """
    model = unwrap(model)
    found = resolve_layers(model, list(layers))
    said: list[Tensor] = []

    def listen(outputs: Any) -> Tensor:
        said.append(logits_of(outputs).detach())
        return images.new_zeros(len(images))

    with Capture(model, found, gradients=False) as capture:
        captured = capture.run(images, listen)
    size = tuple(images.shape[2:])
    means = {}
    for name, tensor in captured.activations.items():
        layout = lay_out(name, found[name], tensor, captured.patches, size, len(images))
        means[name] = layout.to_map(tensor).flatten(2).float().mean(2)
    return {name: means[name] for name in found}, said[-1]
