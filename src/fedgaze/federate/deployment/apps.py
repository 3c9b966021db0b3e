"""A bundled task as Flower runs it: on the server, and on clients."""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate.client import Terms, client_app
from fedgaze.federate.deployment.asks import put_question
from fedgaze.federate.deployment.bundle import ASK, RECORD, client_task
from fedgaze.federate.deployment.flower import exit_with_parent
from fedgaze.federate.deployment.homes import ServerHome
from fedgaze.federate.deployment.parcels import ParcelGrid, answer_parcels
from fedgaze.federate.deployment.processes import note_owner
from fedgaze.federate.deployment.roster import SERVER_HOME, find_roster
from fedgaze.federate.ordered import PromptGrid
from fedgaze.federate.run import carry_out, close_record
from fedgaze.federate.server import Server
from fedgaze.federate.setup import prepare
from fedgaze.store import Run, not_stored

__all__ = ["CLIENT_DATA", "CLIENT_HOME", "bundled_client_app", "bundled_server_app"]

CLIENT_HOME, CLIENT_DATA = "FEDGAZE_CLIENT", "FEDGAZE_CLIENT_DATA"
"""Environment variables: a client's folder, and where its images lie."""
LOCK_PATIENCE = 60.0
"""Seconds that a record may still be held by the attempt before."""
LOG = logging.getLogger("fedgaze.run")


def bundled_server_app() -> ServerApp:
    """The ServerApp of a bundle: it carries out the record that the run's configuration names."""
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        exit_with_parent(os.getppid())
        record, asked = (str(context.run_config[key]) for key in (RECORD, ASK))
        if asked:
            put_question(PromptGrid(ParcelGrid(grid)), Path(record), Path(asked))
        else:
            if place := os.environ.get(SERVER_HOME):
                attempt = ServerHome(Path(place)).attempt(Path(record).name)
                with suppress(OSError):  # only so that its end is noticed sooner
                    note_owner(attempt, run=context.run_id)
            conduct(grid, Path(record))

    return app


def bundled_client_app(folder: Path) -> ClientApp:
    """The ClientApp of an unpacked bundle, for Flower's own launcher.

    Args:
        folder: Where it was unpacked. ``FEDGAZE_CLIENT`` names the client's folder, and
            ``FEDGAZE_CLIENT_DATA`` that of its images.
    """
    data = os.environ.get(CLIENT_DATA)
    home = Path(os.environ.get(CLIENT_HOME, folder / "client"))
    task, classes = client_task(folder, Path(data) if data else None)
    return client_app(task, home, Terms(classes=classes), [answer_parcels])


def conduct(grid: Grid, record: Path) -> None:
    """Carry out a record's task on the clients of a grid.

    Raises:
        FedgazeError: It cannot be carried out; the record says why, and can be resumed.
    """
    run = Run.open(record, patience=LOCK_PATIENCE)
    log = logging.FileHandler(record / "run.log", encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    LOG.addHandler(log)
    LOG.setLevel(logging.INFO)
    try:
        task = parse_task(run.description["task"], run.directory)
        whole = run.rounds_done >= task.num_rounds
        observer = _Logged()
        server = None if whole else Server(prepare(task), run, observer)
        if server is not None:
            server.roster = find_roster(task)
            observer.name = server.roster.name
    except FedgazeError as error:
        LOG.info("the run failed: %s", error)
        run.fail(str(error))
        run.close()
        raise
    try:
        if server is None:
            close_record(run, task)
        else:
            main = server.main
            carry_out(server, lambda: main(PromptGrid(ParcelGrid(grid))))
    except FedgazeError as error:
        LOG.info("the run failed: %s", error)
        raise
    except Exception:
        LOG.exception("the run ended with an error of fedgaze itself")
        raise
    left = not_stored(run.summary)
    LOG.info("the run is complete%s", f" but for {left}" if left else "")


class _Logged:
    """Writes what happens, a line each, into the record's ``run.log``.

    Attributes:
        name: Says what a client is called.
    """

    def __init__(self) -> None:
        self.name: Callable[[int], str] = str

    def run_started(self, rounds: int, done: int) -> None:
        LOG.info("run of %d rounds, %d of them whole: waits for its clients", rounds, done)

    def round_started(self, number: int, clients: list[int]) -> None:
        LOG.info("round %d: clients %s", number, ", ".join(map(self.name, clients)))

    def client_started(self, client: int, kind: str) -> None:
        """Not known here."""

    def round_done(self, record: dict[str, Any]) -> None:
        score = record["global"]
        LOG.info("round %d is whole: accuracy %s", record["round"], score["accuracy"])
        for failure in record["failures"]:
            LOG.info("  client %s failed: %s", self.name(failure["client"]), failure["reason"])
        gate = record.get("gate", {})
        for each in gate.get("clients", []):
            if each["suspicion"] >= gate["threshold"]:
                fate = "merged" if each["factor"] else "kept out"
                why = "; ".join([f"suspicion {each['suspicion']:.2f}", *each["reasons"]])
                LOG.info("  client %s is suspicious, %s: %s", self.name(each["client"]), fate, why)

    def trouble(self, text: str) -> None:
        LOG.info("%s", text)
