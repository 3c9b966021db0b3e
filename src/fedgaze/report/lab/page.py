"""The page of an experiment: defences side by side, over all settings and in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgaze.report.html import render
from fedgaze.report.lab.columns import COLUMNS, Column, Shown, shown
from fedgaze.store import write_text

__all__ = ["headline", "write_lab_report"]

TITLES = {
    "kept": "Attackers that keep clean accuracy within 2 points",
    "costly": "Attackers that cost more clean accuracy",
    "adaptive": "Attackers that know of heatmaps",
    "unknown": "Attackers that were not tried without a defence",
}
# An accuracy over several data sets says nothing, and a wide table little.
_OVERALL = tuple(
    each for each in COLUMNS if each.name not in ("accuracy", "own_tpr_1", "own_tpr_5")
)
_IN_ONE = tuple(each for each in COLUMNS if each.name != "benign_rejected_honest")
MOST_FAILURES = 50


def write_lab_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``report.html``.

    Args:
        folder: Where.
        summary: What ``summary.json`` holds.

    Returns:
        The page's path.
    """
    page = folder / "report.html"
    write_text(page, _render(summary))
    return page


def headline(summary: Mapping[str, Any]) -> str:
    """The one thing that an experiment says."""
    first = next(iter(summary["groups"]), None)
    areas = {} if first is None else _means(first["rows"], "auc")
    if not areas:
        return f"{_plural(summary['cells']['done'], 'run')} with nobody to find"
    best = max(areas.values())
    leaders = [name for name, value in areas.items() if value == best]
    if len(leaders) > 2:
        return f"The best defences come to a ROC-AUC of {best:.3f}"
    verb = "tells" if len(leaders) == 1 else "tell"
    return f"{' and '.join(leaders)} {verb} attackers apart best: ROC-AUC {best:.3f}"


def _notes(summary: Mapping[str, Any]) -> list[str]:
    notes = []
    for group in summary["groups"]:
        gate = next((row for row in group["rows"] if row["defence"] == "gate"), None)
        areas = _means(group["rows"], "auc")
        if gate is None or "gate" not in areas:
            continue
        place = 1 + sum(value > areas["gate"] for value in areas.values())
        sentence = (
            f"{TITLES[group['name']]}: the gate’s ROC-AUC is {areas['gate']:.3f}, place {place} of "
            f"{len(areas)}"
        )
        if (worst := gate["worst"]) and len(group["settings"]) > 1:
            sentence += f"; at worst {worst['auc']:.3f} ({_named(worst['setting'], summary)})"
        successes = _means(group["rows"], "attack_success")
        if {"gate", "none"} <= successes.keys():
            sentence += (
                f". Attackers succeed on {100 * successes['none']:.0f} % of images without a "
                f"defence and on {100 * successes['gate']:.0f} % with it"
            )
        notes.append(f"{sentence}.")
    cells = summary["cells"]
    if left := cells["planned"] - cells["done"] - cells["failed"]:
        notes.append(f"Not done yet: {left} of {_plural(cells['planned'], 'run')}; in no table.")
    if cells["failed"]:
        notes.append(f"Failed: {_plural(cells['failed'], 'run')}; in no table.")
    return notes


def _means(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    return {row["defence"]: row["numbers"][name]["mean"] for row in rows if name in row["numbers"]}


@dataclass(frozen=True)
class _Line:
    """A row of a table: a defence, its cells, and the worst AUC with where it is."""

    defence: str
    cells: Sequence[Shown]
    worst: str = ""
    where: str = ""
    best: bool = False


@dataclass(frozen=True)
class _Block:
    """Rows that belong together."""

    name: str
    note: str
    lines: Sequence[_Line]


def _lines(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], summary: Mapping[str, Any]
) -> list[_Line]:
    areas = _means(rows, "auc")
    best = max(areas.values(), default=None)
    return [
        _Line(
            row["defence"],
            [shown(row["numbers"], column) for column in columns],
            f"{worst['auc']:.3f}" if (worst := row.get("worst")) else "–",
            _named(worst["setting"], summary) if worst else "",
            best=areas.get(row["defence"]) == best is not None,
        )
        for row in rows
    ]


def _named(setting: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """A setting in words; how many clients there are only where that differs."""
    words = f"{setting['behaviour']} on {setting['data']}, {setting['split']}"
    return f"{words}, {_crowd(setting)}" if _crowds(summary) > 1 else words


def _crowds(summary: Mapping[str, Any]) -> int:
    return len({_crowd(each) for each in summary["settings"]})


def _crowd(setting: Mapping[str, Any]) -> str:
    return f"{setting['attackers']} of {setting['clients']}"


def _tables(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table a data set and split, in it a block a behaviour."""
    found: dict[tuple[str, str], list[_Block]] = {}
    for setting in summary["settings"]:
        note = {"kept": "", "none": ""}.get(setting["kind"], setting["kind"])
        name = setting["behaviour"]
        if _crowds(summary) > 1:
            name += f", {_crowd(setting)}"
        lines = _lines(setting["rows"], _IN_ONE, summary)
        found.setdefault((setting["data"], setting["split"]), []).append(_Block(name, note, lines))
    return [
        {"data": data, "split": split, "blocks": blocks} for (data, split), blocks in found.items()
    ]


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    settings, cells = summary["settings"], summary["cells"]
    data = list(dict.fromkeys(each["data"] for each in settings))
    splits = list(dict.fromkeys(each["split"] for each in settings))
    attacks = {each["behaviour"] for each in settings if each["kind"] != "none"}
    crowds = list(dict.fromkeys(_crowd(each) for each in settings))
    return [
        ("Runs", str(cells["done"]), f"of {cells['planned']}, {cells['failed']} failed"),
        ("Data sets", str(len(data)), ", ".join(data)),
        ("Splits", str(len(splits)), ", ".join(splits)),
        ("Attacks", str(len(attacks)), f"by {', '.join(crowds)} clients"),
        ("Seeds", str(len(summary["experiment"]["seeds"])), "means over them"),
    ]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _render(summary: Mapping[str, Any]) -> str:
    failures = [f"{each['id']}: {each['reason']}" for each in summary["failed"]]
    failures += [
        f"{each['id']}, round {each['round']}"
        + ("" if each["client"] is None else f", client {each['client']}")
        + f": {each['reason']}"
        for each in summary["failures"]
    ]
    made = summary["made"]
    settings = [
        ("command", made["command"]),
        ("fedgaze", summary["fedgaze"]),
        *made["versions"].items(),
        ("machine", made["machine"]),
        *((key, _value(value)) for key, value in summary["experiment"].items()),
    ]
    return render(
        "lab.html.j2",
        headline=headline(summary),
        notes=_notes(summary),
        facts=_facts(summary),
        overall=_OVERALL,
        in_one=_IN_ONE,
        meanings=COLUMNS,
        groups=[
            {
                "id": group["name"],
                "title": TITLES[group["name"]],
                "settings": [_named(each, summary) for each in group["settings"]],
                "lines": _lines(group["rows"], _OVERALL, summary),
            }
            for group in summary["groups"]
        ],
        tables=_tables(summary),
        failures=failures[:MOST_FAILURES],
        more=max(0, len(failures) - MOST_FAILURES),
        settings=settings,
    )


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_value(each)}' for key, each in value.items())}}}"
    return "as the data says" if value is None else str(value)
