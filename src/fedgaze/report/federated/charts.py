"""What the charts draw, and the tables that say the same."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedgaze.report.federated.record import Record, Source, mapping, number
from fedgaze.report.federated.words import MEASURES, Unit, shown

__all__ = ["Chart", "Series", "learning_charts", "look_charts"]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        who: A client, or None for the merged model.
        values: One a round, None where it was not measured.
    """

    who: Any
    values: list[float | None]


@dataclass(frozen=True)
class Chart:
    """A measure over the rounds.

    Attributes:
        name: Its key on the page.
        title: Above it.
        meaning: Below the title.
        unit: How its numbers are written.
        rounds: The horizontal axis.
        series: Lines by source of the images; a chart of learning has only ``own``.
    """

    name: str
    title: str
    meaning: str
    unit: Unit
    rounds: list[int]
    series: dict[Source, list[Series]]

    def rows(self, source: Source) -> list[tuple[int, list[str]]]:
        """The chart as a table: a row a round, a column a series."""
        lines = [each.values for each in self.series[source]]
        return [
            (round_, [shown(line[i], self.unit, bare=True) for line in lines])
            for i, round_ in enumerate(self.rounds)
        ]


def learning_charts(record: Record) -> list[Chart]:
    """Accuracy and loss: the merged model on held-out data, clients on their own validation."""
    rounds = [*([0] if record.merged(0) else []), *record.rounds]
    texts: list[tuple[str, str, str, Unit]] = [
        ("accuracy", "Accuracy", "The share of images that a model gets right.", "share"),
        ("loss", "Loss", "How far off a model’s answers are; lower is better.", "plain"),
    ]
    charts = []
    for name, title, meaning, unit in texts:
        merged = Series(None, [number(record.merged(each).get(name)) for each in rounds])
        lines = _lines(
            record,
            rounds,
            lambda round_, client, name=name: number(  # type: ignore[misc]
                mapping(record.entry(round_, client).get("validation")).get(name)
            ),
        )
        if series := _drawn([merged, *lines]):
            charts.append(Chart(name, title, meaning, unit, rounds, {"own": series}))
    return charts


def look_charts(record: Record) -> list[Chart]:
    """A chart for each measure that anybody took."""
    charts = []
    sources: tuple[Source, ...] = ("server", "own")
    for measure in MEASURES.values():
        series: dict[Source, list[Series]] = {}
        for source in sources:
            lines = _lines(
                record,
                record.rounds,
                lambda round_, client, source=source, name=measure.name: (  # type: ignore[misc]
                    record.measure(round_, client, source, name)
                ),
            )
            if source == "server":
                explanations = [record.merged(each).get("explanation") for each in record.rounds]
                values = [number(mapping(each).get(measure.name)) for each in explanations]
                lines.insert(0, Series(None, values))
            if drawn := _drawn(lines):
                series[source] = drawn
        if series:
            charts.append(
                Chart(
                    measure.name,
                    measure.title,
                    measure.meaning,
                    measure.unit,
                    record.rounds,
                    series,
                )
            )
    return charts


def _lines(
    record: Record, rounds: list[int], value: Callable[[int, Any], float | None]
) -> list[Series]:
    return [
        Series(client, [value(round_, client) for round_ in rounds]) for client in record.clients
    ]


def _drawn(series: list[Series]) -> list[Series]:
    return [each for each in series if any(value is not None for value in each.values)]
