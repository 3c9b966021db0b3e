"""What the terminal says of the gate."""

import io
from typing import Any

import pytest
from rich.console import Console

from fedgaze.cli.demo import _last_words
from fedgaze.cli.watch import ADDS_UP, Watch, threshold_of

BRACKETS = "a patch [bold]pulls[/] it to class [red]: 0.82, the others 0.01"


def decision(client: int, suspicion: float, factor: float = 1.0, *reasons: str) -> dict[str, Any]:
    return {"client": client, "suspicion": suspicion, "factor": factor, "reasons": list(reasons)}


def record(**gate: Any) -> dict[str, Any]:
    return {
        "round": 3,
        "global": {"accuracy": 0.5, "loss": 1.0},
        "clients": [{"client": 0, "validation": {"accuracy": 0.25}}],
        "failures": [],
        **({"gate": gate} if gate else {}),
    }


def lines(entry: dict[str, Any], threshold: float = 0.5) -> list[str]:
    """What is said below a round's own line."""
    out = io.StringIO()
    Watch(Console(file=out, width=60), threshold).round_done(entry)
    first, *rest = out.getvalue().splitlines()
    assert first.startswith("round 3  accuracy 0.500")
    return rest


def test_the_suspicious_have_a_line_each() -> None:
    clients = [decision(0, 0.49), decision(1, 0.5), decision(2, 0.9, 1.0, BRACKETS, "second")]
    assert lines(record(policy="report", clients=clients)) == [
        f"  gate: client 2 is suspicious (0.90), only reported: {BRACKETS}",
        f"  gate: client 1 is suspicious (0.50), only reported: {ADDS_UP}",
    ]
    assert lines(record(policy="report", clients=clients), 0.95) == []


@pytest.mark.parametrize(
    ("policy", "factor", "said"),
    [("reject", 0.0, "kept out"), ("downweight", 0.12, "counts 0.12 of itself")],
)
def test_what_became_of_an_update(policy: str, factor: float, said: str) -> None:
    clients = [decision(4, 0.88, factor, "its loss: 2.00, the others 0.50")]
    assert lines(record(policy=policy, clients=clients)) == [
        f"  gate: client 4 is suspicious (0.88), {said}: its loss: 2.00, the others 0.50"
    ]


def test_of_many_the_worst_are_named() -> None:
    clients = [decision(each, 0.5 + 0.01 * each, 1.0, "far") for each in range(11)]
    said = lines(record(policy="report", clients=clients))
    assert [int(each.split()[2]) for each in said[:-1]] == list(range(10, 2, -1))
    assert said[-1] == "  gate: and 3 more"


def test_a_gate_that_failed_is_said() -> None:
    assert lines(record(policy="reject", failed="ValueError: NaN")) == [
        "  the gate failed, and no update was let through: ValueError: NaN"
    ]
    assert lines(record(policy="downweight", failed="x")) == [
        "  the gate failed, and each update was let through: x"
    ]


def test_a_round_that_merged_nothing_says_why() -> None:
    why = "1 updates are fewer than gate.floor=2"
    assert lines(record() | {"not_merged": why}) == [f"  nothing was merged: {why}"]


def test_a_record_without_a_gate() -> None:
    assert lines(record()) == []
    assert threshold_of({"task": {"gate": {"policy": "report"}}}) == 0.5
    assert threshold_of({"task": {"gate": {"threshold": 0.8}}}) == 0.8
    assert threshold_of({}) == 0.5


def demo_words(**gate: Any) -> list[str]:
    looks = {0: (0.8, 0.02), 1: (0.7, 0.01), 2: (0.75, 0.4)}
    summary = {
        "task": {"gate": {"threshold": 0.5}, "dataset": {"plant": {"clients": [2]}}},
        "rounds": [
            {
                "gate": gate,
                "clients": [
                    {"client": who, "server_explanation": {"object_mass": o, "mark_drop": m}}
                    for who, (o, m) in looks.items()
                ],
            }
        ],
    }
    out = io.StringIO()
    _last_words(Console(file=out, width=200), summary)
    return out.getvalue().splitlines()


LOOKS = (
    "On the same images, client 1 looks least at the strokes, and client 2 loses most when the "
    "mark is taken away (0.40 of its probability)."
)
MEASURED = [LOOKS, "The mark was planted in the data of client 2."]


def test_the_demo_ends_with_the_gate_and_then_the_measures() -> None:
    clients = [decision(0, 0.1), decision(2, 0.97, 1.0, BRACKETS, "its heat: 0.3")]
    assert demo_words(policy="report", clients=clients) == [
        "The gate finds client 2 suspicious (0.97):",
        f"  {BRACKETS}",
        "  its heat: 0.3",
        *MEASURED,
    ]
    assert demo_words(policy="report", clients=clients[:1]) == [
        "The gate finds no client suspicious.",
        *MEASURED,
    ]
    assert demo_words(policy="report", failed="x") == MEASURED
