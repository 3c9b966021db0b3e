"""A client's manager: keeps its SuperNode connected and its worker at hand, and tells how it goes.

It waits for the server, lets the worker start when a run begins, survives the end of a run and
waits for the next. ``GET /online`` on loopback says how things stand.
"""

import argparse
import os
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fedgaze import __version__
from fedgaze.config import Share
from fedgaze.errors import FedgazeError
from fedgaze.federate.deployment.door import answer_on_loopback, loopback_app, make_secret
from fedgaze.federate.deployment.flower import ENVIRONMENT, node_headers
from fedgaze.federate.deployment.homes import ClientHome, ClientSettings
from fedgaze.federate.deployment.keys import make_node_key, private_file, read_node_key
from fedgaze.federate.deployment.processes import (
    Child,
    Children,
    free_port,
    loopback_socket,
    note_owner,
    owner_of,
    part,
)
from fedgaze.federate.deployment.registry import Invite

__all__ = ["Manager", "Own", "join", "main", "serve", "server_client"]

PORT = 8003
PAUSE = 1.0
"""Seconds between two looks at the server."""
AWAY = 30.0
"""Seconds after which a server that does not answer has ended its run, as far as one can tell."""


@dataclass(frozen=True)
class Own:
    """What a client brings.

    Attributes:
        data: Where its images lie; None where the task brings them.
        share: What may leave it at most, whatever a task says; None for what the task says.
    """

    data: Path | None = None
    share: Share | None = None

    @property
    def place(self) -> str:
        """Where its images lie, as it is noted."""
        return "" if self.data is None else str(self.data.resolve())


def server_client(server: str, authority: Path, *, secure: bool) -> httpx.Client:
    """A connection to a server's public door, which trusts the invite's authority only."""
    if not secure:
        return httpx.Client(base_url=f"http://{server}", timeout=30, trust_env=False)
    trusted = ssl.create_default_context(cafile=str(authority))
    return httpx.Client(base_url=f"https://{server}", verify=trusted, timeout=30, trust_env=False)


def join(home: ClientHome, invite: Invite, name: str, own: Own) -> ClientSettings:
    """Redeem an invite: the client's key is made here and never leaves this machine.

    Args:
        home: The client's folder, new or of an attempt whose answer got lost.
        invite: The invite.
        name: What the client is to be called where the invite does not say.
        own: Its images, and what may be known of them.

    Raises:
        FedgazeError: The server cannot be reached, or refuses.
    """
    home.prepare()
    make_secret(home.token)
    make_secret(home.secret)
    if not home.key.exists():
        make_node_key(home.key)
    if invite.authority and not home.authority.exists():
        private_file(home.authority, invite.authority.encode())
    secure = bool(invite.authority)
    asked = {"secret": invite.secret, "name": name, "version": __version__}
    try:
        with server_client(invite.server, home.authority, secure=secure) as client:
            answer = client.post(
                "/v1/fedgaze/join", json=asked, headers=node_headers(read_node_key(home.key))
            )
    except httpx.TransportError as error:
        raise FedgazeError(f"the server {invite.server} cannot be reached: {error}") from None
    if answer.status_code != httpx.codes.OK:
        raise FedgazeError(f"the server {invite.server} refused: {_detail(answer)}")
    said = answer.json()
    settings = ClientSettings(
        name=said["name"],
        number=said["number"],
        server=invite.server,
        secure=secure,
        publisher=invite.publisher,
        data=own.place,
        share=own.share or "overlays",
    )
    home.write(settings)
    return settings


