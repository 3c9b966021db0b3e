"""The gate's measures by name, other packages' among them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest
from fedgaze.federate.gate import measures
from fedgaze.federate.gate.calibrated import WEIGHTS
from fedgaze.federate.gate.seen import Seen
from fedgaze.federate.gate.standing import Suspect
from fedgaze.plugins import offered

__all__ = ["GROUP", "GateMeasure", "find_measures", "gate_measures"]

GROUP = "fedgaze.gate_measures"
"""The entry point group in which other packages offer a `GateMeasure`."""

Per = Literal["update", "class", "image"]
Shown = Literal["share", "probability", "number"]


@dataclass(frozen=True)
class GateMeasure:
    """Something that an update is compared with its peers by.

    Attributes:
        name: As a task's ``gate.measures`` and records have it.
        compute: From what was seen to ``(K,)``, ``(K, classes)`` or, of the probe's images,
            ``(K, N)``; NaN where there is no value.
        per: Which of these.
        suspect: Which end is the suspicious one.
        floor: The least spread of honest updates that is believed, in the measure's own unit.
        says: What it is, as a reason has it: "its heat on the object".
        looks: Whether it needs the server's own look.
        weight: How much it counts: what ``ln(1 + spreads)`` is multiplied by, in nats.
    """

    name: str
    compute: Callable[[Seen], Tensor]
    per: Per
    suspect: Suspect
    floor: float
    says: str
    looks: bool = True
    weight: float = 0.0

    def values(self, seen: Seen) -> Tensor:
        """The values to compare: ``(K,)`` or ``(K, classes)``, float64."""
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


def _own(
    name: str,
    compute: Callable[[Seen], Tensor],
    per: Per,
    suspect: Suspect,
    floor: float,
    says: str,
    *,
    looks: bool = True,
) -> GateMeasure:
    return GateMeasure(name, compute, per, suspect, floor, says, looks, WEIGHTS.get(name, 0.0))


# fmt: off
_OURS = (
    _own("pull", measures.pull, "update", "high", 0.05,
         "how far the patch that was sought for it pulls it"),
    _own("changed", measures.changed, "class", "high", 0.05,
         "how far a change of the whole image pulls it"),
    _own("confusion", measures.confusion, "class", "high", 0.05,
         "how much of another class it takes for this one"),
    _own("object_mass", _measured("object_mass"), "image", "low", 0.02,
         "its heat on the object"),
    _own("object_drop", _measured("object_drop"), "image", "low", 0.03,
         "its drop without the object"),
    _own("region_drop", _measured("region_drop"), "image", "both", 0.03,
         "its drop without the region where its heat is strongest"),
    _own("border_mass", _measured("border_mass"), "image", "high", 0.01,
         "its heat along the border"),
    _own("entropy", _measured("entropy"), "image", "both", 0.02,
         "how evenly its heat is spread"),
    _own("gini", _measured("gini"), "image", "both", 0.02,
         "how unevenly its heat is spread"),
    _own("agreement", _agreement(ranks=False, with_received=True), "image", "low", 0.02,
         "its heat in common with the received model’s"),
    _own("rank_agreement", _agreement(ranks=True, with_received=True), "image", "low", 0.03,
         "the rank correlation of its heat with the received model’s"),
    _own("peer_agreement", _agreement(ranks=False, with_received=False), "image", "low", 0.02,
         "its heat in common with the others’"),
    _own("peer_rank_agreement", _agreement(ranks=True, with_received=False), "image", "low", 0.03,
         "the rank correlation of its heat with the others’"),
    _own("degenerate", measures.degenerate, "image", "high", 0.10,
         "its heatmaps that say nothing"),
    _own("loss", measures.loss, "update", "high", 0.05,
         "its loss on the server’s images"),
    _own("accuracy", measures.accuracy, "update", "low", 0.02,
         "its accuracy on the server’s images"),
    _own("length", measures.length, "update", "both", 0.05,
         "the logarithm of its step’s length", looks=False),
    _own("direction", measures.direction, "update", "high", 0.02,
         "how far its step turns away from the others’", looks=False),
    _own("own_object_mass", _said("object_mass"), "update", "low", 0.05,
         "by its own word, its heat on the object", looks=False),
    _own("own_border_mass", _said("border_mass"), "update", "high", 0.03,
         "by its own word, its heat along the border", looks=False),
    _own("own_entropy", _said("entropy"), "update", "both", 0.05,
         "by its own word, how evenly its heat is spread", looks=False),
    _own("own_agreement", _said("agreement"), "update", "low", 0.05,
         "by its own word, its heat in common with the received model’s", looks=False),
)
# fmt: on


def gate_measures() -> dict[str, GateMeasure]:
    """All measures by name, other packages' last."""
    ours = {each.name: each for each in _OURS}
    return {**ours, **_third_party(frozenset(ours))}


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
