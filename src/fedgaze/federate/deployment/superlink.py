"""The process that clients reach: Flower's SuperLink behind two doors.

Flower serves everything on one port, and whoever reaches that port can submit code. Here the door
that is open to others, with TLS, leads to what nodes need (``/v1/fleet/…``) and to joining; the
other, on loopback, leads to the rest, and asks for the owner's token.
"""

import hmac
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from fedgaze import __version__
from fedgaze.federate.deployment.flower import (
    Flower,
    make_superlink,
    node_of_headers,
)
from fedgaze.federate.deployment.homes import ServerHome
from fedgaze.federate.deployment.registry import Registry

__all__ = ["LoopbackDoor", "PublicDoor", "main"]

REQUEST_LIMIT = 64 * 2**20
"""Bytes of one request. Flower sends larger arrays in pieces of 20 MB."""
UPDATE_LIMIT = 4 * 2**30
"""Bytes that a node may send for one answer; ``FEDGAZE_UPDATE_LIMIT`` says otherwise."""
NODES = 100_000

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class Joining(BaseModel):
    """What somebody who was invited sends."""

    secret: str = Field(max_length=200)
    name: str = Field(default="", pattern=r"^$|^[\w][\w.-]{0,63}$")
    version: str = Field(max_length=50)


def joining(flower: Flower, registry: Registry, *, secure: bool) -> FastAPI:
    """Make the application that turns invites into clients and tells clients what goes on.

    Args:
        flower: Where their keys are registered.
        registry: Where invites and clients are noted.
        secure: Whether nodes show keys; without, nothing is registered.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def caller(request: Request) -> str:
        key = node_of_headers(request.headers)
        if key is None:
            raise HTTPException(401, "the request is not signed with a client's key")
        return key

    @app.post("/v1/fedgaze/join")
    def join(request: Request, asked: Joining) -> dict[str, Any]:
        key = caller(request)
        try:
            client = registry.redeem(
                asked.secret, key, asked.name, flower.register if secure else _unregistered
            )
        except PermissionError as error:
            raise HTTPException(403, str(error)) from None
        return {"name": client.name, "number": client.number, "version": __version__}

    @app.get("/v1/fedgaze/state")
    def state(request: Request) -> dict[str, Any]:
        key = caller(request)
        if key not in {client.public_key for client in registry.clients()}:
            raise HTTPException(403, "this client is not registered")
        return {"version": __version__, "run": flower.active()}

    return app


@dataclass
class PublicDoor:
    """What others reach.

    Attributes:
        flower: Flower's application.
        joining: Ours.
        limit: Bytes that a node may send for one answer.
    """

    flower: Asgi
    joining: Asgi
    limit: int = UPDATE_LIMIT

    def __post_init__(self) -> None:
        self._sent: dict[bytes, int] = {}
        self._lock = threading.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let through what leads to a node's calls or to joining."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path.startswith("/v1/fedgaze/"):
            await self.joining(scope, _limited(receive, 2**16), send)
        elif not path.startswith("/v1/fleet/"):
            await _refuse(send, 404)
        elif (size := _length(scope)) is None:
            await _refuse(send, 411)
        elif size > REQUEST_LIMIT or not self._within(scope, path, size):
            await _refuse(send, 413)
        else:
            await self.flower(scope, _limited(receive, size), send)

    def _within(self, scope: Any, path: str, size: int) -> bool:
        """Whether a node's answer is still of a size that somebody could mean."""
        key = dict(scope["headers"]).get(b"flwr-public-key", b"")
        with self._lock:
            begins = path == "/v1/fleet/push-messages"
            total = size + (0 if begins else self._sent.get(key, 0))
            if len(self._sent) > NODES:  # nobody has so many: the keys are made up
                self._sent.clear()
            if path in ("/v1/fleet/push-messages", "/v1/fleet/push-object"):
                self._sent[key] = total
                return total <= self.limit
        return True


@dataclass
class LoopbackDoor:
    """What only this machine reaches.

    Attributes:
        flower: Flower's application.
        token: What a caller of the Control API has to show.
    """

    flower: Asgi
    token: str

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let through Flower's own processes, and the owner."""
        if scope["type"] == "lifespan":
            await self.flower(scope, receive, send)
            return
        path = scope["path"]
        if path.startswith("/v1/control/") and not self._is_owner(scope):
            await _refuse(send, 401)
        elif path.startswith(("/v1/control/", "/v1/runtime/")) or path == "/health":
            await self.flower(scope, receive, send)
        else:
            await _refuse(send, 404)

    def _is_owner(self, scope: Any) -> bool:
        shown = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(shown, f"Bearer {self.token}".encode())


def _unregistered(key: str, name: str) -> int:
    del key, name
    return 0


async def _refuse(send: Any, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _length(scope: Any) -> int | None:
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() else None


def _limited(receive: Any, limit: int) -> Any:
    """Hand on at most so many bytes, whatever a header says."""
    left = limit

    async def receive_() -> Any:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return receive_


def main(folder: Path) -> None:
    """Serve until told to stop.

    Args:
        folder: The server's.
    """
    home = ServerHome(folder)
    settings = home.settings()
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it would note every look at it
    flower = make_superlink(home.database, home.secret.read_bytes(), authenticated=settings.secure)
    registry = Registry(home.registry)
    public = uvicorn.Config(
        PublicDoor(
            flower.app,
            joining(flower, registry, secure=settings.secure),
            int(os.environ.get("FEDGAZE_UPDATE_LIMIT", UPDATE_LIMIT)),
        ),
        host=settings.host,
        port=settings.port,
        lifespan="off",
        access_log=False,
        log_level="warning",
        ssl_certfile=str(home.path / "server.crt") if settings.secure else None,
        ssl_keyfile=str(home.path / "server.key") if settings.secure else None,
    )
    private = uvicorn.Config(
        LoopbackDoor(flower.app, home.token.read_text(encoding="utf-8")),
        host="127.0.0.1",
        port=settings.control,
        access_log=False,
        log_level="warning",
    )
    open_door = uvicorn.Server(public)
    thread = threading.Thread(target=open_door.run, daemon=True)
    thread.start()
    try:
        uvicorn.Server(private).run()
    finally:
        open_door.should_exit = True
        thread.join(timeout=5)
