"""Build the page of a federated run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgaze.report.federated.charts import Chart, Series, learning_charts, look_charts
from fedgaze.report.federated.costs import make_costs
from fedgaze.report.federated.decisions import Judged, read_decisions
from fedgaze.report.federated.gallery import Gallery, make_gallery
from fedgaze.report.federated.gate import make_gate
from fedgaze.report.federated.record import Record, Source, mapping, number, read_record
from fedgaze.report.federated.split import make_split
from fedgaze.report.federated.strip import make_strip
from fedgaze.report.federated.verdict import findings, judge
from fedgaze.report.federated.words import GATE_MEASURES, MEASURES, Measure, join, shown
from fedgaze.report.html import render
from fedgaze.store import write_text

__all__ = ["FinalTable", "final_table", "write_federated_report"]

HOT_SLOTS, SLOTS = 2, 8
"""Colours of the palette; the first ones are warm and kept for clients worth a look."""

SECRET = {"key", "token", "password", "secret"}


def write_federated_report(run: Path, summary: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html`` beside a run's ``summary.json``.

    Whatever the record lacks (explanations, pictures, clients in some rounds) is left out of the
    page or named there as missing.

    Args:
        run: The run's folder.
        summary: What ``summary.json`` is about to hold; by default what it holds.

    Returns:
        The page's path.

    Raises:
        FedgazeError: There is no readable ``summary.json``.
    """
    page = run / "report.html"
    write_text(page, _render(read_record(run, summary)))
    return page


def _render(record: Record) -> str:
    found, verdict, judged = findings(record), judge(record), read_decisions(record)
    named = {*verdict.suspects, *verdict.apart, *record.planted, *record.misbehaving}
    emphasised = [each for each in record.clients if each in named]
    worst = [*verdict.suspects, *(each for each in emphasised if each not in verdict.suspects)]
    slots = _slots(record.clients, worst)
    gallery = make_gallery(record, slots, emphasised)
    learning, looks = learning_charts(record), look_charts(record)
    sources: tuple[Source, ...] = ("server", "own")
    return render(
        "federated.html.j2",
        styles=["vendor/uplot/uPlot.min.css"],
        scripts=["vendor/uplot/uPlot.iife.min.js", "page/charts.js", "page/gallery.js"],
        shown=shown,
        join=join,
        MEASURES=MEASURES,
        GATE_MEASURES=GATE_MEASURES,
        record=record,
        verdict=verdict,
        suspects=verdict.suspects,
        slots=slots,
        facts=_facts(record),
        strip=make_strip(record, found, emphasised),
        gate=make_gate(record, judged),
        split=make_split(record),
        learning=learning,
        looks=looks,
        sources=[each for each in sources if any(each in chart.series for chart in looks)],
        gallery=gallery,
        final=final_table(record),
        costs=make_costs(record),
        troubles=_troubles(record, judged),
        versions=[mapping(each) for each in record.summary.get("versions") or []],
        settings=list(_settings(record.task)),
        chart_data=_chart_data(record, [*learning, *looks], slots, emphasised),
        gallery_data=_gallery_data(gallery),
    )


def _slots(clients: list[Any], emphasised: list[Any]) -> dict[Any, int]:
    """A colour a client, the same everywhere on the page; the first to emphasise get warm ones."""
    slots = dict(zip(emphasised, range(HOT_SLOTS), strict=False))
    cool = [each for each in clients if each not in slots]
    for i, client in enumerate(cool):
        slots[client] = HOT_SLOTS + i % (SLOTS - HOT_SLOTS)
    return slots


def _facts(record: Record) -> list[tuple[str, str, str]]:
    """A few numbers in large type: ``(what, value, beside it)``."""
    if not record.rounds:
        return []
    last = record.rounds[-1]
    done, planned = record.summary.get("status") == "complete", record.task.get("num_rounds")
    before = number(record.merged(0).get("accuracy"))
    accuracy = number(record.merged(last).get("accuracy"))
    beside = "" if before is None else f"{shown(before)} before the first round"
    if record.judged_by_clients:
        beside = "mean over the clients, each with its own normalisation layers"
    seconds = [number(record.round(each).get("seconds")) for each in record.rounds]
    facts = [
        (
            "Merged model’s accuracy",
            shown(accuracy),
            beside,
        ),
        (
            "Rounds",
            str(len(record.rounds)),
            "" if done else "not finished" if planned is None else f"of {planned}, not finished",
        ),
        ("Clients", str(len(record.clients)), ""),
    ]
    privacy = mapping(record.round(last).get("privacy"))
    if (epsilon := number(privacy.get("epsilon"))) is not None:
        beside = f"at δ = {number(privacy.get('delta')) or 0:g}, of the merged weights alone"
        facts.append(("Privacy spent", f"ε = {epsilon:.2f}", beside))
    if all(each is not None for each in seconds):
        total = sum(each or 0 for each in seconds)
        text = f"{total:.0f} s" if total < 120 else f"{total / 60:.0f} min"
        facts.append(("Time", text, "training and looking"))
    return facts


