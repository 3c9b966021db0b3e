"""The automatic choice: the last layer that still knows where things are."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.layers import named_layers, unwrap
from fedgaze.xai.running import running

__all__ = ["auto_layer"]

# These hand on what came before them, blurred, thinned out or in another order.
_PASSED_OVER = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
    nn.Identity,
    nn.MaxPool2d,
    nn.Unflatten,
    nn.Upsample,
)

_Choice = tuple[str, ref[nn.Module]]
_CHOICES: WeakKeyDictionary[nn.Module, dict[torch.Size, _Choice]] = WeakKeyDictionary()


def auto_layer(model: nn.Module, images: Tensor) -> str:
    """Choose the layer to explain: the last feature map with height and width.

    Layers are judged by what they return when the first image runs through them, without
    gradients. Of the outputs ``(N, K, h, w)`` with more than one position the last counts that no
    pooling, dropout or reshaping made; where several layers return that same tensor, the outermost
    gives the name. So ResNet's is ``layer4``, DenseNet's ``features`` (which ends with ``norm5``),
    VGG's ``features.29`` (the last ReLU before the pooling), and that of a plain ``conv, relu,
    pool, linear`` the ReLU. The choice is remembered for the model and the size of the images.

    Args:
        model: The model, on its device.
        images: ``(N, C, H, W)``, as `explain` takes them, on the model's device.

    Returns:
        A layer's name.

    Raises:
        FedgazeError: No layer returns a feature map, or the model goes on with tokens.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    >>> auto_layer(model, torch.zeros(1, 1, 8, 8))
    '1'
    """
    model = unwrap(model)
    known = _CHOICES.setdefault(model, {})
    named = named_layers(model)
    name, module = known.get(images.shape[1:], ("", None))
    if module is None or named.get(name) is not module():
        name = _probe(model, images[:1], named)
        known[images.shape[1:]] = (name, ref(named[name]))
    return name


class _Watch:
    """A forward hook that remembers which layer returned the last feature map."""

    def __init__(self) -> None:
        self.layer: nn.Module | None = None
        self.tokens = False
        self._passed_over: Tensor | None = None

    def __call__(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, tuple) and output:
            output = output[0]
        if not isinstance(output, Tensor):
            return
        contains = next(module.children(), None) is not None
        if isinstance(module, _PASSED_OVER) or type(module).__name__ == "Permute":
            self._passed_over = output
        elif contains and output is self._passed_over:
            pass  # a container that ends with such a layer adds nothing to it
        elif output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
            self.layer, self.tokens = module, False
        elif output.dim() == 3 and output.shape[1] > 1:
            self.tokens = True


def _probe(model: nn.Module, image: Tensor, named: Mapping[str, nn.Module]) -> str:
    watch = _Watch()
    names: dict[nn.Module, str] = {}
    for name, module in named.items():
        names.setdefault(module, name)
    with running(model, [(module, watch) for module in names]) as forward, torch.no_grad():
        forward(image)
    if watch.tokens:
        raise FedgazeError(
            f"{type(model).__name__} works on tokens (N, T, K), for which no layer can be chosen "
            "automatically yet; name one that returns a feature map (N, K, h, w)"
        )
    if watch.layer is None:
        raise FedgazeError(
            f"no layer of {type(model).__name__} returns a feature map (N, K, h, w) with height "
            f"and width for images of {image.shape[2]} × {image.shape[3]}"
        )
    return names[watch.layer]
