"""A record with holes still makes a good page."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest


def gallery(page: Any, view: str, round_: int) -> dict[str, Any]:
    rows = page.data("gallery-data")["table"][view][str(round_)]
    return {row["client"]: row for row in rows}


def test_pictures_are_those_of_their_cell(make_run: Callable[..., Any]) -> None:
    page = make_run().page()
    assert list(page.data("gallery-data")["table"]) == ["marked", "own", "received", "server"]
    cells = gallery(page, "own", 2)["Client 1"]["cells"]
    assert [cell["says"].replace("\N{NO-BREAK SPACE}", " ") for cell in cells] == [
        "90 % → emu",
        "80 %",
        "70 %",
    ]
    assert cells[0]["alt"].startswith("Client 1, class cat, round 2, 90")
    assert [cell["wrong"] for cell in cells] == [True, False, False]
    # Twelve colours a round over three rounds; what is the same picture is kept once.
    assert len(page.data("gallery-data")["pictures"]) == 36


def test_kept_at_the_client(make_run: Callable[..., Any]) -> None:
    run = make_run()
    for each in run.summary["rounds"]:
        entry = each["clients"][1]["explanation"]
        entry["shared"] = "profile"
        shutil.rmtree(run.path / entry.pop("folder"))
    page = run.page()
    assert gallery(page, "own", 3)["Client 1"]["reason"] == "kept at the client"
    assert "cells" in gallery(page, "own", 3)["Client 0"]
    assert "cells" in gallery(page, "server", 3)["Client 1"]


def test_pictures_that_were_never_written_were_not_kept_back(make_run: Callable[..., Any]) -> None:
    run = make_run(drawn=False)
    assert "No pictures are at hand: they were kept at the clients." in run.page().words
    run.summary["task"]["xai"] = {"pictures": False}
    assert "No pictures are at hand: the task has none written." in run.page().words


def test_failures_absence_and_unmerged_rounds(make_run: Callable[..., Any]) -> None:
    run = make_run()
    rounds = run.summary["rounds"]
    del rounds[1]["clients"][3]
    rounds[1]["failures"] = [{"client": 3, "reason": "ran out of memory"}]
    rounds[1]["not_merged"] = "too few updates"
    del rounds[2]["clients"][0]
    rounds[2]["clients"][1]["explanation"] = {"failed": "no such layer"}
    page = run.page()
    assert gallery(page, "own", 2)["Client 3"]["reason"] == "failed: ran out of memory"
    assert gallery(page, "own", 3)["Client 0"]["reason"] == "took no part"
    assert gallery(page, "own", 3)["Client 2"]["reason"] == "failed: no such layer"
    for text in (
        "round 2 Client 3 failed: ran out of memory",
        "round 2 Nothing was merged: too few updates",
        "round 3 The explanation of client 2 failed: no such layer",
    ):
        assert text in page.words
    final = page.table("Where the models look")
    assert final[1][0] == "Client 0 took no part"
    assert [row[5] for row in page.table("Accuracy")] == ["Client 3", "–", "66.0 %", "–", "72.0 %"]
    assert page.table("Accuracy")[4][2] == "–"


def test_no_explanations_at_all(make_run: Callable[..., Any]) -> None:
    run = make_run(drawn=False, planted=None)
    for entry in run.summary["rounds"]:
        for each in entry["clients"]:
            del each["explanation"], each["server_explanation"]
    page = run.page()
    assert page.headings["verdict"] == (
        "Where the clients’ models look was not compared in this run."
    )
    assert "looks" not in page.headings
    assert "explanations were turned off in this run" in page.words
    assert page.table("Training and validation")[1][1] == "100"


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"status": "running", "task": {"task_id": "new"}, "classes": [], "rounds": []},
        {"rounds": [{"round": 1, "global": {}, "clients": [], "failures": []}]},
        {
            "rounds": [
                {
                    "round": 1,
                    "global": {"accuracy": None, "loss": None, "explanation": None},
                    "clients": [
                        {"client": 0, "samples": None, "train": None, "validation": None},
                        {"client": 1, "explanation": None, "server_explanation": None},
                        {"client": 2, "explanation": {"entropy": None, "folder": "nowhere"}},
                    ],
                }
            ]
        },
    ],
)
def test_nearly_nothing_makes_a_page(make_run: Callable[..., Any], summary: Any) -> None:
    run = make_run(drawn=False)
    run.summary = summary
    page = run.page()
    assert page.headings["verdict"]
    assert "None" not in page.words


def test_damaged_pictures_and_manifests(make_run: Callable[..., Any]) -> None:
    run = make_run()
    folder = run.path / "heatmaps/round_3/client_0"
    (folder / "gradcam_class_0.jpg").write_bytes(b"no picture")
    (run.path / "heatmaps/round_3/client_1/manifest.json").write_text("{")
    for file in (run.path / "heatmaps").rglob("*.npy"):
        file.write_bytes(b"no array")
    page = run.page()
    assert gallery(page, "own", 3)["Client 0"]["cells"][0] is None
    # Without a manifest, names of files say which class is which; nobody knows the probability.
    cells = gallery(page, "own", 3)["Client 1"]["cells"]
    assert [cell["alt"] for cell in cells] == [
        f"Client 1, class {name}, round 3" for name in ("cat", "dog", "emu")
    ]
    assert "average" not in page.headings


def test_a_manifest_cannot_point_out_of_its_folder(make_run: Callable[..., Any]) -> None:
    run = make_run()
    file = run.path / "heatmaps/round_3/client_0/manifest.json"
    manifest = json.loads(file.read_text())
    manifest["maps"][0]["picture"] = "../client_1/gradcam_class_1.jpg"
    file.write_text(json.dumps(manifest))
    own = gallery(run.page(), "own", 3)
    # Only the name counts: the file of that name in the client's own folder.
    assert own["Client 0"]["cells"][0]["picture"] == own["Client 0"]["cells"][1]["picture"]
    assert own["Client 0"]["cells"][0]["picture"] != own["Client 1"]["cells"][1]["picture"]
