"""What commands can be asked for: methods, metrics, and a model's layers."""

import json
from dataclasses import asdict, is_dataclass
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["print_layers", "print_methods", "print_metrics"]

_COSTS = {
    "forward": "one forward pass",
    "backward": "one forward pass and the way back",
    "many": "many passes",
}


def print_methods(wanted: bool) -> None:
    """List the methods, cheapest first: what they cost, need and can be told, and their source."""
    if not wanted:
        return
    from fedgaze.xai import list_methods

    console = Console(highlight=False)
    for cost, heading in _COSTS.items():
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        table.title = f"[bold]{heading}[/]"
        for column in ("method", "needs", "options", "source"):
            table.add_column(column, overflow="fold", no_wrap=column == "method")
        for method in list_methods():
            if method.cost_class == cost:
                table.add_row(
                    f"[bold]{escape(method.name)}[/]",
                    ", ".join(method.needs),
                    escape(", ".join(f"{name}={value}" for name, value in method.options.items())),
                    f"[dim]{escape(method.paper)}[/]",
                )
        console.print(table)
    raise typer.Exit


def print_layers(model: str | None) -> None:
    """List the layers of a model that can be explained, with what they return."""
    if model is None:
        return
    from fedgaze.models import describe_layers

    size, chosen, layers = describe_layers(model)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("layer", "module", f"at {size}", ""):
        table.add_column(heading, no_wrap=heading == "layer")
    for layer in layers:
        auto = "[green]auto[/]" if layer.name == chosen else ""
        table.add_row(escape(layer.name), layer.module, " × ".join(map(str, layer.shape)), auto)
    Console(highlight=False).print(table)
    raise typer.Exit


def print_metrics(wanted: bool) -> None:
    """List the metrics by axis: their range, the good end, what they cost and can be told."""
    if not wanted:
        return
    from fedgaze.measure import list_metrics

    console = Console(highlight=False)
    metrics = list_metrics()
    for axis in dict.fromkeys(each.axis for each in metrics):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        table.title = f"[bold]{axis}[/]"
        table.add_column("metric", no_wrap=True)
        # Beside each other these would be too narrow for a word on most screens.
        table.add_column("better, range, cost an image; options; source")
        for metric in metrics:
            if metric.axis == axis:
                options = ", ".join(
                    f"{name}={_as_given(value)}" for name, value in metric.options.items()
                )
                lines = [
                    f"{metric.better}, {metric.span}, {metric.cost}",
                    escape(options),
                    f"[dim]{escape(metric.paper)}[/]",
                ]
                table.add_row(f"[bold]{metric.name}[/]", "\n".join(filter(None, lines)))
        console.print(table)
    raise typer.Exit


def _as_given(value: Any) -> str:
    """A default as a person would write it."""
    if is_dataclass(value) and not isinstance(value, type):
        return json.dumps(asdict(value))
    return json.dumps(value) if isinstance(value, tuple) else str(value)
