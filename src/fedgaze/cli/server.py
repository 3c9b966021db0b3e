"""`fedgaze server`: serve a federation to clients on other machines."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedgaze.errors import FedgazeError

if TYPE_CHECKING:
    from fedgaze.federate.deployment import Job, ServerHome

__all__ = ["SERVER_HOME", "server"]

SERVER_HOME = Path(".fedgaze/server")

PARTING = 3.0
"""Seconds in which clients see that the run is over before the server goes."""

server = typer.Typer(
    name="server",
    help="Serve a federation to clients on other machines.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Home = Annotated[
    Path, typer.Option("--home", help="The server's folder: keys, clients, state.", metavar="DIR")
]


@server.command()
def start(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Overrule the task's file: `num_rounds=3`.",
            metavar="[KEY=VALUE]…",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        Path | None,
        typer.Option(
            "--task",
            help="A task to run once its clients are there.",
            metavar="CONFIG",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            help="The address and port that clients reach; `0.0.0.0:8443` for all of this machine's"
            " addresses. By default `127.0.0.1:8443`.",
            metavar="ADDRESS:PORT",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="The name or address under which clients reach this machine.", show_default=False
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure/--secure",
            help="Without TLS and keys: on loopback only. By default secure.",
            show_default=False,
        ),
    ] = None,
    foreground: Annotated[
        bool,
        typer.Option(
            "--foreground",
            help="Stay, as a service manager wants it; with `--task`, until its run is over.",
        ),
    ] = False,
    home: Home = SERVER_HOME,
) -> None:
    """Start the server; it goes on with what it was doing when it was stopped.

    What was said at an earlier start need not be said again.
    """
    from fedgaze.config import load_task
    from fedgaze.federate import prepare
    from fedgaze.federate.deployment import (
        Listening,
        ServerHome,
        settings_for,
        start_server,
        submit,
        unfinished,
    )

    wanted = load_task(task, overrides or []) if task else None
    if overrides and not task:
        raise FedgazeError(f"'{overrides[0]}' overrules nothing: name the task with --task")
    if wanted:
        prepare(wanted)
    place = ServerHome(home)
    settings = settings_for(place, Listening(listen, name, insecure))
    start_server(place, settings, foreground=foreground and not wanted)
    typer.echo(f"server    {settings.name} ({'TLS and keys' if settings.secure else 'no TLS'})")
    typer.echo(f"folder    {place.path}")
    if wanted:
        job = unfinished(place, wanted) or submit(place, wanted)
        typer.echo(f"run       {job.name} begins when its {wanted.num_clients} clients are there")
    if wanted and foreground:
        _serve(place, job)
        return
    typer.echo("next      fedgaze server invite     (one for each client)")


def _serve(place: "ServerHome", job: "Job") -> None:
    """Stay with a run, and stop the server with it."""
    from fedgaze.cli.run import carry_out
    from fedgaze.cli.watch import threshold_of
    from fedgaze.federate.deployment import follow, stop_server

    threshold = threshold_of(job.summary)
    left = "the server is stopped; whole rounds are kept, and the same command goes on"
    try:
        console = Console(highlight=False)
        carry_out(console, lambda watch: follow(job, watch), left, threshold=threshold)
        time.sleep(PARTING)
    finally:
        stop_server(place)


@server.command()
def invite(
    name: Annotated[
        str, typer.Option(help="What the client is to be called.", show_default=False)
    ] = "",
    hours: Annotated[float, typer.Option(help="How long the invite can be used.", min=0.01)] = 72.0,
    output: Annotated[
        Path | None,
        typer.Option(help="Write it to a file.", metavar="FILE", show_default=False),
    ] = None,
    home: Home = SERVER_HOME,
) -> None:
    """Make an invite, good for one client: hand it over on a way that you trust."""
    from fedgaze.federate.deployment import ServerHome, make_invite, private_file

    text = make_invite(ServerHome(home), name, hours).text()
    if output is None:
        typer.echo(text)
        return
    private_file(output, f"{text}\n".encode())
    typer.echo(f"{output} holds the invite: fedgaze client join {output}")


@server.command()
def certs(
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", help="A name or address of this machine; repeat for more."),
    ] = None,
    home: Home = SERVER_HOME,
) -> None:
    """Make a local certificate authority, once, and a certificate for this server."""
    from fedgaze.federate.deployment import ServerHome, make_certificates

    make_certificates(ServerHome(home), hosts or [])
    typer.echo(f"{home / 'server.crt'} is signed by {home / 'ca.crt'}, which invites carry along")


@server.command()
def status(home: Home = SERVER_HOME) -> None:
    """Show whether the server runs, who is connected and what goes on."""
    from fedgaze.federate.deployment import Jobs, Registry, ServerHome, control_of, owner_of

    place, console = ServerHome(home), Console(highlight=False)
    settings, owner = place.settings(), owner_of(place.state)
    online = set()
    if owner is None:
        console.print("server    not running")
    else:
        since = datetime.fromtimestamp(owner["created"], UTC).astimezone()
        console.print(f"server    {settings.name}, since {since:%Y-%m-%d %H:%M}")
        online = {node.node for node in control_of(place).nodes() if node.online}
    current = next((job for job in Jobs(place).all() if job.status == "running"), None)
    console.print(f"run       {_progress(current) if current else 'none'}")
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    for heading in ("number", "client", "state", "joined"):
        table.add_column(heading)
    for client in Registry(place.registry).clients():
        joined = datetime.fromtimestamp(client.joined, UTC).astimezone()
        state = "[green]online[/]" if client.node in online else "[dim]offline[/]"
        state = state if settings.secure else "[dim]unknown without keys[/]"
        table.add_row(str(client.number), client.name, state, f"{joined:%Y-%m-%d %H:%M}")
    console.print(table)


@server.command()
def runs(home: Home = SERVER_HOME) -> None:
    """List what the server was asked to run."""
    from fedgaze.federate.deployment import Jobs, ServerHome

    table = Table(box=SIMPLE_HEAD, header_style="bold")
    for heading in ("run", "status", "rounds", "accuracy", "record"):
        table.add_column(heading, overflow="fold")
    for job in Jobs(ServerHome(home)).all():
        summary = job.summary
        rounds = summary.get("rounds", [])
        accuracy = rounds[-1]["global"].get("accuracy") if rounds else None
        left = len(summary.get("versions_pending", []))
        table.add_row(
            job.name,
            f"{job.status}, {left} not stored" if left else job.status,
            f"{len(rounds)} of {summary.get('task', {}).get('num_rounds', '?')}",
            "–" if accuracy is None else f"{accuracy:.3f}",
            job.record,
        )
    Console(highlight=False).print(table)


@server.command()
def logs(
    run: Annotated[
        str | None, typer.Argument(help="A run; by default the last one.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it is over.")] = False,
    home: Home = SERVER_HOME,
) -> None:
    """Print what a run said."""
    from fedgaze.federate.deployment import Jobs, ServerHome

    jobs = Jobs(ServerHome(home))
    job = jobs.find(run) if run else jobs.last()
    seen = 0
    while True:
        over = job.status != "running"
        seen = _print_from(Path(job.record) / "run.log", seen)
        if over or not follow:
            return
        time.sleep(0.5)


def _print_from(path: Path, seen: int) -> int:
    """Print what a file holds beyond a place, and return the new place."""
    if not path.exists():
        return seen
    with path.open(encoding="utf-8", errors="replace") as file:
        file.seek(seen)
        typer.echo(file.read(), nl=False)
        return file.tell()


@server.command()
def stop(
    run: Annotated[
        str | None,
        typer.Option(help="Stop this run only; it can be resumed.", show_default=False),
    ] = None,
    home: Home = SERVER_HOME,
) -> None:
    """Stop the server; runs go on when it is started again."""
    from fedgaze.federate.deployment import ServerHome, stop_run, stop_server

    place = ServerHome(home)
    if run:
        stop_run(place, run)
        typer.echo(f"{run} is stopped: fedgaze run --remote --resume --output {run} goes on")
    else:
        stop_server(place)
        typer.echo("the server is stopped")


@server.command()
def remove(
    client: Annotated[str, typer.Argument(help="The client's name.", show_default=False)],
    home: Home = SERVER_HOME,
) -> None:
    """Forget a client: its key opens nothing any more, its number is free."""
    from fedgaze.federate.deployment import ServerHome, remove_client

    remove_client(ServerHome(home), client)
    typer.echo(f"{client} is removed")


def _progress(job: "Job") -> str:
    summary = job.summary
    rounds = len(summary.get("rounds", []))
    return f"{job.name}: {rounds} of {summary['task']['num_rounds']} rounds are whole"
