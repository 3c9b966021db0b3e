"""What the gate decided, as a run's record has it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedgaze.report.federated.record import Record, mapping, number

__all__ = ["Decision", "Judged", "Suspect", "read_decisions"]

THRESHOLD = 0.5
"""Where a record does not say from which suspicion an update is suspicious."""
WEAK = 0.9
"""An update of which no more is let through is weakened: without any evidence against it, the
policy ``downweight`` lets a little more through."""
ADDS_UP = "no difference stands out by itself; evidence adds up over measures and rounds"
NOTHING = "nothing that counts as a reason"


@dataclass(frozen=True)
class Decision:
    """What became of an update.

    Attributes:
        round: When.
        client: Whose.
        policy: The task's.
        suspicion: In [0, 1].
        factor: How much of its step was let through, in [0, 1].
        reasons: In words, the strongest first, at least one.
        spreads: In what it stood apart, and by how many spreads, the furthest first.
        suspicious: Whether the suspicion reached the threshold.
    """

    round: int
    client: Any
    policy: str
    suspicion: float
    factor: float
    reasons: list[str]
    spreads: list[tuple[str, float]]
    suspicious: bool

    @property
    def telling(self) -> bool:
        """Whether it is one to speak of."""
        return self.suspicious or self.factor <= WEAK

    @property
    def outcome(self) -> str:
        """What happened to the update."""
        if self.factor == 0:
            return "kept out"
        if self.factor < 1:
            return f"counts {self.factor:.2f} of itself"
        return "only reported" if self.suspicious and self.policy == "report" else "let through"


@dataclass(frozen=True)
class Suspect:
    """A client whose last update was suspicious.

    Attributes:
        client: Who.
        since: The first round since which each of its updates was.
        last: The decision of the last one.
    """

    client: Any
    since: int
    last: Decision


@dataclass(frozen=True)
class Judged:
    """All that the gate said in a run.

    Attributes:
        policy: The task's.
        threshold: From which suspicion on an update is suspicious.
        rounds: The decisions of each round that has any, in the order of their clients.
        failed: Why the gate failed, by round.
        compared: Whether there ever were enough updates to compare.
        looked: Whether the task lets the server look for itself.
    """

    policy: str
    threshold: float
    rounds: dict[int, list[Decision]]
    failed: dict[int, str]
    compared: bool
    looked: bool

    @property
    def last(self) -> int:
        """The last round that has decisions."""
        return max(self.rounds)

    @cached_property
    def suspects(self) -> list[Suspect]:
        """The most suspicious first; who takes no part in a round is not cleared by it."""
        tails: dict[Any, list[Decision]] = {}
        for each in self._every:
            tails[each.client] = [*tails.get(each.client, []), each] if each.suspicious else []
        found = [Suspect(who, tail[0].round, tail[-1]) for who, tail in tails.items() if tail]
        return sorted(found, key=lambda each: -each.last.suspicion)

    def kept_out(self, round_: int) -> frozenset[Any]:
        """Whose updates of a round were kept out."""
        return frozenset(each.client for each in self.rounds.get(round_, []) if each.factor == 0)

    @property
    def latest(self) -> list[Decision]:
        """The last decision of each client, the most suspicious first."""
        found = {each.client: each for each in self._every}
        return sorted(found.values(), key=lambda each: -each.suspicion)

    @property
    def cleared(self) -> dict[Any, list[int]]:
        """Who was suspicious once and is no longer, and in which rounds."""
        suspected = {each.client for each in self.suspects}
        found: dict[Any, list[int]] = {}
        for each in self._every:
            if each.suspicious and each.client not in suspected:
                found.setdefault(each.client, []).append(each.round)
        return found

    @property
    def _every(self) -> list[Decision]:
        return [each for some in self.rounds.values() for each in some]


def read_decisions(record: Record) -> Judged | None:
    """What the gate said in a run; None where there was no gate."""
    said = {each: mapping(record.round(each).get("gate")) for each in record.rounds}
    said = {round_: gate for round_, gate in said.items() if gate}
    if not said:
        return None
    threshold = number(mapping(record.task.get("gate")).get("threshold"))
    threshold = THRESHOLD if threshold is None else threshold
    clients = frozenset(record.clients)
    rounds = {
        round_: [
            decision
            for each in gate.get("clients") or []
            if (decision := _decision(round_, gate.get("policy"), mapping(each), threshold))
            and decision.client in clients
        ]
        for round_, gate in said.items()
    }
    return Judged(
        policy=str(said[max(said)].get("policy")),
        threshold=threshold,
        rounds={round_: some for round_, some in rounds.items() if some},
        failed={each: str(gate["failed"]) for each, gate in said.items() if gate.get("failed")},
        compared=any(mapping(gate.get("spreads")) for gate in said.values()),
        looked=mapping(record.task.get("xai")).get("run_location") != "client",
    )


def _decision(round_: int, policy: Any, said: Any, threshold: float) -> Decision | None:
    client, reasons = said.get("client"), said.get("reasons")
    suspicion, factor = number(said.get("suspicion")), number(said.get("factor"))
    if not isinstance(client, int | str) or suspicion is None or factor is None:
        return None
    suspicious = suspicion >= threshold or factor == 0
    spreads = {name: number(value) for name, value in mapping(said.get("spreads")).items()}
    known = [(str(name), value) for name, value in spreads.items() if value is not None]
    return Decision(
        round=round_,
        client=client,
        policy=str(policy),
        suspicion=suspicion,
        factor=factor,
        reasons=[str(each) for each in reasons or []] or [ADDS_UP if suspicious else NOTHING],
        spreads=sorted(known, key=lambda pair: -pair[1]),
        suspicious=suspicious,
    )
