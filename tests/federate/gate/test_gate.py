"""Suspicion from standings, worked by hand; memory; policies; reasons."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedgaze.config import GateSpec
from fedgaze.federate.gate import Gate, GateMeasure, Seen
from fedgaze.federate.gate import gate as module
from fedgaze.federate.gate.calibrated import HEIGHT, MEMORY

CLASSES = ("nought", "one", "two")


WIDE = 1 + (7 / 3) ** 1.75
"""By how much the spread of three others is widened."""


def measure(name: str, values: Callable[[], Tensor], **more: Any) -> GateMeasure:
    what: dict[str, Any] = {"per": "update", "suspect": "high", "floor": 1 / WIDE, "weight": 1.0}
    what |= {"says": f"its {name}", "looks": False} | more
    return GateMeasure(name, lambda _seen: values(), **what)


def round_of(count: int = 4, **more: Any) -> Seen:
    given: dict[str, Any] = {"sights": [None] * count, "received": None} | more
    moved = torch.ones(count, 1)
    return Seen(tuple(range(count)), torch.zeros(count, 1), moved, profiles=[{}] * count, **given)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gate]:
    def make(*measures: GateMeasure, **spec: Any) -> Gate:
        monkeypatch.setattr(module, "find_measures", lambda _names: measures)
        return Gate(GateSpec(**spec), CLASSES)

    return make


class Values:
    """What a measure gives, changed from round to round."""

    def __init__(self, *values: float) -> None:
        self.set(*values)

    def set(self, *values: float) -> None:
        self.now = torch.tensor(values, dtype=torch.double)

    def __call__(self) -> Tensor:
        return self.now


def suspicion(evidence: float) -> float:
    return 1 / (1 + math.exp(HEIGHT - evidence))


def test_evidence_is_the_weighted_sum_of_logarithms(made: Callable[..., Gate]) -> None:
    """Two measures: the last client stands 5 and 3 spreads apart, with weights 4 and 0.5."""
    gate = made(
        measure("a", Values(0, 0, 0, 5), weight=4.0), measure("b", Values(1, 1, 1, 4), weight=0.5)
    )
    decisions = gate.judge(round_of())
    expected = 4 * math.log(1 + 10**2) + 0.5 * math.log(1 + 6**2)
    assert decisions[3].evidence == pytest.approx(expected)
    assert decisions[3].suspicion == pytest.approx(suspicion(expected))
    assert decisions[3].spreads == pytest.approx({"a": 5.0, "b": 3.0})
    assert decisions[0].evidence == 0
    assert decisions[0].suspicion == pytest.approx(suspicion(0))
    assert decisions[0].reasons == ()


def test_weak_evidence_is_summed_and_an_outlier_recovers(made: Callable[..., Gate]) -> None:
    """Each round leaves half of itself to the next: 1, 3/2, 7/4, then half and half again."""
    values = Values(0, 0, 0, 9)
    gate = made(measure("a", values, weight=1 / math.log(1 + 18**2)))
    assert MEMORY == 0.5
    found = [gate.judge(round_of())[3].evidence for _ in range(3)]
    assert found == pytest.approx([1, 1.5, 1.75], abs=1e-3)
    values.set(0, 0, 0, 0)
    after = [gate.judge(round_of())[3].evidence for _ in range(2)]
    assert after == pytest.approx([1.75 / 2, 1.75 / 4], abs=1e-3)


def test_who_is_not_there_keeps_its_evidence(made: Callable[..., Gate]) -> None:
    values = Values(0, 0, 0, 9)
    gate = made(measure("a", values, weight=1 / math.log(1 + 18**2)))
    gate.judge(round_of())
    values.set(0, 0, 0)
    gate.judge(round_of(3))
    values.set(0, 0, 0, 9)
    assert gate.judge(round_of())[3].evidence == pytest.approx(1.5, abs=1e-3)


def test_what_is_held_against_zero_may_help(made: Callable[..., Gate]) -> None:
    """The others' spread is a MAD of 1: 2 harms by 2 / 1.4826 of it, -9 helps by 9."""
    values = Values(2, 0, -1, 1, -9)
    gate = made(measure("a", values, weight=2.0, floor=0.01, against="zero"))
    found = gate.judge(round_of(5))
    others = 1.4826 * (1 + (7 / 4) ** 1.75)  # of 0, -1, 1 and -9: median -1, distances 1, 0, 2, 8
    assert found[0].evidence == pytest.approx(2 * math.log1p((4 / others) ** 2), abs=1e-3)
    assert found[4].evidence == pytest.approx(
        -2 * math.log1p(9 / 1.4826 / (1 + (7 / 4) ** 1.75)), abs=1e-3
    )
    assert found[0].reasons == ()
    values.set(20, 0, -1, 1, -9)
    assert gate.judge(round_of(5))[0].reasons == ("its a: 20.00 nats",)


