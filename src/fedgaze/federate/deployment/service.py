"""What people do with servers and clients: start, stop, join, submit, look."""

import dataclasses
import hashlib
import ipaddress
import platform
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from fedgaze.config import Task
from fedgaze.errors import FedgazeError, nearest
from fedgaze.federate.deployment import host, manager
from fedgaze.federate.deployment.homes import ClientHome, ClientSettings, ServerHome, ServerSettings
from fedgaze.federate.deployment.host import control_of, prepare_home
from fedgaze.federate.deployment.jobs import Job, Jobs
from fedgaze.federate.deployment.manager import Own
from fedgaze.federate.deployment.processes import detach, free_port, owner_of, part
from fedgaze.federate.deployment.processes import stop as stop_process
from fedgaze.federate.deployment.registry import Registry, read_invite
from fedgaze.store import Run

if TYPE_CHECKING:  # here and below: most of these commands need no torch
    from fedgaze.federate.server import Observer

__all__ = [
    "Listening",
    "client_homes",
    "client_state",
    "find_client",
    "follow",
    "join_server",
    "manage_client",
    "remove_client",
    "resubmit",
    "settings_for",
    "start_client",
    "start_server",
    "stop_client",
    "stop_run",
    "stop_server",
    "submit",
    "trust_code",
    "unfinished",
    "work_for",
]

PORT = 8443
PATIENCE, POLL = 30.0, 0.5


@dataclass(frozen=True)
class Listening:
    """What was said of how a server listens; None for as before, or as is usual.

    Attributes:
        listen: ``address:port`` that clients reach.
        name: The name or address under which clients reach the machine.
        insecure: Without TLS and keys.
    """

    listen: str | None = None
    name: str | None = None
    insecure: bool | None = None


def settings_for(home: ServerHome, said: Listening, runs: Path = Path("runs")) -> ServerSettings:
    """How a server is to be started.

    Raises:
        FedgazeError: Others could reach it without TLS.
    """
    before = home.settings() if (home.path / "server.json").exists() else None
    address, port = (before.host, before.port) if before else ("127.0.0.1", PORT)
    if said.listen:
        address, port = _address(said.listen)
    secure = not said.insecure if said.insecure is not None else before is None or before.secure
    if not secure and not _is_loopback(address):
        raise FedgazeError(
            f"--insecure with --listen {address}:{port}: without TLS only 127.0.0.1 is allowed"
        )
    name = said.name
    if name is None and before and address == before.host:
        name = before.name.rpartition(":")[0]
    if name is None:
        name = address if address not in ("0.0.0.0", "::") else socket.getfqdn()  # noqa: S104
    name = f"[{name}]" if ":" in name and not name.startswith("[") else name
    control = free_port(before.control if before else port + 1)
    place = before.runs if before else str(runs.resolve())
    return ServerSettings(address, port, control, f"{name}:{port}", secure, place)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise FedgazeError(f"--listen {text}: address and port are allowed, such as 0.0.0.0:{PORT}")
    return host.strip("[]"), int(port)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def start_server(home: ServerHome, settings: ServerSettings, *, foreground: bool = False) -> None:
    """Start a server, and wait until it answers.

    Raises:
        FedgazeError: It runs already, or could not start.
    """
    prepare_home(home, settings)
    if foreground:
        host.main(home.path)
        return
    detach(part("host", str(home.path)), home.log("server"), home.state)


def stop_server(home: ServerHome) -> None:
    """Stop a server and all that belongs to it.

    Raises:
        FedgazeError: It does not run.
    """
    _stop(home, "server")


def _stop(home: ServerHome | ClientHome, what: str) -> None:
    owner = owner_of(home.state)
    if owner is None:
        raise FedgazeError(f"the {what} in {home.path} is not running")
    stop_process(owner["pid"], PATIENCE)


