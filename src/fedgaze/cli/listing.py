"""What `fedgaze explain` can be asked for: its methods, and a model's layers."""

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["print_layers", "print_methods"]

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
