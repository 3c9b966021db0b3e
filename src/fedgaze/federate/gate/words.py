"""Why an update is suspicious, in words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fedgaze.federate.gate.measures import others
from fedgaze.federate.gate.seen import Seen

if TYPE_CHECKING:
    from fedgaze.federate.gate.gate import Finding

__all__ = ["reasons_of"]

MOST = 3
"""Reasons that are given at most."""
LEAST = 2.0
"""Spreads from which on a difference is a reason."""


def reasons_of(
    findings: Sequence["Finding"], classes: Sequence[str], seen: Seen, k: int
) -> tuple[str, ...]:
    """The findings that weigh most, a phrase each, the strongest first.

    Args:
        findings: What each measure says of the update.
        classes: Class names by index.
        seen: The round.
        k: Which update of it.
    """
    telling = [each for each in findings if each.nats > 0 and each.spreads >= LEAST]
    telling.sort(key=lambda each: -each.nats)
    return tuple(_phrase(each, classes, seen, k) for each in telling[:MOST])


def _phrase(finding: "Finding", classes: Sequence[str], seen: Seen, k: int) -> str:
    measure = finding.measure
    if measure.name == "pull" and (sight := seen.sights[k]) is not None:
        own, rest = sight.pulls[k], seen.pulls[others(len(seen.clients), k), k].nanmedian()
        target = classes[sight.sought.target]
        return (
            f"{sight.sought.patch.name} pulls it to class {target}: {_number(own)} of probability, "
            f"the others {_number(rest)}"
        )
    if len(finding.values) == 1:
        return (
            f"{measure.says}: {_number(finding.values[0])}, the others {_number(finding.others[0])}"
        )
    sign = {"high": 1.0, "low": -1.0}.get(measure.suspect)
    apart = finding.apart.abs() if sign is None else sign * finding.apart
    order = apart.nan_to_num(-torch.inf).topk(min(2, len(apart)))
    shown = [
        c for c, z in zip(order.indices.tolist(), order.values.tolist(), strict=True) if z >= LEAST
    ]
    shown = sorted(shown or order.indices[:1].tolist())
    names = " and ".join(classes[c] for c in shown)
    word = "class" if len(shown) == 1 else "classes"
    values = (finding.values[shown].nanmean(), finding.others[shown].nanmean())
    return (
        f"{measure.says} for {word} {names}: {_number(values[0])}, the others {_number(values[1])}"
    )


def _number(value: "torch.Tensor | float") -> str:
    return f"{float(value):.2f}"