def submit(home: ServerHome, task: Task) -> Job:
    """Ask a server to run a task.

    Raises:
        FedgazeError: The task cannot be carried out.
    """
    from fedgaze.federate.division import describe_split
    from fedgaze.federate.setup import prepare

    task = task.on_a_server()
    setup = prepare(task)
    settings = home.settings()
    run = Run.create(
        Path(settings.runs) / task.task_id,
        task.public(),
        setup.dataset.classes,
        image_shape=setup.image_shape,
        directory=task.directory,
    )
    try:
        if (split := describe_split(setup)) is not None:
            run.summary["split"] = split
            run.write_summary()
        return Jobs(home).submit(run, task, setup.dataset.classes)
    finally:
        run.close()


def unfinished(home: ServerHome, task: Task) -> Job | None:
    """The run of a task that a server has not carried to its end yet, if there is one."""
    mine = task.on_a_server().public()
    for job in Jobs(home).all():
        if job.status == "running" and job.summary.get("task") == mine:
            return job
    return None


def resubmit(home: ServerHome, name: str) -> Job:
    """Ask a server to go on with a run that failed or was stopped.

    Raises:
        FedgazeError: There is no such run, or it is not to be gone on with.
    """
    job = Jobs(home).find(name)
    left = job.status == "complete" and job.summary.get("versions_pending")
    if job.status not in ("failed", "stopped") and not left:
        raise FedgazeError(f"{name} is {job.status}: there is nothing to resume")
    run = Run.open(Path(job.record), PATIENCE)
    try:
        run.reopen()
    finally:
        run.close()
    return Jobs(home).forgive(job)


def follow(job: Job, observer: "Observer") -> Run:
    """Watch a run from outside until it is over.

    Args:
        job: The job.
        observer: Is told of whole rounds.

    Returns:
        The complete run.

    Raises:
        FedgazeError: It failed or was stopped.
    """
    seen: int | None = None
    while True:
        summary = job.summary
        rounds = summary.get("rounds", [])
        if seen is None:
            seen = len(rounds)
            observer.run_started(summary["task"]["num_rounds"], seen)
        for record in rounds[seen:]:
            observer.round_done(record)
        seen = len(rounds)
        if summary.get("status") == "complete":
            run = Run.open(Path(job.record), PATIENCE)
            run.close()
            return run
        if summary.get("status") != "running":
            why = summary.get("failure") or summary.get("status", "its record is gone")
            raise FedgazeError(f"{job.name} did not end well: {why}")
        time.sleep(POLL)


def stop_run(home: ServerHome, name: str) -> None:
    """Stop a run; it can be resumed.

    Raises:
        FedgazeError: There is no such run, or it is over.
    """
    job = Jobs(home).find(name)
    if job.status != "running":
        raise FedgazeError(f"{name} is {job.status} already")
    if job.run and owner_of(home.state):
        control_of(home).stop(job.run)
    run = Run.open(Path(job.record), PATIENCE)
    try:
        run.stop()
    finally:
        run.close()


def remove_client(home: ServerHome, name: str) -> None:
    """Forget a client.

    Raises:
        FedgazeError: There is none of that name.
    """
    control = control_of(home)
    client = Registry(home.registry).remove(name)
    if client.node:
        control.unregister(client.node)


