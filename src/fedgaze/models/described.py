"""A model's layers, for choosing one."""

from dataclasses import dataclass

import torch

from fedgaze.models.build import build_model
from fedgaze.models.preprocess import Preprocess, input_channels, weights_preprocess
from fedgaze.models.resolve import resolve_name
from fedgaze.xai import auto_layer, map_layers

__all__ = ["DescribedLayer", "describe_layers"]

_SIDE = 224


@dataclass(frozen=True)
class DescribedLayer:
    """A layer that can be explained.

    Attributes:
        name: As `explain` takes it.
        module: What it is.
        shape: Channels and positions.
    """

    name: str
    module: str
    shape: tuple[int, ...]


def describe_layers(name: str) -> tuple[str, str, list[DescribedLayer]]:
    """Build a model without weights, run a blank image, and list the layers that return a map.

    Args:
        name: What `build_model` takes as a name.

    Returns:
        The size of the image, the layer of the automatic choice, and the layers as they run.

    Raises:
        FedgazeError: There is no such model.
    """
    model = build_model(None, name).eval()
    preprocess = Preprocess(channels=input_channels(model))
    if not name.startswith("hf:"):
        found = resolve_name(name)
        preprocess = weights_preprocess(model, found.source, found.name)
    resize = (preprocess.resize,) * 2 if isinstance(preprocess.resize, int) else preprocess.resize
    height, width = preprocess.crop or resize or (_SIDE, _SIDE)
    image = torch.zeros(1, preprocess.channels, height, width)
    named = dict(model.named_modules())
    layers = [
        DescribedLayer(each, type(named[each]).__name__, shape)
        for each, shape in map_layers(model, image).items()
    ]
    return f"{height} × {width}", auto_layer(model, image), layers
