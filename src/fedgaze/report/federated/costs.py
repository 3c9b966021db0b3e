"""What the run took of each machine: time, memory and traffic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedgaze.report.federated.record import Record, mapping, number

__all__ = ["Cost", "Costs", "make_costs", "size"]

MOST_ROWS = 200
"""Rows of the table by round; the last rounds are shown, all are in the record."""


@dataclass(frozen=True)
class Cost:
    """One line: who, and its cells as text."""

    who: str
    cells: list[str]


@dataclass(frozen=True)
class Costs:
    """The tables.

    Attributes:
        columns: Their headings.
        whole: A line for the server and each client, over all rounds.
        by_round: Lines of each round, as far as there is room.
        left_out: How many rounds found no room.
        shared: Whether clients and server were one process.
    """

    columns: list[str]
    whole: list[Cost]
    by_round: list[tuple[int, list[Cost]]]
    left_out: int
    shared: bool


@dataclass(frozen=True)
class _Column:
    title: str
    key: str
    most: bool = False

    def text(self, value: float | None) -> str:
        return seconds(value) if self.key.endswith("seconds") else size(value)

    def whole(self, entries: list[Mapping[str, Any]]) -> float | None:
        values = [each for entry in entries if (each := number(entry.get(self.key))) is not None]
        if not values:
            return None
        return max(values) if self.most else sum(values)


_COLUMNS = (
    _Column("Time", "seconds"),
    _Column("CPU time", "cpu_seconds"),
    _Column("Memory", "memory_bytes", most=True),
    _Column("Most memory", "peak_memory_bytes", most=True),
    _Column("GPU memory", "device_memory_bytes", most=True),
    _Column("Received", "received_bytes"),
    _Column("Sent", "sent_bytes"),
)


def make_costs(record: Record) -> Costs | None:
    """What each machine said of itself; None where none did."""
    entries: dict[str, dict[int, Mapping[str, Any]]] = {}
    for round_ in record.rounds:
        said = {"Server": record.round(round_)} | {
            record.label(client): record.entry(round_, client) for client in record.clients
        }
        for who, one in said.items():
            if system := mapping(one.get("system")):
                entries.setdefault(who, {})[round_] = system
    every = [system for one in entries.values() for system in one.values()]
    columns = [each for each in _COLUMNS if each.whole(every) is not None]
    if not columns:
        return None
    room = max(1, MOST_ROWS // len(entries))
    names = ["Server", *map(record.label, record.clients)]
    ordered = {who: entries[who] for who in names if who in entries}
    return Costs(
        columns=[each.title for each in columns],
        whole=[
            Cost(who, [each.text(each.whole(list(one.values()))) for each in columns])
            for who, one in ordered.items()
        ],
        by_round=[
            (
                round_,
                [
                    Cost(who, [each.text(number(one[round_].get(each.key))) for each in columns])
                    for who, one in ordered.items()
                    if round_ in one
                ],
            )
            for round_ in record.rounds[-room:]
        ],
        left_out=max(0, len(record.rounds) - room),
        shared=any(each.get("shared_process") is True for each in every),
    )


def seconds(value: float | None) -> str:
    r"""A span of time.

    >>> seconds(0.25), seconds(75.4), seconds(None)
    ('0.25\xa0s', '75.4\xa0s', '–')
    """
    if value is None:
        return "–"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}\N{NO-BREAK SPACE}s"


def size(value: float | None) -> str:
    r"""A number of bytes, in powers of 1,000.

    >>> size(512), size(1_234_567), size(None)
    ('512\xa0B', '1.2\xa0MB', '–')
    """
    if value is None:
        return "–"
    units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
    step = 0
    while value >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.{1 if step and value < 99.95 else 0}f}\N{NO-BREAK SPACE}{units[step]}"
