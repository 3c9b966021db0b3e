"""Who may talk to a process of ours on loopback."""

import hmac
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import Header, HTTPException

from fedgaze.federate.deployment.keys import private_file

__all__ = ["make_secret", "token_checker"]


def make_secret(path: Path) -> None:
    """Make a secret that lasts, in a file for its owner's eyes only, unless it is there."""
    if not path.exists():
        private_file(path, secrets.token_urlsafe(32).encode())


def token_checker(path: Path) -> Callable[..., None]:
    """Make a dependency that lets through whoever shows the token in a file."""
    expected = f"Bearer {path.read_text(encoding='utf-8')}".encode()

    def check(authorization: Annotated[str, Header()] = "") -> None:
        # Bytes: a comparison of texts would raise for signs beyond ASCII.
        if not hmac.compare_digest(authorization.encode(), expected):
            raise HTTPException(401, "the client's token is needed: Authorization: Bearer …")

    return check
