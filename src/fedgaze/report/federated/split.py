"""Who holds which images: a grid of clients by classes, and the table that says the same."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedgaze.report.federated.record import Record, mapping, number
from fedgaze.report.federated.words import shown

__all__ = ["Cell", "Holding", "Split", "make_split"]

STEPS = 10
"""Strengths of the grid's colour above nothing; the page's style has a class for each."""

DENSE = 24
"""With more clients, their rows are thin."""

NAMED = 30
"""With more classes, their columns have no names."""

SHORT = 2
"""Names of columns with more letters stand upright."""

GROUPS = 12
"""So many groups of a client are named."""


@dataclass(frozen=True)
class Cell:
    """A client's images of a class.

    Attributes:
        step: Strength of the colour: 0 for none, up to 10 for the largest share of the grid.
        text: The class, how many there are and which share of the client's images.
    """

    step: int
    text: str


@dataclass(frozen=True)
class Holding:
    """A client's images; or those of all clients together.

    Attributes:
        client: Which; None for all together.
        total: How many images it has.
        training: How many of them it trains on; None where the record does not say.
        validation: How many it keeps back.
        counts: How many of each class.
        cells: A cell a class.
        bar: Their number as a part of the largest client's.
        groups: What its images belong to, in words; empty if the split is not natural.
        note: The same in a few words.
    """

    client: Any
    total: int
    training: int | None
    validation: int | None
    counts: list[int]
    cells: list[Cell]
    bar: float
    groups: str
    note: str


@dataclass(frozen=True)
class Split:
    """The split of a run.

    Attributes:
        how: How the images were dealt out, in words.
        classes: Class names, the columns.
        rows: A row a client.
        whole: All clients together.
        largest: The share of the strongest colour, in words.
        dense: Whether there are too many rows for thick ones.
        named: Whether there are few enough columns to name them.
        tall: Whether their names stand upright, because they are long.
        grouped: Whether clients hold groups.
    """

    how: str
    classes: list[str]
    rows: list[Holding]
    whole: Holding
    largest: str
    dense: bool
    named: bool
    tall: bool
    grouped: bool


def make_split(record: Record) -> Split | None:
    """The split of a record; None where it holds none, as when clients brought their own images."""
    entries = [
        each
        for each in map(mapping, mapping(record.summary.get("split")).get("clients") or [])
        if isinstance(each.get("client"), int | str) and isinstance(each.get("classes"), list)
    ]
    counts = [[_count(each) or 0 for each in entry["classes"]] for entry in entries]
    classes = record.classes
    if not classes or any(len(each) != len(classes) for each in counts):
        return None
    most = max(map(sum, counts), default=0)
    if not most:
        return None
    every = [sum(column) for column in zip(*counts, strict=True)]
    largest = max(count / sum(row) for row in [*counts, every] if sum(row) for count in row)

    def holding(entry: Mapping[str, Any], counts: list[int], bar: float) -> Holding:
        groups = [str(each) for each in entry.get("groups") or []]
        total = sum(counts)
        return Holding(
            entry.get("client"),
            total,
            _count(entry.get("training")),
            _count(entry.get("validation")),
            counts,
            [
                _cell(name, count, count / total if total else 0.0, largest)
                for name, count in zip(classes, counts, strict=True)
            ],
            bar,
            _listed(groups),
            groups[0] if len(groups) == 1 else f"{len(groups)} groups" if groups else "",
        )

    rows = [
        holding(entry, own, sum(own) / most) for entry, own in zip(entries, counts, strict=True)
    ]
    return Split(
        _how(mapping(record.task.get("dataset"))),
        classes,
        rows,
        holding({}, every, 0.0),
        shown(largest, digits=0),
        len(rows) > DENSE,
        len(classes) <= NAMED,
        max(map(len, classes)) > SHORT,
        any(row.groups for row in rows),
    )


def _count(value: Any) -> int | None:
    found = number(value)
    return None if found is None else max(0, round(found))


def _cell(name: str, count: int, share: float, largest: float) -> Cell:
    step = math.ceil(STEPS * share / largest) if count else 0
    return Cell(min(step, STEPS), f"{name}: {count}, {shown(share)}")


def _listed(groups: list[str]) -> str:
    more = len(groups) - GROUPS
    return ", ".join(groups[:GROUPS]) + (f" and {more} more" if more > 0 else "")


def _how(dataset: Mapping[str, Any]) -> str:
    alpha = f"a Dirichlet distribution with alpha {dataset.get('alpha')}"
    by = dataset.get("partition_by")
    return {
        "iid": "The training images were dealt out evenly, in random order.",
        "dirichlet": f"Each client drew its own mix of classes from {alpha}: "
        "the smaller alpha, the more they differ.",
        "shards": "The training images were sorted by class and cut into shards, of which each "
        f"client was dealt {dataset.get('shards_per_client')}.",
        "quantity": "The training images were dealt out in random order; how many each client has "
        f"was drawn from {alpha}.",
        "natural": "Images that belong together stay together: each client holds whole groups"
        + (f" by {by}." if by else "."),
    }.get(str(dataset.get("partition")), "")
