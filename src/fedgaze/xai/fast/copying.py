"""Copying: what is made of a model to run in its place, and the proof that it says the same."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedgaze.xai.fast.classifier import shorten_way_back
from fedgaze.xai.fast.fuse import fuse
from fedgaze.xai.fast.watch import Watch, watch
from fedgaze.xai.inputs import Inputs

__all__ = ["Precision", "layout_of", "make_copy"]

Precision = Literal["full", "fast", "bf16"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def layout_of(device: torch.device, precision: Precision) -> torch.memory_format:
    """In which order feature maps lie in memory."""
    # On GPUs bfloat16 runs fastest channels last; for float32 there that was not tried.
    last = device.type == "cpu" or precision == "bf16"
    return torch.channels_last if last else torch.contiguous_format


def make_copy(
    model: nn.Module,
    inputs: Inputs,
    seen: Watch,
    precision: Precision,
    head: tuple[str, str | None] | None = None,
) -> nn.Module | None:
    """Copy a model, make the copy fast, and compare what both say to an image.

    Args:
        model: The model; it is not touched.
        inputs: Its arguments for one image or more.
        seen: What was seen when the first image ran through the model.
        precision: ``"fast"`` or ``"bf16"``.
        head: For `shorten_way_back`; None where the way back is watched, and has to be the model's.

    Returns:
        The copy, frozen and in eval mode; None if other modules ran in it, or it says something
        else at the layers or at the end.
    """
    made = copy.deepcopy(model)
    for module in made.modules():
        module.training = False  # directly, since people override `train()`
    made.requires_grad_(requires_grad=False)
    fuse(made, seen.pairs)
    if head is not None:
        shorten_way_back(made, *head)
    layout = layout_of(inputs.images.device, precision)
    for parameter in made.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    if not _is_same(seen, watch(made, inputs, seen.kept), 1e-4):
        return None
    if precision == "bf16":
        _narrow(made, seen)
        # That it runs and is no nonsense; how far bfloat16 can be trusted depends on the layer.
        # Single numbers stray: of a trained MobileNetV2's last map by a quarter of its greatest.
        if not _is_same(seen, watch(made, inputs, seen.kept), 0.2, on_the_whole=True):
            return None
    return made


def _narrow(model: nn.Module, seen: Watch) -> None:
    """Let the model run in bfloat16 but for the first convolution and a Linear after the layers."""
    order = list(seen.calls)
    stem = str(seen.stem)
    wide = set(order[: order.index(stem) + 1])
    heads = {name for after in seen.weighing.values() for name in after}
    heads = {name for name in heads if type(model.get_submodule(name)) is nn.Linear}
    for name, module in model.named_modules():
        around = not name or stem.startswith(f"{name}.")
        # Statistics of a BatchNorm that was not fused need their digits, and cost nothing.
        if name in wide or name in heads or around or isinstance(module, _BATCH_NORMS):
            continue
        for tensor in (*module._parameters.values(), *module._buffers.values()):  # noqa: SLF001
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.bfloat16)
    model.get_submodule(stem).register_forward_hook(_narrowed)
    for name in heads:
        model.get_submodule(name).register_forward_pre_hook(_widened_input)
    model.register_forward_hook(_widened)


def _narrowed(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.to(torch.bfloat16)


def _widened_input(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].float(), *inputs[1:])


def _widened(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    return output.float() if isinstance(output, Tensor) else output


def _is_same(seen: Watch, other: Watch, tolerance: float, *, on_the_whole: bool = False) -> bool:
    """Whether all that ran in the model ran in the copy, and gave the same."""
    if seen.calls != other.calls or seen.kept.keys() != other.kept.keys():
        return False
    if not seen.outputs or len(seen.outputs) != len(other.outputs):
        return False
    pairs = [(one, other.kept[name]) for name, one in seen.kept.items()]
    pairs += zip(seen.outputs, other.outputs, strict=True)
    order = 2 if on_the_whole else torch.inf
    return all(_is_close(one, two, tolerance, order) for one, two in pairs)


def _is_close(one: Tensor, two: Tensor, tolerance: float, order: float) -> bool:
    if one.shape != two.shape:
        return False
    if not one.numel() or not one.is_floating_point():
        return torch.equal(one, two)
    return bool((one - two).flatten().norm(order) <= tolerance * one.flatten().norm(order))
