"""Where a server and a client keep what they need from one day to the next."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedgaze.config import Share
from fedgaze.errors import FedgazeError
from fedgaze.store import write_json

__all__ = ["ClientHome", "ClientSettings", "ServerHome", "ServerSettings"]


@dataclass(frozen=True)
class ServerSettings:
    """How a server listens.

    Attributes:
        host: The address that clients' connections are taken on.
        port: Its port.
        control: The loopback port of what only the server's owner may do.
        name: ``host:port`` as clients reach it.
        secure: Whether clients come over TLS and show their keys.
        runs: The folder of the runs' records.
    """

    host: str
    port: int
    control: int
    name: str
    secure: bool
    runs: str


@dataclass(frozen=True)
class ClientSettings:
    """Who a client is, and how it reaches its server.

    Attributes:
        name: What people call it.
        number: Which client it is in a record.
        server: ``host:port``.
        secure: Whether over TLS, with its key.
        publisher: Whose tasks it trusts: a public key.
        data: Its own images; empty where the task brings them.
        share: What may leave it at most, whatever a task says.
        hashes: Bundles that it trusts whoever signed them.
    """

    name: str
    number: int
    server: str
    secure: bool
    publisher: str
    data: str
    share: Share
    hashes: tuple[str, ...] = ()


class _Home:
    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def prepare(self) -> None:
        """Make the folder, for its owner's eyes only."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.path / "logs").mkdir(exist_ok=True)
        except OSError as error:
            raise FedgazeError(f"{self.path} cannot be made: {error.strerror}") from None

    @property
    def flower(self) -> Path:
        """Flower's own folder, which is not shared with other programs."""
        return self.path / "flower"

    @property
    def state(self) -> Path:
        """What the running processes say of themselves."""
        return self.path / "state.json"

    @property
    def token(self) -> Path:
        """What a caller on loopback has to show."""
        return self.path / "token"

    @property
    def secret(self) -> Path:
        """What Flower's own parts show one another."""
        return self.path / "runtime.secret"

    def log(self, name: str) -> Path:
        """Where a process writes what it says."""
        return self.path / "logs" / f"{name}.log"


class ServerHome(_Home):
    """The folder of a server."""

    @property
    def authority(self) -> Path:
        """The certificate that the server's own is signed with."""
        return self.path / "ca.crt"

    @property
    def publisher(self) -> Path:
        """The key with which tasks are signed."""
        return self.path / "publisher.key"

    @property
    def registry(self) -> Path:
        """Invites and clients."""
        return self.path / "clients.json"

    @property
    def database(self) -> Path:
        """Flower's state."""
        return self.path / "flower.db"

    @property
    def jobs(self) -> Path:
        """What the server was asked to run."""
        return self.path / "jobs"

    def attempt(self, name: str) -> Path:
        """Where the process that carries out a run notes itself."""
        return self.jobs / f"{name}.owner"

    def settings(self) -> ServerSettings:
        """How the server was started.

        Raises:
            FedgazeError: It never was.
        """
        settings: ServerSettings
        settings = _read(self.path / "server.json", ServerSettings, "fedgaze server start")
        return settings

    def write(self, settings: ServerSettings) -> None:
        """Note how the server is started."""
        write_json(self.path / "server.json", asdict(settings))


class ClientHome(_Home):
    """The folder of a client."""

    @property
    def authority(self) -> Path:
        """The certificate that the server's own is signed with."""
        return self.path / "ca.crt"

    @property
    def key(self) -> Path:
        """The client's own key."""
        return self.path / "client.key"

    @property
    def runs(self) -> Path:
        """What the client keeps of its runs."""
        return self.path / "runs"

    @property
    def worker(self) -> Path:
        """What the running working process says of itself."""
        return self.path / "worker.json"

    @property
    def bundles(self) -> Path:
        """The unpacked code of tasks."""
        return self.path / "bundles"

    def settings(self) -> ClientSettings:
        """Who the client is.

        Raises:
            FedgazeError: It never joined.
        """
        settings: ClientSettings
        settings = _read(self.path / "client.json", ClientSettings, "fedgaze client join INVITE")
        return settings

    def write(self, settings: ClientSettings) -> None:
        """Note who the client is."""
        write_json(self.path / "client.json", asdict(settings))


def _read(path: Path, kind: Any, command: str) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return kind(**{each.name: values[each.name] for each in fields(kind)})
    except FileNotFoundError:
        raise FedgazeError(f"{path} is not there: `{command}` makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FedgazeError(f"{path} cannot be read: {error}") from None
