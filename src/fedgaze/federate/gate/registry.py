"""The gate's measures by name, other packages' among them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest
from fedgaze.federate.gate import measures
from fedgaze.federate.gate.calibrated import WEIGHTS
from fedgaze.federate.gate.seen import Seen
from fedgaze.federate.gate.standing import Against, Suspect
from fedgaze.plugins import offered

__all__ = ["GROUP", "GateMeasure", "find_measures", "gate_measures"]

GROUP = "fedgaze.gate_measures"
"""The entry point group in which other packages offer a `GateMeasure`."""

Per = Literal["update", "class", "image", "light"]
Shown = Literal["value", "logarithm"]


@dataclass(frozen=True)
class GateMeasure:
    """Something that an update is compared with its peers by.

    Attributes:
        name: As a task's ``gate.measures`` and records have it.
        compute: From what was seen to ``(K,)``, ``(K, classes)``, of the probe's images ``(K, N)``
            or, of changes of light, ``(K, T)``; NaN where there is no value.
        per: Which of these.
        suspect: Which end is the suspicious one.
        floor: The least spread of honest updates that is believed, in the measure's own unit.
        says: What it is, as a reason has it: "its heat on the object".
        looks: Whether it needs the server's own look.
        weight: How much it counts: what ``ln(1 + (2 spreads)^2)`` is multiplied by, in nats.
        against: What an update is held against: the median of the others, or zero, where a value
            compares already.
        shown: How a reason has the value; a logarithm as how many times the others'.
    """

    name: str
    compute: Callable[[Seen], Tensor]
    per: Per
    suspect: Suspect
    floor: float
    says: str
    looks: bool = True
    weight: float = 0.0
    against: Against = "others"
    shown: Shown = "value"

    def values(self, seen: Seen) -> Tensor:
        """The values to compare: ``(K,)``, ``(K, classes)`` or ``(K, T)``, float64."""
        found = self.compute(seen)
        return (measures.class_means(seen, found) if self.per == "image" else found).double()


def _measured(name: str) -> Callable[[Seen], Tensor]:
    return lambda seen: seen.measured(name)


def _said(name: str) -> Callable[[Seen], Tensor]:
    """What clients say of their own maps; they are believed no more than a sentence of theirs."""

    def said(seen: Seen) -> Tensor:
        values = [profile.get(name) for profile in seen.profiles]
        return torch.tensor(
            [float("nan") if each is None else float(each) for each in values], dtype=torch.double
        )

    return said


def _agreement(*, ranks: bool, with_received: bool) -> Callable[[Seen], Tensor]:
    return partial(measures.agreement, ranks=ranks, with_received=with_received)


# fmt: off
_ALL = (
    GateMeasure("harm", measures.harm, "update", "high", 0.05,
                "how much it raises the loss of the merge", against="zero"),
    GateMeasure("help", measures.help_, "update", "low", 0.05,
                "how much it lowers the loss of the merge where it helps most", against="zero"),
    GateMeasure("pull", partial(measures.pull, kind=0), "update", "high", 0.05,
                "how far a patch pulls it"),
    GateMeasure("pattern", partial(measures.pull, kind=1), "update", "high", 0.05,
                "how far a faint pattern pulls it"),
    GateMeasure("light", measures.light, "update", "high", 0.03,
                "how much surer it makes the merge under other light", against="zero"),
    GateMeasure("recolouring", measures.recolouring, "light", "high", 0.05,
                "how far its first layer saw images as under other light"),
    GateMeasure("contrast", measures.contrast, "update", "both", 0.02,
                "the contrast of the images that its first layer saw", shown="logarithm"),
    GateMeasure("statistics", measures.statistics, "update", "high", 0.05,
                "how unlike the others’ the images are that its first layer saw"),
    GateMeasure("confusion", measures.confusion, "class", "high", 0.05,
                "how much of another class it takes for this one"),
    GateMeasure("object_mass", _measured("object_mass"), "image", "low", 0.02,
                "its heat on the object"),
    GateMeasure("object_drop", _measured("object_drop"), "image", "low", 0.03,
                "its drop without the object"),
    GateMeasure("region_drop", _measured("region_drop"), "image", "both", 0.03,
                "its drop without the region where its heat is strongest"),
    GateMeasure("border_mass", _measured("border_mass"), "image", "high", 0.01,
                "its heat along the border"),
    GateMeasure("entropy", _measured("entropy"), "image", "both", 0.02,
                "how evenly its heat is spread"),
    GateMeasure("gini", measures.unevenness, "image", "both", 0.02,
                "how unevenly its heat is spread"),
    GateMeasure("agreement", _agreement(ranks=False, with_received=True), "image",
                "both", 0.02, "its heat in common with the received model’s"),
    GateMeasure("rank_agreement", _agreement(ranks=True, with_received=True), "image",
                "both", 0.03, "the rank correlation of its heat with the received model’s"),
    GateMeasure("peer_agreement", _agreement(ranks=False, with_received=False), "image",
                "low", 0.02, "its heat in common with the others’"),
    GateMeasure("peer_rank_agreement", _agreement(ranks=True, with_received=False), "image",
                "low", 0.03, "the rank correlation of its heat with the others’"),
    GateMeasure("degenerate", measures.degenerate, "image", "high", 0.10,
                "its heatmaps that say nothing"),
    GateMeasure("loss", measures.loss, "update", "high", 0.05,
                "its loss on the server’s images"),
    GateMeasure("doubt", measures.doubt, "update", "high", 0.02,
                "how undecided it is on the server’s images"),
    GateMeasure("accuracy", measures.accuracy, "update", "low", 0.02,
                "its accuracy on the server’s images"),
    GateMeasure("length", measures.length, "update", "both", 0.05,
                "the length of its step", looks=False, shown="logarithm"),
    GateMeasure("direction", measures.direction, "update", "high", 0.02,
                "how far its step turns away from the others’", looks=False),
    GateMeasure("distance", measures.distance, "update", "high", 0.05,
                "the distance of its step from the others’", looks=False, shown="logarithm"),
    GateMeasure("layers", measures.layers, "update", "high", 0.05,
                "how unlike the others’ its step is divided among layers", looks=False),
    GateMeasure("own_object_mass", _said("object_mass"), "update", "low", 0.05,
                "by its own word, its heat on the object", looks=False),
    GateMeasure("own_border_mass", _said("border_mass"), "update", "high", 0.03,
                "by its own word, its heat along the border", looks=False),
    GateMeasure("own_entropy", _said("entropy"), "update", "both", 0.05,
                "by its own word, how evenly its heat is spread", looks=False),
    GateMeasure("own_agreement", _said("agreement"), "update", "low", 0.05,
                "by its own word, its heat in common with the received model’s", looks=False),
)
# fmt: on
_OURS = {each.name: replace(each, weight=WEIGHTS.get(each.name, 0.0)) for each in _ALL}


def gate_measures() -> dict[str, GateMeasure]:
    """All measures by name, other packages' last."""
    return {**_OURS, **_third_party(frozenset(_OURS))}


def find_measures(names: list[str] | None) -> tuple[GateMeasure, ...]:
    """The measures of a task.

    Args:
        names: As ``gate.measures`` has them; None for all.

    Raises:
        FedgazeError: There is no such measure.
    """
    known = gate_measures()
    for name in names or ():
        if name not in known:
            raise FedgazeError(
                f"gate.measures: there is no measure '{name}'; there are {', '.join(known)}"
                f"{nearest(name, known)}"
            )
    return tuple(known.values()) if names is None else tuple(known[name] for name in names)


@cache
def _third_party(ours: frozenset[str]) -> dict[str, GateMeasure]:
    return offered(GROUP, GateMeasure, "measure", ours)[0]
