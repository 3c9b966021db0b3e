"""The starter's three programs, each a process of its own, as people know them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.federate.deployment.conftest import Farm, wait_for


@contextmanager
def program(folder: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    with (folder / f"{words[0]}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=os.environ | {"COLUMNS": "200"},
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def ask(home: Path, file: str, method: str, path: str, token: str | None = None) -> httpx.Response:
    port = json.loads((home / file).read_text())["port"]
    shown = (home / "token").read_text() if token is None else token
    return httpx.request(
        method,
        f"http://127.0.0.1:{port}{path}",
        headers={"authorization": f"Bearer {shown}"},
        json={"run": "1", "runtime": "127.0.0.1:1"} if method == "POST" else None,
        timeout=30,
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_server_manager_and_client(farm: Farm) -> None:
    farm.call("init", "starter")
    folder = farm.folder = farm.folder / "starter"
    config = ["num_clients=1", "num_rounds=2", "num_epochs=1", "clients_per_round=1"]
    listen = ["--listen", f"127.0.0.1:{farm.port}"]
    with program(folder, "server_main.py", *listen, *config) as server:
        wait_for((farm.server / "state.json").exists, 100, "the server's start")
        farm.call("server", "invite", "--name", "here", "--output", "invite")
        home = farm.client("here")
        with program(folder, "client_manager_main.py", "--invite", "invite"):
            wait_for((home / "state.json").exists, 60, "the manager's start")
            said = wait_for(lambda: _connected(home), 60, "its connection")
            assert said["client"] == {"online": False, "reason": "it is not running"}
            with program(folder, "client_main.py"):
                wait_for((home / "worker.json").exists, 60, "the client's start")
                online = ask(home, "worker.json", "GET", "/online")
                assert online.json()["name"] == "here"
                for path, method in (("/online", "GET"), ("/start", "POST"), ("/finish", "POST")):
                    for token in ("x", "wrong" * 50):
                        refused = ask(home, "worker.json", method, path, token)
                        assert refused.status_code == 401, path
                assert ask(home, "state.json", "GET", "/online", "wrong").status_code == 401

                # The server ends with its run; manager and client wait for the next.
                assert server.wait(200) == 0
                done = wait_for(lambda: _lines(home), 90, "the record of the operation")
                assert done[0]["failures"] == []
                assert done[0]["messages"] == 2
                assert 0 < done[0]["operation_seconds"] < done[0]["lasted"]
                assert ask(home, "worker.json", "GET", "/online").json()["state"] == "idle"
                wait_for(
                    lambda: _server(home).startswith("waiting for"), 30, "the wait for the next"
                )
    said = (folder / "server_main.py.log").read_text()
    assert "round 2" in said
    assert farm.record("starter")["status"] == "complete"
    assert len(farm.record("starter")["rounds"]) == 2


def _connected(home: Path) -> dict[str, Any] | None:
    state: dict[str, Any] = ask(home, "state.json", "GET", "/online").json()
    return state if state["server"] == "connected" and state["client"] else None


def _server(home: Path) -> str:
    return str(ask(home, "state.json", "GET", "/online").json()["server"])


def _lines(home: Path) -> list[dict[str, Any]]:
    path = home / "operations.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]
