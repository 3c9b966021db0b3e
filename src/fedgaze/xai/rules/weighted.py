"""The way back through layers with weights, and through a BatchNorm that follows one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node

from fedgaze.xai.rules.linear import Layer, Rule
from fedgaze.xai.rules.numeric import plainly, wide

__all__ = ["Plan", "Weighted", "is_weighted", "merged"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is known of a layer besides its tensors.

    Attributes:
        run: ``(x, weight, bias) -> z``.
        rule: How relevance goes back.
        outputs: The dimension of the weight that counts outputs; None if it is not known.
        groups: Of a transposed convolution, whose weight counts outputs within a group.
        scale: ``(K,)``: by what a BatchNorm behind it multiplies each output.
    """

    run: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    rule: Rule
    outputs: int | None = 0
    groups: int = 1
    scale: Tensor | None = None

    def scaled(self, factor: Tensor) -> Self:
        """The same layer, with a factor for each output."""
        return replace(self, scale=factor if self.scale is None else factor * self.scale)

    def layer(self, weight: Tensor, bias: Tensor | None) -> Layer:
        """The layer with the weights that it has after its BatchNorm."""
        weight = wide(weight)
        if self.scale is not None:
            scale = wide(self.scale)
            if self.outputs == 1:
                each = len(weight) // self.groups
                scale = scale.view(self.groups, -1).repeat_interleave(each, dim=0)
            weight = weight * scale.reshape(*scale.shape, *[1] * (weight.dim() - scale.dim()))
        return Layer(self.run, weight, None if bias is None else wide(bias))


class Weighted(torch.autograd.Function):
    """A layer with weights, whose relevance goes back by a rule."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        plan: Plan,
        value: Callable[[], Tensor],
    ) -> Tensor:
        """Run it: value gives what the model computes, without arguments."""
        ctx.save_for_backward(x, weight, bias)
        ctx.plan = plan
        return value()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        """Apply the rule."""
        x, weight, bias = ctx.saved_tensors
        with plainly(x):
            found = ctx.plan.rule(ctx.plan.layer(weight, bias), wide(x), wide(relevance))
            return found.to(x.dtype), None, None, None, None


def is_weighted(node: Node | None) -> bool:
    """Whether a node of the graph is a layer with weights."""
    return isinstance(node, Weighted._backward_cls)  # noqa: SLF001 - what a grad_fn is made of


def merged(
    z: Tensor, scale: Tensor, center: Tensor, shift: Tensor, value: Callable[[], Tensor]
) -> Tensor | None:
    """Merge ``(z - center) * scale + shift`` into the layer that made z, as one linear map.

    Args:
        z: ``(N, K, ...)``.
        scale: ``(K,)``, as the others.
        center: What is taken off.
        shift: What is added.
        value: Gives the result, without arguments.

    Returns:
        The result, whose way back leads to the layer's input; None if z is not fresh from a layer.
    """
    node: Any = z.grad_fn
    while node is not None and node.name() == "BackwardHookFunctionBackward":
        node = node.next_functions[0][0]  # a hook of somebody's stands between
    if not is_weighted(node) or node.plan.outputs is None:
        return None
    x, weight, bias = node.saved_tensors
    if weight.dim() == 2 and z.dim() != 2:
        return None  # of tokens (N, T, K), BatchNorm takes the second dimension, and not the last
    bias = shift + ((0 if bias is None else bias) - center) * scale
    result: Tensor = Weighted.apply(x, weight, bias, node.plan.scaled(scale), value)
    return result
