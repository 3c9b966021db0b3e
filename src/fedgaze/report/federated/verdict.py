"""What a run says in one sentence, and what it does not: by the gate, else by the measurements."""

from dataclasses import dataclass, field
from typing import Any

from fedgaze.report.federated.decisions import Judged, read_decisions
from fedgaze.report.federated.record import Record, Source
from fedgaze.report.federated.suspicion import in_words
from fedgaze.report.federated.words import MEASURES, Measure, shown

__all__ = ["Finding", "Verdict", "apart", "findings", "judge"]

MOST_FURTHER = 2
"""Findings that are told beside the gate's decisions."""
LEAST_GAP = 0.05
"""Differences below this are not spoken of, however alike the others are."""


@dataclass(frozen=True)
class Finding:
    """The client at the suspicious end of a measure, and whether it stands apart there.

    Attributes:
        measure: Which.
        source: On whose images.
        round: When.
        client: Who lies at the end.
        values: Of every client measured.
        stands_apart: Whether :func:`apart` holds.
    """

    measure: Measure
    source: Source
    round: int
    client: Any
    values: dict[Any, float]
    stands_apart: bool

    @property
    def value(self) -> float:
        """The client's own."""
        return self.values[self.client]

    @property
    def others(self) -> str:
        """The others' values, as a range."""
        rest = [value for client, value in self.values.items() if client != self.client]
        unit = self.measure.unit
        low, high = (shown(value, unit, bare=True) for value in (min(rest), max(rest)))
        return high if low == high else f"{low.split()[0]} to {high}"


@dataclass(frozen=True)
class Verdict:
    """The page's first words.

    Attributes:
        headline: One sentence.
        details: What it rests on, a sentence each.
        suspects: The clients that the gate suspects; without one, those that stand apart.
        against_plan: How that compares with what the task arranged; None where it arranged nothing.
        apart: The clients that stand apart in a measurement.
        by_gate: Whether the headline is the gate's.
        reasons: Why the gate suspects whom it suspects, a phrase each.
        further: The gate's limits here and what the measurements say beside it, a sentence each.
    """

    headline: str
    details: list[str]
    suspects: list[Any]
    against_plan: str | None
    apart: list[Any]
    by_gate: bool = False
    reasons: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)


def apart(values: dict[Any, float], client: Any) -> bool:
    """Whether a client lies further from the nearest other than the others lie from each other.

    Needs three clients, and a gap of at least ``LEAST_GAP``.

    >>> apart({0: 0.02, 1: 0.01, 2: 0.32}, 2), apart({0: 0.50, 1: 0.60, 2: 0.45}, 2)
    (True, False)
    """
    rest = [value for other, value in values.items() if other != client]
    if len(rest) < 2:
        return False
    gap = min(abs(values[client] - value) for value in rest)
    return gap >= LEAST_GAP and gap > max(rest) - min(rest)


def findings(record: Record) -> list[Finding]:
    """Who lies at the suspicious end of each measure, in the last round that has it.

    The server's common images are preferred: what differs there, differs between the models and
    not between the clients' images.
    """
    found = []
    for measure in MEASURES.values():
        place = _last_measured(record, measure.name)
        if measure.suspect is None or place is None:
            continue
        round_, source = place
        values = record.measures_of_round(round_, source, measure.name)
        client = (max if measure.suspect == "high" else min)(values, key=values.__getitem__)
        found.append(Finding(measure, source, round_, client, values, apart(values, client)))
    return found


def _last_measured(record: Record, name: str) -> tuple[int, Source] | None:
    """Where a measure was last taken of two clients or more."""
    sources: tuple[Source, ...] = ("server", "own")
    for source in sources:
        for round_ in reversed(record.rounds):
            if len(record.measures_of_round(round_, source, name)) >= 2:
                return round_, source
    return None


def judge(record: Record) -> Verdict:
    """Put the gate's decisions, or else the findings, into words that claim no more than they do.

    A gate that had nothing to compare with, as with two clients, clears nobody: then the findings
    have the first word.
    """
    found = findings(record)
    telling = [each for each in found if each.stands_apart]
    outliers = list(dict.fromkeys(each.client for each in telling))
    gate = read_decisions(record)
    if gate is not None and gate.rounds and (gate.compared or gate.suspects):
        return _by_gate(record, gate, found, outliers)
    return Verdict(
        headline=_headline(record, found, telling),
        details=[_sentence(each, record) for each in (telling or found[:2])],
        suspects=outliers,
        against_plan=_against_plan(record, outliers, by_gate=False, measured=bool(found)),
        apart=outliers,
    )


