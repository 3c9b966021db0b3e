"""Processes that are kept running, and found again by who comes later."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedgaze.errors import FedgazeError
from fedgaze.store import write_json

__all__ = [
    "Child",
    "Children",
    "detach",
    "free_port",
    "loopback_socket",
    "note_owner",
    "owner_of",
    "part",
    "stop",
]

RESTART_AFTER = 2.0
"""Seconds before a process that ended is started again."""


@dataclass
class Child:
    """A process that is to be there.

    Attributes:
        command: How it is started; made anew each time.
        log: Where it writes what it says.
        environment: What is added to this process's own.
    """

    command: Callable[[], Sequence[str]]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    ended: float = 0.0


class Children:
    """Processes that are started again when they end, and stopped together.

    Args:
        children: By what they are called.
        folder: Where they work.
    """

    def __init__(self, children: Mapping[str, Child], folder: Path) -> None:
        self._children = children
        self._folder = folder

    def tend(self) -> None:
        """Start what is not running."""
        for child in self._children.values():
            if child.process is not None and child.process.poll() is not None:
                child.process, child.ended = None, time.monotonic()
            if child.process is None and time.monotonic() - child.ended > RESTART_AFTER:
                self._start(child)

    def alive(self, name: str) -> bool:
        """Whether a process runs."""
        process = self._children[name].process
        return process is not None and process.poll() is None

    def restart(self, name: str) -> None:
        """End a process, to be started again with the next :meth:`tend`."""
        child = self._children[name]
        if child.process is not None:
            stop(child.process.pid)
            child.process, child.ended = None, 0.0

    def stop(self) -> None:
        """Stop all, the last one first."""
        for child in reversed(list(self._children.values())):
            if child.process is not None:
                stop(child.process.pid)
                child.process.wait()

    def _start(self, child: Child) -> None:
        environment = os.environ | dict(child.environment)
        # It would double the time that Flower's processes need to start.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        with child.log.open("ab") as log:
            child.process = subprocess.Popen(  # noqa: S603 - our own modules and Flower's
                child.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self._folder,
            )


def stop(pid: int, patience: float = 10.0) -> None:
    """Stop a process and all that it started: kindly, then by force."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        _quietly(each.terminate)
    _, alive = psutil.wait_procs(family, timeout=patience)
    for each in alive:
        _quietly(each.kill)
    psutil.wait_procs(alive, timeout=patience)


def _quietly(action: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        action()


def note_owner(path: Path, **more: Any) -> None:
    """Note that this process is the one that runs here, with whatever else others should know."""
    me = psutil.Process()
    write_json(path, {"pid": me.pid, "created": me.create_time(), **more})


def owner_of(path: Path) -> dict[str, Any] | None:
    """What the running process noted; None where it is gone."""
    try:
        noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        process = psutil.Process(noted["pid"])
        same = abs(process.create_time() - noted["created"]) < 1
        alive = same and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None
    return noted if alive else None


def part(name: str, *words: str) -> list[str]:
    """The command of one of the processes that :mod:`fedgaze.federate.deployment` is made of."""
    return [sys.executable, "-m", "fedgaze.federate.deployment", name, *words]


def detach(command: Sequence[str], log: Path, state: Path) -> dict[str, Any]:
    """Start a process of ours that outlives this one, and wait until it is up.

    Args:
        command: From :func:`part`.
        log: Where it writes what it says.
        state: Where it notes that it is up.

    Returns:
        What it noted.

    Raises:
        FedgazeError: It ended, with its last words.
    """
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603 - a module of ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while True:
        noted = owner_of(state)
        if noted is not None and noted["pid"] == process.pid:
            return noted
        if process.poll() is not None:
            said = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
            raise FedgazeError(
                f"it ended before it was up: {said[-1] if said else 'it said nothing'} (see {log})"
            )
        time.sleep(0.1)


def loopback_socket(port: int | None, usual: int = 0) -> socket.socket:
    """A listening socket on loopback.

    Args:
        port: This port and no other; None to choose.
        usual: The port to choose if it is free; 0 for any.

    Raises:
        FedgazeError: The port is taken.
    """
    for each in (usual, 0) if port is None else (port,):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", each))
            listener.listen()
        except OSError as error:
            listener.close()
            reason = error.strerror
        else:
            return listener
    raise FedgazeError(f"port {port} cannot be used: {reason}; name another one")


def free_port(usual: int = 0) -> int:
    """A loopback port that nobody listens on just now."""
    with loopback_socket(None, usual) as listener:
        return int(listener.getsockname()[1])
