"""The automatic choice: the last layer that still knows where things are."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fedgaze.errors import FedgazeError
from fedgaze.xai.inputs import Inputs
from fedgaze.xai.layers import named_layers, unwrap
from fedgaze.xai.outputs import logits_of
from fedgaze.xai.running import frozen, running
from fedgaze.xai.tokens import Layout, grids_of, lay_out, main_tensor, patch_layers, with_main
from fedgaze.xai.trunk import is_dense, trunk_of

__all__ = ["Query", "auto_layer", "auto_query"]

Query = Literal["class", "mean"]

# These hand on what came before them, blurred, thinned out or in another order.
_PASSED_OVER = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.Flatten,
    nn.Identity,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.Unflatten,
    nn.Upsample,
)


@dataclass(frozen=True)
class _Choice:
    """What one probing run found; the layer is only held weakly, as is the model."""

    name: str
    layer: ref[nn.Module]
    query: Query


_CHOICES: WeakKeyDictionary[nn.Module, dict[torch.Size, _Choice]] = WeakKeyDictionary()


def auto_layer(model: nn.Module, images: Tensor | Inputs) -> str:
    """Choose the layer to explain: the last map of features whose positions still count.

    Layers are judged by what they return when the first image runs through them. Of the outputs
    ``(N, K, h, w)`` with more than one position the last counts that no pooling, dropout or
    reshaping made; where several layers return that same tensor, the outermost gives the name. So
    ResNet's is ``layer4``, DenseNet's ``features`` (which ends with ``norm5``), VGG's
    ``features.29`` (the last ReLU before the pooling), and that of a plain ``conv, relu, pool,
    linear`` the ReLU.

    In transformers, tokens that lie over the image count as well (see `lay_out`), but not what is
    computed inside attention, and only layers at whose patches the output depends on them: where
    just the class token is read, the last block changes nothing but that token, and the choice is
    the layer before its attention (timm's ``blocks.11.norm1``, torchvision's
    ``encoder.layers.encoder_layer_11.ln_1``); where patches are averaged, the last norm or block.
    What depends on what is found by sending NaN back from the output, which no weight can hide.

    Where the output says something of each place (segmentation, detection), the last map is the
    answer itself or next to it. There the choice is the last map on the coarsest grid of the trunk
    (``backbone``, ``encoder`` or transformers' base model; the whole model where it has none): in
    torchvision's detectors ``backbone.body.layer4``.

    The choice is remembered for the model and the size of the images.

    Args:
        model: The model, on its device.
        images: ``(N, C, H, W)`` or ``(N, C, D, H, W)``, on the model's device, or all arguments.

    Returns:
        A layer's name.

    Raises:
        FedgazeError: No layer returns such a map.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    >>> auto_layer(model, torch.zeros(1, 1, 8, 8))
    '1'
    """
    return _choice(model, images).name


def auto_query(model: nn.Module, images: Tensor | Inputs) -> Query:
    """Find out which tokens a transformer's output is read from, in the run of `auto_layer`.

    Returns:
        ``"class"`` if it depends on the first token of the last layer of tokens and that stands
        for no patch; ``"mean"`` if only patches are read, or if there are no tokens.

    Raises:
        FedgazeError: As for `auto_layer`.
    """
    return _choice(model, images).query


def _choice(model: nn.Module, images: Tensor | Inputs) -> _Choice:
    model = unwrap(model)
    inputs = images if isinstance(images, Inputs) else Inputs(images, 0, {})
    known = _CHOICES.setdefault(model, {})
    named = named_layers(model)
    choice = known.get(inputs.images.shape[1:])
    if choice is None or named.get(choice.name) is not choice.layer():
        choice = _probe(model, inputs.take(0, 1), named)
        known[inputs.images.shape[1:]] = choice
    return choice


class _Seen(NamedTuple):
    """A layer that returned a map, the tensor, and how it lies over the image."""

    layer: nn.Module
    tensor: Tensor
    layout: Layout


class _Watch:
    """A forward hook that keeps, from the first tokens on, what the output may depend on."""

    def __init__(
        self,
        size: tuple[int, ...],
        strided: frozenset[nn.Module],
        inside: frozenset[nn.Module],
        *,
        coarsest: bool,
    ) -> None:
        self.maps: list[_Seen] = []
        self.tokens = False
        self._size = size
        self._patches: tuple[int, ...] | None = None
        self._strided = strided
        self._inside = inside
        self._coarsest = coarsest
        self._passed_over: Tensor | None = None

    def __call__(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        if self._patches is None and module in self._strided:
            self._patches = tuple(output.shape[2:])
        # Mappings are left to the layer inside that returned the tensor.
        tensor = main_tensor(output) if isinstance(output, (Tensor, tuple)) else None
        if tensor is None or not tensor.is_floating_point():
            return None
        if isinstance(module, _PASSED_OVER) or type(module).__name__ == "Permute":
            self._passed_over = tensor
            return None
        contains = next(module.children(), None) is not None
        if contains and tensor is self._passed_over:
            return None  # a container that ends with such a layer adds nothing to it
        layout = self._layout(module, tensor)
        if layout is None:
            return None
        first = layout.tokens and not self.tokens
        if first and not tensor.is_inference():
            # From here on it matters what depends on what; below no graph is built.
            torch.set_grad_enabled(True)
            tensor = tensor.detach().requires_grad_()
            output = with_main(output, tensor.clone())
        if self._coarsest and not (first or self.tokens) and self.maps:
            coarsest = self.maps[-1].layout.grid
            if math.prod(layout.grid) > math.prod(coarsest):
                return output
        if first or not self.tokens:
            self.maps.clear()  # without tokens only the last map counts
        self.tokens |= layout.tokens
        self.maps.append(_Seen(module, tensor, layout))
        return output

    def _layout(self, module: nn.Module, tensor: Tensor) -> Layout | None:
        if tensor.dim() not in {3, len(self._size) + 2} or len(tensor) != 1:
            return None
        flat = tensor.dim() == 3
        if (flat or self.tokens) and (module in self._inside or isinstance(module, nn.Linear)):
            return None
        try:
            layout = lay_out("", module, tensor, self._patches, self._size)
        except FedgazeError:
            return None
        # Beside tokens there are matrices of attention, and heads apart.
        known = not self.tokens or flat or layout.grid in grids_of(self._patches, self._size)
        mixed = flat and not layout.channels_last  # within an MLP over tokens, as in MLP-Mixer
        return layout if known and not mixed and max(layout.grid) > 1 else None


def _probe(
    model: nn.Module, image: Inputs, named: Mapping[str, nn.Module], *, coarsest: bool = False
) -> _Choice:
    names: dict[nn.Module, str] = {}
    for name, module in named.items():
        names.setdefault(module, name)
    size = tuple(image.images.shape[2:])
    strided, inside = frozenset(patch_layers(model.modules())), _inside_attention(named)
    for below in (False, True):
        watch = _Watch(size, strided, inside, coarsest=coarsest)
        hooks = [(module, watch) for module in names]
        args, kwargs = image.call()
        with (
            frozen(model) if below else nullcontext(),
            running(model, hooks) as forward,
            torch.set_grad_enabled(below),
        ):
            outputs = forward(*args, **kwargs)
        ends = _ends(outputs)
        # A second time where the model runs its tokens in a no_grad block of its own.
        if not watch.tokens or ends:
            break
    if is_dense(outputs) and not coarsest:
        return _probe(model, image, trunk_of(model, named), coarsest=True)
    seen, query = _judged(watch, ends)
    if seen is None:
        why = " whose positions reach its output" if watch.tokens else ""
        raise FedgazeError(
            f"no layer of {type(model).__name__} returns a feature map (N, K, h, w), or tokens "
            f"over the image,{why} for images of {' × '.join(map(str, size))}; name a layer"
        )
    return _Choice(names[seen.layer], ref(seen.layer), query)


def _judged(watch: _Watch, ends: list[Tensor]) -> tuple[_Seen | None, Query]:
    """The last map at whose positions the output depends on it, and which tokens it is read from.

    Every number that the NaN reach on their way back counts, however small its weight is.
    """
    if not watch.tokens:
        return (watch.maps[-1] if watch.maps else None), "mean"
    maps = [each for each in watch.maps if each.tensor.requires_grad]
    if not maps or not ends:
        return None, "mean"
    anomalies = torch.autograd.set_detect_anomaly(mode=False)
    with anomalies, torch.inference_mode(mode=False), torch.enable_grad():
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            [(end * torch.nan).sum() for end in ends],
            [each.tensor for each in maps],
            allow_unused=True,
        )
    last: _Seen | None = None
    query: Query | None = None
    for seen, gradient in zip(reversed(maps), reversed(found), strict=True):
        if gradient is None:
            continue
        if query is None and seen.layout.tokens:
            read = seen.layout.prefix and bool(gradient[:, 0].count_nonzero())
            query = "class" if read else "mean"
        if last is None and bool(seen.layout.to_map(gradient).count_nonzero()):
            last = seen
    return last, query or "mean"


def _ends(outputs: Any) -> list[Tensor]:
    """What of an output has a way back: its logits or, where there are none, all of it."""
    try:
        tensors = [logits_of(outputs)]
    except FedgazeError:
        tensors = [each for each in tree_leaves(outputs) if isinstance(each, Tensor)]
    return [each for each in tensors if each.requires_grad]


def _inside_attention(named: Mapping[str, nn.Module]) -> frozenset[nn.Module]:
    """The parts of attention: of modules that are called so and hold no other that is."""
    called = [
        name
        for name, each in named.items()
        if "atten" in type(each).__name__.lower() or "attn" in type(each).__name__.lower()
    ]
    inner = [n for n in called if not any(other.startswith(n + ".") for other in called)]
    return frozenset(
        module
        for name, module in named.items()
        if any(name.startswith(each + ".") for each in inner)
    )
