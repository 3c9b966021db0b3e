"""A worker looks for messages where its SuperNode listens now."""

from pathlib import Path
from typing import Any

import pytest
from tests.federate.deployment.conftest import wait_for

from fedgaze.federate.deployment import worker
from fedgaze.federate.deployment.homes import ClientHome


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where a worker looked for messages; nobody is there."""
    looks: list[str] = []

    class Tasks:
        def __init__(self, address: str, secret: bytes) -> None:
            self.address = address

        def next(self) -> str | None:
            looks.append(self.address)
            raise ConnectionError

        def close(self) -> None: ...

    monkeypatch.setattr(worker, "NodeTasks", Tasks)
    monkeypatch.setattr(worker, "PAUSE", 0.01)
    return looks


def made(folder: Path) -> worker.Worker:
    home = ClientHome(folder)
    home.prepare()
    home.secret.write_bytes(b"x")
    return worker.Worker(home)


def test_a_new_port_is_no_new_operation(tmp_path: Path, asked: list[str]) -> None:
    client = made(tmp_path)
    assert client.start("7", "127.0.0.1:1")
    wait_for(lambda: "127.0.0.1:1" in asked, 5, "the first look")
    assert not client.start("7", "127.0.0.1:2")
    wait_for(lambda: asked[-1] == "127.0.0.1:2", 5, "a look at the other port")
    state: dict[str, Any] = client.state()["operation"]
    assert (state["run"], state["runtime"]) == ("7", "127.0.0.1:2")
    assert not (tmp_path / "operations.jsonl").exists(), "the operation goes on"
    client.finish()


def test_a_new_run_ends_the_operation_before(tmp_path: Path, asked: list[str]) -> None:
    client = made(tmp_path)
    client.start("7", "127.0.0.1:1")
    assert client.start("8", "127.0.0.1:1")
    assert len((tmp_path / "operations.jsonl").read_text().splitlines()) == 1
    assert client.state()["operation"]["run"] == "8"
    client.finish()
