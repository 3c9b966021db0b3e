"""A node is the client whose key it was registered with, whatever it says of itself."""

from pathlib import Path
from typing import Any

import pytest

from fedgaze.config import parse_task
from fedgaze.federate.deployment.homes import ServerHome, ServerSettings
from fedgaze.federate.deployment.registry import Registry
from fedgaze.federate.deployment.roster import SERVER_HOME, find_roster
from fedgaze.federate.ordered import Wait, gather

NODES = {"key0": 7001, "key1": 7002}


class Liars:
    """Each node says that it is client 0; none is asked."""

    def get_node_ids(self) -> list[int]:
        return [7002, 7001, 9999]

    def send_and_receive(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a node's word is asked for")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerHome:
    made = ServerHome(tmp_path / "server")
    made.prepare()
    made.write(ServerSettings("127.0.0.1", 1, 2, "localhost:1", secure=True, runs="runs"))
    registry = Registry(made.registry)
    for key in NODES:
        registry.redeem(registry.invite("", 1), key, f"of-{key}", lambda k, _: NODES[k])
    monkeypatch.setenv(SERVER_HOME, str(made.path))
    return made


def test_a_nodes_word_counts_for_nothing(home: ServerHome) -> None:
    roster = find_roster(parse_task({"model": {"name": "resnet18"}, "num_clients": 2}))
    grid: Any = Liars()
    assert gather(grid, roster, Wait(2, 2, 0.0, 1.0)) == {7001: 0, 7002: 1}
    assert roster.name(1) == "of-key1 (1)"
    assert roster.name(5) == "5 (never joined)"


def test_a_removed_client_is_nobody(home: ServerHome) -> None:
    Registry(home.registry).remove("of-key0")
    roster = find_roster(parse_task({"model": {"name": "resnet18"}, "num_clients": 2}))
    grid: Any = Liars()
    assert gather(grid, roster, Wait(2, 1, 0.0, 1.0)) == {7002: 1}