def join_server(folder: Path, word: str, name: str, own: Own | None = None) -> ClientHome:
    """Become a client of a server, or find the client that joined with the same invite.

    Args:
        folder: Where this machine's clients lie.
        word: The invite, or a file that holds it.
        name: What to be called where the invite does not say.
        own: Its images, and what may be known of them; None for as it joined before.

    Raises:
        FedgazeError: The invite cannot be read or redeemed, or the name is taken here.
    """
    invite = read_invite(word)
    mark = hashlib.sha256(invite.secret.encode()).hexdigest()
    default = f"{re.sub(r'[^A-Za-z0-9-]', '-', platform.node()) or 'client'}-{mark[:4]}"
    called = invite.name or name or default
    if not re.fullmatch(r"\w[\w.-]{0,63}", called):
        raise FedgazeError(f"--name {called}: letters, digits, '.', '_' and '-' are allowed")
    home = ClientHome(folder / called)
    joined = home.path / "invite.sha256"
    if joined.exists() and joined.read_text(encoding="utf-8") != mark:
        raise FedgazeError(f"{home.path} is a client that joined with another invite: use --name")
    if not (home.path / "client.json").exists():
        home.prepare()
        joined.write_text(mark, encoding="utf-8")
        manager.join(home, invite, called, own or Own())
    elif own is not None:
        known = home.settings()
        share = known.share if own.share is None else own.share
        home.write(dataclasses.replace(known, data=own.place or known.data, share=share))
    return home


def start_client(
    home: ClientHome, port: int | None, client_port: int | None, *, foreground: bool = False
) -> dict[str, Any]:
    """Start a client's manager, and with it all else.

    Args:
        home: The client's folder.
        port: Of the manager; None for 8003 or a free one.
        client_port: Of the working process; None for 8004 or a free one.
        foreground: Stay.

    Returns:
        ``port`` and ``pid``.

    Raises:
        FedgazeError: It runs already, or a port is taken.
    """
    if owner_of(home.state) is not None:
        raise FedgazeError(f"the client in {home.path} is running already")
    if foreground:
        manager.serve(home, port, client_port)
        return {"port": port}
    words = [str(home.path)]
    words += ["--port", str(port)] if port else []
    words += ["--client-port", str(client_port)] if client_port else []
    return detach(part("manager", *words), home.log("manager"), home.state)


def manage_client(home: ClientHome, port: int | None) -> None:
    """Look after a client whose working process somebody else starts, until told to stop."""
    manager.serve(home, port, None, with_worker=False)


def work_for(home: ClientHome, port: int | None) -> None:
    """Be the working process of a client, until told to stop."""
    from fedgaze.federate.deployment import worker

    worker.serve(home, port)


def stop_client(home: ClientHome) -> None:
    """Stop a client.

    Raises:
        FedgazeError: It does not run.
    """
    _stop(home, "client")


def client_homes(folder: Path) -> list[ClientHome]:
    """The clients of this machine."""
    return [ClientHome(path.parent) for path in sorted(folder.glob("*/client.json"))]


def find_client(folder: Path, name: str | None) -> ClientHome:
    """The client of a name, or the only one.

    Raises:
        FedgazeError: There is none, or the name is needed.
    """
    homes = {home.settings().name: home for home in client_homes(folder)}
    if name is None and len(homes) == 1:
        return next(iter(homes.values()))
    if name not in homes:
        known = f"there are {', '.join(homes)}" if homes else "no client joined from here yet"
        what = f"there is no client '{name}'" if name else "say which client"
        raise FedgazeError(f"{what}: {known}{nearest(name or '', homes)}")
    return homes[name]


def client_state(home: ClientHome) -> dict[str, Any] | None:
    """What a client's manager says; None where it does not run."""
    owner = owner_of(home.state)
    if owner is None:
        return None
    token = home.token.read_text(encoding="utf-8")
    try:
        answer = httpx.get(
            f"http://127.0.0.1:{owner['port']}/online",
            headers={"authorization": f"Bearer {token}"},
            trust_env=False,
        )
        state: dict[str, Any] = answer.raise_for_status().json()
    except httpx.HTTPError:
        return None
    return state


def trust_code(home: ClientHome, sha256: str) -> None:
    """Let a client run a bundle whoever signed it.

    Raises:
        FedgazeError: It is no SHA-256.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise FedgazeError(f"'{sha256}' is no SHA-256: 64 of 0-9 and a-f are allowed")
    settings: ClientSettings = home.settings()
    hashes = tuple(dict.fromkeys([*settings.hashes, sha256]))
    home.write(dataclasses.replace(settings, hashes=hashes))
