"""An attempt whose process is gone is begun anew at once; one that ended, or goes on, is not."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.federate.conftest import Silent

from fedgaze.config import parse_task
from fedgaze.federate import start
from fedgaze.federate.deployment import Jobs, ServerHome
from fedgaze.federate.deployment.keys import make_publisher
from fedgaze.federate.deployment.processes import note_owner
from fedgaze.store import Run


class Flower:
    """Says of each attempt what it is told to, from the first question on."""

    def __init__(self, *says: str) -> None:
        self.says = list(says)
        self.started: list[int] = []
        self.stopped: list[int] = []

    def status(self, run: int) -> tuple[str, str]:
        del run
        return self.says.pop(0) if len(self.says) > 1 else self.says[0], ""

    def start(self, bundle: bytes, config: dict[str, Any]) -> int:
        del bundle, config
        self.started.append(100 + len(self.started))
        return self.started[-1]

    def stop(self, run: int) -> None:
        self.stopped.append(run)


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as made:
        yield made
        made.kill()


@pytest.fixture
def jobs(small: Callable[..., dict[str, Any]], tmp_path: Path) -> tuple[Jobs, ServerHome]:
    task = parse_task(small(num_clients=2, dataset={"classes": ["1", "7"]}, num_rounds=1))
    home = ServerHome(tmp_path / "server")
    home.prepare()
    make_publisher(home.publisher)
    path = start(task, tmp_path / "runs" / "r", Silent()).path
    run = Run.open(path)
    run.reopen()
    run.close()
    Jobs(home).submit(run, task, ("1", "7"))
    return Jobs(home), home


def owned(home: ServerHome, process: subprocess.Popen[bytes], run: int) -> None:
    created = psutil.Process(process.pid).create_time()
    home.attempt("r").write_text(json.dumps({"pid": process.pid, "created": created, "run": run}))


def test_what_goes_on_is_left_alone(
    jobs: tuple[Jobs, ServerHome], other: subprocess.Popen[bytes]
) -> None:
    book, home = jobs
    flower: Any = Flower("running")
    job = book.tend(book.last(), flower, fresh=True)
    assert flower.started == [job.run] == [100]
    for note in (None, 99, 100):  # not begun; an older attempt's process; its own
        if note:
            owned(home, other, note)
        assert book.tend(book.last(), flower, fresh=False).run == 100
    assert flower.stopped == []


def test_a_killed_process_is_replaced_at_once(
    jobs: tuple[Jobs, ServerHome], other: subprocess.Popen[bytes]
) -> None:
    book, home = jobs
    flower: Any = Flower("running")
    book.tend(book.last(), flower, fresh=True)
    owned(home, other, 100)
    other.kill()  # and a zombie until somebody waits for it
    psutil.wait_procs([psutil.Process(other.pid)], timeout=0.5)
    assert book.tend(book.last(), flower, fresh=False).run == 101
    assert flower.stopped == [100]
    # The new attempt has not noted itself yet.
    assert book.tend(book.last(), flower, fresh=False).run == 101
    note_owner(home.attempt("r"), run=101)
    assert book.tend(book.last(), flower, fresh=False).run == 101


def test_who_ended_well_and_went_is_not_stopped(
    jobs: tuple[Jobs, ServerHome], other: subprocess.Popen[bytes]
) -> None:
    book, home = jobs
    flower: Any = Flower("running")
    book.tend(book.last(), flower, fresh=True)
    owned(home, other, 100)
    other.kill()
    other.wait()
    flower.says = ["finished"]
    book.tend(book.last(), flower, fresh=False)
    assert flower.stopped == []
