"""What an evaluation says, in sentences."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedgaze.measure import Column, Table, summarise
from fedgaze.report.evaluation.record import EvaluationRecord

__all__ = ["Findings", "judged"]

TELLING = ("faithfulness", "localisation")
"""Where a heatmap that knows nothing of the model has no business to win."""


@dataclass(frozen=True)
class Findings:
    """What there is to say.

    Attributes:
        headline: The one thing.
        notes: The others.
    """

    headline: str
    notes: tuple[str, ...]


def judged(record: EvaluationRecord, table: Table) -> Findings:
    """Say who leads, where a baseline wins, what has no value, and how groups differ."""
    notes = [
        *_against_baselines(record, table),
        *_still(record, table),
        *_changed(record),
        *_groups(record, table),
        *_missing(record, table),
    ]
    labels = record.asked["labels of no class"]
    if labels:
        named = f"Boxes called {', '.join(labels)} are of no class of the model"
        notes.append(
            f"{named}, by name or by --box-classes: they count for none."
            if record.asked["boxes of no class"] == "count for none"
            else f"{named}, by name: they count for whichever class is explained. --box-classes "
            "says which they are of."
        )
    failed = len(record.lines) - len(record.judged)
    if failed:
        notes.append(f"{_count(failed, 'picture')} could not be read and count nowhere.")
    return Findings(_headline(record, table), tuple(notes))


def _headline(record: EvaluationRecord, table: Table) -> str:
    methods = [each for each in table.makers if each not in record.baselines]
    pictures = _count(len(record.judged), "picture")
    ranks = {each: table.mean_rank(each) for each in methods}
    known = {name: rank for name, rank in ranks.items() if not np.isnan(rank)}
    if len(known) < 2:
        return f"{', '.join(methods)} on {pictures}"
    best = min(known.values())
    leaders = [name for name, rank in known.items() if rank == best]
    measured = _count(len(table.columns), "metric")
    if len(leaders) == len(known):
        return f"No method is ahead of the others over {measured} on {pictures}"
    verb = "ranks" if len(leaders) == 1 else "rank"
    return (
        f"{' and '.join(leaders)} {verb} best of {len(known)} methods, over {measured} on "
        f"{pictures}"
    )


def _against_baselines(record: EvaluationRecord, table: Table) -> Iterator[str]:
    columns = [each for each in table.columns if each.axis in TELLING]
    methods = [each for each in table.makers if each not in record.baselines]
    for baseline in record.baselines:
        wins = [each for each in columns if _beats_all(table, baseline, methods, each)]
        if wins:
            named = ", ".join(_beside(table, baseline, methods, each) for each in wins)
            verb = "beats" if len(methods) == 1 else "beats every method"
            whom = f" {methods[0]}" if len(methods) == 1 else ""
            yield (
                f"The baseline {baseline}, which knows nothing of the model, {verb}{whom} on "
                f"{named}: there, a good value says little of an explanation."
            )
    if not columns or not record.baselines:
        return
    ahead = [
        f"{method} against "
        + ", ".join(
            f"{baseline} on {sum(table.lead(method, baseline, each).low > 0 for each in columns)}"
            for baseline in record.baselines
        )
        for method in methods
    ]
    axes = " and ".join(dict.fromkeys(each.axis for each in columns))
    yield (
        f"Surely ahead on the same pictures (the 95 % interval of the difference lies above zero), "
        f"of {_count(len(columns), 'metric')} of {axes}: {'; '.join(ahead)}."
    )


def _beats_all(table: Table, baseline: str, methods: list[str], column: Column) -> bool:
    own = table.cells[baseline, column.name].summary.mean
    known = _means(table, methods, column).values()
    if np.isnan(own) or not known:
        return False
    return own > max(known) if column.better == "higher" else own < min(known)


def _beside(table: Table, baseline: str, methods: list[str], column: Column) -> str:
    pick = max if column.better == "higher" else min
    known = _means(table, methods, column)
    best = pick(known, key=known.__getitem__)
    own = table.cells[baseline, column.name].summary.mean
    return f"{column.name} ({own:.3f}, {best} {known[best]:.3f})"


def _means(table: Table, methods: list[str], column: Column) -> dict[str, float]:
    """The means of those that have one."""
    found = {each: table.cells[each, column.name].summary.mean for each in methods}
    return {name: mean for name, mean in found.items() if not np.isnan(mean)}


def _still(record: EvaluationRecord, table: Table) -> Iterator[str]:
    axes = [each for each in ("robustness", "complexity") if each in table.axes]
    if record.baselines and axes:
        yield (
            f"On {' and '.join(axes)} the baselines are no yardstick: what hardly looks at the "
            "picture hardly moves with it."
        )


def _changed(record: EvaluationRecord) -> Iterator[str]:
    change = record.asked["change"]
    if change is None or not record.judged:
        return
    other = sum(line["changed"]["class"] != line["predicted"]["class"] for line in record.judged)
    yield (
        f"{_changed_words(change)}: the model changes its mind on {other} of "
        f"{_count(len(record.judged), 'picture')}. Both heatmaps explain the same class, that of "
        "the unchanged picture."
    )


def _changed_words(change: dict[str, object]) -> str:
    name = str(change["name"])
    if name in ("fgsm", "pgd"):
        return f"Under {name.upper()} with epsilon {float(str(change['epsilon'])):.4f}"
    return f"With {name} of severity {change['severity']}"


def _groups(record: EvaluationRecord, table: Table) -> Iterator[str]:
    groups = record.groups()
    parts = {name: table.only(chosen) for name, chosen in groups.items()}
    found = compared = 0
    left = sum("group" not in line for line in record.judged)
    if groups and left:
        yield f"{left} of {len(record.judged)} pictures are in no group."
    for maker in table.makers:
        if maker in record.baselines:
            continue
        for column in table.columns:
            sums = {name: part.cells[maker, column.name].summary for name, part in parts.items()}
            known = {name: each for name, each in sums.items() if each.n > 1}
            if len(known) < 2:
                continue
            compared += 1
            low = min(known, key=lambda each: known[each].mean)
            high = max(known, key=lambda each: known[each].mean)
            if known[low].high < known[high].low:
                found += 1
                yield (
                    f"{column.name} of {maker} differs between groups: {known[low].mean:.3f} in "
                    f"{low} (n = {known[low].n}), {known[high].mean:.3f} in {high} (n = "
                    f"{known[high].n}); their 95 % intervals do not meet."
                )
    if groups and not compared:
        yield "The groups cannot be compared: no two of them have two pictures with a value."
    elif groups and not found:
        yield (
            "No metric differs between the groups by more than their 95 % intervals; with few "
            "pictures a group, that is no proof that they are alike."
        )


def _missing(record: EvaluationRecord, table: Table) -> Iterator[str]:
    """One sentence a reason, over all methods and metrics."""
    counts: dict[str, dict[str, int]] = {}
    for column in table.columns:
        for maker in table.makers:
            for reason, count in record.reasons(maker, column.name).items():
                held = counts.setdefault(reason, {})
                held[column.name] = max(held.get(column.name, 0), count)
    for reason, columns in counts.items():
        named = ", ".join(columns) if len(columns) <= 4 else f"{len(columns)} metrics"
        most = max(columns.values())
        yield (
            f"{named}: no value for up to {most} of {_count(len(record.judged), 'picture')} "
            f"({reason}); they are in no mean."
        )


def group_rows(record: EvaluationRecord, table: Table) -> list[tuple[str, str, dict[str, str]]]:
    """Means of methods by group: ``(method, metric, {group: text})``."""
    parts = {name: table.only(chosen) for name, chosen in record.groups().items()}
    rows = []
    for maker in table.makers:
        for column in table.columns:
            cells = {}
            for name, part in parts.items():
                total = summarise(part.values(maker, column.name).tolist())
                interval = f" [{total.low:.3f}, {total.high:.3f}]" if total.n > 1 else ""
                known = f"{total.mean:.3f}{interval}, n = {total.n}"
                cells[name] = known if total.n else "–"
            rows.append((maker, column.name, cells))
    return rows


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
