"""Fuse: convolutions that take over the BatchNorm after them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["CONVOLUTIONS", "can_fuse", "fuse", "is_norm", "without_biases"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# By name: torchvision's (with frozen statistics) and timm's (with an activation) need no import.
# Classes that derive from these are not meant: they may compute something else.
_NORMS = {
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "SyncBatchNorm",
    "FrozenBatchNorm2d",
    "BatchNormAct2d",
}


def is_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm that can be folded into a convolution."""
    if type(module).__name__ not in _NORMS or getattr(module, "running_mean", None) is None:
        return False
    inside = [name for name, _ in module.named_children()]
    # timm's drops out and activates what it normalised, in this order.
    return inside == (["drop", "act"] if type(module).__name__ == "BatchNormAct2d" else [])


def can_fuse(convolution: Any, norm: Any, made: Tensor) -> bool:
    """Whether a norm that reads what a convolution, or Linear, made can be folded into it."""
    # Not of their subclasses, among which are those with parametrized weights.
    linear = type(convolution) is nn.Linear and made.dim() == 2
    if not (linear or type(convolution) in CONVOLUTIONS) or not is_norm(norm):
        return False
    as_written = not any("forward" in vars(each) for each in (convolution, norm))
    return as_written and len(norm.running_mean) == len(convolution.weight)


def fuse(model: nn.Module, pairs: Mapping[str, str]) -> None:
    """Fold BatchNorms into their convolutions, in place.

    In eval mode a BatchNorm is ``y = (x - mean) * gamma / sqrt(variance + eps) + beta``, which
    weights and a bias can do. Under its name stands then what is left of it: nothing, or the
    activation that it contained.

    Args:
        model: The model.
        pairs: Names of convolutions, each with that of the BatchNorm.
    """
    for convolution, name in pairs.items():
        norm = model.get_submodule(name)
        _fold(model.get_submodule(convolution), norm)
        left = _left_of(norm)
        for parent in list(model.modules()):
            for key, child in parent._modules.items():  # noqa: SLF001
                if child is norm:
                    parent._modules[key] = left  # noqa: SLF001


def without_biases(model: nn.Module, pairs: Mapping[str, str]) -> dict[str, str]:
    """The pairs of which only the BatchNorm has a bias, so that fused they still have one each."""
    return {name: norm for name, norm in pairs.items() if model.get_submodule(name).bias is None}


def _fold(convolution: Any, norm: Any) -> None:
    weight = convolution.weight
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = 0 if convolution.bias is None else convolution.bias.double()
    shift = (bias - norm.running_mean.double()) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    scaled = weight * scale.to(weight.dtype).view(-1, *[1] * (weight.dim() - 1))
    # New parameters: another module may share the old ones.
    convolution.weight = nn.Parameter(scaled, requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)


def _left_of(norm: nn.Module) -> nn.Module:
    children = dict(norm.named_children())
    left: nn.Module = nn.Sequential() if children else nn.Identity()
    for name, child in children.items():
        left.add_module(name, child)
    left.training = False
    return left
