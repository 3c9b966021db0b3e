"""`fedgaze lab`: defences side by side, in federated runs under attack."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedgaze.cli.options import RUN, Json, Quiet, option, progress_bar

if TYPE_CHECKING:
    from fedgaze.federate.lab import Cell, LabFolder

__all__ = ["lab"]

_SHOWN = {
    "auc": "ROC-\nAUC",
    "tpr_1": "found\nat 1 %",
    "benign_rejected_honest": "benign\nout, no\nattack",
    "benign_rejected": "benign\nout",
    "attack_success": "attack\nsuccess",
    "accuracy_lost": "points\nlost",
    "cost": "cost",
}
"""What the terminal shows of a row; the page has all of it."""
_TITLES = {
    "kept": "Attackers that keep clean accuracy within 2 points",
    "costly": "Attackers that cost more clean accuracy",
    "adaptive": "Attackers that know of heatmaps",
    "unknown": "Attackers that were not tried without a defence",
}


def _print_known(wanted: bool) -> None:
    """List what clients may do, and the defences, with their sources."""
    if not wanted:
        return
    from fedgaze.federate.lab import BEHAVIOURS, DEFENCES, GATE

    gate = {GATE: ("fedgaze's own: leaves out whom it suspects; alone, or as gate+NAME", "")}
    tables = {
        "behaviours": dict(BEHAVIOURS),
        "defences": {name: (each.says, each.source) for name, each in DEFENCES.items()} | gate,
    }
    console = Console(highlight=False)
    for title, rows in tables.items():
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        table.title = f"[bold]{title}[/]"
        for column in ("name", "what it does", "source"):
            table.add_column(column, overflow="fold", no_wrap=column == "name")
        for name, (says, source) in rows.items():
            table.add_row(f"[bold]{name}[/]", escape(says), f"[dim]{escape(source)}[/]")
        console.print(table)
    raise typer.Exit


def lab(  # noqa: PLR0913, PLR0917 - one argument an option
    config: Annotated[
        str | None,
        typer.Argument(
            help="The experiment's YAML file. With nothing said, a trial of a few minutes.",
            metavar="[CONFIG]",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Overrule it: `seeds=0-9 defences=[none,gate]`.",
            metavar="[KEY=VALUE]…",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        option(
            RUN,
            "Where results go. The same command again goes on where it was; a folder that holds "
            "something else is left alone.",
            metavar="DIR",
        ),
    ] = Path("lab"),
    workers: Annotated[
        int | None,
        option(
            RUN, "Runs at a time, on a core each; by default on all.", min=1, show_default=False
        ),
    ] = None,
    report: Annotated[
        bool,
        option(
            RUN,
            "Run nothing: make table and page of what is done so far, also while it goes on.",
            "--report",
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    known: Annotated[
        bool,
        typer.Option(
            "--list",
            help="List behaviours and defences with their sources.",
            is_eager=True,
            callback=_print_known,
        ),
    ] = False,
) -> None:
    """Try defences: federated runs under attack, the gate beside others, with the same seeds.

    An experiment lists `data`, `splits`, `behaviours`, `clients`, `attackers`, `seeds` and
    `defences`; every combination is a run. Where nothing defends, all defences also say what they
    think of the same updates.

    The output folder gets `cells/` (a JSON file a run), `results.parquet` and `results.csv` (a row
    a setting and defence), `summary.json` and `report.html`.

    **Example:** `fedgaze lab data=[digits,scenes] behaviours=[none,patch,adaptive] seeds=0-9
    defences=[none,krum,gate,gate+krum]`
    """
    del known
    console = Console(highlight=False, soft_wrap=True, quiet=quiet or as_json)
    file = None if config is None else Path(config)
    given = list(overrides or [])
    if config is not None and "=" in config and not Path(config).exists():
        file, given = None, [config, *given]
    with console.status("Planning"):
        from fedgaze.federate.lab import LabFolder, read_plan, write_results

        plan = read_plan(file, given)
        folder = LabFolder(output, plan)
    if not report:
        _run(folder, workers or _cores(), console)
    summary = write_results(folder, shlex.join(["fedgaze", *sys.argv[1:]]))
    if as_json:
        typer.echo((output / "summary.json").read_text(encoding="utf-8").rstrip())
    else:
        for group in summary["groups"]:
            console.print(_table(group))
        console.print(f"report: {escape(str(output / 'report.html'))}", style="bold")
    if summary["cells"]["failed"]:
        said = f"{summary['cells']['failed']} of {summary['cells']['planned']} runs failed"
        typer.secho(f"fedgaze: {said}; the same command tries them again", err=True, fg="red")
        raise typer.Exit(1)


def _run(folder: "LabFolder", workers: int, console: Console) -> None:
    """Carry out what is left under a progress bar."""
    from fedgaze.federate.lab import run_cells

    total, left = len(folder.plan.cells), len(folder.left())
    if left < total:
        console.print(f"{total - left} of {total} runs are done already")
    with progress_bar(console, "Running", total) as advance:
        advance(total - left)

        def told(cell: "Cell", found: Mapping[str, Any]) -> None:
            advance(1)
            if "failed" in found:
                said = f"fedgaze: {cell.id} failed: {found['failed']}"
                typer.secho(said, err=True, fg=typer.colors.RED)

        try:
            run_cells(folder, workers, told)
        except KeyboardInterrupt:
            kept = total - len(folder.left())
            typer.secho(
                f"interrupted; {kept} of {total} runs are kept: the same command goes on", err=True
            )
            raise typer.Exit(130) from None


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _table(group: Mapping[str, Any]) -> Table:
    """A group of settings, a row a defence."""
    count = len(group["settings"])
    title = f"{_TITLES[group['name']]}: {count} setting{'' if count == 1 else 's'}"
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    table.collapse_padding = True
    table.add_column("defence", no_wrap=True)
    for heading in _SHOWN.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in group["rows"]:
        numbers = row["numbers"]
        cells = [
            "–" if name not in numbers else _written(name, numbers[name]["mean"]) for name in _SHOWN
        ]
        table.add_row(escape(row["defence"]), *cells)
    return table


def _written(name: str, value: float) -> str:
    if name == "auc":
        return f"{value:.3f}"
    if name == "accuracy_lost":
        return f"{100 * value:+.1f}"
    return f"{100 * value:.0f} %" if value >= 1 else f"{100 * value:.1f} %"
