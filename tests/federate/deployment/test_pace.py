"""A node looks for messages sooner after the last one, and never later than Flower's."""

import time

import pytest
from flwr.supernode import start_client_internal as loop

from fedgaze.federate.deployment.flower import Pace


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("fedgaze.federate.deployment.flower.supernode.time", made)
    return made


def test_it_waits_longer_the_longer_nothing_came(clock: Clock) -> None:
    pace = Pace()
    found = [None, None, 7, None]
    pull = pace.noted(lambda: found.pop(0))
    assert pull() is None
    pace.sleep(3)
    clock.now += 10
    pace.sleep(3)
    clock.now += 60
    pace.sleep(3)
    assert clock.slept == [0.3, pytest.approx(1.03), 3]
    assert [pull(), pull()] == [None, 7]
    pace.sleep(3)
    assert clock.slept[-1] == 0.3
    pace.sleep(0.5)  # for the answer, in the node's own memory
    assert clock.slept[-1] == 0.1


def test_a_tenth_of_any_wait_at_most(clock: Clock) -> None:
    for work in (5.0, 20.0, 29.0):
        pace, began = Pace(), clock.now
        while clock.now < began + work:
            pace.sleep(3)
        assert clock.now - began - work <= 0.1 * work + 0.3


def test_flowers_loop_still_sleeps_by_these_names() -> None:
    assert callable(loop._pull_and_store_message)
    assert vars(loop)["time"] is time
