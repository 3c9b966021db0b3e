"""Prepare: choose what runs in the place of a model, and remember it."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedgaze.xai.fast.copying import Precision, layout_of, make_copy
from fedgaze.xai.fast.fuse import without_biases
from fedgaze.xai.fast.gain import Effort, goes_far_back, no_bf16, no_bf16_on, no_fast
from fedgaze.xai.fast.stamp import Stamp, tensors_of
from fedgaze.xai.fast.watch import Watch, watch
from fedgaze.xai.inputs import Inputs
from fedgaze.xai.registry import Method
from fedgaze.xai.running import is_compiled, lock_of

__all__ = ["Prepared", "prepare"]

_COPIES = 2


@dataclass(frozen=True, eq=False)
class Prepared:
    """What runs in the place of a model.

    Attributes:
        model: A copy in which modules have the names that they have in the model; or the model.
        precision: What it is: ``"full"`` for the model itself, ``"fast"`` or ``"bf16"``.
        reason: Why it is not what was asked for, in a clause; None if it is.
    """

    model: nn.Module
    precision: Precision
    reason: str | None

    def images(self, images: Tensor) -> Tensor:
        """The images, laid out as the copy reads them fastest; their dtype stays."""
        if self.precision == "full" or images.dim() != 4:
            return images
        return images.contiguous(memory_format=layout_of(images.device, self.precision))


def prepare(
    model: nn.Module,
    images: Tensor | Inputs,
    layers: Collection[str],
    precision: Literal["fast", "bf16"],
    method: Method | None = None,
) -> Prepared:
    """Give a faster copy of a model for explaining layers of it.

    ``"fast"``: float32, each convolution fused with the BatchNorm after it, channels last in
    memory. At the last layers maps are those of the model to 1e-5. Where ReLUs or maxima follow the
    layer, float32 itself leaves up to a hundredth open in a few images (a number that is zero but
    for rounding switches a gradient on or off), and the copy is about as far from float64 as the
    model is. For FullGrad, which adds up absolute values of biases, convolutions that have a bias
    of their own are not fused.

    ``"bf16"``: this copy in bfloat16 where that is faster and sound; else ``"fast"``. Rounding
    moves activations by 2^-9 and so switches the gradients of the ReLUs that follow. It is
    therefore for layers that return nothing negative and that at most one layer with weights
    follows, as the last stages of ResNet, MobileNetV2 and SqueezeNet, and not for methods that go
    back to the image. There the maps of predicted classes keep their order: over 60 photographs the
    median Spearman correlation with float32 was at least 0.998, the worst 0.994. Those of classes
    for which an image hardly speaks need not (in MobileNetV2 0.99 and 0.81). The first convolution
    and a Linear at the end stay in float32. On CPUs it needs AMX, or AVX512-BF16, with which it
    gains less: 0.05 to 0.2 of the time of ``"fast"``.

    Making the copy costs three or four passes of one image: the model is watched, and the copy has
    to give the same at the layers and at the end. It is remembered, at most two for a model, until
    the model is forgotten or changes (see `Stamp`). That a single number was changed in place
    through ``.data``, or an attribute such as a stride, may go unnoticed.

    Args:
        model: The model, unwrapped.
        images: ``(N, C, *size)`` on the model's device and of its dtype; or all its arguments.
        layers: Names of the layers that are explained; none where the input is.
        precision: ``"fast"`` or ``"bf16"``.
        method: For which method, if that is known.

    Returns:
        The copy; or the next slower one with the reason, at last the model itself.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    >>> prepared = prepare(model, torch.rand(1, 3, 8, 8), ["2"], "fast")
    >>> prepared.precision, type(prepared.model[1]).__name__
    ('fast', 'Identity')
    >>> prepare(model.double(), torch.rand(1, 3, 8, 8).double(), ["2"], "fast").reason
    'the model is float64, not float32'
    """
    inputs = images if isinstance(images, Inputs) else Inputs(images, 0, {})
    wish = _Wish(inputs, layers, precision, method)
    # Nobody else explains the model meanwhile: hooks that are found are its owner's.
    with lock_of(model), torch.inference_mode(mode=False), torch.no_grad():
        modules = list(model.modules())
        tensors = tensors_of(modules)
        known = _KNOWN.get(model)
        if known is not None and not known.stamp.holds_for(modules, tensors):
            known = None
            del _KNOWN[model]  # before another copy needs the memory
        reason = _obstacle(modules, inputs.images.device)
        reason = reason or (_unfit(tensors) if known is None else None)
        if reason is not None:
            return Prepared(model, "full", reason)
        if known is None:
            known = _KNOWN[model] = _Known(Stamp(modules, tensors))
        choice = _choice(known, model, wish)
    return Prepared(choice.copy or model, choice.precision, choice.reason)


@dataclass(frozen=True, eq=False)
class _Wish:
    """What is asked of a model."""

    inputs: Inputs
    layers: Collection[str]
    precision: Precision
    method: Method | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What a choice depends on."""
        return self.precision, frozenset(self.layers), self.biases, goes_far_back(self.method)

    @property
    def biases(self) -> bool:
        """Whether the method tells biases apart."""
        return self.method is not None and self.method.biases


