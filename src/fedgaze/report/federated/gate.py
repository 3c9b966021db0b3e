"""The gate's section: suspicion by client and round, and the decisions that matter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedgaze.report.federated.decisions import Decision, Judged
from fedgaze.report.federated.record import Record

__all__ = ["Cell", "Gate", "Row", "make_gate"]

STEPS = 4
"""Strengths of the colour below the threshold; the page's style has a class for each."""
NUMBERED = 12
"""With more rounds, cells have no numbers in them."""
DENSE = 24
"""With more clients, their rows are thin."""
MOST_ROUNDS, MOST_CLIENTS, MOST_DECISIONS, MOST_CALM = 120, 100, 40, 10
"""Shown at most: the last rounds, the most suspicious clients, decisions to speak of, and of the
last round so many others."""

_POLICIES = {
    "report": "Here it only reports: whatever it finds, each update is merged like any other.",
    "downweight": "Here it weakens: the more suspicious an update is, the less of its step is "
    "merged, so that even the least suspicious one counts a little less than whole.",
    "reject": "Here it rejects: what is suspicious is kept out of the merge.",
}


@dataclass(frozen=True)
class Cell:
    """An update in the grid.

    Attributes:
        kind: The style's class: ``s0`` to ``s4`` below the threshold, ``hit`` from there on,
            ``blank`` without a decision.
        text: The suspicion; empty without one.
        says: The whole in words.
    """

    kind: str
    text: str
    says: str


@dataclass(frozen=True)
class Row:
    """A client in the grid.

    Attributes:
        client: Who.
        cells: One a round.
        factors: How much of each update was let through, as text.
    """

    client: Any
    cells: list[Cell]
    factors: list[str]


@dataclass(frozen=True)
class Gate:
    """What the section shows.

    Attributes:
        policy: What the gate does, in words.
        threshold: From which suspicion an update is suspicious, as text.
        judged: All that it said.
        rounds: The grid's columns.
        rows: The grid's rows.
        rounds_left_out: How many earlier rounds found no room.
        clients_left_out: How many clients found none.
        numbered: Whether cells have numbers.
        dense: Whether rows are thin.
        weakens: Whether there is any update that was not let through whole.
        last: Decisions of the last round that has any, the most suspicious first.
        last_left_out: How many of these found no room.
        earlier: Decisions to speak of in the rounds before, the last rounds first.
        earlier_left_out: How many of these found no room.
    """

    policy: str
    threshold: str
    judged: Judged
    rounds: list[int]
    rows: list[Row]
    rounds_left_out: int
    clients_left_out: int
    numbered: bool
    dense: bool
    weakens: bool
    last: list[Decision]
    last_left_out: int
    earlier: list[tuple[int, list[Decision]]]
    earlier_left_out: int


def make_gate(record: Record, judged: Judged | None) -> Gate | None:
    """The section of a run; None where no round has decisions.

    Args:
        record: The run.
        judged: What the gate said in it.
    """
    if judged is None or not judged.rounds:
        return None
    every = [each for each in record.rounds if each in judged.rounds or each in judged.failed]
    rounds = every[-MOST_ROUNDS:]
    worst = [each.client for each in judged.latest]
    kept = frozenset(worst[:MOST_CLIENTS])
    clients = [each for each in record.clients if each in kept]
    by_place = {
        (round_, each.client): each for round_ in rounds for each in judged.rounds.get(round_, [])
    }
    every_last = sorted(judged.rounds[judged.last], key=lambda each: -each.suspicion)
    last = [
        *[each for each in every_last if each.telling][:MOST_DECISIONS],
        *[each for each in every_last if not each.telling][:MOST_CALM],
    ]
    earlier, left_out = _earlier(judged)
    return Gate(
        policy=_POLICIES.get(judged.policy, ""),
        threshold=f"{judged.threshold:g}",
        judged=judged,
        rounds=rounds,
        rows=[
            _row(client, [by_place.get((each, client)) for each in rounds], rounds, judged)
            for client in clients
        ],
        rounds_left_out=len(every) - len(rounds),
        clients_left_out=len(worst) - len(clients),
        numbered=len(rounds) <= NUMBERED,
        dense=len(clients) > DENSE,
        weakens=any(each.factor < 1 for each in by_place.values()),
        last=last,
        last_left_out=len(every_last) - len(last),
        earlier=earlier,
        earlier_left_out=left_out,
    )


def _row(
    client: Any, found: Sequence[Decision | None], rounds: Sequence[int], judged: Judged
) -> Row:
    cells = [_cell(each, round_, judged) for each, round_ in zip(found, rounds, strict=True)]
    return Row(client, cells, ["–" if each is None else f"{each.factor:.2f}" for each in found])


def _cell(found: Decision | None, round_: int, judged: Judged) -> Cell:
    if found is None:
        why = "the gate failed" if round_ in judged.failed else "no update"
        return Cell("blank", "", f"Round {round_}: {why}")
    share = found.suspicion / judged.threshold if judged.threshold > 0 else 1.0
    kind = "hit" if found.suspicious else f"s{min(STEPS, int((STEPS + 1) * share))}"
    text = f"{found.suspicion:.2f}"
    return Cell(kind, text, f"Round {round_}: {text}, {found.outcome}")


def _earlier(judged: Judged) -> tuple[list[tuple[int, list[Decision]]], int]:
    """What there is to speak of before the last round, as far as there is room."""
    found, room, left_out = [], MOST_DECISIONS, 0
    for round_ in sorted(judged.rounds, reverse=True)[1:]:
        telling = sorted(
            (each for each in judged.rounds[round_] if each.telling),
            key=lambda each: -each.suspicion,
        )
        if shown := telling[:room]:
            found.append((round_, shown))
        left_out += len(telling) - len(shown)
        room -= len(shown)
    return found, left_out
