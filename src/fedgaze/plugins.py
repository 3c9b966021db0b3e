"""What other packages offer through entry points."""

import warnings
from collections.abc import Collection
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

__all__ = ["Named", "offered"]


class Named(Protocol):
    """Something that is found by its name."""

    @property
    def name(self) -> str:
        """As people write it."""


T = TypeVar("T", bound=Named)


def offered(
    group: str, kind: type[T], noun: str, built_in: Collection[str]
) -> tuple[dict[str, T], dict[str, str]]:
    """What other packages offer. One of them that is broken takes nothing from the others.

    Each that cannot be used is warned of, with the name of its entry point.

    Args:
        group: The entry points' group.
        kind: What they have to lead to.
        noun: What that is called.
        built_in: The names of fedgaze's own, which nothing else may have.

    Returns:
        What can be used, by name; and by the name of an entry point what is wrong with its offer.
    """
    found: dict[str, T] = {}
    wrong: dict[str, str] = {}
    for point in entry_points(group=group):
        what = f"the entry point {point.name!r} of {group} ({point.value})"
        problem = None
        try:
            offer = point.load()
        except Exception as error:  # noqa: BLE001 - whatever a foreign package raises
            problem = f"cannot be loaded: {type(error).__name__}: {error}"
        else:
            if not isinstance(offer, kind):
                allowed = f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}"
                problem = f"is {type(offer).__name__}; allowed is a {allowed}"
            elif offer.name in built_in:
                problem = f"is named {offer.name!r}, as a {noun} of fedgaze is; it is ignored"
            elif offer.name in found:
                problem = f"is named {offer.name!r}, as another one is; it is ignored"
            else:
                found[offer.name] = offer
        if problem is not None:
            wrong[point.name] = f"{what} {problem}"
            warnings.warn(wrong[point.name], RuntimeWarning, stacklevel=4)
    return found, wrong
