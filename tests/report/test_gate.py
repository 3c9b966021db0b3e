"""The gate on the page: what it decided, in whose words the verdict speaks, and what it claims."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.report.conftest import REASONS, Page, Run, gated

from fedgaze.federate.gate import gate_measures
from fedgaze.report.federated.words import GATE_MEASURES

CALM = [{0: 0.05, 1: 0.2, 2: 0.1, 3: 0.05}] * 3
ONE = [CALM[0], {0: 0.05, 1: 0.2, 2: 0.62, 3: 0.05}, {0: 0.05, 1: 0.3, 2: 0.88, 3: 0.05}]
WHY = f"{REASONS[0]} {REASONS[1]} How far apart, by measure"


def headline(page: Page) -> str:
    return page.headings["verdict"].replace("\N{NO-BREAK SPACE}", " ")


def badges(page: Page) -> list[str]:
    """Words in the hot badges beside clients' names in the grid."""
    grid = page.html.partition('class="chart split gated')[2].partition("</table>")[0]
    return [each.partition("<")[0] for each in grid.split('badge hot">')[1:]]


def decided(page: Page) -> list[list[str]]:
    """Client, suspicion and what happened to the update, of the last round."""
    return [row[:3] for row in page.table("What the gate decided in round 3")[1:]]


def test_nobody_is_suspicious(make_run: Callable[..., Run]) -> None:
    page = gated(make_run(drawn=False), CALM).page()
    assert headline(page) == "The gate finds no client suspicious."
    assert "The highest suspicion is 0.20, of client 1 in round 3; from 0.5 on" in page.words
    # What was measured stands there still, and how it compares with the plan.
    assert "loses 64.0 points of probability at client 2" in page.words
    assert "of client 2, on purpose; the gate does not single it out." in page.words
    assert badges(page) == ["stands apart"]
    assert decided(page)[0] == ["Client 1", "0.20", "let through"]
    assert "Earlier rounds in which" not in page.words


def test_one_is_suspicious(make_run: Callable[..., Run]) -> None:
    page = gated(make_run(drawn=False), ONE).page()
    assert headline(page) == "The gate finds client 2 suspicious."
    assert (
        "Client 2 has been suspicious since round 2: its suspicion in round 3 was 0.88; from 0.5 "
        "on an update is suspicious. Its last update was let through whole, since the gate only "
        f"reports here. {REASONS[0]} {REASONS[1]} Take the mark away"
    ) in page.words
    assert "on purpose: the gate singles out the right one." in page.words
    assert "half of the clients" not in page.words
    assert badges(page) == ["suspicious"]
    assert "each update is merged like any other" in page.words
    rows = page.table("What the gate decided in round 3, and why")
    assert rows[1][:3] == ["Client 2", "0.88", "only reported"]
    assert rows[1][3].startswith(WHY)
    # The furthest first; a measure of another package has its own name.
    ends = f"{GATE_MEASURES['pull']} 9.8 third 2.0 {GATE_MEASURES['loss']} 1.2"
    assert "".join(rows[1][3].split()).endswith("".join(ends.split()))
    assert [row[:3] for row in page.table("Round 2")[1:]] == [["Client 2", "0.62", "only reported"]]
    assert "How much of each update" not in page.words


def test_what_is_kept_out_is_said_to_be(make_run: Callable[..., Run]) -> None:
    page = gated(make_run(drawn=False), ONE, "reject").page()
    assert headline(page) == "The gate keeps client 2 out of the merge."
    assert "None of its updates since was let through." in page.words
    assert decided(page)[:2] == [
        ["Client 2", "0.88", "kept out"],
        ["Client 1", "0.30", "let through"],
    ]
    table = page.table("How much of each update’s step was let through")
    assert table[2] == ["2", "1.00", "1.00", "0.00", "1.00"]
    assert page.table("Where the models look")[3][0] == (
        "Client 2 suspicious mark planted kept out of the merge"
    )


