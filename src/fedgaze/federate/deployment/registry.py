"""Who may join a server: invites, each good for one client, and the clients that joined."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedgaze.errors import FedgazeError, nearest
from fedgaze.store import write_json

__all__ = ["Client", "Invite", "Registry", "read_invite"]

FORMAT = 1
MARK = "fedgaze-invite-"


@dataclass(frozen=True)
class Client:
    """A client that joined.

    Attributes:
        number: Which client it is in a record, from 0.
        name: What people call it.
        public_key: PEM; who holds the private half is this client.
        node: Flower's id of its node.
        joined: When, in seconds since 1970.
    """

    number: int
    name: str
    public_key: str
    node: int
    joined: float


@dataclass(frozen=True)
class Invite:
    """What somebody needs to join a server: as one line of text, or in a file.

    Attributes:
        server: ``host:port``.
        authority: The PEM certificate that the server's own is signed with; empty without TLS.
        secret: Proves that its holder was invited; once.
        name: What the client is to be called; empty to choose.
        publisher: Whose tasks the client is asked to trust: a public key.
    """

    server: str
    authority: str
    secret: str
    name: str
    publisher: str

    def text(self) -> str:
        """The invite as one line."""
        content = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return MARK + base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def read_invite(word: str) -> Invite:
    """Read an invite from its line or from a file that holds it.

    Raises:
        FedgazeError: It is neither.
    """
    text = word.strip()
    if not text.startswith(MARK):
        try:
            text = Path(word).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise FedgazeError(
                f"'{word[:80]}' is neither an invite ({MARK}…) nor a file that holds one: {why}"
            ) from None
    content = text.removeprefix(MARK)
    try:
        values = json.loads(base64.urlsafe_b64decode(content + "=" * (-len(content) % 4)))
        known = values.pop("format")
        invite = Invite(**values)
        whole = all(isinstance(each, str) for each in asdict(invite).values())
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not text.startswith(MARK) or not whole:
        raise FedgazeError("the invite is damaged: copy the whole line, or ask for a new one")
    if known != FORMAT:
        raise FedgazeError(f"the invite is of format {known}: this version reads {FORMAT}")
    return invite


class Registry:
    """The invites and clients of a server, in one file that several processes use.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def clients(self) -> list[Client]:
        """Who joined, by their numbers."""
        return [Client(**each) for each in self._read()["clients"]]

    def invite(self, name: str, hours: float) -> str:
        """Note a new invite, and return its secret, which is kept nowhere.

        Args:
            name: What the client is to be called; empty to let it choose.
            hours: How long it can be used.

        Raises:
            FedgazeError: A client or an open invite has that name already.
        """
        secret = secrets.token_urlsafe(32)
        with self._changed() as values:
            taken = [each["name"] for each in values["clients"]]
            taken += [each["name"] for each in values["invites"] if _open(each)]
            if name and name in taken:
                raise FedgazeError(f"there is a client or an open invite called '{name}' already")
            values["invites"].append(
                {
                    "hash": _hash(secret),
                    "name": name,
                    "until": time.time() + 3600 * hours,
                    "public_key": None,
                }
            )
        return secret

    def redeem(self, secret: str, public_key: str, name: str, register: Any) -> Client:
        """Turn an invite into a client.

        The same key may ask again with the same secret, since an answer can get lost on its way.

        Args:
            secret: Of the invite.
            public_key: PEM; the caller has shown that it holds the private half.
            name: What the client calls itself where the invite does not say.
            register: Makes the key known to Flower and returns the node's id: ``(key, name)``.

        Raises:
            PermissionError: The invite is unknown, over, or was used by another key.
        """
        with self._changed() as values:
            hashed = _hash(secret)
            invite = next(
                (each for each in values["invites"] if hmac.compare_digest(each["hash"], hashed)),
                None,
            )
            if invite is None:
                raise PermissionError("this server knows no such invite")
            if invite["public_key"] == public_key:
                return next(Client(**e) for e in values["clients"] if e["public_key"] == public_key)
            if invite["public_key"] is not None:
                raise PermissionError("the invite was used already; ask for a new one")
            if not _open(invite):
                raise PermissionError("the invite is over; ask for a new one")
            numbers = {each["number"] for each in values["clients"]}
            number = next(n for n in range(len(numbers) + 1) if n not in numbers)
            names = {each["name"] for each in values["clients"]}
            called = invite["name"] or name or f"client-{number}"
            if called in names:
                raise PermissionError(f"there is a client called '{called}' already")
            client = Client(number, called, public_key, register(public_key, called), time.time())
            invite["public_key"] = public_key
            values["clients"].append(asdict(client))
            values["clients"].sort(key=lambda each: each["number"])
        return client

    def remove(self, name: str) -> Client:
        """Forget a client; its number is free for the next.

        Raises:
            FedgazeError: There is none of that name.
        """
        with self._changed() as values:
            found = [each for each in values["clients"] if each["name"] == name]
            if not found:
                names = [each["name"] for each in values["clients"]]
                raise FedgazeError(
                    f"there is no client '{name}'; there are {', '.join(names) or 'none'}"
                    f"{nearest(name, names)}"
                )
            values["clients"].remove(found[0])
        return Client(**found[0])

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(f"{self._path}.lock"):
            values = self._read()
            yield values
            write_json(self._path, values)

    def _read(self) -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"invites": [], "clients": []}
        except ValueError as error:
            raise FedgazeError(f"{self._path} cannot be read: {error}") from None
        return values


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _open(invite: dict[str, Any]) -> bool:
    return invite["public_key"] is None and bool(invite["until"] > time.time())
