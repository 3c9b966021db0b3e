"""What a method is, and where methods are found by name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from torch import Tensor

from fedgaze.errors import FedgazeError, nearest

__all__ = ["GROUP", "CostClass", "Kind", "Method", "Reduction", "third_party"]

GROUP = "fedgaze.methods"
"""The entry point group in which other packages offer a `Method`."""

Kind = Literal["weights", "map", "attention", "run"]
Reduction = Literal["sum", "max_abs"]
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
        many: Whether it runs the model many times: once a channel, a step, a sample or a mask.
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
    many: bool = False

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
        options = _options(self.compute) | _options(self.score)
        if self.kind == "attention":
            # How many tokens lead is found out.
            options.pop("prefix", None)
        return options

    def options_of_score(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the given options that are the score's."""
        return {name: each for name, each in given.items() if name in _options(self.score)}

    def check_options(self, given: Mapping[str, Any]) -> None:
        """Find options that the method does not have.

        Raises:
            FedgazeError: There is one.
        """
        for name in given:
            if name not in self.options:
                allowed = ", ".join(self.options) or "none"
                raise FedgazeError(
                    f"{self.name} has no option {name!r}; allowed are {allowed}"
                    f"{nearest(name, self.options)}"
                )


def _options(function: Callable[..., Tensor] | None) -> dict[str, Any]:
    if function is None:
        return {}
    found = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in found if each.kind is each.KEYWORD_ONLY}


@cache
def third_party() -> Mapping[str, Method]:
    """The methods that other packages offer, by name.

    Raises:
        FedgazeError: What is offered is no `Method`, or cannot be imported.
    """
    found: dict[str, Method] = {}
    for point in entry_points(group=GROUP):
        try:
            method = point.load()
        except Exception as error:  # whatever a foreign package raises when it is imported
            raise FedgazeError(
                f"the entry point {point.name!r} of {GROUP} ({point.value}) cannot be loaded: "
                f"{error}"
            ) from error
        if not isinstance(method, Method):
            raise FedgazeError(
                f"the entry point {point.name!r} of {GROUP} ({point.value}) is "
                f"{type(method).__name__}; allowed is a fedgaze.xai.Method"
            )
        found[method.name] = method
    return found
