"""Classifier: a way back from a few classes that leaves out the others."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["shorten_way_back"]


def shorten_way_back(model: nn.Module, head: str, relu: str | None = None) -> None:
    """Let a convolution that tells classes apart go back from those that are explained only.

    Of SqueezeNet's 1,000 classes one an image has a gradient; to go back from all takes a quarter
    of its forward pass. Only 1 x 1 convolutions are changed, as they end such networks.

    Args:
        model: The model, whose weights need no gradient; it is changed.
        head: The name of its last module with weights.
        relu: The name of the ReLU that reads what the head returns, if nothing else does.
    """
    module = model.get_submodule(head)
    if type(module) is not nn.Conv2d or not _is_pointwise(module) or "forward" in vars(module):
        return
    module.__class__ = _Classifier
    if relu is not None:
        module.__class__ = _PositiveClassifier
        model.get_submodule(relu).__class__ = nn.Identity


def _is_pointwise(module: nn.Conv2d) -> bool:
    sizes = (module.kernel_size, module.stride, module.padding, module.groups)
    return sizes == ((1, 1), (1, 1), (0, 0), 1)


class _Classifier(nn.Conv2d):
    relu = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        return cast("Tensor", _Pointwise.apply(input, self.weight, self.bias, self.relu))


class _PositiveClassifier(_Classifier):
    relu = True


class _Pointwise(torch.autograd.Function):
    """A 1 x 1 convolution whose weights need no gradient, with or without a ReLU after it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        made = F.conv2d(x, weight, bias)
        ctx.save_for_backward(weight, made.relu_() if relu else None)
        return made

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,), (weight, made) = upstream, ctx.saved_tensors
        where = (0, 2, 3)
        some = (gradient.detach().amax(where) != 0) | (gradient.detach().amin(where) != 0)
        some[0] |= ~some.any()  # a convolution of no channels is refused
        gradient = gradient[:, some]
        if made is not None:
            gradient = gradient * (made[:, some] > 0)
        return F.conv_transpose2d(gradient, weight[some]), None, None, None
