"""Waiting for clients and for their answers: never longer than was said."""

import time
from typing import Any

import pytest

from fedgaze.errors import FedgazeError
from fedgaze.federate.ordered import PromptGrid, Wait, gather


class Nodes:
    """A grid whose nodes come when their time is there; the messages are numbers."""

    def __init__(self, come: dict[int, float], answer: dict[int, float | Exception]) -> None:
        self.start = time.monotonic()
        self.come = come
        self.answer = answer

    def get_node_ids(self) -> list[int]:
        return [node for node, at in self.come.items() if time.monotonic() - self.start >= at]

    def push_messages(self, messages: list[Any]) -> list[int]:
        return messages

    def pull_messages(self, names: list[int]) -> list[Any]:
        [name] = names
        when = self.answer[name]
        if isinstance(when, Exception):
            raise when
        if when < 0:
            time.sleep(-when)  # Flower waits here for the rest of a reply that was cut off
        return [f"answer {name}"] if time.monotonic() - self.start >= when else []


class Table:
    def numbers(self, grid: Any, nodes: Any) -> dict[int, int]:
        return {node: node - 100 for node in nodes}

    def name(self, client: int) -> str:
        return f"hospital-{client}"


def waited(come: dict[int, float], wait: Wait) -> tuple[dict[int, int], float]:
    nodes: Any = Nodes(come, {})
    found = gather(nodes, Table(), wait)
    return found, time.monotonic() - nodes.start


def test_when_all_are_there_nobody_waits() -> None:
    found, seconds = waited({100: 0, 101: 0.3}, Wait(2, 1, 20.0, 30.0))
    assert found == {100: 0, 101: 1}
    assert 0.3 <= seconds < 5


def test_enough_are_enough_after_a_while() -> None:
    found, seconds = waited({100: 0, 101: 99}, Wait(2, 1, 0.6, 30.0))
    assert found == {100: 0}
    assert 0.6 <= seconds < 5


def test_a_node_that_is_no_client_of_the_run_does_not_count() -> None:
    found, _ = waited({100: 0, 102: 0}, Wait(2, 1, 0.1, 30.0))
    assert found == {100: 0}


def test_too_few_are_named_at_the_stated_time() -> None:
    with pytest.raises(
        FedgazeError,
        match=r"1 of num_clients=3 clients came within 0\.5 s and at least 2 are needed; "
        r"missing: hospital-0, hospital-2",
    ):
        waited({101: 0}, Wait(3, 2, 0.1, 0.5))


def test_one_answer_that_never_ends_holds_up_nobody() -> None:
    nodes: Any = Nodes({}, {1: 0.0, 2: -60.0, 3: 0.5})
    replies = list(PromptGrid(nodes).send_and_receive([1, 2, 3], timeout=1.5))  # type: ignore[list-item]
    assert replies == ["answer 1", "answer 3"]
    assert 1.5 <= time.monotonic() - nodes.start < 8


def test_all_answers_end_the_wait() -> None:
    nodes: Any = Nodes({}, {1: 0.1, 2: 0.4})
    replies = list(PromptGrid(nodes).send_and_receive([1, 2], timeout=60))  # type: ignore[list-item]
    assert sorted(map(str, replies)) == ["answer 1", "answer 2"]
    assert time.monotonic() - nodes.start < 10


def test_a_link_that_breaks_is_no_silence() -> None:
    nodes: Any = Nodes({}, {1: RuntimeError("the run was stopped")})
    message: Any = 1
    with pytest.raises(RuntimeError, match="the run was stopped"):
        list(PromptGrid(nodes).send_and_receive([message], timeout=60))
