"""One run of an experiment, carried out for real."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.federate.conftest import Silent
from tests.federate.lab.conftest import TINY

from fedgaze.federate import start
from fedgaze.federate.gate import gate_measures
from fedgaze.federate.gate.calibrated import HEIGHT
from fedgaze.federate.lab import DEFENCES, Cell, parse_plan
from fedgaze.federate.lab.cell import carry_out


def cell(**keys: Any) -> Cell:
    one = {"behaviours": "patch", "defences": "none"}
    (found,) = parse_plan(TINY | one | keys).cells
    return found


def test_a_cell_is_what_a_run_of_its_task_is(tmp_path: Path) -> None:
    late = cell(behaviours={"kind": "patch", "first_round": 2}, defences="none", rounds=3)
    found = carry_out(late, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["id"], found["fingerprint"]) == (late.id, late.fingerprint)
    run = start(late.task, tmp_path / "run", Silent())
    for ours, theirs in zip(found["rounds"], run.summary["rounds"], strict=True):
        assert ours["accuracy"] == theirs["global"]["accuracy"]
        assert ours["attack_success"] == theirs["global"]["attack_success"]
        for one, other in zip(ours["clients"], theirs["gate"]["clients"], strict=True):
            assert one["client"] == other["client"]
            assert one["scores"]["gate"] == other["evidence"]
            beyond = {name: value for name, value in one["spreads"].items() if value >= 1}
            assert beyond == pytest.approx(other["spreads"], abs=0.01)
            assert set(one["scores"]) <= {"gate", *DEFENCES} - {"none", "oracle"}
            assert set(one["spreads"]) == set(gate_measures())
            assert one["factor"] == 1
        took = ours["cpu_seconds"]
        parts = [took["looks"], took["merged_look"], *took["defences"].values()]
        assert all(each >= 0 for each in parts)
        assert sum(parts) < took["round"]
    assert (found["accuracy"], found["attack_success"]) == (
        found["rounds"][-1]["accuracy"], found["rounds"][-1]["attack_success"],
    )  # fmt: skip
    attacking = [
        [each["client"] for each in record["clients"] if each["attacker"]]
        for record in found["rounds"]
    ]
    assert attacking == [[], found["attackers"], found["attackers"]]
    assert len(found["attackers"]) == 1


def test_the_oracle_leaves_out_who_attacks_and_all_say_what_they_think(tmp_path: Path) -> None:
    late = cell(behaviours={"kind": "patch", "first_round": 2}, defences="oracle", rounds=2)
    for record in carry_out(late, tmp_path)["rounds"]:
        for each in record["clients"]:
            assert each["factor"] == (0 if each["attacker"] else 1)
            assert {"gate", "median"} <= set(each["scores"])
            assert "oracle" not in each["scores"]


def test_a_defence_changes_what_is_merged_and_the_first_round_is_the_same(tmp_path: Path) -> None:
    several = {"clients": 5, "attackers": 0.2}
    free, kept = (
        carry_out(cell(defences=each, **several), tmp_path) for each in ("none", "multi_krum")
    )
    assert free["attackers"] == kept["attackers"]
    for one, other in zip(free["rounds"][0]["clients"], kept["rounds"][0]["clients"], strict=True):
        assert one["scores"]["multi_krum"] == other["scores"]["multi_krum"]
        assert set(other["scores"]) == {"multi_krum"}
    factors = [each["factor"] for each in kept["rounds"][0]["clients"]]
    assert sorted(factors) == [0, 1, 1, 1, 1]
    assert free["rounds"][0]["accuracy"] != kept["rounds"][0]["accuracy"] or not math.isclose(
        free["rounds"][1]["clients"][0]["scores"]["multi_krum"],
        kept["rounds"][1]["clients"][0]["scores"]["multi_krum"],
    )


def test_the_gate_leaves_out_whom_it_suspects(tmp_path: Path) -> None:
    scaled = {"kind": "replacement", "scale": 30}
    one = cell(defences="gate+norm_clipping", behaviours=scaled, clients=6, attackers=0.17)
    found = carry_out(one, tmp_path)
    rounds = found["rounds"]
    for record in rounds:
        for each in record["clients"]:
            assert each["factors"]["gate"] == float(each["scores"]["gate"] < HEIGHT)
            assert (each["factor"] == 0) == (each["factors"]["gate"] == 0)
    (attacker,) = found["attackers"]
    assert rounds[-1]["clients"][attacker]["factor"] == 0
