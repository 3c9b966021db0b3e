"""What a metric is, and where metrics are found by name."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai import check_options, options_of

__all__ = ["Axis", "Better", "Metric"]

Axis = Literal["faithfulness", "localisation", "robustness", "randomisation", "complexity"]
Better = Literal["higher", "lower"]

NEEDS = {
    "runner": "the model",
    "heatmaps": "heatmaps",
    "explain": "a way to make heatmaps again",
    "model": "the model",
    "images": "images",
    "classes": "a class of each image",
    "explain_model": "a way to make heatmaps of a changed model",
    "mask": "a box or a mask of the object",
    "boxes": "a box of the object",
    "pictures": "the pictures before normalisation",
    "layer": "a layer",
}
"""What a metric may be given, by the name of its parameter."""


@dataclass(frozen=True)
class Metric:
    """A way to judge heatmaps, and what it takes.

    Attributes:
        name: As people write it.
        compute: Returns ``(N,)``, NaN for an image for which it has no value. Its positional
            parameters are of `NEEDS`; keyword-only parameters are options.
        axis: What it is about.
        better: Whether ``"higher"`` or ``"lower"`` values are better.
        low: The least value there is.
        high: The greatest; infinity if there is none.
        cost: In forward passes or explanations an image, in words.
        paper: Where it comes from.
    """

    name: str
    compute: Callable[..., Tensor]
    axis: Axis
    better: Better
    low: float
    high: float
    cost: str
    paper: str

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of `NEEDS`, in their order."""
        found = inspect.signature(self.compute).parameters.values()
        return tuple(each.name for each in found if each.kind is not each.KEYWORD_ONLY)

    @property
    def options(self) -> dict[str, Any]:
        """The names of the options with their defaults."""
        return options_of(self.compute)

    def check_options(self, given: Iterable[str]) -> None:
        """Find options that the metric does not have.

        Raises:
            FedgazeError: There is one.
        """
        check_options(self.name, self.options, given)

    def read_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options as a person writes them, as what the metric takes.

        Args:
            given: Numbers, texts, lists, and for what has parts an object of these, such as
                ``{"around": {"radius": 0.1}}``.

        Raises:
            FedgazeError: There is no such option, or it cannot have this value.
        """
        self.check_options(given)
        return {name: self._fitted(name, value) for name, value in given.items()}

    def _fitted(self, name: str, value: Any) -> Any:
        default = self.options[name]
        if is_dataclass(default) and not isinstance(default, type):
            parts = [each.name for each in fields(default)]
            if isinstance(value, Mapping):
                check_options(f"{name} of {self.name}", parts, value)
                return replace(default, **value)
        elif isinstance(default, tuple):
            found = value if isinstance(value, list | tuple) else [value]
            if found and all(_number(each) for each in found):
                return tuple(found)
        elif isinstance(default, bool):
            if isinstance(value, bool):
                return value
        elif isinstance(default, str):
            # A baseline may be a number, too.
            if isinstance(value, str) or _number(value):
                return value
        elif _number(value) and (isinstance(default, float) or isinstance(value, int)):
            return value
        raise FedgazeError(
            f"{name} of {self.name} is {value!r}; allowed is something like {default!r}"
        )

    @property
    def meaning(self) -> str:
        """What it says, in a sentence."""
        return first_line(self.compute)

    def __call__(self, given: Mapping[str, Any], **options: Any) -> Tensor:
        """Compute it from what is given by name.

        Raises:
            FedgazeError: Something that it needs is not given, or it has no such option.
        """
        for need in self.needs:
            if given.get(need) is None:
                raise FedgazeError(f"{self.name} needs {NEEDS[need]}")
        self.check_options(options)
        return self.compute(*[given[need] for need in self.needs], **options)

    @property
    def span(self) -> str:
        """Its range, for people."""
        ends = [f"{each:g}" if math.isfinite(each) else "∞" for each in (self.low, self.high)]
        return f"{ends[0]} to {ends[1]}"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def first_line(function: Callable[..., Any]) -> str:
    """The sentence with which a function's docstring begins."""
    return (inspect.getdoc(function) or "").partition("\n")[0]
