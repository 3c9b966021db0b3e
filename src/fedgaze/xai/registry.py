"""What a method is, and where methods are found by name."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import Tensor

from fedgaze.errors import FedgazeError, nearest
from fedgaze.plugins import offered

__all__ = [
    "GROUP",
    "CostClass",
    "Kind",
    "Method",
    "Reduction",
    "check_options",
    "options_of",
    "third_party",
]

GROUP = "fedgaze.methods"
"""The entry point group in which other packages offer a `Method`."""

Kind = Literal["weights", "map", "attention", "run"]
Reduction = Literal["sum", "max_abs"]
Fusion = Literal["mean", "max", "weighted", "layercam"]
CostClass = Literal["forward", "backward", "many"]


@dataclass(frozen=True)
class Method:
    """A way to explain, and what it takes.

    Attributes:
        name: As people write it.
        compute: A function of tensors; keyword-only parameters are the method's options. By kind:

            - ``"weights"``: ``(A (N, K, *s), g (N, K, *s)) -> w``, broadcast against A. The raw map
              is ``relu(sum_k w A_k)``.
            - ``"map"``: ``(A, g) -> raw (N, *s)``, signed; g is None if it needs no gradients.
            - ``"attention"``: ``(attentions, gradients, *, query, prefix) -> (N, T)``: the
              relevance of each token, from the weights ``(N, heads, T, T)`` of each block, first
              to last, and theirs (None if it needs no gradients); query is ``"class"`` or
              ``"mean"``, for which tokens are read at the end, prefix how many tokens lead that
              are no patches.
            - ``"run"``: ``(runner) -> raw (N, S, *s)``, or ``(N, S, C, *size)`` where each number
              of the image is judged, for S targets an image; see `fedgaze.xai.Runner`.
        kind: See compute.
        cost: What it costs, in words.
        paper: Where it comes from: authors, title, venue and year, equation.
        layers: Whether it explains layers (and not the input or the attention).
        gradients: Whether it needs gradients.
        relu: Whether the paper keeps only what speaks for the target.
        reduction: How the numbers ``(C, *size)`` of an image become one map.
        score: For classes as targets, ``(logits (N, C), classes (N,)) -> scores (N,)``: what is
            explained instead of the classes' logits; its keyword-only parameters are options, too.
        differentiable: Whether its maps can be trained with.
        fusion: How its paper makes one map of those of several layers.
        many: Whether it runs the model many times: once a channel, a step, a sample or a mask.
        biases: Whether it tells apart the biases of layers, also those of a convolution and the
            BatchNorm after it.
    """

    name: str
    compute: Callable[..., Tensor]
    kind: Kind
    cost: str
    paper: str
    layers: bool = True
    gradients: bool = True
    relu: bool = True
    reduction: Reduction = "sum"
    score: Callable[[Tensor, Tensor], Tensor] | None = None
    differentiable: bool = True
    fusion: Fusion = "mean"
    many: bool = False
    biases: bool = False

    @property
    def cost_class(self) -> CostClass:
        """One ``"forward"`` pass, that and one ``"backward"``, or ``"many"``."""
        if self.many:
            return "many"
        return "backward" if self.gradients else "forward"

    @property
    def needs(self) -> tuple[str, ...]:
        """Of a model: ``"layer"`` (one with positions), ``"attention"``, ``"gradients"``."""
        needs = {
            "layer": self.layers,
            "attention": self.kind == "attention",
            "gradients": self.gradients,
        }
        return tuple(name for name, needed in needs.items() if needed)

    @property
    def options(self) -> dict[str, Any]:
        """The names of the options with their defaults."""
        options = options_of(self.compute) | options_of(self.score)
        if self.kind == "attention":
            # How many tokens lead is found out.
            options.pop("prefix", None)
        return options

    def options_of_score(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the given options that are the score's."""
        return {name: each for name, each in given.items() if name in options_of(self.score)}

    def check_options(self, given: Mapping[str, Any]) -> None:
        """Find options that the method does not have.

        Raises:
            FedgazeError: There is one.
        """
        check_options(self.name, self.options, given)


def check_options(name: str, options: Iterable[str], given: Iterable[str]) -> None:
    """Find options that something does not have.

    Args:
        name: Its own.
        options: Those that it has.
        given: Those that are asked for.

    Raises:
        FedgazeError: There is one.
    """
    known = list(options)
    for each in given:
        if each not in known:
            allowed = ", ".join(known) or "none"
            raise FedgazeError(
                f"{name} has no option {each!r}; allowed are {allowed}{nearest(each, known)}"
            )


def options_of(function: Callable[..., Tensor] | None) -> dict[str, Any]:
    """The names of a function's options, which are keyword-only, with their defaults."""
    if function is None:
        return {}
    found = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in found if each.kind is each.KEYWORD_ONLY}


@cache
def third_party(built_in: frozenset[str]) -> tuple[Mapping[str, Method], Mapping[str, str]]:
    """What other packages offer: see `fedgaze.plugins.offered`; asked once.

    Args:
        built_in: The names of fedgaze's own methods, which no other method may have.

    Returns:
        The methods by name; and by the name of an entry point what is wrong with what it offers.
    """
    return offered(GROUP, Method, "method", built_in)
