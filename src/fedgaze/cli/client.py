"""`fedgaze client`: take part in a federation with this machine's data."""

from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedgaze.errors import FedgazeError, nearest

__all__ = ["client"]

CLIENTS = Path(".fedgaze/clients")

client = typer.Typer(
    name="client",
    help="Take part in a federation with this machine's data.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Folder = Annotated[
    Path,
    typer.Option("--home", help="Where this machine's clients keep their keys.", metavar="DIR"),
]
Port = Annotated[
    int | None,
    typer.Option(help="The loopback port of its manager. By default 8003, or a free one."),
]
ClientPort = Annotated[
    int | None,
    typer.Option(help="The loopback port of its working process. By default 8004, or a free one."),
]
Foreground = Annotated[
    bool, typer.Option("--foreground", help="Stay, as a service manager wants it.")
]
Name = Annotated[
    str | None,
    typer.Argument(help="The client; not needed where there is one.", show_default=False),
]


@client.command()
def join(
    invite: Annotated[
        str,
        typer.Argument(
            help="The invite, or a file that holds it.", metavar="INVITE", show_default=False
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="The folder of this client's images, which stay here.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            help="What may leave this client at most, whatever a task says: `none`, `profile` "
            "(numbers), `maps` or `overlays` (pictures).",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(help="What to be called, where the invite does not say.")
    ] = "",
    home: Folder = CLIENTS,
    port: Port = None,
    foreground: Foreground = False,
) -> None:
    """Join a server and take part in its runs, until stopped.

    The invite is redeemed once for a key that is made here. Joining again with the same invite
    starts the same client.
    """
    from fedgaze.config import Share
    from fedgaze.federate.deployment import Own, join_server, start_client

    levels = get_args(Share)
    if share is not None and share not in levels:
        raise FedgazeError(
            f"--share {share}: allowed are {', '.join(levels)}{nearest(share, levels)}"
        )
    if data is not None and not data.exists():
        raise FedgazeError(f"--data {data}: there is nothing of that name")
    place = join_server(home, invite, name, Own(data, cast("Share | None", share)))
    settings = place.settings()
    typer.echo(f"{settings.name} is client {settings.number} of {settings.server}")
    noted = start_client(place, port, None, foreground=foreground)
    typer.echo(f"folder    {place.path}")
    typer.echo(f"manager   http://127.0.0.1:{noted['port']}/online")


@client.command()
def start(
    name: Name = None,
    home: Folder = CLIENTS,
    port: Port = None,
    client_port: ClientPort = None,
    foreground: Foreground = False,
) -> None:
    """Start a client that joined before."""
    from fedgaze.federate.deployment import find_client, start_client

    place = find_client(home, name)
    noted = start_client(place, port, client_port, foreground=foreground)
    typer.echo(f"{place.settings().name}   http://127.0.0.1:{noted['port']}/online")


@client.command()
def manage(
    name: Name = None,
    invite: Annotated[
        str | None,
        typer.Option(help="Join with this invite first.", metavar="INVITE", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The folder of this client's images.", metavar="DIR", show_default=False),
    ] = None,
    home: Folder = CLIENTS,
    port: Port = None,
) -> None:
    """Look after a client that `fedgaze client work` runs: wait for the server, start it, report.

    `join` and `start` do both parts at once.
    """
    from fedgaze.federate.deployment import Own, find_client, join_server, manage_client

    if invite is None:
        place = find_client(home, name)
    else:
        place = join_server(home, invite, name or "", Own(data) if data else None)
    typer.echo(f"{place.settings().name} is looked after; Ctrl-C ends that")
    manage_client(place, port)


@client.command()
def work(
    name: Name = None,
    home: Folder = CLIENTS,
    port: ClientPort = None,
) -> None:
    """Be a client's working process: answer `GET /online` and `POST /start` on loopback.

    `join` and `start` do both parts at once.
    """
    from fedgaze.federate.deployment import find_client, work_for

    place = find_client(home, name)
    typer.echo(f"{place.settings().name} waits for its manager; Ctrl-C ends it")
    work_for(place, port)


@client.command()
def status(home: Folder = CLIENTS) -> None:
    """Show this machine's clients and what they do."""
    from fedgaze.federate.deployment import client_homes, client_state

    table = Table(box=SIMPLE_HEAD, header_style="bold")
    for heading in ("client", "number", "server", "state", "data"):
        table.add_column(heading, overflow="fold")
    for place in client_homes(home):
        settings, state = place.settings(), client_state(place)
        if state is None:
            said = "[dim]not running[/]"
        elif state["server"] != "connected":
            said = f"[yellow]{state['server']}[/]"
        else:
            said = state["client"].get("state") or "[yellow]its working process does not answer[/]"
        table.add_row(
            settings.name,
            str(settings.number),
            settings.server,
            said,
            settings.data or "the task's",
        )
    Console(highlight=False).print(table)


@client.command()
def stop(name: Name = None, home: Folder = CLIENTS) -> None:
    """Stop a client; it can be started again."""
    from fedgaze.federate.deployment import find_client, stop_client

    place = find_client(home, name)
    stop_client(place)
    typer.echo(f"{place.settings().name} is stopped")


@client.command()
def trust(
    sha256: Annotated[
        str, typer.Argument(help="SHA-256 of a task's code.", metavar="SHA256", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="The client; not needed where there is one.")
    ] = None,
    home: Folder = CLIENTS,
) -> None:
    """Let a client run a task's code whoever signed it."""
    from fedgaze.federate.deployment import find_client, trust_code

    trust_code(find_client(home, name), sha256)
    typer.echo(f"code {sha256[:12]}… may run here")
