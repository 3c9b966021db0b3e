"""An experiment's cells over a pool of processes; what is done is not done again."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from filelock import FileLock, Timeout

from fedgaze import __version__
from fedgaze.errors import FedgazeError
from fedgaze.federate.behaviour import check_behaviour
from fedgaze.federate.lab.cell import carry_out, described
from fedgaze.federate.lab.plan import Cell, Plan
from fedgaze.federate.setup import prepare, reason
from fedgaze.store import write_json

__all__ = ["LabFolder", "Told", "run_cells"]

ASKED = "lab.json"
Told = Callable[[Cell, Mapping[str, Any]], None]
"""Is told of each cell what came of it, as soon as it is written."""


class LabFolder:
    """Where an experiment's cells lie: ``cells/ID.json`` each.

    Args:
        path: Made when the first cell is carried out.
        plan: The experiment.

    Raises:
        FedgazeError: The folder holds something else.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        if path.exists() and not path.is_dir():
            raise FedgazeError(f"the output {path} is there already and is no folder")
        if path.exists() and any(path.iterdir()) and not (path / ASKED).is_file():
            raise FedgazeError(
                f"the output {path} is there already and holds no experiment; choose another"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder: nobody else carries out its cells.

        Raises:
            FedgazeError: Another process is at work on it, or it cannot be written.
        """
        lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            asked = {"fedgaze": __version__, "experiment": self.asked}
            with lock.acquire(timeout=0):
                write_json(self.path / ASKED, asked)
                shutil.rmtree(self.work, ignore_errors=True)  # of a process that was killed
                self.work.mkdir()
                try:
                    yield
                finally:
                    shutil.rmtree(self.work, ignore_errors=True)
        except Timeout:
            raise FedgazeError(f"{self.path} is being carried out by another process") from None
        except OSError as error:
            why = error.strerror or error
            raise FedgazeError(f"{self.path} cannot be written: {why}") from error

    @property
    def asked(self) -> dict[str, Any]:
        """The experiment as plain values."""
        return self.plan.experiment.model_dump(mode="json")

    @property
    def work(self) -> Path:
        """Where runs have their folders while they go on."""
        return self.path / ".work"

    def file(self, cell: Cell) -> Path:
        """Where a cell's result lies: one that was made under other conditions lies beside it."""
        return self.path / "cells" / f"{cell.id}.{cell.fingerprint[:8]}.json"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What came of a cell; None where it was not carried out, or under other conditions."""
        try:
            found = json.loads(self.file(cell).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = isinstance(found, dict) and found.get("fingerprint") == cell.fingerprint
        return found if same else None

    def left(self) -> list[Cell]:
        """The cells that have no result yet; those that failed are among them."""
        return [each for each in self.plan.cells if "failed" in (self.read(each) or {"failed": ""})]

    def results(self) -> list[dict[str, Any]]:
        """What came of the cells that have a result, failed ones among them."""
        return [found for each in self.plan.cells if (found := self.read(each)) is not None]


def run_cells(folder: LabFolder, workers: int, told: Told) -> None:
    """Carry out the cells that are left, each in a process of the pool and on one thread.

    Args:
        folder: Where results go.
        workers: How many processes.
        told: Is told of each cell that is done or failed.

    Raises:
        FedgazeError: Data or a behaviour cannot be used, which is found out before anything else;
            or a process of the pool was ended by somebody else.
    """
    left = folder.left()
    _check(left)
    if not left:
        return
    with folder.held(), _pool(min(workers, len(left))) as pool:
        futures = {  # a copy of a cell is sent without what it has found out of itself
            pool.submit(_work, replace(each), folder.file(each), folder.work): each for each in left
        }
        for future in as_completed(futures):
            told(futures[future], _came_of(future, folder))


def _came_of(future: Future[dict[str, Any]], folder: LabFolder) -> dict[str, Any]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise FedgazeError(
            "a process was ended from outside, perhaps for lack of memory: what is done is kept, "
            f"and the same command with --output {folder.path} and fewer --workers goes on"
        ) from error


def _check(cells: Sequence[Cell]) -> None:
    """Find out before any work what no cell of some data could do."""
    firsts: dict[str, Any] = {}
    seen = set()
    for cell in cells:
        at = cell.setting
        if at.data not in firsts:
            firsts[at.data] = prepare(cell.task)
        if (at.data, at.behaviour) not in seen:
            seen.add((at.data, at.behaviour))
            setup = firsts[at.data]
            check_behaviour(cell.task, setup.dataset, setup.new_learner())


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are gone afterwards, whatever happens to this one."""
    before = set(active_children())
    # Spawned: a copy of a process that has used torch may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin)
    try:
        yield pool
    except BaseException:
        # They would finish their cells first.
        for each in set(active_children()) - before:
            each.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """What a process of the pool does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first one ends the rest
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(cell: Cell, file: Path, folder: Path) -> dict[str, Any]:
    """Carry a cell out and write what came of it."""
    try:
        result = carry_out(cell, folder)
    except Exception as error:  # noqa: BLE001 - the other cells go on
        result = {**described(cell), "failed": reason(error)}
    write_json(file, result)
    return {key: result[key] for key in ("id", "failed", "seconds") if key in result}
