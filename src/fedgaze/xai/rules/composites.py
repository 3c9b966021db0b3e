"""Composites: which rule a layer gets, by its role."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.rules import linear
from fedgaze.xai.rules.linear import Rule

__all__ = ["COMPOSITES", "Bound", "Composite", "Role", "find_composite"]

Bound = float | Sequence[float] | Tensor | None
Role = Literal["conv", "dense"]

_CONVOLUTIONS = {
    "epsilon": "epsilon",
    "epsilon_plus": "plus",
    "epsilon_plus_flat": "plus",
    "epsilon_gamma": "gamma",
    "epsilon_gamma_box": "gamma",
    "epsilon_alpha2_beta1": "alpha2_beta1",
    "epsilon_alpha2_beta1_flat": "alpha2_beta1",
}
COMPOSITES = tuple(_CONVOLUTIONS)
_BLIND = {"flat": linear.flat, "w_square": linear.w_square}
_FIRST = (*_BLIND, "box")


@dataclass(frozen=True, eq=False)
class Composite:
    """The rules of a network.

    Attributes:
        conv: For convolutions, also transposed ones.
        dense: For fully connected layers.
        first: For layers that see the image itself, before any other; None for the rule of their
            kind.
    """

    conv: Rule
    dense: Rule
    first: Rule | None = None

    def rule(self, role: Role, *, first: bool) -> Rule:
        """The rule of a layer."""
        if first and self.first is not None:
            return self.first
        return self.conv if role == "conv" else self.dense


def find_composite(
    name: str,
    *,
    epsilon: float,
    gamma: float,
    first: str | None,
    box: tuple[Bound, Bound],
) -> Composite:
    """Make a composite by its name; see `lrp_rules`.

    Raises:
        FedgazeError: An argument cannot be used.
    """
    for what, value in (("epsilon", epsilon), ("gamma", gamma)):
        if not value >= 0:
            raise FedgazeError(f"{what} is {value}; allowed is 0 and more")
    _check("composite", name, COMPOSITES)
    dense = linear.epsilon(epsilon)
    conv = {
        "epsilon": dense,
        "plus": linear.alpha_beta(1, 0),
        "gamma": linear.gamma(gamma),
        "alpha2_beta1": linear.alpha_beta(2, 1),
    }[_CONVOLUTIONS[name]]
    if first is None:
        first = next((each for each in _FIRST if name.endswith(f"_{each}")), None)
    else:
        _check("first", first, _FIRST)
    if first == "box":
        return Composite(conv, dense, _in_box(box, name))
    return Composite(conv, dense, _BLIND[first]() if first else None)


def _in_box(box: tuple[Bound, Bound], name: str) -> Rule:
    if any(each is None for each in box):
        raise FedgazeError(
            f"{name} needs low and high, the least and greatest values that pixels can have as the "
            "first layer gets them; give one number each, or one a channel"
        )

    def rule(layer: linear.Layer, x: Tensor, relevance: Tensor) -> Tensor:
        low, high = (_bound(each, x) for each in box)
        if not bool((low < high).all()):
            raise FedgazeError(f"low is {box[0]} and high is {box[1]}; allowed is a low below high")
        slack = 0.01 * (high - low)  # pixels may have been rounded
        if not bool(((x >= low - slack) & (x <= high + slack)).all()):
            raise FedgazeError(
                f"the first layer gets values from {x.amin():.4g} to {x.amax():.4g}; allowed is "
                f"what lies within low, {box[0]}, and high, {box[1]}"
            )
        return linear.box(low, high)(layer, x, relevance)

    return rule


def _bound(value: Bound, x: Tensor) -> Tensor:
    """A bound of pixels as a tensor that goes with ``(N, C, *size)``."""
    bound = torch.as_tensor(value).to(x)
    return bound.reshape(-1, *[1] * (x.dim() - 2)) if bound.dim() == 1 else bound


def _check(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise FedgazeError(
            f"{what} is {value!r}; allowed are {', '.join(allowed)}{nearest(str(value), allowed)}"
        )