@dataclass(frozen=True, eq=False)
class _Choice:
    """As `Prepared`, but without a reference to the model, which is the key to it."""

    copy: nn.Module | None
    precision: Precision
    reason: str | None = None


@dataclass(eq=False)
class _Known:
    """What is remembered of a model for as long as its stamp holds."""

    stamp: Stamp
    effort: Effort | None = None
    choices: dict[tuple[Any, ...], _Choice] = field(default_factory=dict)
    copies: dict[tuple[Any, ...], nn.Module] = field(default_factory=dict)


_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _obstacle(modules: list[nn.Module], device: torch.device) -> str | None:
    """What may come at any time, and is looked for each time."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return "autocast chooses the precision"
    for module in modules:
        hooks = (
            module._forward_hooks  # noqa: SLF001
            or module._forward_pre_hooks  # noqa: SLF001
            or module._backward_hooks  # noqa: SLF001
            or module._backward_pre_hooks  # noqa: SLF001
        )
        if hooks:
            return f"{type(module).__name__} has hooks, which a copy would call in its own way"
        if is_compiled(module) or isinstance(module, torch.jit.ScriptModule):
            return f"{type(module).__name__} is compiled"
    return None


def _unfit(tensors: list[Tensor]) -> str | None:
    if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
        return "the model is lazy and has not run yet"
    for dtype in {tensor.dtype for tensor in tensors if tensor.is_floating_point()}:
        if dtype != torch.float32:
            return f"the model is {str(dtype).removeprefix('torch.')}, not float32"
    if len({tensor.device for tensor in tensors}) > 1:
        return "the model lies on several devices"
    return None


def _choice(known: _Known, model: nn.Module, wish: _Wish) -> _Choice:
    """What serves these images: of what is remembered, or made now."""
    images, method = wish.inputs.images, wish.method
    seen = None
    if known.effort is None:
        seen = watch(model, wish.inputs, wish.layers)
        known.effort = Effort.of(seen, images)
    reasons: list[str] = []
    if wish.precision == "bf16":
        reason = no_bf16_on(images.device) or known.effort.too_small_for_bf16(images, method)
        if reason is not None:
            reasons.append(reason)
            wish = replace(wish, precision="fast")
    reason = known.effort.too_small_for_fast(images)
    if reason is not None:
        return _Choice(None, "full", "; ".join([*reasons, reason]))
    found = known.choices.get(wish.key)
    if found is None:
        seen = seen or watch(model, wish.inputs, wish.layers)
        if not all(bool(each.isfinite().all()) for each in seen.outputs):
            # Nothing can be compared. The next image may be a better one.
            return _Choice(None, "full", "the model returns no finite numbers for the first image")
        if wish.biases:
            seen.pairs = without_biases(model, seen.pairs)
        found = _made(known, model, wish, seen)
        modules = list(model.modules())
        if not known.stamp.holds_for(modules, tensors_of(modules)):
            _KNOWN.pop(model, None)
            return _Choice(None, "full", "the model changed while it was copied")
        known.choices[wish.key] = found
    reasons += [] if found.reason is None else [found.reason]
    return replace(found, reason="; ".join(reasons) or None)


def _made(known: _Known, model: nn.Module, wish: _Wish, seen: Watch) -> _Choice:
    reasons: list[str] = []
    made: nn.Module | str
    if wish.precision == "bf16":
        made = no_bf16(seen, wish.layers, wish.method) or _copied(known, model, wish, seen, "bf16")
        if isinstance(made, nn.Module):
            return _Choice(made, "bf16")
        reasons.append(made)
    made = no_fast(wish.inputs.images.device, seen) or _copied(known, model, wish, seen, "fast")
    if isinstance(made, nn.Module):
        return _Choice(made, "fast", "; ".join(reasons) or None)
    return _Choice(None, "full", "; ".join([*reasons, made]))


def _copied(
    known: _Known, model: nn.Module, wish: _Wish, seen: Watch, precision: Precision
) -> nn.Module | str:
    """A copy, that of an earlier choice if it serves; or why there is none."""
    head = None if goes_far_back(wish.method) else seen.head
    recipe = (precision, frozenset(seen.pairs), head)
    if recipe in known.copies:
        return known.copies[recipe]
    if len(known.copies) == _COPIES:
        known.copies.clear()
        known.choices.clear()
    try:
        made = make_copy(model, wish.inputs, seen, precision, head)
    except Exception as error:  # noqa: BLE001 - whatever a copy cannot do, the model may
        said = str(error).strip().split("\n")[0]
        return f"a copy does not work ({type(error).__name__}: {said})"
    if made is None:
        return "a copy does not say the same"
    known.copies[recipe] = made
    return made
