"""The tables, the summary and the page of an evaluation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgaze.errors import FedgazeError
from fedgaze.measure import Column, Summary, Table, columns_of
from fedgaze.report.evaluation.findings import Findings, group_rows, judged
from fedgaze.report.evaluation.record import EvaluationRecord
from fedgaze.report.html import render
from fedgaze.report.pictures import data_uri
from fedgaze.store import write_json, write_text

__all__ = ["write_evaluation"]

WIDTH = 100.0


def write_evaluation(record: EvaluationRecord) -> Path:
    """Write ``metrics.parquet``, ``metrics.csv``, ``summary.json`` and ``report.html``.

    They are made of the record, and made anew whenever this is called.

    Returns:
        The page's path.

    Raises:
        FedgazeError: No picture could be judged.
    """
    if not record.judged:
        raise FedgazeError(f"none of the pictures could be judged; {record.folder} says why")
    table = record.table()
    found = judged(record, table)
    record.write_rows()
    write_json(record.folder / "summary.json", summary_of(record, table, found))
    page = record.folder / "report.html"
    write_text(page, _render(record, table, found))
    return page


def summary_of(record: EvaluationRecord, table: Table, found: Findings) -> dict[str, Any]:
    """The evaluation in numbers: JSON without NaN."""
    methods = [each for each in table.makers if each not in record.baselines]
    return {
        "fedgaze": record.asked["fedgaze"],
        "model": record.asked["model"],
        "pictures": len(record.judged),
        "failed": len(record.lines) - len(record.judged),
        "methods": methods,
        "baselines": record.baselines,
        "metrics": record.asked["columns"],
        "headline": found.headline,
        "notes": list(found.notes),
        "table": {maker: _row(record, table, maker) for maker in table.makers},
        "mean_ranks": {
            maker: {
                **{axis: _json(table.mean_rank(maker, axis)) for axis in table.axes},
                "all": _json(table.mean_rank(maker)),
            }
            for maker in table.makers
        },
        "leads": {
            method: {
                baseline: {
                    column.name: _total(table.lead(method, baseline, column))
                    for column in table.columns
                }
                for baseline in record.baselines
            }
            for method in methods
        },
        "groups": {
            name: {maker: _row(record, part, maker, reasons=False) for maker in table.makers}
            for name, part in (
                (name, table.only(chosen)) for name, chosen in record.groups().items()
            )
        },
    }


def _row(
    record: EvaluationRecord, table: Table, maker: str, *, reasons: bool = True
) -> dict[str, Any]:
    found = {}
    for column in table.columns:
        cell = table.cells[maker, column.name]
        found[column.name] = {**_total(cell.summary), "rank": cell.rank, "best": cell.best}
        if reasons:
            found[column.name]["reasons"] = record.reasons(maker, column.name)
    return found


def _total(total: Summary) -> dict[str, Any]:
    return {name: _json(value) for name, value in total._asdict().items()}


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Mark:
    """A mean with its interval, as numbers and as a drawing.

    Attributes:
        mean: As text.
        interval: As text.
        rank: As text.
        best: Whether it is.
        n: How many images have a value, as text where some have none.
        at: Where the mean lies, of `WIDTH`; None without a mean.
        low: Where the interval begins.
        long: How long it is.
    """

    mean: str
    interval: str
    rank: str
    best: bool
    n: str
    at: float | None
    low: float
    long: float


def _marks(table: Table, column: Column) -> dict[str, Mark]:
    """A drawing a maker, all on one scale: from the lowest end of an interval to the highest."""
    sums = {maker: table.cells[maker, column.name].summary for maker in table.makers}
    ends = [
        each
        for total in sums.values()
        for each in (total.low, total.mean, total.high)
        if math.isfinite(each)
    ]
    least, most = (min(ends), max(ends)) if ends else (0.0, 1.0)
    wide = most - least or 1.0

    def place(value: float) -> float:
        return round(4 + (WIDTH - 8) * (value - least) / wide, 1)

    found = {}
    for maker, total in sums.items():
        cell = table.cells[maker, column.name]
        known = total.n > 0
        sure = total.n > 1
        low, high = (place(total.low), place(total.high)) if sure else (0.0, 0.0)
        found[maker] = Mark(
            mean=_written(total.mean) if known else "–",
            interval=f"{_written(total.low)} … {_written(total.high)}" if sure else "",
            rank="" if cell.rank is None else str(cell.rank),
            best=cell.best,
            n=f"n = {total.n}" if total.missing and known else "",
            at=place(total.mean) if known else None,
            low=low,
            long=round(high - low, 1),
        )
    return found


def _written(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def _render(record: EvaluationRecord, table: Table, found: Findings) -> str:
    asked = record.asked
    return render(
        "evaluation.html.j2",
        record=record,
        asked=asked,
        table=table,
        found=found,
        marks={column.name: _marks(table, column) for column in table.columns},
        ranks={
            maker: [_rank(table, maker, axis) for axis in [None, *table.axes]]
            for maker in table.makers
        },
        facts=_facts(record, table),
        gallery=_gallery(record),
        shown_metrics=_shown_metrics(record, table),
        groups=sorted(record.groups()),
        group_rows=group_rows(record, table) if record.groups() else [],
        settings=_settings(asked),
    )


def _rank(table: Table, maker: str, axis: str | None) -> str:
    rank = table.mean_rank(maker, axis)
    return "–" if math.isnan(rank) else f"{rank:.1f}"


def _facts(record: EvaluationRecord, table: Table) -> list[tuple[str, str, str]]:
    methods = len(table.makers) - len(record.baselines)
    right = [line for line in record.judged if line["predicted"] == line["target"]]
    targets = {"predicted": "the predicted class", "folder": "its folder’s class"}
    explained = targets.get(record.asked["target"], record.asked["target"])
    return [
        ("Pictures", str(len(record.judged)), f"{len(right)} predicted as what is explained"),
        ("Methods", str(methods), f"and {len(record.baselines) or 'no'} baselines"),
        ("Metrics", str(len(table.columns)), ", ".join(table.axes)),
        ("Explained", explained, record.asked["model"]),
    ]


def _shown_metrics(record: EvaluationRecord, table: Table) -> list[str]:
    """What stands below a picture of the gallery: the first metric of two axes.

    How alike both heatmaps are stands below that of the changed picture.
    """
    change = record.asked["change"]
    alike = set() if change is None else {each.name for each in columns_of([], change["name"])}
    firsts = {each.axis: each.name for each in reversed(table.columns) if each.name not in alike}
    return [firsts[axis] for axis in table.axes if axis in firsts][:2]


def _gallery(record: EvaluationRecord) -> list[dict[str, Any]]:
    """Pictures with the heatmaps of each method, as far as they lie in the record's folder."""
    rows = []
    for line in record.judged:
        pictures = {name: _uri(record.folder / path) for name, path in _kept(line).items()}
        pictures = {name: each for name, each in pictures.items() if each}
        if "original" in pictures:
            rows.append({"line": line, "pictures": pictures})
    return rows


def _kept(line: Mapping[str, Any]) -> dict[str, str]:
    found = line.get("pictures")
    return dict(found) if isinstance(found, dict) else {}


def _uri(path: Path) -> str | None:
    try:
        return data_uri(path.read_bytes())
    except OSError:
        return None


def _settings(asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    left_out = {"files", "columns", "groups", "makers"}
    makers = [
        each["name"] + (f" at {each['layer']}" if each["layer"] else "") for each in asked["makers"]
    ]
    rows = [("methods and baselines", ", ".join(makers))]
    return rows + [
        (key, str(value))
        for key, value in asked.items()
        if key not in left_out and value not in (None, [], {})
    ]
