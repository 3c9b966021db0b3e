"""Which layers to explain, from the model alone."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.auto import auto_layer
from fedgaze.xai.inputs import read_inputs
from fedgaze.xai.layers import unwrap

__all__ = ["get_recommended_layers"]

# Families whose features, one sequence, end with what their authors explain.
_ENDING_FEATURES = ("densenet", "efficientnet", "vgg", "mobilenetv2")
# Sides that models are made for, most common first.
_SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 384, 512, 16)
_FRAMES = (16, 8, 32)


def get_recommended_layers(model: nn.Module, images: Tensor | None = None) -> list[str]:
    """Recommend target layers.

    ResNet's is ``layer4``; of DenseNet, EfficientNet, VGG and MobileNetV2 it is the last layer of
    their features: ``features.norm5``, ``features.8`` (B0 to B7), ``features.30`` (VGG-16) and
    ``features.18``. For all others the model runs once, with an image of zeros of a size that it
    takes, and `auto_layer` chooses by what each layer returned: the last one whose positions still
    count, among those that really run (two of Inception v3's 96 convolutions do not).

    Args:
        model: A classifier. It is left as it was.
        images: ``(N, C, H, W)`` such as the model takes; None to try usual sizes.

    Returns:
        The name of one layer.

    Raises:
        FedgazeError: No target layer could be found.

    >>> get_recommended_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()))
    ['1']
    """
    inner = unwrap(model)
    family = type(inner).__name__.lower()
    if "resnet" in family and isinstance(getattr(inner, "layer4", None), nn.Module):
        return ["layer4"]
    features = getattr(inner, "features", None)
    if isinstance(features, nn.Sequential) and any(each in family for each in _ENDING_FEATURES):
        return [f"features.{[name for name, _ in features.named_children()][-1]}"]
    reason = "it has no convolution that tells which images it takes"
    for probe in _probes(inner) if images is None else [images]:
        try:
            return [auto_layer(inner, read_inputs(inner, probe))]
        except Exception as error:  # noqa: BLE001 - whatever a model raises for a size it does not take
            reason = str(error).partition("\n")[0]
    raise FedgazeError(
        f"could not find a target layer in {type(inner).__name__} ({reason}); name one as "
        "target_layers (list_layers(model) lists them), or give get_recommended_layers images "
        "that the model takes"
    )


def _probes(model: nn.Module) -> Iterator[Tensor]:
    """Images of zeros, in sizes that the model tells or that are usual."""
    convolutions = (each for each in model.modules() if isinstance(each, (nn.Conv2d, nn.Conv3d)))
    stem = next(convolutions, None)
    if stem is None:
        return
    sizes = dict.fromkeys(chain(_told(model), ((side, side) for side in _SIDES)))
    for size in sizes:
        for frames in _FRAMES if isinstance(stem, nn.Conv3d) else (None,):
            depth = () if frames is None else (frames,)
            yield torch.zeros(1, stem.in_channels, *depth, *size)


def _told(model: nn.Module) -> Iterator[tuple[int, int]]:
    """The size that a model of timm, transformers or torchvision says it is made for."""
    timm: Any = getattr(model, "pretrained_cfg", None)
    config: Any = getattr(model, "config", None)
    said = (
        timm.get("input_size") if isinstance(timm, dict) else None,
        getattr(getattr(config, "vision_config", config), "image_size", None),
        getattr(model, "image_size", None),
    )
    for each in said:
        if isinstance(each, int):
            yield each, each
        elif isinstance(each, (tuple, list)) and len(each) >= 2:
            yield each[-2], each[-1]