def test_weakened_updates_are_those_that_lost_a_tenth(make_run: Callable[..., Run]) -> None:
    page = gated(make_run(drawn=False), ONE, "downweight").page()
    assert headline(page) == "The gate finds client 2 suspicious."
    assert "Its last update counted 0.12 of itself." in page.words
    assert [each[2] for each in decided(page)] == [
        "counts 0.12 of itself",
        "counts 0.70 of itself",
        "counts 0.95 of itself",
        "counts 0.95 of itself",
    ]
    assert "Earlier rounds in which an update was weakened" in page.words
    assert [row[0] for row in page.table("Round 1")[1:]] == ["Client 1", "Client 2"]


def test_every_number_of_the_record_is_in_the_table(make_run: Callable[..., Run]) -> None:
    run = gated(make_run(drawn=False), ONE)
    run.summary["rounds"][1]["gate"]["clients"].pop(0)  # took no part
    table = run.page().table("Suspicion by round and client")
    assert table == [
        ["Round", "Client 0", "Client 1", "Client 2", "Client 3"],
        ["1", "0.05", "0.20", "0.10", "0.05"],
        ["2", "–", "0.20", "0.62", "0.05"],
        ["3", "0.05", "0.30", "0.88", "0.05"],
    ]


def test_the_threshold_is_the_tasks(make_run: Callable[..., Run]) -> None:
    page = gated(make_run(drawn=False), ONE, threshold=0.9).page()
    assert headline(page) == "The gate finds no client suspicious."
    assert "from 0.9 on it is suspicious" in page.words
    classes = [about.get("class") for tag, about in page.tags if tag == "i"]
    assert classes.count("hit") == 1  # of the key
    assert classes.count("s4") == 1 + 1


def test_several_have_a_line_each(make_run: Callable[..., Run]) -> None:
    last = {0: 0.51, 1: 0.3, 2: 0.88, 3: 0.05}
    page = gated(make_run(drawn=False), [*ONE[:2], last]).page()
    assert headline(page) == "The gate finds clients 0 and 2 suspicious."
    first, second = (page.words.index(f"Client {each} has been suspicious") for each in (2, 0))
    assert first < second
    assert f"since round 3 (0.51): {REASONS[0]}" in page.words
    assert "That is half of the clients or more" in page.words
    assert "the gate finds it suspicious, and client 0 besides." in page.words


def test_of_many_three_have_a_line(make_run: Callable[..., Run]) -> None:
    values = [{c: 0.9 if c % 2 else 0.05 for c in range(12)}] * 3
    page = gated(make_run(drawn=False, clients=12), values).page()
    assert headline(page) == "The gate finds 6 of 12 clients suspicious."
    assert page.words.count("has been suspicious since round 1 (0.90)") == 3
    assert "suspicious as well: clients 7, 9 and 11" in page.words


def test_who_is_suspicious_no_longer(make_run: Callable[..., Run]) -> None:
    page = gated(make_run(drawn=False), [ONE[1], ONE[2], CALM[0]]).page()
    assert headline(page) == "The gate finds no client suspicious."
    assert "Client 2 was suspicious in rounds 1 and 2 and is no longer." in page.words


def test_who_stays_away_is_not_cleared(make_run: Callable[..., Run]) -> None:
    run = gated(make_run(drawn=False), [CALM[0], ONE[2], {0: 0.05, 1: 0.2, 3: 0.05}])
    page = run.page()
    assert "suspicious since round 2: its suspicion in round 2 was 0.88" in page.words


def test_a_gate_that_failed_is_a_trouble_and_no_clearance(make_run: Callable[..., Run]) -> None:
    run = gated(make_run(drawn=False), CALM, "reject")
    run.summary["rounds"][2]["gate"] = {"policy": "reject", "failed": "ValueError: NaN"}
    page = run.page()
    assert "It failed in round 3, of which nothing is known." in page.words
    assert "round 3 The gate failed, and no update was let through: ValueError: NaN" in page.words
    assert page.table("What the gate decided in round 2")[1][0] == "Client 1"
    assert page.table("Suspicion by round and client")[3] == ["3", "–", "–", "–", "–"]
    for each in run.summary["rounds"]:
        each["gate"] = {"policy": "report", "failed": "ValueError: NaN"}
    page = run.page()
    assert headline(page) == "Client 2’s model looks at the lower right corner."
    assert "gate" not in page.headings
    assert "The gate failed, and each update was let through" in page.words


