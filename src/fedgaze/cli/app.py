"""Which commands there are, and how all of them end."""

from importlib import import_module
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from fedgaze import __version__
from fedgaze.errors import FedgazeError

__all__ = ["app"]

# Each is a function of that name in a module of that name. The modules are imported for `--help`,
# so they import torch and the rooms below only when a command runs.
_COMMANDS = (
    "demo",
    "explain",
    "evaluate",
    "compare",
    "embed",
    "run",
    "lab",
    "ask",
    "export",
    "init",
    "doctor",
)


class _Commands(TyperGroup):
    """Turns what a command raises for people into one sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FedgazeError as error:
            typer.secho(f"fedgaze: {error}", err=True, fg=typer.colors.RED)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            typer.secho("fedgaze: interrupted", err=True)
            raise typer.Exit(130) from interrupt


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedgaze {__version__}")
        raise typer.Exit


def _fedgaze(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """See where every client's model looks, before its update is merged."""


app = typer.Typer(
    cls=_Commands,
    name="fedgaze",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    # Typer's own tracebacks print the values of local variables, and among them may be keys.
    pretty_exceptions_enable=False,
)
app.callback()(_fedgaze)
for _name in ("server", "client"):
    app.add_typer(getattr(import_module(f"fedgaze.cli.{_name}"), _name))
for _name in _COMMANDS:
    app.command(_name)(getattr(import_module(f"fedgaze.cli.{_name}"), _name))
