"""Why an update is suspicious, in words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedgaze.federate.gate.measures import excess
from fedgaze.federate.gate.peers import others as all_but
from fedgaze.federate.gate.seen import Seen

if TYPE_CHECKING:
    from fedgaze.federate.gate.gate import Finding

__all__ = ["reasons_of"]

MARKS = ("pull", "pattern")
"""Measures of marks, in the order of ``Seen.pulls``."""
MOST = 3
"""Reasons that are given at most; of what weighs nothing, one less."""
LEAST = 1.0
"""Spreads from which on a difference is a reason."""
TELLING = 2.0
"""The same, of what weighs nothing and is said beside."""


def reasons_of(
    findings: Sequence["Finding"], classes: Sequence[str], seen: Seen, k: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Why an update is suspicious, and what else is seen of it, a phrase each.

    Args:
        findings: What each measure says of the update.
        classes: Class names by index.
        seen: The round.
        k: Which update of it.

    Returns:
        What weighs, marks first, then by weight; and what stands apart and weighs nothing.
    """
    weighty = [each for each in findings if each.nats > 0 and each.spreads >= LEAST]
    weighty.sort(key=lambda each: (each.measure.name not in MARKS, -each.nats))
    beside = [each for each in findings if not each.measure.weight and each.spreads >= TELLING]
    beside.sort(key=lambda each: -each.spreads)

    def told(chosen: Sequence["Finding"]) -> tuple[str, ...]:
        phrases = (_phrase(each, classes, seen, k) for each in chosen)
        return tuple(each for each in phrases if each is not None)

    return told(weighty[:MOST]), told(beside)[: MOST - 1]


def _phrase(finding: "Finding", classes: Sequence[str], seen: Seen, k: int) -> str | None:
    measure = finding.measure
    if measure.name in MARKS:
        kind = MARKS.index(measure.name)
        number = int(excess(seen, kind)[k].nan_to_num(-torch.inf).argmax())
        found, pulls = seen.found[number][kind], seen.pulls[:, kind, number]
        rest = pulls[all_but(len(pulls), k)].nanmedian()
        return (
            f"{found.mark.name} pulls it to class {classes[found.target]}: {_number(pulls[k])} of "
            f"probability, the others {_number(rest)}"
        )
    if measure.against == "zero":
        return f"{measure.says}: {_number(finding.values[0])} nats"
    if measure.shown == "logarithm":
        times = float((finding.values[0] - finding.others[0]).exp())
        return f"{measure.says}: {_number(times)} times the others’"
    if len(finding.values) == 1:
        return _compared(measure.says, finding.values[0], finding.others[0])
    sign = {"high": 1.0, "low": -1.0}.get(measure.suspect)
    apart = finding.apart.abs() if sign is None else sign * finding.apart
    order = apart.nan_to_num(-torch.inf).topk(min(2, len(apart)))
    shown = [
        c for c, z in zip(order.indices.tolist(), order.values.tolist(), strict=True) if z >= LEAST
    ]
    shown = sorted(shown or order.indices[:1].tolist())
    value, rest = finding.values[shown].nanmean(), finding.others[shown].nanmean()
    if measure.per == "light":
        return _compared(measure.says, value, rest)
    names = " and ".join(classes[c] for c in shown)
    word = "class" if len(shown) == 1 else "classes"
    said = f"{measure.says} for {word} {names}"
    return _compared(said, value, rest)


def _compared(said: str, value: Tensor, others: Tensor) -> str | None:
    """None where two numbers that differ look alike, which tells nobody anything."""
    if _number(value) == _number(others):
        return None
    return f"{said}: {_number(value)}, the others {_number(others)}"


def _number(value: Tensor | float) -> str:
    return f"{float(value):.2f}"