@dataclass(frozen=True)
class FinalRow:
    """A client in the table of the final round."""

    client: Any
    samples: str
    train: str
    validation: str
    loss: str
    adds: str
    looks: list[str]
    remark: str


@dataclass(frozen=True)
class FinalTable:
    """The table of the final round.

    Attributes:
        round: Which.
        source: Whose images the measures come from.
        contribution: By which rule what clients add was computed; empty where it was not.
        measures: Its further columns.
        rows: A client each.
    """

    round: int
    source: Source
    contribution: str
    measures: list[Measure]
    rows: list[FinalRow]


def final_table(record: Record) -> FinalTable | None:
    """The clients in the last round; None where no round is finished."""
    if not record.rounds:
        return None
    last = record.rounds[-1]
    taken: dict[Source, list[Measure]] = {
        source: [
            each for each in MEASURES.values() if record.measures_of_round(last, source, each.name)
        ]
        for source in ("server", "own")
    }
    source: Source = "server" if taken["server"] else "own"
    gate = read_decisions(record)
    kept_out = gate.kept_out(last) if gate else frozenset()
    rule = _RULES.get(str(mapping(record.round(last).get("contribution")).get("by")), "")
    rows = []
    for client in record.clients:
        entry = record.entry(last, client)
        train, validation = mapping(entry.get("train")), mapping(entry.get("validation"))
        remark = "kept out of the merge" if client in kept_out else ""
        if not entry:
            remark = "took no part"
        if failure := record.failure(last, client) or record.explanation(last, client, source).get(
            "failed"
        ):
            remark = f"failed: {failure}"
        samples = number(entry.get("samples"))
        rows.append(
            FinalRow(
                client,
                "–" if samples is None else f"{samples:.0f}",
                shown(number(train.get("accuracy"))),
                shown(number(validation.get("accuracy"))),
                shown(number(validation.get("loss")), "plain"),
                _adds(mapping(entry.get("contribution"))),
                [
                    shown(record.measure(last, client, source, each.name), each.unit, bare=True)
                    for each in taken[source]
                ],
                remark,
            )
        )
    return FinalTable(last, source, rule, taken[source], rows)


_RULES = {"leave_one_out": "leave-one-out", "shapley": "Shapley value"}


def _adds(contribution: Mapping[str, Any]) -> str:
    """What a client adds to accuracy, in points, with the standard error of an estimate."""
    value = number(contribution.get("accuracy"))
    error = number(mapping(contribution.get("error")).get("accuracy"))
    text = "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")
    return (
        text if error is None else f"{text}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{100 * error:.1f}"
    )


def _troubles(record: Record, judged: Judged | None) -> list[tuple[int | None, str]]:
    """What went wrong, by round; first what concerns no single one."""
    troubles: list[tuple[int | None, str]] = [
        (None, f"The tracker {name} {what}")
        for name, what in mapping(record.summary.get("trackers")).items()
    ]
    if record.summary.get("status") == "complete":  # until then they wait for their turn
        troubles += [
            (each.get("round"), f"Its version is not stored: {each.get('reason')}")
            for each in map(mapping, record.summary.get("versions_pending") or [])
        ]
    for round_ in record.rounds:
        entry = record.round(round_)
        troubles += [
            (round_, f"{record.label(each.get('client'))} failed: {each.get('reason')}")
            for each in map(mapping, entry.get("failures") or [])
        ]
        for client in record.clients:
            sources: dict[Source, str] = {"own": "", "server": " by the server"}
            for source, whose in sources.items():
                failed = record.explanation(round_, client, source).get("failed")
                if failed:
                    what = f"The explanation of {record.called(client)}{whose} failed: {failed}"
                    troubles.append((round_, what))
        if judged is not None and round_ in judged.failed:
            passed = "no update" if judged.policy == "reject" else "each update"
            why = judged.failed[round_]
            troubles.append((round_, f"The gate failed, and {passed} was let through: {why}"))
        if failed := mapping(entry.get("contribution")).get("failed"):
            troubles.append((round_, f"What each client adds could not be computed: {failed}"))
        if entry.get("not_merged"):
            troubles.append((round_, f"Nothing was merged: {entry['not_merged']}"))
    return troubles


def _settings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The task as dotted names and values; a key that may hold a secret is left out."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if str(key).lower() not in SECRET:
                yield from _settings(each, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _chart_data(
    record: Record, charts: list[Chart], slots: dict[Any, int], emphasised: list[Any]
) -> dict[str, Any]:
    def line(series: Series) -> dict[str, Any]:
        merged = series.who is None
        return {
            "label": "Merged model" if merged else record.label(series.who),
            "slot": "merged" if merged else slots[series.who],
            "strong": merged or series.who in emphasised,
            "values": series.values,
        }

    return {
        chart.name: {
            "unit": chart.unit,
            "rounds": chart.rounds,
            "series": {
                source: [line(each) for each in series] for source, series in chart.series.items()
            },
        }
        for chart in charts
    }


def _gallery_data(gallery: Gallery) -> dict[str, Any]:
    return {
        "rounds": gallery.rounds,
        "notes": {view.name: view.note for view in gallery.views},
        "table": gallery.table,
        "pictures": gallery.pictures,
    }
