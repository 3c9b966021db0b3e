"""The gate's suspicion in words: who, since when, why, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedgaze.report.federated.decisions import Judged, Suspect
from fedgaze.report.federated.record import Record
from fedgaze.report.federated.words import join

__all__ = ["Words", "in_words", "spans"]

NAMED = 3
"""So many suspects are spoken of one by one."""


@dataclass(frozen=True)
class Words:
    """What the gate's decisions come to.

    Attributes:
        headline: One sentence.
        details: Further ones.
        reasons: Why, a phrase each: of one suspect all, of several each one's first.
        notes: What speaks against relying on it, and who is suspicious no longer.
    """

    headline: str
    details: list[str]
    reasons: list[str]
    notes: list[str]


def in_words(record: Record, gate: Judged) -> Words:
    """Put the last decisions of each client into words.

    Args:
        record: The run.
        gate: What the gate said in it, in one round at least.
    """
    suspects = gate.suspects
    notes = [*_limits(gate), *_cleared(record, gate)]
    if not suspects:
        return Words("The gate finds no client suspicious.", [_calm(record, gate)], [], notes)
    if len(suspects) == 1:
        [only] = suspects
        reasons, since = only.last.reasons, _since(record, only)
        number = f"its suspicion in round {only.last.round} was {only.last.suspicion:.2f}"
        lead = f"{since}: {number}; from {gate.threshold:g} on an update is suspicious."
        lead = f"{lead} {_consequence(gate)}"
    else:
        reasons = [
            f"{_since(record, each)} ({each.last.suspicion:.2f}): {each.last.reasons[0]}"
            for each in suspects[:NAMED]
        ]
        if rest := {each.client for each in suspects[NAMED:]}:
            who = record.listed([each for each in record.clients if each in rest])
            reasons.append(f"suspicious as well: {who}")
        lead = f"{_consequence(gate)} From {gate.threshold:g} on an update is suspicious."
    return Words(_headline(record, gate), [lead], reasons, notes)


def _since(record: Record, suspect: Suspect) -> str:
    return f"{record.label(suspect.client)} has been suspicious since round {suspect.since}"


def _headline(record: Record, gate: Judged) -> str:
    suspected = {each.client for each in gate.suspects}
    if len(suspected) > NAMED:
        return f"The gate finds {len(suspected)} of {len(gate.latest)} clients suspicious."
    who = record.listed([each for each in record.clients if each in suspected])
    who = who.replace("client ", "client\N{NO-BREAK SPACE}")  # no line ends between them
    if all(each.last.factor == 0 for each in gate.suspects):
        return f"The gate keeps {who} out of the merge."
    return f"The gate finds {who} suspicious."


def _consequence(gate: Judged) -> str:
    """What the policy made of the last updates of those who are suspicious."""
    one = len(gate.suspects) == 1
    updates = "Its last update was" if one else "Their last updates were"
    factors = sorted(each.last.factor for each in gate.suspects)
    if factors[-1] == 0:
        return f"None of {'its' if one else 'their'} updates since was let through."
    if gate.policy == "report":
        return f"{updates} let through whole, since the gate only reports here."
    least, most = (f"{each:.2f}" for each in (factors[0], factors[-1]))
    span = least if least == most else f"{least} to {most}"
    if one:
        return f"Its last update counted {span} of itself."
    return f"Their last updates counted {span} of themselves."


def _calm(record: Record, gate: Judged) -> str:
    top = gate.latest[0]
    return (
        f"The highest suspicion is {top.suspicion:.2f}, of {record.called(top.client)} in round "
        f"{top.round}; from {gate.threshold:g} on an update is suspicious."
    )


def _cleared(record: Record, gate: Judged) -> list[str]:
    """Who was suspicious and is so no longer."""
    found = list(gate.cleared.items())
    if len(found) > NAMED:
        return [f"{len(found)} clients were suspicious earlier and are no longer."]
    return [
        f"{record.label(client)} was suspicious in {spans(rounds)} and is no longer."
        for client, rounds in found
    ]


def _limits(gate: Judged) -> list[str]:
    notes = []
    if 2 * len(gate.suspects) >= len(gate.latest):
        notes.append(
            "That is half of the clients or more: what each is compared with may be off itself."
        )
    if not gate.looked:
        notes.append(
            "It had no look of its own, and compared steps and what clients say of themselves."
        )
    if after := [each for each in gate.failed if each > gate.last]:
        notes.append(f"It failed in {spans(after)}, of which nothing is known.")
    return notes


def spans(rounds: Sequence[int]) -> str:
    """Rounds in words.

    >>> spans([3]), spans([1, 2, 3, 5]), spans([1, 2])
    ('round 3', 'rounds 1 to 3 and 5', 'rounds 1 and 2')
    """
    runs: list[list[int]] = []
    for each in sorted(rounds):
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    parts: list[str] = []
    for run in runs:
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(each) for each in run]
    return f"{'round' if len(rounds) == 1 else 'rounds'} {join(parts)}"