def _detail(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = ""
    return str(detail or answer.status_code)


@dataclass
class Manager:
    """Looks after one client.

    Attributes:
        home: The client's folder.
        port: Where its worker is to listen on loopback; None to choose.
        with_worker: Whether it starts the worker, or somebody else does.
    """

    home: ClientHome
    port: int | None = None
    with_worker: bool = True
    server: str = "not tried yet"
    run: str | None = None
    worker: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settings = self.home.settings()
        self._key = read_node_key(self.home.key)
        self._server = server_client(
            self.settings.server, self.home.authority, secure=self.settings.secure
        )
        token = self.home.token.read_text(encoding="utf-8")
        self._worker = httpx.Client(
            headers={"authorization": f"Bearer {token}"}, timeout=10, trust_env=False
        )
        self._runtime = free_port()
        children = {"supernode": Child(self._supernode, self.home.log("supernode"), self._flower())}
        if self.with_worker:
            children["worker"] = Child(self._working, self.home.log("worker"), self._flower())
        self._children = Children(children, self._folder())
        self.stopping = threading.Event()
        self._seen = 0.0

    def _flower(self) -> dict[str, str]:
        return ENVIRONMENT | {"FLWR_HOME": str(self.home.flower)}

    def _folder(self) -> Path:
        """Where processes work: empty, so that no relative path finds anything."""
        folder = self.home.path / "work"
        folder.mkdir(exist_ok=True)
        return folder

    def _supernode(self) -> list[str]:
        self._runtime = free_port()
        secure = [
            "--root-certificates",
            str(self.home.authority),
            "--auth-supernode-private-key",
            str(self.home.key),
        ]
        return [
            *part("supernode", "--superlink", self.settings.server),
            *(secure if self.settings.secure else ["--insecure"]),
            *("--host", "127.0.0.1", "--port", str(self._runtime)),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", str(self.home.secret)),
            *("--node-config", f"partition-id={self.settings.number}"),
        ]

    def _working(self) -> list[str]:
        port = ["--port", str(self.port)] if self.port else []
        return part("worker", str(self.home.path), "--parent", str(os.getpid()), *port)

    def look_after(self) -> None:
        """Do what is to be done, until told to stop."""
        try:
            while not self.stopping.wait(PAUSE):
                self._ask_server()
                if self.server == "connected":
                    self._children.tend()
                self._tell_worker()
        finally:
            self._children.stop()

    def _ask_server(self) -> None:
        try:
            answer = self._server.get("/v1/fedgaze/state", headers=node_headers(self._key))
        except httpx.HTTPError as error:
            self.server = f"waiting for {self.settings.server}: {error or type(error).__name__}"
            return
        if answer.status_code != httpx.codes.OK:
            self.server = f"refused: {_detail(answer)}"
            return
        self._seen = time.monotonic()
        self.server, run = "connected", answer.json()["run"]
        self.run = None if run is None else str(run)

    def _tell_worker(self) -> None:
        try:
            self.worker = self._worker.get(self._worker_url("/online")).raise_for_status().json()
            working = self.worker["operation"]
            if self.run is not None and self.server == "connected":
                # A SuperNode that was started again listens on another port.
                wanted = {"run": self.run, "runtime": f"127.0.0.1:{self._runtime}"}
                if working is None or not wanted.items() <= working.items():
                    self._post("/start", wanted)
            elif working is not None and (self.server == "connected" or self._away() > AWAY):
                self._post("/finish", {})
        except httpx.HTTPError as error:
            self.worker = {"online": False, "reason": str(error) or type(error).__name__}

    def _away(self) -> float:
        """For how many seconds the server has not answered."""
        return time.monotonic() - self._seen

    def _worker_url(self, path: str) -> str:
        owner = owner_of(self.home.worker)
        if owner is None:
            raise httpx.ConnectError("it is not running")
        return f"http://127.0.0.1:{owner['port']}{path}"

    def _post(self, path: str, content: dict[str, Any]) -> None:
        self.worker |= (
            self._worker.post(self._worker_url(path), json=content).raise_for_status().json()
        )

    def state(self) -> dict[str, Any]:
        """How things stand."""
        return {
            "online": True,
            "name": self.settings.name,
            "number": self.settings.number,
            "version": __version__,
            "pid": os.getpid(),
            "server": self.server,
            "supernode": self._children.alive("supernode"),
            "run": self.run,
            "client": self.worker,
        }


def serve(
    home: ClientHome, port: int | None, worker_port: int | None, *, with_worker: bool = True
) -> None:
    """Look after a client, and answer on loopback, until told to stop.

    Args:
        home: The client's folder.
        port: Where to listen; None for 8003 or a free one.
        worker_port: Where the working process is to listen; None for 8004 or a free one.
        with_worker: Whether the working process is started here, or somebody else does.

    Raises:
        FedgazeError: It is looked after already.
    """
    if owner_of(home.state) is not None:
        raise FedgazeError(f"the client in {home.path} is running already")
    manager = Manager(home, worker_port, with_worker)
    app = loopback_app("fedgaze client manager", home.token)

    @app.get("/online")
    def online() -> dict[str, Any]:
        return manager.state()

    with loopback_socket(port, usual=PORT) as listener:
        note_owner(home.state, port=listener.getsockname()[1])
        thread = threading.Thread(target=manager.look_after)
        thread.start()
        try:
            answer_on_loopback(app, listener)
        finally:
            manager.stopping.set()
            thread.join()
            home.state.unlink(missing_ok=True)


def main(words: list[str] | None = None) -> None:
    """Run as a process of its own: ``HOME --port PORT --client-port PORT``."""
    parser = argparse.ArgumentParser(description="Looks after a fedgaze client.")
    parser.add_argument("home", type=Path, help="the client's folder")
    parser.add_argument(
        "--port", type=int, help=f"where it listens (default: {PORT}, or a free one)"
    )
    parser.add_argument("--client-port", type=int, help="where the client listens (default: 8004)")
    asked = parser.parse_args(words)
    try:
        serve(ClientHome(asked.home), asked.port, asked.client_port)
    except FedgazeError as error:
        parser.exit(2, f"fedgaze: {error}\n")
