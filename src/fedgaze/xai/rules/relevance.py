"""Layer-wise relevance propagation: whatever a model does goes back by a rule, or is refused."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from fedgaze.errors import FedgazeError
from fedgaze.xai.rules.composites import Bound, Composite, find_composite
from fedgaze.xai.rules.handlers import handle, refused
from fedgaze.xai.rules.tables import MOVES, is_move
from fedgaze.xai.rules.watch import Call, Watch, depends

__all__ = ["lrp_rules"]


def lrp_rules(
    composite: str = "epsilon_plus",
    *,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    first: str | None = None,
    low: Bound = None,
    high: Bound = None,
) -> Watch:
    """Let relevance go back in place of gradients.

    What arrives at the image, from a one at a score, is each pixel's share of the score; times the
    score it is its relevance. See `fedgaze.xai.methods.relevance.lrp` for the arguments and for
    what goes back how. Within the context a sum over images would be shared among them as any sum
    is: give `torch.autograd.grad` the scores with a one each.

    Returns:
        A context manager, for forward and backward.

    Raises:
        FedgazeError: An argument cannot be used; later, on the way back, the score depends on
            something for which there is no rule.

    >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> with lrp_rules("epsilon"):
    ...     score = torch.nn.functional.linear(x, torch.tensor([[3.0, 1.0]]))  # 3 + 2
    ...     score.backward(torch.ones(1, 1))
    >>> x.grad
    tensor([[0.6000, 0.4000]])
    """
    return _Relevance(
        find_composite(composite, epsilon=epsilon, gamma=gamma, first=first, box=(low, high))
    )


class _Relevance(Watch):
    def __init__(self, composite: Composite) -> None:
        super().__init__()
        self._composite = composite

    def constant(self, call: Call) -> Any:
        # What is made of weights alone has no way back.
        if not call.tensors():
            return call.run()  # it may be what turns gradients on and off
        with torch.no_grad():
            return call.run()

    def check_unseen(self, node: Node) -> bool:
        if is_move(node) or not node.next_functions:
            return True
        if node.name().endswith("::Error"):  # what once_differentiable leaves
            raise FedgazeError(
                "maps of lrp cannot be differentiated; allowed for that are those of saliency and "
                "guided_backprop"
            )
        raise FedgazeError(
            f"lrp has no rule for {node.name()}, which a scripted, checkpointed or foreign part of "
            "the model runs unseen; give the model without it"
        )

    def replace(self, call: Call) -> Any:
        try:
            found = handle(self._composite, call)
        except FedgazeError as error:
            return _closed(call, error)
        if found is None and call.name not in MOVES:
            return _closed(call, refused(call))
        return found


def _closed(call: Call, error: FedgazeError) -> Any:
    """Run a call that has no rule; only if relevance wants to go back through it, it is refused."""

    def refuse(_: Tensor) -> None:
        raise error

    result = call.run()
    for leaf in tree_leaves(result):
        if depends(leaf):
            leaf.register_hook(refuse)
    return result
