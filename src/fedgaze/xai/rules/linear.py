"""Relevance through layers with weights: the rules of layer-wise relevance propagation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgaze.xai.rules.numeric import STABILIZER, pull, stabilized

__all__ = ["Layer", "Rule", "alpha_beta", "box", "epsilon", "flat", "gamma", "w_square"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A map ``z = run(x, weight, bias)`` that is linear in x and in its weights.

    Attributes:
        run: It; the bias may be None.
        weight: Its weights, float32 or better.
        bias: ``(K,)``, or None.
    """

    run: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    weight: Tensor
    bias: Tensor | None

    def pull(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Run it with other weights, and give its transpose; see `pull`."""
        return pull(lambda leaf: self.run(leaf, weight, bias), x)


Rule = Callable[[Layer, Tensor, Tensor], Tensor]
"""``(layer, x, R_z) -> R_x``: from the relevance of a layer's output to that of its input."""


def epsilon(value: float = 1e-6) -> Rule:
    """``R_i = sum_j x_i w_ij / (z_j + eps sign(z_j)) R_j`` with ``z_j = sum_i x_i w_ij + b_j``.

    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
    Relevance Propagation", PLOS ONE 2015, Eq. 58. The bias keeps its share, and so does eps.
    """

    def rule(layer: Layer, x: Tensor, relevance: Tensor) -> Tensor:
        z, back = layer.pull(x, layer.weight, layer.bias)
        below = stabilized(z, value)
        # Nothing goes back from a zero, also where eps is zero.
        return x * back(torch.where(below == 0, 0, relevance / below))

    return rule


def alpha_beta(alpha: float, beta: float) -> Rule:
    """``R_i = sum_j (alpha z_ij^+ / z_j^+  -  beta z_ij^- / z_j^-) R_j`` with ``z_ij = x_i w_ij``.

    Bach et al., PLOS ONE 2015, Eq. 60, where alpha - beta is 1 (with the sign of beta that most
    write today). The sums z_j^+ and z_j^- are those of the positive and of the negative z_ij, each
    with that part of the bias. ``alpha_beta(1, 0)`` is the z^+ rule. An output that has no negative
    z_ij gives on alpha times its relevance, as the formula says.
    """

    def rule(layer: Layer, x: Tensor, relevance: Tensor) -> Tensor:
        weight, bias = layer.weight, layer.bias
        up, down = _half(weight, 1), _half(weight, -1)
        biases = [None if bias is None else _half(bias, sign) for sign in (1, -1)]
        total = alpha * _signed(layer, x, (up, down, biases[0]), relevance)
        if beta:
            total = total - beta * _signed(layer, x, (down, up, biases[1]), relevance)
        return total

    return rule


def gamma(value: float = 0.25) -> Rule:
    """``R_i = sum_j x_i (w_ij + g w_ij^+) / (sum_i x_i (w_ij + g w_ij^+)) R_j`` for positive x.

    Montavon et al., "Layer-Wise Relevance Propagation: An Overview", 2019, Sec. 10.2.1, with the
    bias as one more input. Inputs and outputs of both signs are treated as by Andéol et al.,
    "Learning Domain Invariant Representations by Joint Wasserstein Distance Minimization", 2021:
    what made z_j what it is, of its own sign, is favoured.
    """

    def rule(layer: Layer, x: Tensor, relevance: Tensor) -> Tensor:
        weight, bias = layer.weight, layer.bias
        z = layer.run(x, weight, bias)
        up, down = (weight + value * _half(weight, sign) for sign in (1, -1))
        total = torch.zeros_like(x)
        for weights, sign in (((up, down), 1), ((down, up), -1)):
            part = relevance * (z.sign() == sign)
            # Under a ReLU nothing comes back to a negative z.
            if part.any():
                more = None if bias is None else bias + value * _half(bias, sign)
                total = total + _signed(layer, x, (*weights, more), part)
        return total

    return rule


def box(low: Tensor, high: Tensor) -> Rule:
    """z^B: ``z_ij = x_i w_ij - l_i w_ij^+ - h_i w_ij^-`` and ``R_i = sum_j z_ij / sum_i z_ij R_j``.

    Montavon et al., "Explaining Nonlinear Classification Decisions with Deep Taylor Decomposition",
    Pattern Recognition 2017, Sec. 4.2, for inputs in ``[l, h]``.
    """

    def rule(layer: Layer, x: Tensor, relevance: Tensor) -> Tensor:
        weight = layer.weight
        edges = (
            (x, weight),
            (low.to(x).expand_as(x), _half(weight, 1)),
            (high.to(x).expand_as(x), _half(weight, -1)),
        )
        pulled = [layer.pull(value, part) for value, part in edges]
        z, z_low, z_high = (result for result, _ in pulled)
        shares = relevance / stabilized(z - z_low - z_high, STABILIZER)
        terms = [value * back(shares) for (value, _), (_, back) in zip(edges, pulled, strict=True)]
        return terms[0] - terms[1] - terms[2]

    return rule


def w_square() -> Rule:
    """``R_i = sum_j w_ij^2 / (sum_i w_ij^2) R_j``: Montavon et al., 2017, Sec. 4.1.

    The bias takes no part (in zennit its square takes one).
    """
    return _blind(torch.square)


def flat() -> Rule:
    """``R_i = sum_j 1 / (sum_i 1) R_j``: evenly over the receptive field.

    Lapuschkin et al., "Unmasking Clever Hans predictors and assessing what machines really learn",
    Nature Communications 2019.
    """
    return _blind(torch.ones_like)


def _blind(change: Callable[[Tensor], Tensor]) -> Rule:
    """A rule that does not look at x."""

    def rule(layer: Layer, x: Tensor, relevance: Tensor) -> Tensor:
        z, back = layer.pull(torch.ones_like(x), change(layer.weight))
        return back(relevance / stabilized(z, STABILIZER))

    return rule


def _half(tensor: Tensor, sign: int) -> Tensor:
    """What is positive of it, or what is negative."""
    return tensor.clamp(min=0) if sign > 0 else tensor.clamp(max=0)


def _signed(
    layer: Layer,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None],
    relevance: Tensor,
) -> Tensor:
    """The epsilon rule with one set of weights and bias for positive x, another for negative x."""
    for_up, for_down, bias = weights
    positive, negative = _half(x, 1), _half(x, -1)
    z, back = layer.pull(positive, for_up, bias)
    # After a ReLU nothing is negative, and half of the work can be left out.
    if not negative.any():
        return positive * back(relevance / stabilized(z, STABILIZER))
    z_down, back_down = layer.pull(negative, for_down)
    shares = relevance / stabilized(z + z_down, STABILIZER)
    return positive * back(shares) + negative * back_down(shares)
