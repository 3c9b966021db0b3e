"""How a process of ours answers on loopback, and whom."""

import hmac
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException

from fedgaze.federate.deployment.keys import private_file

__all__ = ["answer_on_loopback", "loopback_app", "make_secret"]


def make_secret(path: Path) -> None:
    """Make a secret that lasts, in a file for its owner's eyes only, unless it is there."""
    if not path.exists():
        private_file(path, secrets.token_urlsafe(32).encode())


def _token_checker(path: Path) -> Callable[..., None]:
    """Make a dependency that lets through whoever shows the token in a file."""
    expected = f"Bearer {path.read_text(encoding='utf-8')}".encode()

    def check(authorization: Annotated[str, Header()] = "") -> None:
        # Bytes: a comparison of texts would raise for signs beyond ASCII.
        if not hmac.compare_digest(authorization.encode(), expected):
            raise HTTPException(401, "the client's token is needed: Authorization: Bearer …")

    return check


def loopback_app(title: str, token: Path) -> FastAPI:
    """An application that answers whoever shows the token in a file, and explains itself to nobody.

    Args:
        title: What it is called.
        token: The file.
    """
    return FastAPI(
        title=title,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(_token_checker(token))],
    )


def answer_on_loopback(app: FastAPI, listener: socket.socket) -> None:
    """Serve an application on a listening socket until told to stop."""
    config = uvicorn.Config(app, access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])
