"""What is counted, on results that are made up so that each number can be worked by hand."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fedgaze.federate.lab import Setting
from fedgaze.federate.lab.results import NUMBERS, Results, Row, auc, true_positives

PATCH = Setting("digits", "iid", 4, 2, "patch")


def update(
    client: int, attacker: bool, score: float | None = None, factor: float = 1.0, **scores: float
) -> dict[str, Any]:
    """A client's entry; ``score`` is that of ``krum``."""
    said = scores if score is None else {"krum": score, **scores}
    return {
        "client": client, "attacker": attacker, "scores": said, "factor": factor, "factors": {},
        "spreads": {},
    }  # fmt: skip


def a_run(
    *rounds: Sequence[Mapping[str, Any]],
    setting: Setting = PATCH,
    defence: str = "none",
    seed: int = 0,
    accuracy: float = 0.9,
    success: float | None = 0.5,
    kind: str | None = "patch",
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A cell's result."""
    own = {name: getattr(setting, name) for name in Setting.__dataclass_fields__}
    took = {"round": 10.0, "looks": 2.0, "merged_look": 0.5, "defences": dict(seconds or {})}
    return {
        "id": f"{setting.behaviour}_{defence}_{seed}",
        "cell": {**own, "defence": defence, "seed": seed},
        "task": {"behaviour": None if kind is None else {"kind": kind}},
        "accuracy": accuracy,
        "attack_success": success,
        "rounds": [
            {"round": number, "clients": list(clients), "cpu_seconds": took}
            for number, clients in enumerate(rounds, 1)
        ],
        "failures": [],
    }


def row(results: Results, defence: str, setting: Setting = PATCH) -> Row:
    (found,) = [x for x in results.rows if (x.setting, x.defence) == (setting, defence)]
    return found


def mean(found: Row, name: str) -> float:
    return found.numbers[name].mean


def plain(*values: float) -> list[tuple[float, float]]:
    return [(0.0, value) for value in values]


def test_auc_counts_pairs() -> None:
    # Of the pairs (3, 2), (3, 1), (1, 2), (1, 1) two are right, and one is a tie.
    assert auc([True, True, False, False], plain(3, 1, 2, 1)) == pytest.approx(2.5 / 4)
    assert math.isnan(auc([False, False], plain(1, 2)))
    # Who is out by the gate comes before all others, whatever another defence's numbers are.
    assert auc([True, False], [(1.0, 0.1), (0.0, 99.0)]) == 1


def test_one_threshold_holds_for_the_runs_of_all_seeds() -> None:
    honest = [float(value) for value in range(50)]  # 0 … 49, and 50 … 99 in the other run
    runs = [
        ([False] * 50 + [True] * 2, plain(*honest, 98.5, 97)),
        ([False] * 50 + [True] * 2, plain(*(50 + value for value in honest), 99.5, 98.5)),
    ]
    # One honest update of 100 is 99, so 1 % lie above 98.5, and 5 % at or above 95.
    assert true_positives(runs, 0.01) == [0.5, 1.0]
    assert true_positives(runs, 0.05) == [1.0, 1.0]
    # A run alone has no 1 %: nothing honest may lie above.
    assert true_positives(runs[1:], 0.01) == [0.5]
    # Where the most suspect are honest, nobody is found.
    assert true_positives([([True, False, False], plain(1, 2, 2))], 0.01) == [0.0]
    # Equal ones are not told apart.
    assert true_positives([([True, False], plain(1, 1))], 0.05) == [0.0]


def test_what_defences_think_of_the_same_updates() -> None:
    pair = [update(0, True, 3), update(1, True, 1)]
    found = Results(
        [
            a_run([*pair, update(2, False, 2), update(3, False, 0)]),
            a_run(
                [update(0, True, 9), update(1, True, 8), update(2, False, 7), update(3, False)],
                seed=1,
            ),
        ]
    )
    seen = row(found, "krum")
    assert seen.runs == 0
    assert seen.values["auc"] == {0: 0.75, 1: 1.0}  # who has no score counts in no pair
    assert mean(seen, "auc") == pytest.approx(0.875)
    assert (seen.numbers["auc"].low, seen.numbers["auc"].high) == (0.75, 1.0)
    # Of honest updates of both none may lie above: 9 and 8 do above 7, and 3 and 1 do not.
    assert seen.values["tpr_1"] == {0: 0.0, 1: 1.0}
    assert "own_auc" not in seen.numbers
    assert "benign_rejected" not in seen.numbers
    assert "auc" not in row(found, "none").numbers


def test_who_is_left_out_and_when() -> None:
    found = Results(
        [
            a_run(
                # Nobody attacks in the first round yet, and client 1 is left out all the same.
                [update(0, False), update(1, False, factor=0), update(2, False)],
                [update(0, True), update(1, True, factor=0), update(2, False)],
                [update(0, True, factor=0.1), update(1, True), update(2, False, factor=0)],
                [update(0, True, factor=0), update(1, True), update(2, False)],
                defence="krum",
            ),
            a_run([update(0, True), update(1, False), update(2, False)], defence="krum", seed=1),
        ]
    )
    seen = row(found, "krum")
    assert seen.values["benign_rejected"] == {0: 2 / 6, 1: 0.0}
    assert seen.values["detected"] == {0: 1.0, 1: 0.0}
    # Client 1 at once, client 0 in its third round; whoever is never left out is in no mean.
    assert seen.values["rounds_to_detection"][0] == 2
    assert seen.numbers["rounds_to_detection"].n == 1
    assert mean(seen, "detected") == 0.5


def test_accuracy_is_held_against_an_honest_run_without_a_defence_of_the_same_seed() -> None:
    one = [update(0, True), update(1, False)]
    found = Results(
        [
            a_run(one, setting=PATCH.honest, accuracy=0.95, kind=None, success=None),
            a_run(one, setting=PATCH.honest, seed=1, accuracy=0.85, kind=None, success=None),
            a_run(
                one, setting=PATCH.honest, defence="krum", accuracy=0.93, kind=None, success=None
            ),
            a_run(one, accuracy=0.94),
            a_run(one, accuracy=0.82, seed=1, success=0.7),
            a_run(one, accuracy=0.5, defence="krum", success=0.1),
            a_run(one, accuracy=0.5, defence="krum", seed=2),  # it has none to be held against
        ]
    )
    assert row(found, "none").values["accuracy_lost"] == pytest.approx({0: 0.01, 1: 0.03})
    assert row(found, "krum").values["accuracy_lost"] == pytest.approx({0: 0.45})
    honest = row(found, "krum", PATCH.honest)
    assert honest.values["accuracy_lost"] == pytest.approx({0: 0.02})
    assert "attack_success" not in honest.numbers
    assert mean(row(found, "none"), "attack_success") == pytest.approx(0.6)
    assert mean(row(found, "none"), "accuracy") == pytest.approx(0.88)


def test_attackers_are_grouped_by_what_they_cost_where_nothing_defends() -> None:
    def pair(behaviour: str, accuracy: float, **how: Any) -> list[dict[str, Any]]:
        at = Setting("digits", "iid", 4, 2, behaviour)
        return [a_run([update(0, True)], setting=at, accuracy=accuracy, **how)]

    found = Results(
        [
            *pair("none", 0.9, kind=None),
            *pair("none", 0.8, seed=1, kind=None),
            *pair("patch", 0.89),
            *pair("patch", 0.78, seed=1),  # 1 and 2 points: 1.5
            *pair("stale", 0.89),
            *pair("stale", 0.75, seed=1),  # 1 and 5 points: 3
            *pair("adaptive", 0.2, kind="adaptive"),
            *pair("blend", 0.9, seed=7),  # of which no honest run is known
        ]
    )
    groups = {
        name: [each.behaviour for each in settings] for name, settings in found.groups().items()
    }
    assert groups == {
        "kept": ["patch"], "costly": ["stale"], "adaptive": ["adaptive"], "unknown": ["blend"],
    }  # fmt: skip
    assert found.keeps_accuracy(PATCH) is True


def test_the_gate_with_another_defence_is_one_defence() -> None:
    def seen(client: int, attacker: bool, gate: float, krum: float | None) -> dict[str, Any]:
        scores = {"gate": gate} if krum is None else {"gate": gate, "krum": krum}
        factors = {"gate": float(krum is not None)}
        return update(client, attacker, factor=factors["gate"]) | {
            "scores": scores, "factors": factors,
        }  # fmt: skip

    clients = [
        seen(0, True, 8, None),  # out by the gate
        seen(1, True, 1, 5),
        seen(2, False, 7, None),  # out, too, but it seemed less suspect
        seen(3, False, 2, 4),
        seen(4, False, 0, 6),
    ]
    found = Results([a_run(clients, defence="gate+krum")])
    both = row(found, "gate+krum")
    # Client 0 before all three; client 1 before client 3 only.
    assert mean(both, "own_auc") == pytest.approx(4 / 6)
    assert "auc" not in both.numbers
    assert mean(both, "benign_rejected") == pytest.approx(1 / 3)


def test_what_a_defence_costs_is_a_part_of_rounds_without_it() -> None:
    one = [update(0, True, 1, gate=2.0), update(1, False, 0, gate=0.0)]
    spent = {"gate": 1.5, "krum": 1.0}
    found = Results([a_run(one, one, seconds=spent)])
    # A round's 10 s, without looks (2 and 0.5) and defences (2.5), are 5.
    assert mean(row(found, "krum"), "cost") == pytest.approx(1 / 5)
    assert mean(row(found, "gate"), "cost") == pytest.approx((1.5 + 2) / 5)  # its looks are its own
    own = Results([a_run(one, defence="gate+krum", seconds=spent)])
    assert mean(row(own, "gate+krum"), "cost") == pytest.approx((1.5 + 1 + 2) / 5)


def test_over_all_settings_each_counts_alike_and_the_worst_is_named() -> None:
    blend = Setting("scenes", "iid", 4, 2, "blend")
    good = [update(0, True, 3), update(1, False, 1)]
    bad = [update(0, True, 1), update(1, False, 3)]
    out = [update(0, True, 3, 0), update(1, False, 1, 0), update(2, False, 1), update(3, False, 1)]
    found = Results(
        [
            *(a_run(good, seed=seed) for seed in (0, 1, 2)),
            a_run(good, setting=blend),
            a_run(bad, setting=blend, seed=1),
            a_run(out, defence="krum", success=0.2),
            a_run(out[2:], setting=PATCH.honest, defence="krum", kind=None, success=None),
        ]
    )
    whole = found.total([PATCH, blend], "krum")
    # Seeds 0 and 2 have 1, and seed 1 the mean of 1 and 0.
    assert whole["numbers"]["auc"]["mean"] == pytest.approx(2.5 / 3)
    assert whole["numbers"]["auc"]["n"] == 3
    assert whole["worst"]["auc"] == 0.5
    assert whole["worst"]["setting"]["behaviour"] == "blend"
    assert whole["numbers"]["benign_rejected"]["mean"] == pytest.approx(1 / 3)
    assert whole["numbers"]["benign_rejected_honest"]["mean"] == 0
    assert whole["numbers"]["attack_success"]["mean"] == 0.2


def test_tables_are_written_a_row_a_setting_and_defence(tmp_path: Path) -> None:
    one = [update(0, True, 3), update(1, False, 1)]
    failed = {"id": "x", "failed": "the disk is full"}
    found = Results([a_run(one), a_run(one, seed=1), a_run(one, defence="krum"), failed])
    files = found.write(tmp_path)
    assert [each.name for each in files] == ["results.parquet", "results.csv"]
    rows = pq.read_table(files[0]).to_pylist()
    assert [(each["behaviour"], each["defence"], each["runs"]) for each in rows] == [
        ("patch", "none", 2), ("patch", "krum", 1),
    ]  # fmt: skip
    assert (rows[1]["auc"], rows[1]["auc_low"], rows[1]["own_auc"]) == (1.0, 1.0, 1.0)
    assert rows[1]["own_auc_low"] is None  # one run has no interval
    assert rows[0]["auc"] is None
    assert set(NUMBERS) <= rows[0].keys()
    with files[1].open() as file:
        assert [each["defence"] for each in csv.DictReader(file)] == ["none", "krum"]
    summary = found.summary()
    assert summary["failed"] == [{"id": "x", "reason": "the disk is full"}]
    assert summary["settings"][0]["kind"] == "unknown"
