"""Ask a connected client, at any time, where its model looks in a picture."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError, nearest
from fedgaze.federate.ask import Answer, Question, read_answer
from fedgaze.federate.deployment.homes import ServerHome
from fedgaze.federate.deployment.host import control_of
from fedgaze.federate.deployment.jobs import Job, Jobs
from fedgaze.federate.deployment.registry import Registry
from fedgaze.federate.deployment.roster import find_roster
from fedgaze.store import write_json

__all__ = ["ask_client", "put_question"]

PAUSE = 0.2


def ask_client(
    home: ServerHome, job: Job, client: str, question: Question, timeout: float
) -> Answer:
    """Ask a client of a running server.

    Args:
        home: The server's folder.
        job: Of the run whose model is asked.
        client: Its name or number.
        question: The picture.
        timeout: Seconds to wait for the answer.

    Raises:
        FedgazeError: There is no such client, it is not connected, or it does not answer so.
    """
    clients = Registry(home.registry).clients()
    found = [each for each in clients if client in (each.name, str(each.number))]
    if not found:
        names = [each.name for each in clients]
        raise FedgazeError(
            f"--client {client}: there is no such client; there are "
            f"{', '.join(f'{each.name} ({each.number})' for each in clients) or 'none'}"
            f"{nearest(client, names)}"
        )
    control, start = control_of(home), time.monotonic()
    asks = home.path / "asks"
    asks.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asks) as name:
        folder = Path(name)
        np.save(folder / "picture.npy", question.picture)
        asked = {"target": question.target, "version": question.version, "timeout": timeout}
        write_json(folder / "question.json", asked | {"client": found[0].number})
        run = Jobs(home).start_ask(job, control, folder)
        said = folder / "answer.json"
        while not said.exists():
            status, detail = control.status(run)
            if status == "finished" and not said.exists():
                raise FedgazeError(f"the question came back without an answer: {detail}")
            if time.monotonic() - start > timeout + 60:
                control.stop(run)
                raise FedgazeError(f"{found[0].name} did not answer within {timeout:g} s")
            time.sleep(PAUSE)
        return _read(folder)


def _read(folder: Path) -> Answer:
    said: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    if "failed" in said:
        raise FedgazeError(said["failed"])
    path = folder / "heatmap.npy"
    return Answer(said["facts"], np.load(path) if path.exists() else None, tuple(said["size"]))


def put_question(grid: Grid, record: Path, folder: Path) -> None:
    """Hand a question to its client, and write down what it says.

    Args:
        grid: Where the clients are.
        record: Of the run whose model is asked.
        folder: Where the question lies, and the answer is to.
    """
    asked = json.loads((folder / "question.json").read_text(encoding="utf-8"))
    question = Question(np.load(folder / "picture.npy"), asked["target"], asked["version"])
    task = parse_task(json.loads((record / "run.json").read_text(encoding="utf-8"))["task"])
    try:
        said = _put(grid, find_roster(task), asked, question)
    except FedgazeError as error:
        write_json(folder / "answer.json", {"failed": str(error)})
        return
    if said.heatmap is not None:
        np.save(folder / "heatmap.npy", said.heatmap)
    write_json(folder / "answer.json", {"facts": said.facts, "size": said.size})


def _put(grid: Grid, roster: Any, asked: dict[str, Any], question: Question) -> Answer:
    numbers = roster.numbers(grid, nodes := list(grid.get_node_ids()))
    node = next((each for each in nodes if numbers.get(each) == asked["client"]), None)
    name = roster.name(asked["client"])
    if node is None:
        raise FedgazeError(f"{name} is not connected")
    message = Message(question.packed(), node, "query.explain")
    replies = list(grid.send_and_receive([message], timeout=asked["timeout"]))
    if not replies:
        raise FedgazeError(f"{name} did not answer within {asked['timeout']:g} s")
    if replies[0].has_error():
        raise FedgazeError(f"{name} answers: {replies[0].error.reason}")
    return read_answer(replies[0].content)
