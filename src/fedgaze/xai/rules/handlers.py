"""Which way relevance goes back through each function of PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from fedgaze.errors import FedgazeError
from fedgaze.xai.rules import linear
from fedgaze.xai.rules.composites import Composite, Role
from fedgaze.xai.rules.numeric import STABILIZER
from fedgaze.xai.rules.shares import Average, Pass, Sum
from fedgaze.xai.rules.tables import AVERAGES, ELEMENTWISE, GATES, is_move
from fedgaze.xai.rules.watch import Call, ancestors, depends
from fedgaze.xai.rules.weighted import Plan, Weighted, is_weighted, merged

__all__ = ["handle", "refused"]


def handle(composite: Composite, call: Call) -> Tensor | None:
    """Give the result of a call with the way back of relevance; None if it needs no other.

    Raises:
        FedgazeError: There is no rule for it.
    """
    result: Tensor
    if call.name in ELEMENTWISE | AVERAGES | {"batch_norm"}:
        others = [each for each in call.tensors() if each is not call.first]
        if any(depends(each) for each in others):
            raise refused(call, " with parameters that depend on the image")
    if call.name in ELEMENTWISE:
        result = Pass.apply(call.first, call.at, GATES.get(call.name, 0))
        return result
    if call.name in AVERAGES:
        result = Average.apply(call.first, call.at)
        return result
    handler = _HANDLERS.get(call.name)
    return None if handler is None else handler(composite, call)


def refused(call: Call, why: str = "") -> FedgazeError:
    """The error for a call for which there is no rule."""
    return FedgazeError(
        f"lrp has no rule for {call.name!r}{why}; allowed are networks of convolutions, dense "
        "layers, activations, pooling, residuals and gates that return logits; "
        "integrated_gradients goes with any, and gradient_rollout with transformers"
    )


def _layer(role: Role) -> Callable[[Composite, Call], Tensor]:
    def handler(composite: Composite, call: Call) -> Tensor:
        x, weight, bias = (call.get(i, n) for i, n in enumerate(("input", "weight", "bias")))
        func, rest = call.func, call.args[3:]
        named = {k: v for k, v in call.kwargs.items() if k not in {"input", "weight", "bias"}}
        transposed = call.name.startswith("conv_transpose")
        plan = Plan(
            run=lambda x, weight, bias: func(x, weight, bias, *rest, **named),
            rule=composite.rule(role, first=_sees_image(x)),
            outputs=1 if transposed else 0,
            groups=call.get(6, "groups", 1) if transposed else 1,
        )
        return _weighted(call, (x, weight, bias), plan)

    return handler


def _matmul(composite: Composite, call: Call) -> Tensor:
    a, b = _operands(call)
    x, weight = (b, a) if depends(b) else (a, b)
    left = x is a
    plan = Plan(
        run=lambda x, weight, _: x @ weight if left else weight @ x,
        rule=composite.rule("dense", first=_sees_image(x)),
        outputs=None,
    )
    return _weighted(call, (x, weight, None), plan)


def _weighted(call: Call, tensors: tuple[Tensor, Tensor, Tensor | None], plan: Plan) -> Tensor:
    x, *weights = tensors
    if any(depends(each) for each in weights):
        raise refused(call, " with weights that depend on the image")
    weight, bias = (None if each is None else each.detach() for each in weights)
    result: Tensor = Weighted.apply(x, weight, bias, plan, call.run)
    return result


def _sees_image(x: Tensor) -> bool:
    """Whether no layer with weights stands between the image and a tensor."""
    before = ancestors(x, lambda node: not is_weighted(node))
    return not any(is_weighted(node) for node in before)


def _batch_norm(_: Composite, call: Call) -> Tensor:
    if call.get(5, "training"):
        raise refused(call, " with the statistics of a batch, in which images meet")
    names = ["running_mean", "running_var", "weight", "bias"]
    if call.func is torch.batch_norm:
        names = names[2:] + names[:2]
    given = {name: call.get(place, name) for place, name in enumerate(names, 1)}
    scale = (given["running_var"] + call.get(7, "eps", 1e-5)).rsqrt()
    scale = scale if given["weight"] is None else scale * given["weight"].detach()
    shift = torch.zeros_like(scale) if given["bias"] is None else given["bias"].detach()
    found = merged(call.first, scale, given["running_mean"], shift, call.run)
    if found is not None:
        return found
    if _sees_image(call.first):
        return _passed(call, call.first)
    bias = shift - given["running_mean"] * scale
    plan = Plan(run=_channelwise, rule=linear.epsilon(STABILIZER), outputs=None)
    return _weighted(call, (call.first, scale, bias), plan)


def _channelwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (-1, *[1] * (x.dim() - 2))
    result = x * weight.view(shape)
    return result if bias is None else result + bias.view(shape)


def _passed(call: Call, x: Tensor, *, scale: bool = False) -> Tensor:
    """Pass relevance on to x, one of the operands of a call."""
    result: Tensor = Pass.apply(x, lambda _: call.at(call.first), 0, scale)
    return result


def _operands(call: Call) -> tuple[Any, Any]:
    """Both sides of an operator, as written."""
    a, b = call.first, call.get(1, "other", call.kwargs.get("mat2"))
    return (b, a) if call.name.startswith(("__r", "rsub")) else (a, b)


def _add(_: Composite, call: Call) -> Tensor:
    a, b = _operands(call)
    for each, constant in ((a, b), (b, a)):
        # Before the first layer, what is added only changes the units of pixels.
        if not depends(constant) and _sees_image(each):
            return _passed(call, each, scale=True)
    alpha = call.kwargs.get("alpha", 1)
    signs = (1, -alpha if "sub" in call.name else alpha)
    result: Tensor = Sum.apply(a, b, signs, lambda: call.at(call.first))
    return result


def _multiply(_: Composite, call: Call) -> Tensor:
    a, b = _operands(call)
    divides = "div" in call.name
    if not (depends(a) and depends(b)):
        signal = a if depends(a) else b
        if divides and signal is b:
            raise refused(call, " by what depends on the image")
        return _passed(call, signal, scale=True)
    ranks = _gate_rank(a), _gate_rank(b)
    if divides or ranks[0] == ranks[1]:
        raise refused(call, " of two tensors that both depend on the image, neither a gate")
    return _passed(call, a if ranks[0] < ranks[1] else b)


def _gate_rank(tensor: Tensor) -> int:
    """How surely a factor is a gate: the rank of the activation that it comes from; see GATES."""
    node: Node | None = tensor.grad_fn
    while node is not None:
        found: Any = node
        passes = isinstance(node, Pass._backward_cls)  # noqa: SLF001 - what a grad_fn is made of
        if passes and not found.scale:
            return int(found.gate)
        if not (passes or is_move(node)):
            return 0
        node = node.next_functions[0][0]
    return 0


def _dropout(_: Composite, call: Call) -> Tensor:
    if call.get(2, "training", call.kwargs.get("train", True)):
        return _passed(call, call.first)
    off: Tensor = call.run()  # hands on the tensor itself
    return off


_Handler = Callable[[Composite, Call], Tensor]


def _names(names: str, handler: _Handler) -> dict[str, _Handler]:
    return dict.fromkeys(names.split(), handler)


_HANDLERS: dict[str, _Handler] = {
    **_names("conv1d conv2d conv3d", _layer("conv")),
    **_names("conv_transpose1d conv_transpose2d conv_transpose3d", _layer("conv")),
    **_names("linear", _layer("dense")),
    **_names("matmul mm __matmul__ __rmatmul__", _matmul),
    **_names("batch_norm", _batch_norm),
    **_names("add sub subtract rsub __radd__ __rsub__", _add),
    **_names("mul multiply div divide true_divide __rdiv__ __rtruediv__", _multiply),
    **_names("dropout dropout1d dropout2d dropout3d alpha_dropout", _dropout),
    **_names("feature_dropout feature_alpha_dropout", _dropout),
}
