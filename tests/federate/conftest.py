"""Small tasks that are carried out for real."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgaze.config import parse_task
from fedgaze.federate import start
from fedgaze.store import Run

SMALL: dict[str, Any] = {
    "task_id": "small",
    "model": {"_target_": "fedgaze.models.DigitsNet"},
    "num_clients": 3,
    "num_rounds": 2,
    "learning_rate": 0.003,
    "dataset": {"classes": ["1", "4", "7"]},
    "xai": {"samples_per_class": 1, "share": "overlays", "layer": "conv3"},
}


class Silent:
    """Watches a run and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def run_started(self, rounds: int, done: int) -> None:
        self.told.append(("run", rounds, done))

    def round_started(self, number: int, clients: list[int]) -> None:
        self.told.append(("round", number, clients))

    def client_started(self, client: int, kind: str) -> None:
        self.told.append(("client", client, kind))

    def round_done(self, record: dict[str, Any]) -> None:
        self.told.append(("done", record["round"]))

    def trouble(self, text: str) -> None:
        self.told.append(("trouble", text))


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merged(old, value) if both else value
    return result


@pytest.fixture
def small() -> Callable[..., dict[str, Any]]:
    return lambda **changes: merged(SMALL, changes)


@pytest.fixture
def carry_out(tmp_path: Path) -> Callable[..., Run]:
    def run(directory: Path | None = None, name: str = "run", **changes: Any) -> Run:
        task = parse_task(merged(SMALL, changes), directory)
        return start(task, tmp_path / name, Silent())

    return run
