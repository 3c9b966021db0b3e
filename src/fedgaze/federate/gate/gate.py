"""The gate: a suspicion for each update, with reasons, and what follows from it."""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from torch import Tensor

from fedgaze.config import GateSpec
from fedgaze.federate.gate.calibrated import HEIGHT, MEMORY
from fedgaze.federate.gate.peers import others_median
from fedgaze.federate.gate.registry import GateMeasure, find_measures
from fedgaze.federate.gate.seen import Seen, Sight, shows_something
from fedgaze.federate.gate.standing import spread_of, standing, worst
from fedgaze.federate.gate.words import reasons_of

__all__ = ["Decision", "Finding", "Gate", "strength_of"]

ROUNDS = 5
"""How many earlier rounds say how far honest updates usually stand apart."""
BEFORE, BESIDES = "in an earlier round: ", "besides, "
UNSEEN = "the server could not look at it"
CERTAIN = 10.0
"""Nats above the height, of an update that hides."""


@dataclass(frozen=True, eq=False)
class Finding:
    """What one measure says of one update.

    Attributes:
        measure: Which.
        spreads: How far the update stands at the suspicious end, in spreads: 0 to 10; from -10
            where it is held against zero.
        nats: What it adds to the evidence.
        values: The update's, ``(1,)`` or ``(classes,)``.
        others: The medians of the others, as values.
        apart: The standings, as values.
    """

    measure: GateMeasure
    spreads: float
    nats: float
    values: Tensor
    others: Tensor
    apart: Tensor


@dataclass(frozen=True)
class Decision:
    """What becomes of an update.

    Attributes:
        client: Whose.
        suspicion: In [0, 1].
        evidence: Nats, of this round and, less and less, of those before.
        factor: How much of its step is merged, in [0, 1].
        reasons: In words, the most telling first.
        spreads: By measure, where the update stands apart at all.
    """

    client: int
    suspicion: float
    evidence: float
    factor: float
    reasons: tuple[str, ...]
    spreads: Mapping[str, float] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """As a round's record has it."""
        return {
            "client": self.client,
            "suspicion": round(self.suspicion, 4),
            "evidence": round(self.evidence, 4),
            "factor": round(self.factor, 4),
            "reasons": list(self.reasons),
            "spreads": {name: round(value, 2) for name, value in self.spreads.items()},
        }


class Gate:
    """Judges the updates of one round after the other.

    Each measure says how many spreads an update stands apart from the others of its round;
    ``sum_k w_k ln(1 + (2 spreads_k)^2)`` is the round's evidence against it, in nats (where it
    helps, ``-ln(1 - spreads_k)``): little within half a spread, and never very much. To it comes
    half of what the client's earlier rounds left (an exponentially weighted moving average:
    Roberts, "Control Chart Tests Based on Geometric Moving Averages", Technometrics 1959), so that
    a weak attacker is caught later, and an honest client that stood apart once is believed again.

    Args:
        spec: The task's.
        classes: Class names by index, for reasons.

    Attributes:
        spreads: How far the updates of the last round lie apart, by measure.
        standings: How many spreads each of them stands apart, by client and measure.
    """

    def __init__(self, spec: GateSpec, classes: Sequence[str]) -> None:
        self._spec = spec
        self._classes = tuple(classes)
        self._measures = find_measures(spec.measures)
        self._evidence: dict[int, float] = {}
        self._said: dict[int, tuple[str, ...]] = {}
        self._spreads: dict[str, deque[float]] = {}
        self.spreads: dict[str, float] = {}
        self.standings: dict[int, dict[str, float]] = {}

    def restore(self, rounds: Iterable[Mapping[str, Any]]) -> None:
        """Remember what the records of earlier rounds say.

        Args:
            rounds: The rounds of a run's summary.
        """
        for each in rounds:
            said = each.get("gate", {})
            for client in said.get("clients", []):
                self._evidence[client["client"]] = client["evidence"]
                told = [why for why in client["reasons"] if not why.startswith((BEFORE, BESIDES))]
                if told:
                    self._said[client["client"]] = tuple(told)
            self._remember(said.get("spreads", {}))

    def judge(self, seen: Seen) -> list[Decision]:
        """Judge a round's updates, in the order of their clients."""
        found, spreads = self._find(seen)
        decisions = []
        self.standings = {}
        for k, client in enumerate(seen.clients):
            findings = [each[k] for each in found]
            self.standings[client] = {each.measure.name: each.spreads for each in findings}
            summed = MEMORY * self._evidence.get(client, 0.0) + sum(each.nats for each in findings)
            reasons, beside = reasons_of(findings, self._classes, seen, k)
            if seen.looked and not _shown(seen.sights[k]):
                summed, reasons = HEIGHT + CERTAIN, (UNSEEN, *reasons)
            self._evidence[client] = round(summed, 4)
            suspicion = 1 / (1 + math.exp(HEIGHT - summed))
            if reasons:
                self._said[client] = reasons
            elif suspicion >= 0.5:  # by what was seen of it before
                reasons = tuple(BEFORE + each for each in self._said.get(client, ()))
            reasons += tuple(BESIDES + each for each in beside)
            decisions.append(
                Decision(
                    client,
                    suspicion,
                    summed,
                    self._factor(suspicion),
                    reasons,
                    {each.measure.name: each.spreads for each in findings if each.spreads >= 1},
                )
            )
        self._remember(spreads)
        self.spreads = spreads
        return decisions

    def _factor(self, suspicion: float) -> float:
        if self._spec.policy == "report":
            return 1.0
        if self._spec.policy == "downweight":
            return 1 - suspicion
        return float(suspicion < self._spec.threshold)

    def _find(self, seen: Seen) -> tuple[list[list[Finding]], dict[str, float]]:
        """What each measure says of each update, and how far all of them lie apart."""
        found: list[list[Finding]] = []
        spreads: dict[str, float] = {}
        for measure in self._measures:
            if measure.looks and not seen.looked:
                continue
            values = measure.values(seen)
            known = self._spreads.get(measure.name)
            usual = median(known) if known else 0.0
            apart = standing(values, measure.floor, usual, measure.against)
            beyond = worst(apart, measure.suspect, signed=measure.against == "zero")
            others = others_median(values)
            found.append(
                [
                    Finding(
                        measure,
                        float(beyond[k]),
                        measure.weight * strength_of(float(beyond[k])),
                        values[k].reshape(-1),
                        others[k].reshape(-1),
                        apart[k].reshape(-1),
                    )
                    for k in range(len(seen.clients))
                ]
            )
            spread = spread_of(values).nanmedian()
            if not spread.isnan():
                spreads[measure.name] = float(spread)
        return found, spreads

    def _remember(self, spreads: Mapping[str, float]) -> None:
        for name, value in spreads.items():
            self._spreads.setdefault(name, deque(maxlen=ROUNDS)).append(value)


def _shown(sight: Sight | None) -> bool:
    return shows_something(None if sight is None else sight.look)


def strength_of(spreads: float) -> float:
    """How much a standing speaks against an update, or for it, before it is weighed."""
    return math.log1p((2 * spreads) ** 2) if spreads > 0 else -math.log1p(-spreads)
