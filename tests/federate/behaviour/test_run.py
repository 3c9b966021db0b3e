"""Whole runs with clients that misbehave, where nothing defends them."""

from collections.abc import Callable
from typing import Any

import pytest

from fedgaze.store import Run

CarryOut = Callable[..., Run]
LAB: dict[str, Any] = {
    "num_clients": 4,
    "num_rounds": 4,
    "num_epochs": 3,
    "batch_size": 16,
    "dataset": {"partition": "iid", "limit": 400},
    "xai": {"enabled": False, "layer": "conv3"},
}


def last(run: Run) -> dict[str, Any]:
    record: dict[str, Any] = run.summary["rounds"][-1]["global"]
    return record


def test_a_backdoor_gets_in_and_nothing_else_is_seen_of_it(carry_out: CarryOut) -> None:
    honest = carry_out(**LAB)
    assert "attack_success" not in last(honest)
    assert "attack_success" not in honest.summary["initial"]
    patched = carry_out(**LAB, name="patch", behaviour={"kind": "patch", "clients": [0, 2]})
    assert 0 <= patched.summary["initial"]["attack_success"] <= 1
    assert all("attack_success" in each["global"] for each in patched.summary["rounds"])
    assert last(patched)["attack_success"] > 0.9
    assert last(honest)["accuracy"] > 0.95
    assert last(patched)["accuracy"] > last(honest)["accuracy"] - 0.04
    for entry in patched.summary["rounds"][-1]["clients"]:  # they report good numbers
        assert entry["validation"]["accuracy"] > 0.9


def test_who_starts_late_changes_nothing_before(carry_out: CarryOut) -> None:
    behaviour = {"kind": "patch", "clients": [0, 2], "first_round": 3}
    honest, late = carry_out(**LAB), carry_out(**LAB, name="late", behaviour=behaviour)
    pairs = zip(honest.summary["rounds"], late.summary["rounds"], strict=True)
    same = [
        one["global"]["loss"] == pytest.approx(other["global"]["loss"], abs=0)
        for one, other in pairs
    ]
    assert same == [True, True, False, False]
    assert late.summary["rounds"][1]["global"]["attack_success"] < 0.3


def test_rounds_count_on_when_all_but_one_ride_free(carry_out: CarryOut) -> None:
    behaviour = {"kind": "stale", "clients": [1, 2, 3]}
    run = carry_out(**LAB | {"num_rounds": 2}, behaviour=behaviour)
    for record in run.summary["rounds"]:
        assert record["failures"] == []
        assert len(record["clients"]) == 4


@pytest.mark.parametrize("kind", ["stealth", "replacement", "noise", "stale"])
@pytest.mark.parametrize("strategy", ["scaffold", "fedbn"])
def test_strategies_that_steer_training_or_keep_layers_at_home(
    carry_out: CarryOut, strategy: str, kind: str
) -> None:
    run = carry_out(
        **LAB | {"num_rounds": 2, "num_epochs": 1, "optimizer": "sgd", "learning_rate": 0.05},
        strategy=strategy,
        behaviour={"kind": kind, "clients": [1]},
    )
    for record in run.summary["rounds"]:
        assert record["failures"] == []
        assert len(record["clients"]) == 4
        judged = kind in ("stealth", "replacement") and strategy != "fedbn"
        assert ("attack_success" in record["global"]) == judged
