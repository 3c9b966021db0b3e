"""What an evaluation says, on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

if TYPE_CHECKING:
    from fedgaze.measure import Column, Table
    from fedgaze.report import Evaluation

__all__ = ["print_change", "print_tables"]


def print_change(
    line: Mapping[str, Any], change: str, evaluation: "Evaluation", console: Console
) -> None:
    """Print how alike the heatmaps of a picture and of its changed version are."""
    for maker in evaluation.makers:
        if maker.baseline:
            continue
        values = line["values"][maker.name]
        parts = [
            f"{name.removeprefix(f'{change}_')} {'–' if value is None else f'{value:.3f}'}"
            for name, value in values.items()
            if name.startswith(f"{change}_")
        ]
        console.print(
            f"{escape(line['file'])}  [bold]{escape(line['target']['label'])}[/]  {maker.name}: "
            f"{', '.join(parts)}"
        )


def print_tables(evaluation: "Evaluation", console: Console) -> None:
    """Print a table an axis, and what there is to say of them."""
    from fedgaze.report import judged

    record = evaluation.record
    table = record.table()
    names = max(len(each) + 11 * (each in record.baselines) for each in table.makers)
    for axis in table.axes:
        for columns in _beside(table.of_axis(axis), console.width - names - 4):
            console.print(_grid(table, columns, record.baselines))
    found = judged(record, table)
    console.print(f"[bold]{escape(found.headline)}[/]")
    for note in found.notes:
        console.print(f"• {escape(note)}")


def _beside(columns: Sequence["Column"], width: int) -> Iterator[Sequence["Column"]]:
    """Columns, as many at a time as fit beside each other."""
    # Eleven characters of an interval, and three for the line and its margins.
    count = max(1, width // 14)
    # Four and two would be three and three.
    parts = -(-len(columns) // count)
    each = -(-len(columns) // parts)
    for start in range(0, len(columns), each):
        yield columns[start : start + each]


def _grid(table: "Table", columns: Sequence["Column"], baselines: Sequence[str]) -> Grid:
    title = columns[0].axis.capitalize()
    grid = Grid(title=title, title_justify="left", title_style="bold")
    grid.add_column("method", no_wrap=True)
    for column in columns:
        arrow = "↑" if column.better == "higher" else "↓"
        # Long names break where a person would break them.
        name = column.name.replace("_", "_\n")
        grid.add_column(f"{arrow} {name}", justify="right", overflow="fold")
    for maker in table.makers:
        cells = [_cell(table, maker, column.name) for column in columns]
        name = f"[dim]{maker} (baseline)[/]" if maker in baselines else maker
        grid.add_row(name, *cells)
    return grid


def _cell(table: "Table", maker: str, column: str) -> str:
    cell = table.cells[maker, column]
    total = cell.summary
    if total.n == 0:
        return "–"
    text = f"({cell.rank}) {total.mean:.3f}"
    if total.n > 1:
        text += f"\n[dim]{total.low:.3f}…{total.high:.3f}[/]"
    text = f"[bold]{text}[/]" if cell.best else text
    return text if not total.missing else f"{text}\n[dim]n = {total.n}[/]"
