"""One cell: a whole federated run under attack, in a folder that goes again."""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fedgaze import __version__
from fedgaze.federate.client import client_app
from fedgaze.federate.grid import LocalGrid
from fedgaze.federate.lab.keeper import LabKeeper
from fedgaze.federate.lab.plan import Cell
from fedgaze.federate.look import Look
from fedgaze.federate.onlooker import Onlooker
from fedgaze.federate.server import Server
from fedgaze.federate.setup import setup_of, threads
from fedgaze.store import Run
from fedgaze.train import State

__all__ = ["carry_out", "described"]


class _Unwatched:
    """An observer that does not care."""

    def run_started(self, rounds: int, done: int) -> None:
        """Nothing."""

    def round_started(self, number: int, clients: list[int]) -> None:
        """Nothing."""

    def client_started(self, client: int, kind: str) -> None:
        """Nothing."""

    def round_done(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def trouble(self, text: str) -> None:
        """Nothing."""


class _TimedOnlooker(Onlooker):
    """Says what looking costs: at updates, and at the merged model, which no defence asks for."""

    def open_round(self, number: int, received: State) -> None:
        super().open_round(number, received)
        self.seconds = {"updates": 0.0, "merged": 0.0}

    def look_at(self, state: State, name: str) -> tuple[dict[str, Any], Look | None]:
        began = time.process_time()
        found = super().look_at(state, name)
        key = "merged" if name == "global" else "updates"
        self.seconds[key] += time.process_time() - began
        return found


def described(cell: Cell) -> dict[str, Any]:
    """What a cell's file says of it, whatever came of it."""
    return {
        "id": cell.id,
        "fingerprint": cell.fingerprint,
        "fedgaze": __version__,
        "torch": torch.__version__,
        "cell": {**asdict(cell.setting), "defence": cell.defence, "seed": cell.seed},
    }


def carry_out(cell: Cell, folder: Path | None = None) -> dict[str, Any]:
    """Carry a cell out, on one thread.

    Args:
        cell: Which.
        folder: Where the run's own folder is made, which goes again; by default where temporary
            files go.

    Returns:
        JSON: what :func:`described` says, ``task``; the final ``accuracy`` and ``attack_success``
        (None where attackers want nothing that can be counted); ``rounds``, each with these two,
        with ``cpu_seconds`` and its ``clients``: who attacked, what each defence thought of the
        update (``scores``), what was made of it (``factors``, and ``factor`` of all together), and
        the gate's ``spreads`` by measure; ``failures``; ``seconds``.

    Raises:
        FedgazeError: It cannot be carried out.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    began = time.monotonic()
    task = cell.task
    rounds: list[dict[str, Any]] = []
    with threads(1), TemporaryDirectory(prefix="fedgaze-lab-", dir=folder) as home:
        setup = setup_of(task)
        run = Run.create(Path(home) / "run", task.public(), setup.dataset.classes)
        try:
            server = Server(setup, run, _Unwatched())
            onlooker = _TimedOnlooker(setup, run.path, server.learner)
            server.onlooker = onlooker
            server.keeper = LabKeeper(server, cell.defence, cell.setting.attackers)
            server.after_round.append(lambda record: rounds.append(_round(cell, record, onlooker)))
            app = client_app(task, run.path.resolve())
            server.main(LocalGrid(app, task.num_clients, server.observer.client_started))
        finally:
            run.close()
        initial = run.summary["initial"]
    return {
        **described(cell),
        "task": task.public(),
        "attackers": cell.attackers,
        "initial": _judged(initial),
        **_judged(rounds[-1]),
        "rounds": rounds,
        "failures": [
            {"round": each["round"], **failure} for each in rounds for failure in each["failures"]
        ],
        "seconds": round(time.monotonic() - began, 3),
    }


def _judged(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record.get(key) for key in ("accuracy", "attack_success")}


def _round(cell: Cell, record: dict[str, Any], onlooker: _TimedOnlooker) -> dict[str, Any]:
    """What of a round's record counts here."""
    gate = record["gate"]
    lab = gate["lab"]
    spec = cell.task.behaviour
    attacking = () if spec is None or record["round"] < spec.first_round else spec.clients
    failures = list(record["failures"])
    if "failed" in gate:
        failures.append({"client": None, "reason": f"the gate: {gate['failed']}"})
    return {
        "round": record["round"],
        **_judged(record["global"]),
        "cpu_seconds": {
            "round": record["system"]["cpu_seconds"],
            "looks": onlooker.seconds["updates"],
            "merged_look": onlooker.seconds["merged"],
            "defences": lab["cpu_seconds"],
        },
        "clients": [{"attacker": each["client"] in attacking, **each} for each in lab["clients"]],
        "not_merged": record.get("not_merged"),
        "failures": failures,
    }
