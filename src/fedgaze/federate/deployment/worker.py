"""A client's working process: warm, it takes one message of its SuperNode after the other.

It listens on loopback and answers whoever shows the client's token: ``GET /online`` says what it
does, ``POST /start`` lets it work for a run, ``POST /finish`` ends that.
"""

import argparse
import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp
from pydantic import BaseModel, Field

from fedgaze import __version__
from fedgaze.config import Share
from fedgaze.errors import FedgazeError
from fedgaze.federate.client import Terms, client_app
from fedgaze.federate.deployment.bundle import RECORD, check_trust, client_task, open_bundle
from fedgaze.federate.deployment.door import answer_on_loopback, loopback_app
from fedgaze.federate.deployment.flower import NodeTasks, Work, exit_with_parent
from fedgaze.federate.deployment.homes import ClientHome
from fedgaze.federate.deployment.parcels import answer_parcels
from fedgaze.federate.deployment.processes import loopback_socket, note_owner, owner_of

__all__ = ["Worker", "main", "serve"]

PORT = 8004
PAUSE = 0.2
"""Seconds between two looks for work."""


@dataclass
class Operation:
    """What a client did for a run.

    Attributes:
        run: Flower's id of the run.
        began: When, in seconds since 1970.
        seconds: How long it was at work on messages.
        messages: How many it answered.
        failures: Why it failed, for each that it could not answer.
        runtime: ``host:port`` where it looks for messages; another one each time that the
            SuperNode was started again.
    """

    run: str
    runtime: str
    began: float
    seconds: float
    messages: int
    failures: list[str]

    def shown(self) -> dict[str, Any]:
        """As a line of ``operations.jsonl`` and in answers."""
        return {
            "run": self.run,
            "runtime": self.runtime,
            "began": round(self.began, 3),
            "lasted": round(time.time() - self.began, 3),
            "operation_seconds": round(self.seconds, 3),
            "messages": self.messages,
            "failures": self.failures,
        }


class Worker:
    """Takes a SuperNode's messages and answers them with the code of trusted bundles.

    Args:
        home: The client's folder.
    """

    def __init__(self, home: ClientHome) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._operation: Operation | None = None
        self._last: dict[str, Any] | None = None
        self._doing: str | None = None

    def start(self, run: str, runtime: str) -> bool:
        """Work for a run.

        Args:
            run: Flower's id of it.
            runtime: ``host:port`` of the SuperNode's Runtime API.

        Returns:
            Whether it was not at work for that run already.
        """
        with self._lock:
            operation = self._operation
            if operation is not None and operation.run == run:
                operation.runtime = runtime
                return False
            self._end()
            self._operation = operation = Operation(run, runtime, time.time(), 0.0, 0, [])
        threading.Thread(target=self._work, args=(operation,), daemon=True).start()
        return True

    def finish(self) -> dict[str, Any] | None:
        """Take no more messages; returns what was done."""
        with self._lock:
            self._end()
            return self._last

    def _end(self) -> None:
        if self._operation is None:
            return
        self._last = self._operation.shown()
        self._operation = None
        with (self._home.path / "operations.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._last) + "\n")

    def state(self) -> dict[str, Any]:
        """What it does now, and did last."""
        with self._lock:
            operation = self._operation
            return {
                "state": "idle" if operation is None else self._doing or "waiting",
                "operation": operation.shown() if operation else None,
                "last_operation": self._last,
            }

    def _work(self, operation: Operation) -> None:
        while self._operation is operation:
            runtime = operation.runtime
            tasks = NodeTasks(runtime, self._home.secret.read_bytes())
            try:
                while self._operation is operation and operation.runtime == runtime:
                    try:
                        if not self._take(tasks, operation):
                            time.sleep(PAUSE)
                    except ConnectionError:  # the SuperNode is being started again
                        time.sleep(5 * PAUSE)
            finally:
                tasks.close()

    def _take(self, tasks: NodeTasks, operation: Operation) -> bool:
        token = tasks.next()
        if token is None:
            return False
        began = time.monotonic()
        self._doing = "working"
        try:
            failed = tasks.carry_out(token, self.answer)
        finally:
            self._doing = None
            operation.seconds += time.monotonic() - began
        operation.messages += 1
        if failed:
            operation.failures.append(failed[:500])
            print(f"a message could not be answered: {failed}", flush=True)
        return True

    def answer(self, work: Work) -> Message:
        """Answer a message with the code of its bundle.

        Raises:
            FedgazeError: The bundle is not trusted, or names something outside its directory.
        """
        settings = self._home.settings()
        sha256 = check_trust(work.bundle, work.config, settings.publisher, settings.hashes)
        record = hashlib.sha256(f"{sha256} {work.config.get(RECORD, '')}".encode()).hexdigest()[:12]
        place = open_bundle(work.bundle, self._home.bundles)
        data = Path(settings.data) if settings.data else None
        app = _app(place, data, self._home.runs, record, settings.share)
        return app(work.message, work.context)


@lru_cache(maxsize=4)
def _app(place: Path, data: Path | None, runs: Path, record: str, share: Share) -> ClientApp:
    task, classes = client_task(place, data)
    home = runs / f"{task.task_id}-{record}"
    return client_app(task, home, Terms(share, classes), [answer_parcels])


class Start(BaseModel):
    """What ``POST /start`` takes."""

    run: str = Field(pattern=r"^\d{1,20}$")
    runtime: str = Field(pattern=r"^127\.0\.0\.1:\d{1,5}$")


def serve(home: ClientHome, port: int | None) -> None:
    """Answer on loopback until told to stop.

    Args:
        home: The client's folder.
        port: Where to listen; None for 8004 or a free one.

    Raises:
        FedgazeError: It runs already, never joined, or the port is taken.
    """
    if owner_of(home.worker) is not None:
        raise FedgazeError(f"the client in {home.path} is running already")
    settings, worker = home.settings(), Worker(home)
    app = loopback_app("fedgaze client", home.token)

    @app.get("/online")
    def online() -> dict[str, Any]:
        who = {"online": True, "name": settings.name, "number": settings.number}
        return who | {"version": __version__, "pid": os.getpid()} | worker.state()

    @app.post("/start")
    def start(asked: Start) -> dict[str, Any]:
        return {"started": worker.start(asked.run, asked.runtime)} | worker.state()

    @app.post("/finish")
    def finish() -> dict[str, Any]:
        return {"operation": worker.finish()}

    # The import of torch, and whatever else a task needs, is paid for before the first message.
    import fedgaze.federate.setup  # noqa: F401

    with loopback_socket(port, usual=PORT) as listener:
        note_owner(home.worker, port=listener.getsockname()[1])
        try:
            answer_on_loopback(app, listener)
        finally:
            home.worker.unlink(missing_ok=True)


def main(words: list[str] | None = None) -> None:
    """Run as a process of its own: ``HOME --port PORT``."""
    parser = argparse.ArgumentParser(description="A fedgaze client's working process.")
    parser.add_argument("home", type=Path, help="the client's folder")
    parser.add_argument(
        "--port", type=int, help=f"where it listens (default: {PORT}, or a free one)"
    )
    parser.add_argument("--parent", type=int, help="ends when this process does")
    asked = parser.parse_args(words)
    if asked.parent:
        exit_with_parent(asked.parent)
    try:
        serve(ClientHome(asked.home), asked.port)
    except FedgazeError as error:
        parser.exit(2, f"fedgaze: {error}\n")
