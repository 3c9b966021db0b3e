"""What a run on a server adds to its page: names of clients, and versions that are stored."""

import re
from collections.abc import Callable

from tests.report.conftest import Run

from fedgaze.report import read_record
from fedgaze.report.federated.verdict import judge


def test_a_page_calls_clients_by_their_names(make_run: Callable[..., Run]) -> None:
    run = make_run()
    plain = run.page()
    known = sorted(
        {each["client"] for round_ in run.summary["rounds"] for each in round_["clients"]}
    )
    assert len(known) > 1
    assert len(re.findall(r"[Cc]lient \d", plain.html)) > 10
    run.summary["names"] = {str(each): f"<b>ward-{each}</b> ({each})" for each in known}
    page = run.page()
    assert not re.findall(r"[Cc]lient \d", page.html)
    assert "<b>" not in page.html
    assert len(re.findall("ward-", page.text)) == len(re.findall(r"[Cc]lient \d", plain.text))
    labels = {
        line["label"]
        for chart in page.data("chart-data").values()
        for lines in chart["series"].values()
        for line in lines
    }
    assert labels == {"Merged model", *run.summary["names"].values()}


def test_some_have_none(make_run: Callable[..., Run]) -> None:
    run = make_run()
    run.summary["names"] = {"0": "ward-0 (0)"}
    words = run.page().words
    assert "ward-0 (0)" in words
    assert "Client 1" in words
    assert "Client 0" not in words


def test_a_verdict_that_leaves_the_house_has_numbers(make_run: Callable[..., Run]) -> None:
    run = make_run()
    before = judge(read_record(run.write().parent))
    run.summary["names"] = {str(each): f"ward-{each}" for each in range(9)}
    record = read_record(run.write().parent)
    assert "ward-" in judge(record).headline
    assert judge(record.nameless()) == before


def test_versions_are_listed_and_what_is_not_stored_is_said(make_run: Callable[..., Run]) -> None:
    run = make_run(drawn=False)
    stored = {"round": 1, "uri": "s3://models/r-1/round_1.safetensors", "sha256": "ab" * 32}
    late = {"round": 2, "reason": "the bucket is gone"}
    run.summary |= {"versions": [stored], "versions_pending": [late], "status": "running"}
    page = run.page()
    assert page.table("The merged model after each round") == [
        ["Round", "Where", "SHA-256"],
        ["1", stored["uri"], stored["sha256"]],
    ]
    assert "the bucket is gone" not in page.words
    run.summary["status"] = "complete"
    assert "round 2 Its version is not stored: the bucket is gone" in run.page().words