def test_a_restored_gate_goes_on_as_before(made: Callable[..., Gate]) -> None:
    generator = torch.Generator().manual_seed(0)
    rounds = torch.rand(6, 4, generator=generator, dtype=torch.double)
    rounds[:, 3] += 4
    values = Values(0)

    def judged(gate: Gate, first: int, last: int) -> list[dict[str, Any]]:
        records = []
        for each in rounds[first:last]:
            values.now = each
            clients = [decision.shown() for decision in gate.judge(round_of())]
            records.append({"gate": {"clients": clients, "spreads": gate.spreads}})
        return records

    one = measure("a", values, weight=1.5, floor=0.01)
    whole = judged(made(one), 0, 6)
    second = made(one)
    second.restore(whole[:3])
    assert judged(second, 3, 6) == whole[3:]


def test_policies(made: Callable[..., Gate]) -> None:
    def factors(**spec: Any) -> list[float]:
        weight = (HEIGHT + 8) / math.log(1 + 18**2)
        gate = made(measure("a", Values(0, 0, 0, 9), weight=weight), **spec)
        return [each.factor for each in gate.judge(round_of())]

    assert factors() == [1, 1, 1, 1]
    assert factors(policy="reject") == [1, 1, 1, 0]
    assert factors(policy="reject", threshold=0.9999) == [1, 1, 1, 1]
    weak = factors(policy="downweight")
    assert weak == pytest.approx([1 - suspicion(0)] * 3 + [1 - suspicion(HEIGHT + 8)])


def test_who_cannot_be_looked_at_is_not_cleared(
    made: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Seen, "looked", True)
    gate = made(policy="reject")
    decisions = gate.judge(round_of())
    assert [each.factor for each in decisions] == [0, 0, 0, 0]
    assert decisions[0].reasons == ("the server could not look at it",)


def test_what_only_a_look_tells_is_not_asked_without_one(made: Callable[..., Gate]) -> None:
    gate = made(measure("a", Values(0, 0, 0, 9), weight=20.0, looks=True))
    assert gate.judge(round_of())[3].evidence == 0


def test_reasons_name_values_and_classes(made: Callable[..., Gate]) -> None:
    of_classes = torch.tensor([[0.8, 0.8, 0.8]] * 3 + [[0.8, 0.3, 0.1]], dtype=torch.double)
    gate = made(
        measure(
            "heat", lambda: of_classes, per="class", suspect="low", floor=0.05 / WIDE, weight=2.0
        ),
        measure("length", Values(1, 1, 1, 3), floor=0.5 / WIDE),
        measure("nothing", Values(1, 1, 1, 1.5), weight=0.0),
    )
    reasons = gate.judge(round_of())[3].reasons
    assert reasons == (
        "its heat for classes one and two: 0.20, the others 0.80",
        "its length: 3.00, the others 1.00",
    )


def test_a_logarithm_is_told_as_so_many_times(made: Callable[..., Gate]) -> None:
    values = Values(0, 0, 0, math.log(2.5))
    gate = made(measure("length", values, floor=0.01, shown="logarithm"))
    assert gate.judge(round_of())[3].reasons == ("its length: 2.50 times the others’",)


def test_what_weighs_nothing_is_told_beside(made: Callable[..., Gate]) -> None:
    gate = made(
        measure("light", Values(0, 0, 0, 5), weight=0.0),
        measure("heavy", Values(0, 0, 0, 1.5), weight=0.1),
        measure("faint", Values(0, 0, 0, 1.5), weight=0.0),
    )
    assert gate.judge(round_of())[3].reasons == (
        "its heavy: 1.50, the others 0.00",
        "besides, its light: 5.00, the others 0.00",
    )


def test_numbers_that_look_alike_are_no_reason(made: Callable[..., Gate]) -> None:
    values = Values(0.671, 0.671, 0.671, 0.674)
    gate = made(measure("a", values, floor=1e-4))
    assert gate.judge(round_of())[3].reasons == ()


def test_who_is_suspected_for_what_was_seen_before_is_told_so(made: Callable[..., Gate]) -> None:
    values = Values(0, 0, 0, 9)
    gate = made(one := measure("a", values, weight=20.0))
    gate.judge(round_of())
    values.set(0, 0, 0, 0)
    before = gate.judge(round_of())[3]
    assert before.reasons == ("in an earlier round: its a: 9.00, the others 0.00",)
    again = made(one)
    again.restore([{"gate": {"clients": [before.shown()]}}])
    assert again.judge(round_of())[3].reasons == ()
    first = {**before.shown(), "reasons": ["its a: 9.00, the others 0.00"]}
    again = made(one)
    again.restore([{"gate": {"clients": [each]}} for each in (first, before.shown())])
    assert again.judge(round_of())[3].reasons == before.reasons


def test_the_usual_spread_of_earlier_rounds_counts(made: Callable[..., Gate]) -> None:
    """Five wide rounds; in a narrow one the same distance is no more than usual."""
    values = Values(0, 10, 20, 30)
    gate = made(measure("a", values, weight=1.0))
    for _ in range(5):
        gate.judge(round_of())
    values.set(0, 0, 0, 9)
    assert gate.judge(round_of())[3].spreads == {}
    fresh = made(measure("a", values, weight=1.0))
    assert fresh.judge(round_of())[3].spreads == pytest.approx({"a": 9.0})
