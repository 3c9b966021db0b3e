"""Sparse: the way back through linear layers, where most of a gradient is zero."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules_of_torch

__all__ = ["sparse_ways_back"]


@contextmanager
def sparse_ways_back(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let each Linear that runs within go back to its input, and from what is not zero alone.

    A class has one score, so the last layer's gradient is one row of its weights; and in the last
    block of a transformer that is read at its class token, only that token has a gradient once the
    attention is behind it: to go back through the MLP of all tokens takes twice as long as through
    the attention. What is left out are sums of zeros. Weights and biases get no gradient.

    Only on CPUs, where to look costs nothing, and not for layers with hooks or types of their own.

    Args:
        modules: All modules of a model, or those that are still to run.
    """
    owner = threading.get_ident()

    def shorten(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        # Another thread may train the model meanwhile.
        mine = threading.get_ident() == owner
        return _shortened(cast("nn.Linear", module), inputs, output) if mine else None

    with ExitStack() as stack:
        if not modules_of_torch._global_forward_hooks:  # noqa: SLF001
            for module in modules:
                if type(module) is nn.Linear and _is_plain(module):
                    stack.callback(module.register_forward_hook(shorten).remove)
        yield


def _is_plain(module: nn.Linear) -> bool:
    hooks = module._forward_hooks or module._backward_hooks or module._backward_pre_hooks  # noqa: SLF001
    return not hooks and "forward" not in vars(module)


def _shortened(module: nn.Linear, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
    """The same output with another way back; None where the way back stays as it is."""
    weight = module.weight
    x = inputs[0] if inputs else None
    if type(x) is not Tensor or type(output) is not Tensor or not x.requires_grad:
        return None
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == output.dtype
    if not (plain and output.requires_grad and x.dim() > 1):
        return None
    return cast("Tensor", _Linear.apply(x, weight.detach(), output.detach()))


class _Linear(torch.autograd.Function):
    """From an output that is known already back to the input."""

    @staticmethod
    def forward(ctx: Any, _x: Tensor, weight: Tensor, output: Tensor) -> Tensor:
        # Not as saved tensors: those of checkpointed parts are counted.
        ctx.weight = weight
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        gradient = upstream[0].flatten(0, -2)
        weight = ctx.weight
        # Of many rows some, or of all rows the same few columns.
        rows = _live(gradient, 1)
        if 2 * int(rows.sum()) < len(rows):
            back = gradient.new_zeros(len(gradient), weight.shape[1])
            back[rows] = gradient[rows] @ weight
        else:
            columns = _live(gradient, 0)
            few = 2 * int(columns.sum()) < len(columns)
            back = gradient[:, columns] @ weight[columns] if few else gradient @ weight
        return back.unflatten(0, upstream[0].shape[:-1]), None, None


def _live(gradient: Tensor, dimension: int) -> Tensor:
    """Which rows, or columns, are not all zero; NaN is not."""
    low, high = gradient.amin(dimension), gradient.amax(dimension)
    return (low != 0) | (high != 0)
