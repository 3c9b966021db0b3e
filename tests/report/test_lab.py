"""The page of an experiment says what its summary says."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.report.conftest import Page, read

from fedgaze.report import write_lab_report


def total(mean: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high, "n": 2}


AT = {"data": "digits", "split": "iid", "clients": 10, "attackers": 3}
GATE = {"auc": total(0.9712, 0.95, 0.99), "tpr_1": total(0.8, 0.7, 0.9),
        "attack_success": total(0.021),
        "benign_rejected_honest": total(0.0125), "accuracy_lost": total(-0.004, -0.01, 0.002),
        "rounds_to_detection": total(1.5), "cost": total(0.6),
        "accuracy": total(0.951)}  # fmt: skip
NONE = {"attack_success": total(0.97), "accuracy_lost": total(0.01), "accuracy": total(0.937)}
KRUM = {"auc": total(0.99), "accuracy": total(0.9)}
SUMMARY: dict[str, Any] = {
    "fedgaze": "0.1.0",
    "made": {
        "command": "fedgaze lab seeds=0-1",
        "versions": {"Python": "3.11", "torch": "2.6"},
        "machine": "x86_64, 2 cores",
    },
    "experiment": {"data": ["digits", {"name": "<b>x</b>"}], "seeds": [0, 1], "rounds": None},
    "cells": {"planned": 9, "done": 7, "failed": 1},
    "groups": [
        {
            "name": "kept",
            "settings": [AT | {"behaviour": "patch"}, AT | {"behaviour": "blend"}],
            "rows": [
                {"defence": "none", "numbers": NONE, "worst": None},
                {
                    "defence": "gate",
                    "numbers": GATE,
                    "worst": {"auc": 0.812, "setting": AT | {"behaviour": "blend"}},
                },
                {"defence": "krum", "numbers": KRUM, "worst": None},
            ],
        }
    ],
    "settings": [
        AT | {"behaviour": "none", "kind": "none", "rows": [
            {"defence": "none", "runs": 2, "numbers": {"accuracy": total(0.96)}}]},
        AT | {"behaviour": "patch", "kind": "kept", "rows": [
            {"defence": "none", "runs": 2, "numbers": NONE},
            {"defence": "gate", "runs": 2, "numbers": GATE}]},
        AT | {"split": "dirichlet-0.1", "behaviour": "blend", "kind": "costly", "rows": [
            {"defence": "krum", "runs": 0, "numbers": KRUM}]},
    ],
    "failed": [{"id": "digits_iid_patch_krum_seed1", "reason": "the disk <is> full"}],
    "failures": [{"id": "digits_iid_patch_gate_seed0", "round": 2, "client": 3, "reason": "gone"}],
}  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    def made(**changes: Any) -> Page:
        file = write_lab_report(tmp_path, deepcopy(SUMMARY) | changes)
        assert file == tmp_path / "report.html"
        return read(file.read_text(encoding="utf-8"))

    return made


def by_column(rows: list[list[str]], row: int) -> Mapping[str, str]:
    return dict(zip(rows[0], rows[row], strict=True))


def test_defences_side_by_side(page: Callable[..., Page]) -> None:
    shown = page()
    assert shown.headings["verdict"] == "krum tells attackers apart best: ROC-AUC 0.990"
    rows = shown.table("Attackers that keep clean accuracy within 2 points")
    assert [each[0] for each in rows] == ["defence", "none", "gate", "krum"]
    gate = by_column(rows, 2)
    assert gate["ROC-AUC, same updates"] == "0.9710.950 … 0.990"
    assert gate["at worst"] == "0.812blend on digits, iid"
    assert gate["found at 1 %"] == "80.0 %70.0 … 90.0 %"
    assert gate["benign left out, nobody attacks"] == "1.2 %"
    assert gate["attack success"] == "2.1 %"
    assert gate["accuracy lost, points"] == "-0.4-1.0 … +0.2"
    assert gate["after rounds"] == "1.5"
    assert gate["cost"] == "60.0 %"
    assert by_column(rows, 1)["ROC-AUC, same updates"] == "–"
    assert "the gate’s ROC-AUC is 0.971, place 2 of 2; at worst 0.812 (blend on digits, iid)" in (
        shown.words
    )
    assert "succeed on 97 % of images without a defence and on 2 % with it" in shown.words


def test_a_table_for_each_data_set_and_split(page: Callable[..., Page]) -> None:
    shown = page()
    assert shown.headings["table-1"] == "digits, iid"
    assert shown.headings["table-2"] == "digits, dirichlet-0.1"
    first, second = (
        rows
        for rows, caption in zip(shown.tables, shown.captions, strict=True)
        if caption.startswith("Means over seeds")
    )
    assert [row[:2] for row in first[1:3]] == [["none", "none"], ["patch", "none"]]
    assert first[3][:2] == ["gate", "0.971"]  # of the same attack
    assert by_column(first, 2)["accuracy"] == "93.7 %"
    assert second[1][0] == "blendcostly"


def test_what_failed_what_is_left_and_how_it_was_made(page: Callable[..., Page]) -> None:
    shown = page()
    assert "digits_iid_patch_krum_seed1: the disk <is> full" in shown.words
    assert "digits_iid_patch_gate_seed0, round 2, client 3: gone" in shown.words
    assert "Not done yet: 1 of 9 runs" in shown.words
    assert "Failed: 1 run;" in shown.words
    assert "fedgaze lab seeds=0-1" in shown.words
    assert "digits, {name: <b>x</b>}" in shown.words
    assert "What failed" not in page(failed=[], failures=[]).words


def test_how_many_clients_there_are_is_said_where_it_differs(page: Callable[..., Page]) -> None:
    settings = deepcopy(SUMMARY["settings"])
    assert "patch, 3 of 10" not in page().words
    settings[0]["attackers"] = 1
    assert "patch, 3 of 10" in page(settings=settings).words


def test_where_nobody_attacks_there_is_nobody_to_find(page: Callable[..., Page]) -> None:
    shown = page(groups=[], settings=SUMMARY["settings"][:1])
    assert shown.headings["verdict"] == "7 runs with nobody to find"


def test_the_page_runs_under_its_own_policy(
    page: Callable[..., Page], tmp_path: Path, visit: Callable[..., Any]
) -> None:
    page()
    opened = visit(tmp_path / "report.html")
    assert opened.locator("h1").inner_text() == "krum tells attackers apart best: ROC-AUC 0.990"
    assert opened.locator("#kept").is_visible()
    assert opened.locator("table.lab").count() == 3