def _by_gate(record: Record, gate: Judged, found: list[Finding], outliers: list[Any]) -> Verdict:
    suspects = [each.client for each in gate.suspects]
    telling = [_sentence(each, record) for each in found if each.stands_apart]
    alike = "By the measures of where models look alone, no client stands apart."
    said = in_words(record, gate)
    return Verdict(
        headline=said.headline,
        details=said.details,
        suspects=suspects,
        against_plan=_against_plan(record, suspects, by_gate=True),
        apart=outliers,
        by_gate=True,
        reasons=said.reasons,
        further=[*said.notes, *(telling[:MOST_FURTHER] or ([alike] if found else []))],
    )


def _headline(record: Record, found: list[Finding], telling: list[Finding]) -> str:
    if not record.rounds:
        return "No round is finished yet."
    if not found:
        return "Where the clients’ models look was not compared in this run."
    if not telling:
        return "No client’s model stands apart from the others."
    first = telling[0]
    names = {each.measure.name for each in telling if each.client == first.client}
    who = f"{record.label(first.client)}’s model"
    if "mark_mass" in names:
        return f"{who} looks at the lower right corner."
    return {
        "mark_drop": f"{who} hangs on a mark in the corner.",
        "object_mass": f"{who} looks past the object.",
        "object_drop": f"{who} needs the object less than the others do.",
        "border_mass": f"{who} looks at the image’s border.",
    }[first.measure.name]


def _sentence(finding: Finding, record: Record) -> str:
    who, others = record.called(finding.client), finding.others
    value = shown(finding.value, finding.measure.unit)
    body = {
        "mark_drop": f"Take the mark away, and the right class loses {value} of probability at "
        f"{who}; at the others {others}",
        "mark_mass": f"{value} of the heat of {who} lies on a mark in the corner; of the others’, "
        f"{others}",
        "object_mass": f"{value} of the heat of {who} lies on the object; of the others’, {others}",
        "object_drop": f"Take the object away, and the right class loses {value} of probability "
        f"at {who}; at the others {others}",
        "border_mass": f"{value} of the heat of {who} lies along the border; of the others’, "
        f"{others}",
    }[finding.measure.name]
    notes = [
        "" if finding.round == record.rounds[-1] else f"in round {finding.round}",
        "" if finding.source == "server" else "each on images of its own",
        "" if finding.stands_apart else "too small a gap to tell them apart",
    ]
    remark = ", ".join(filter(None, notes))
    return f"{body} ({remark})." if remark else f"{body}."


def _against_plan(
    record: Record, suspects: list[Any], *, by_gate: bool, measured: bool = True
) -> str | None:
    plans = []
    if record.planted:
        plans.append(f"planted a mark in the data of {record.listed(record.planted)}")
    if record.misbehaving:
        plans.append(f"let {record.listed(record.misbehaving)} misbehave ({record.behaviour})")
    if not plans:
        return None
    plan = f"The task {' and '.join(plans)}, on purpose"
    arranged = {*record.planted, *record.misbehaving}
    if not measured:
        return f"{plan}; nothing was measured that could show it."
    one = len(arranged) == 1
    if set(suspects) == arranged:
        whom = "the right one" if one else "the right ones"
        return f"{plan}: the {'gate singles' if by_gate else 'measurements single'} out {whom}."
    if not suspects:
        whom = "it" if one else "them"
        by = "gate does" if by_gate else "measurements of the last round do"
        return f"{plan}; the {by} not single {whom} out."
    if by_gate:
        return f"{plan}; the gate finds {_hits(record, set(suspects), arranged)}."
    others = record.listed([each for each in record.clients if each in suspects])
    return f"{plan}; what stands apart in the measurements is {others}."


def _hits(record: Record, suspects: set[Any], arranged: set[Any]) -> str:
    """Whom of those it should the gate finds suspicious, and whom besides."""
    hits, others = len(suspects & arranged), suspects - arranged
    besides = record.listed([each for each in record.clients if each in others]) if others else ""
    if len(arranged) > 1:
        found = f"{hits or 'none'} of these {len(arranged)} suspicious"
        return f"{found}, and {besides} besides" if besides else found
    return f"it suspicious, and {besides} besides" if hits else f"{besides} suspicious instead"
