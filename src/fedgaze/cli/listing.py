"""What `fedgaze explain` can be asked for: its methods, and a model's layers."""

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["print_layers", "print_methods"]


def print_methods(wanted: bool) -> None:
    """List the methods: what they cost, what they look at, where they come from."""
    if not wanted:
        return
    from fedgaze.xai import list_methods

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("method", "explains", "cost", "options", "source"):
        table.add_column(heading, overflow="fold")
    for method in list_methods():
        explains = "layers" if method.layers else method.kind
        table.add_row(
            f"[bold]{escape(method.name)}[/]",
            explains if explains != "run" else "the image",
            method.cost,
            escape(", ".join(f"{name}={default}" for name, default in method.options.items())),
            f"[dim]{escape(method.paper)}[/]",
        )
    Console(highlight=False).print(table)
    raise typer.Exit


def print_layers(model: str | None) -> None:
    """List the layers of a model that can be explained, with what they return."""
    if model is None:
        return
    from fedgaze.models import describe_layers

    size, chosen, layers = describe_layers(model)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("layer", "module", f"channels × positions at {size}"):
        table.add_column(heading, overflow="fold")
    for layer in layers:
        auto = "  [green]← the automatic choice[/]" if layer.name == chosen else ""
        positions = " × ".join(map(str, layer.shape))
        table.add_row(f"{escape(layer.name)}{auto}", layer.module, positions)
    Console(highlight=False).print(table)
    raise typer.Exit