def test_two_clients_are_neither_compared_nor_cleared(make_run: Callable[..., Run]) -> None:
    run = gated(make_run(drawn=False, clients=2, planted=None), [{0: 0.05, 1: 0.05}] * 3)
    page = run.page()
    assert headline(page) == "No client’s model stands apart from the others."
    assert "In this run there was never enough to compare" in page.words


def test_without_a_look_of_its_own_it_says_so(make_run: Callable[..., Run]) -> None:
    run = gated(make_run(drawn=False), CALM)
    assert "what clients say of themselves" not in run.page().words
    run.summary["task"]["xai"] = {"run_location": "client"}
    words = run.page().words
    assert "It had no look of its own, and compared steps and what clients say" in words
    assert "here only by their steps and by what clients say of themselves" in words


@pytest.mark.parametrize(
    "gate",
    [
        None,
        "nonsense",
        {},
        {"policy": "report"},
        {"policy": "report", "clients": [{"client": 9, "suspicion": 0.9, "factor": 1.0}, 3]},
        {"policy": "report", "clients": [{"client": [1], "suspicion": None}], "spreads": 3},
    ],
)
def test_without_decisions_the_page_is_the_old_one(make_run: Callable[..., Run], gate: Any) -> None:
    run = make_run(drawn=False)
    old = run.page()
    for each in run.summary["rounds"]:
        each["gate"] = gate
    page = run.page()
    assert (page.words, page.tags) == (old.words, old.tags)
    assert headline(page) == "Client 2’s model looks at the lower right corner."


def test_reasons_and_names_are_no_markup(make_run: Callable[..., Run]) -> None:
    evil = "<img src=x onerror=document.title='pwned'>\"&"
    run = gated(make_run(drawn=False), ONE)
    run.summary["names"] = {"2": evil}
    decision = run.summary["rounds"][2]["gate"]["clients"][2]
    decision["reasons"], decision["spreads"] = [evil], {evil: 3.0}
    page = run.page()
    assert [about for _, about in page.tags if "onerror" in about] == []
    [row] = [each for each in page.table("What the gate decided in round 3") if evil in each[0]]
    assert row[3].startswith(evil)
    assert row[3].endswith(f"{evil} 3.0")
    assert headline(page) == f"The gate finds {evil} suspicious."


def test_misbehaviour_that_the_task_arranged_is_told(make_run: Callable[..., Run]) -> None:
    last = {0: 0.7, 1: 0.3, 2: 0.88, 3: 0.05}
    run = gated(make_run(drawn=False, planted=None), [*ONE[:2], last])
    run.summary["task"]["behaviour"] = {"kind": "patch", "clients": [2, 3], "first_round": 2}
    page = run.page()
    assert (
        "The task let clients 2 and 3 misbehave (patch from round 2 on), on purpose; the gate "
        "finds 1 of these 2 suspicious, and client 0 besides."
    ) in page.words
    assert page.table("Where the models look")[4][0] == "Client 3 misbehaves"


def test_a_long_run_of_many_keeps_to_what_matters(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("ROUNDS", 4), ("CLIENTS", 5), ("DECISIONS", 2), ("CALM", 1)):
        monkeypatch.setattr(f"fedgaze.report.federated.gate.MOST_{name}", most)
    values = [{c: (0.9 if c in (2, 6, 7) else 0.01 * c) for c in range(8)}] * 6
    page = gated(make_run(drawn=False, rounds=6, clients=8), values).page()
    table = page.table("Suspicion by round and client; the first 2 rounds stand in summary.json")
    assert table[0] == ["Round", *(f"Client {each}" for each in (2, 4, 5, 6, 7))]
    assert [row[0] for row in table[1:]] == ["3", "4", "5", "6"]
    rows = page.table("What the gate decided in round 6, and why. 5 less suspicious clients")
    assert [row[0] for row in rows[1:]] == ["Client 2", "Client 6", "Client 5"]
    assert [row[0] for row in page.table("Round 5")[1:]] == ["Client 2", "Client 6"]
    # Of five rounds with three decisions each, two found room.
    assert "13 more decisions stand in summary.json" in page.words
    assert headline(page) == "The gate finds clients 2, 6 and 7 suspicious."


def test_each_measure_of_the_gate_has_words() -> None:
    assert set(GATE_MEASURES) == set(gate_measures())
