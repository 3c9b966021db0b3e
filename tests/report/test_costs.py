"""What the run took of each machine, as the page tells it."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.report.conftest import Run

MB = 1_000_000


def with_costs(run: Run, **server: Any) -> Run:
    for each in run.summary["rounds"]:
        r = each["round"]
        each["system"] = {"seconds": 10.0, "sent_bytes": 4 * MB, "memory_bytes": r * MB} | server
        for entry in each["clients"]:
            c = entry["client"]
            entry["system"] = {
                "seconds": r + c / 10,
                "cpu_seconds": 0.25,
                "memory_bytes": (100 + 10 * c - r) * MB,
                "received_bytes": 1500,
                "sent_bytes": 999,
                "threads": 1,
            }
    return run


def plain(table: list[list[str]]) -> list[list[str]]:
    return [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in table]


def test_sums_and_rounds(make_run: Callable[..., Run]) -> None:
    page = with_costs(make_run(drawn=False, clients=2, rounds=3)).page()
    assert plain(page.table("In all rounds together")) == [
        ["Who", "Time", "CPU time", "Memory", "Received", "Sent"],
        ["Server", "30.0 s", "–", "3.0 MB", "–", "12.0 MB"],
        ["Client 0", "6.00 s", "0.75 s", "99.0 MB", "4.5 kB", "3.0 kB"],
        ["Client 1", "6.30 s", "0.75 s", "109 MB", "4.5 kB", "3.0 kB"],
    ]
    rows = plain(page.table("Round by round"))
    assert rows[0][:3] == ["Round", "Who", "Time"]
    assert rows[4] == ["2", "Server", "10.0 s", "–", "2.0 MB", "–", "4.0 MB"]
    assert rows[6] == ["Client 1", "2.10 s", "0.25 s", "108 MB", "1.5 kB", "999 B"]
    assert len(rows) == 1 + 3 * 3
    assert "Each machine measured itself" in page.words


def test_one_process_is_called_one_process(make_run: Callable[..., Run]) -> None:
    page = with_costs(make_run(drawn=False), shared_process=True).page()
    assert "Server and clients were one process here" in page.words
    assert "Each machine measured itself" not in page.words


def test_a_long_run_shows_its_last_rounds(make_run: Callable[..., Run]) -> None:
    page = with_costs(make_run(drawn=False, clients=4, rounds=45)).page()
    # 200 lines hold 40 rounds of five.
    rows = plain(page.table("Round by round; the first 5 rounds stand in summary.json"))
    assert (rows[1][0], len(rows)) == ("6", 1 + 200)


@pytest.mark.parametrize("said", [None, "much", {}, {"seconds": "9"}, {"seconds": None}])
def test_without_facts_there_is_no_table(make_run: Callable[..., Run], said: Any) -> None:
    run = make_run(drawn=False)
    for each in run.summary["rounds"]:
        each["system"] = said
        each["clients"][0]["system"] = said
    assert "Time, memory and traffic" not in run.page().words


def test_trackers_that_failed_are_troubles(make_run: Callable[..., Run]) -> None:
    run = make_run(drawn=False)
    run.summary["trackers"] = {"mlflow": "failed in round 2: <b>gone</b>"}
    page = run.page()
    assert "What went wrong The tracker mlflow failed in round 2: <b>gone</b>" in page.words
    run.summary["trackers"] = "nonsense"
    assert "What went wrong" not in run.page().words
