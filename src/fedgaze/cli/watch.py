"""A run as the terminal shows it: live while it goes, a table when it is done."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

__all__ = ["ADDS_UP", "Watch", "final_table", "suspicious", "threshold_of"]

_DOING = {"train": "trains and explains itself", "evaluate": "evaluates", "query.identity": "joins"}

# What the table shows of a measure: its heading, and which end is the one to look at.
_MEASURES = {
    "object_mass": ("heat on\nobject", min),
    "mark_mass": ("heat on\nmark", max),
    "object_drop": ("drop\nwithout\nobject", min),
    "mark_drop": ("drop\nwithout\nmark", max),
}


_MOST = 8
"""So many suspicious clients of a round have a line each."""

ADDS_UP = "no difference stands out by itself; evidence adds up over measures and rounds"


class Watch:
    """Shows a run's progress; it is the run's observer, and a context manager.

    Args:
        console: Where to print.
        threshold: From which suspicion on the task calls an update suspicious.
    """

    def __init__(self, console: Console, threshold: float = 0.5) -> None:
        self._console = console
        self._threshold = threshold
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[doing]}"),
            console=console,
            transient=True,
        )
        self._bar = self._progress.add_task("rounds", total=None, doing="checks the task")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def run_started(self, rounds: int, done: int) -> None:
        """The run goes on after so many of its rounds."""
        self._progress.update(self._bar, total=rounds, completed=done)

    def round_started(self, number: int, clients: list[int]) -> None:
        """A round's messages go out to these clients."""
        names = ", ".join(map(str, clients))
        self._progress.update(self._bar, doing=f"round {number}: clients {names}")

    def client_started(self, client: int, kind: str) -> None:
        """A client takes up a message."""
        self._progress.update(self._bar, doing=f"client {client} {_DOING.get(kind, kind)}")

    def round_done(self, record: dict[str, Any]) -> None:
        """A round is whole and written: its entry of the summary."""
        score = record["global"]
        spent = record.get("privacy", {}).get("epsilon")
        epsilon = "" if spent is None else f"  epsilon {spent:.2f}"
        judges = "  [dim](judged by the clients)[/]" if score.get("judged_by") == "clients" else ""
        local = "  ".join(
            f"{entry['client']}: {_number(entry['validation']['accuracy'])}"
            for entry in record["clients"]
        )
        self._console.print(
            f"round {record['round']}  accuracy [bold]{_number(score['accuracy'])}[/]  "
            f"loss {_number(score['loss'])}{epsilon}{judges}  [dim]clients {local}[/]",
            soft_wrap=True,
        )
        for failure in record["failures"]:
            self.trouble(f"client {failure['client']} failed: {failure['reason']}")
        self._gate(record.get("gate", {}))
        if "not_merged" in record:
            self.trouble(f"nothing was merged: {record['not_merged']}")
        self._progress.update(self._bar, completed=record["round"], doing="")

    def _gate(self, gate: dict[str, Any]) -> None:
        """What the gate decided, as far as it matters."""
        if "failed" in gate:
            passed = "no update" if gate["policy"] == "reject" else "each update"
            self.trouble(f"the gate failed, and {passed} was let through: {gate['failed']}")
        found = suspicious(gate, self._threshold)
        for each in found[:_MOST]:
            reasons = each["reasons"] or [ADDS_UP]
            who = f"client {each['client']} is suspicious ({each['suspicion']:.2f})"
            text = f"  gate: {who}, {_outcome(each['factor'])}: {reasons[0]}"
            self._console.print(Text(text, "magenta"), soft_wrap=True)
        if left := len(found[_MOST:]):
            self._console.print(Text(f"  gate: and {left} more", "magenta"))

    def trouble(self, text: str) -> None:
        """Something beside the run went wrong; the run goes on."""
        # No markup: the words may be a client's, and a bracket in them is no style.
        self._console.print(Text(f"  {text}", "yellow"), soft_wrap=True)


def threshold_of(summary: Mapping[str, Any]) -> float:
    """From which suspicion on a run's task calls an update suspicious."""
    return float(summary.get("task", {}).get("gate", {}).get("threshold", 0.5))


def suspicious(gate: dict[str, Any], threshold: float) -> list[dict[str, Any]]:
    """The gate's entries of the clients that are suspicious, the most suspicious first.

    Args:
        gate: The gate's part of a round's record; empty where there is none.
        threshold: From which suspicion on one is suspicious.
    """
    found = [each for each in gate.get("clients", []) if each["suspicion"] >= threshold]
    return sorted(found, key=lambda each: -each["suspicion"])


def _outcome(factor: float) -> str:
    if factor == 0:
        return "kept out"
    return "only reported" if factor == 1 else f"counts {factor:.2f} of itself"


def final_table(record: dict[str, Any], planted: list[int]) -> Table:
    """The last round, a row a client; the outstanding value of each measure is bold.

    Args:
        record: The round's entry of the summary.
        planted: The clients in whose data a mark was planted, which the table says.
    """
    rows = record["clients"]
    looks = {
        row["client"]: row.get("server_explanation") or row.get("explanation") or {} for row in rows
    }
    shown = [name for name in _MEASURES if any(name in look for look in looks.values())]
    title = f"Round {record['round']}"
    if any("server_explanation" in row for row in rows):
        title += ": every client's model on the server's probe set"
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    table.collapse_padding = True  # eight columns fit into 80 characters
    table.add_column("client")
    adds = ["adds"] if any("contribution" in row for row in rows) else []
    for heading in ("images", "accuracy", *adds, *(_MEASURES[name][0] for name in shown)):
        table.add_column(heading, justify="right")
    for row in rows:
        look = looks[row["client"]]
        cells = [str(row["samples"]), _number(row["validation"]["accuracy"])]
        if adds:
            added = row.get("contribution", {}).get("accuracy")
            cells.append("–" if added is None else f"{added:+.3f}")
        for name in shown:
            extreme = _MEASURES[name][1]
            known = [each[name] for each in looks.values() if name in each]
            outstanding = len(known) > 1 and look.get(name) == extreme(known)
            value = _number(look.get(name))
            cells.append(f"[bold yellow]{value}[/]" if outstanding else value)
        note = " [yellow]planted[/]" if row["client"] in planted else ""
        note += " [yellow]failed[/]" if "failed" in look else ""
        table.add_row(f"{row['client']}{note}", *cells)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
