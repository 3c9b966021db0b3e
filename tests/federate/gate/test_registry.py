"""Measures by name; other packages' are taken in, and a broken one takes nothing with it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fedgaze import plugins
from fedgaze.errors import FedgazeError
from fedgaze.federate.gate import GROUP, GateMeasure, find_measures, gate_measures
from fedgaze.federate.gate import registry as module
from fedgaze.federate.gate.calibrated import WEIGHTS

MINE = GateMeasure(
    "mine", lambda seen: torch.zeros(len(seen.clients)), "update", "high", 0.1, "its own", weight=2
)


class Point:
    """An entry point."""

    def __init__(self, name: str, what: Any) -> None:
        self.name, self.value, self._what = name, f"package:{name}", what

    def load(self) -> Any:
        if isinstance(self._what, Exception):
            raise self._what
        return self._what


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Point]]:
    points: list[Point] = []

    def entry_points(group: str) -> list[Point]:
        assert group == GROUP == "fedgaze.gate_measures"
        return points

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    module._third_party.cache_clear()
    yield points
    module._third_party.cache_clear()


def test_every_frozen_weight_is_of_a_measure() -> None:
    assert set(WEIGHTS) <= set(gate_measures())
    assert all(weight >= 0 for weight in WEIGHTS.values())


def test_another_package_adds_a_measure(offered: list[Point]) -> None:
    offered.append(Point("mine", MINE))
    assert find_measures(["mine", "direction"])[0] is MINE
    assert find_measures(None)[-1] is MINE


def test_a_broken_one_takes_nothing_with_it(offered: list[Point]) -> None:
    offered += [Point("bad", ImportError("no")), Point("odd", 3), Point("mine", MINE)]
    with pytest.warns(RuntimeWarning, match="cannot be loaded: ImportError: no|allowed is"):
        assert "mine" in gate_measures()


def test_no_package_replaces_a_measure_of_ours(offered: list[Point]) -> None:
    ours = gate_measures()["direction"]
    module._third_party.cache_clear()
    usurper = GateMeasure("direction", lambda seen: seen.vectors[:, 0], "update", "high", 1, "x")
    offered.append(Point("direction", usurper))
    with pytest.warns(RuntimeWarning, match="as a measure of fedgaze is; it is ignored"):
        assert gate_measures()["direction"] is ours


def test_an_unknown_measure_is_named() -> None:
    with pytest.raises(FedgazeError, match=r"no measure 'directions'.*did you mean.*direction"):
        find_measures(["directions"])
