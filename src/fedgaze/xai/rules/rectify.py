"""Guided backpropagation and deconvolution: another way back through every ReLU."""

import warnings
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from fedgaze.errors import FedgazeError
from fedgaze.xai.rules.watch import Call, Watch

__all__ = ["deconvnet", "guided"]

# Neither paper says what these do: where they are negative, they are not flat.
_SMOOTH = frozenset({
    "celu", "elu", "gelu", "glu", "hardswish", "leaky_relu", "mish", "prelu", "rrelu", "selu",
    "silu", "softplus",
})  # fmt: skip
_GATES = frozenset({"hardsigmoid", "sigmoid", "tanh"})
_MISSED = ("ReluBackward", "ThresholdBackward", "HardtanhBackward", "CheckpointFunction")


def guided() -> Watch:
    """Let only what is positive back through a ReLU that let something forward.

    At ``y = relu(x)`` the gradient R becomes ``1[y > 0] 1[R > 0] R``: Springenberg et al.,
    "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015, Fig. 1c. Everything
    else keeps its gradient.

    Every ReLU counts: a module, `torch.nn.functional.relu`, `torch.relu`, a method, in place, used
    twice, a clamp or threshold at zero, or one with a ceiling (ReLU6), whose own gradient it keeps
    too; not one that is spelled as a product, ``x * (x > 0)``. Captum and pytorch-grad-cam see
    `torch.nn.ReLU` modules only, and give the plain gradient elsewhere (DenseNet's last ReLU, all
    of Inception v3, MobileNetV2) without a word.

    Returns:
        A context manager, for forward and backward. When it is left it raises a `FedgazeError` if a
        model ran that has no ReLU, and warns if it has smooth or leaky activations beside, which
        keep their gradient.

    >>> x = torch.tensor([1.0, 2.0, -3.0], requires_grad=True)
    >>> with guided():
    ...     score = (torch.relu(x) * torch.tensor([2.0, -1.0, 5.0])).sum()
    ...     score.backward()
    >>> x.grad
    tensor([2., 0., 0.])
    """
    return _Rectified("guided backpropagation", _Guided)


def deconvnet() -> Watch:
    """Rectify what goes back through a ReLU, whatever went forward.

    At ``y = relu(x)`` the gradient R becomes ``relu(R)``: Zeiler and Fergus, "Visualizing and
    Understanding Convolutional Networks", ECCV 2014, Sec. 2.1. Filters are transposed and max
    pooling goes back to where the maximum was (its switches), as gradients do anyway. As in the
    comparison of Springenberg et al. (Fig. 1), BatchNorm and all else keep their gradient.

    Returns:
        A context manager, as from `guided`.

    >>> x = torch.tensor([1.0, 2.0, -3.0], requires_grad=True)
    >>> with deconvnet():
    ...     score = (torch.relu(x) * torch.tensor([2.0, -1.0, 5.0])).sum()
    ...     score.backward()
    >>> x.grad
    tensor([2., 0., 5.])
    """
    return _Rectified("deconvolution", _Deconv)


class _Rectified(Watch):
    def __init__(self, method: str, rule: type[torch.autograd.Function]) -> None:
        super().__init__()
        self._method = method
        self._rule = rule
        self._rectified = False
        self._others: set[str] = set()

    def replace(self, call: Call) -> Tensor | None:
        if _rectifies(call):
            self._rectified = True
            result: Tensor = self._rule.apply(call.first, call)
            return result
        if call.name in _SMOOTH | _GATES:
            self._others.add(call.name)
        return None

    def check_unseen(self, node: Node) -> bool:
        if node.name().startswith(_MISSED):
            raise FedgazeError(
                f"{self._method} cannot reach a ReLU in a scripted or checkpointed part of the "
                f"model ({node.name()}); give the model without torch.jit or checkpointing"
            )
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is not None or not self._began:
            return
        if not self._rectified:
            instead = " and ".join(sorted(self._others)) or "none"
            raise FedgazeError(
                f"{self._method} changes ReLUs, and the activations of the model are: {instead}; "
                "allowed are models with ReLU, and saliency or integrated_gradients go with any"
            )
        if others := ", ".join(sorted(self._others & _SMOOTH)):
            warnings.warn(
                f"{self._method} is defined for ReLU only: {others} keep their plain gradient",
                stacklevel=2,
            )


def _rectifies(call: Call) -> bool:
    """Whether a call is a ReLU: zero below zero."""
    match call.name:
        case "relu" | "relu6":
            return True
        case "hardtanh":
            return bool(call.get(1, "min_val", -1.0) == 0)
        case "clamp" | "clip" | "clamp_min":
            low = call.get(1, "min")
            return not isinstance(low, Tensor) and low == 0
        case "threshold" | "_threshold":
            return bool(call.get(1, "threshold") == 0 and call.get(2, "value") == 0)
    return False


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call) -> Tensor:
        result = call.at(x)
        # As bits of its own, which what follows in place cannot overwrite.
        ctx.open = result > 0 if call.name == "relu" else (x > 0) & (result == x)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient.clamp(min=0) * ctx.open, None


class _Deconv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call) -> Tensor:  # noqa: ARG004
        return call.at(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        (gradient,) = gradients
        return gradient.clamp(min=0), None
