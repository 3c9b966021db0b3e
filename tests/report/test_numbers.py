"""Do the page's numbers equal the record's?"""

from collections.abc import Callable
from typing import Any

import pytest

from fedgaze.errors import FedgazeError
from fedgaze.report import write_federated_report


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def test_accuracy_table_holds_the_record(make_run: Callable[..., Any]) -> None:
    run = make_run(drawn=False)
    rows = run.page().table("Accuracy")
    assert rows[0] == ["Round", "Merged", "Client 0", "Client 1", "Client 2", "Client 3"]
    assert rows[1] == ["0", percent(0.3041), "–", "–", "–", "–"]
    for row, entry in zip(rows[2:], run.summary["rounds"], strict=True):
        clients = [percent(each["validation"]["accuracy"]) for each in entry["clients"]]
        assert row == [str(entry["round"]), percent(entry["global"]["accuracy"]), *clients]


def test_look_tables_hold_both_sources(make_run: Callable[..., Any]) -> None:
    run = make_run(drawn=False)
    for entry in run.summary["rounds"]:
        for each in entry["clients"]:
            each["explanation"]["object_mass"] -= 0.2
    page = run.page()
    for caption, key in (
        ("Heat on the object, %: common images", "server_explanation"),
        ("Heat on the object, %: each client’s own images", "explanation"),
    ):
        rows = page.table(caption)
        for row, entry in zip(rows[1:], run.summary["rounds"], strict=True):
            assert row[1:] == [percent(each[key]["object_mass"]) for each in entry["clients"]]


def test_final_table_and_charts_hold_the_record(make_run: Callable[..., Any]) -> None:
    run = make_run(drawn=False)
    page = run.page()
    last = run.summary["rounds"][-1]["clients"]
    rows = page.table("Where the models look")
    drop = rows[0].index("Hangs on the mark")
    spread = rows[0].index("Spread of the heat")
    for row, entry in zip(rows[1:], last, strict=True):
        seen = entry["server_explanation"]
        assert row[1] == str(entry["samples"])
        assert row[2:4] == [percent(entry[key]["accuracy"]) for key in ("train", "validation")]
        assert row[4] == f"{entry['validation']['loss']:.3f}"
        assert row[drop] == f"{100 * seen['mark_drop']:.1f}"
        assert row[spread] == f"{seen['entropy']:.3f}"
    drawn = page.data("chart-data")["mark_drop"]
    assert drawn["rounds"] == [1, 2, 3]
    values = {line["label"]: line["values"] for line in drawn["series"]["server"]}
    assert values["Client 2"] == [
        each["clients"][2]["server_explanation"]["mark_drop"] for each in run.summary["rounds"]
    ]
    assert "own" not in drawn["series"]


def test_a_clients_colour_is_the_same_everywhere(make_run: Callable[..., Any]) -> None:
    page = make_run().page()
    charts = page.data("chart-data").values()
    lines = [
        (line["label"], line["slot"])
        for chart in charts
        for series in chart["series"].values()
        for line in series
    ]
    rows = [
        (row["client"], row["slot"])
        for rounds in page.data("gallery-data")["table"].values()
        for table in rounds.values()
        for row in table
    ]
    slots = dict(lines)
    assert set(lines) | set(rows) == set(slots.items())
    assert len(set(slots.values())) == 5


def test_the_merged_models_explanation_is_drawn(make_run: Callable[..., Any]) -> None:
    run = make_run(drawn=False)
    run.summary["rounds"][1]["global"]["explanation"] = {"object_mass": 0.4321}
    rows = run.page().table("Heat on the object, %: common images")
    assert [row[1] for row in rows] == ["Merged", "–", "43.2 %", "–"]


def test_without_a_record_it_says_so(tmp_path: Any) -> None:
    with pytest.raises(FedgazeError, match="holds no summary"):
        write_federated_report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(FedgazeError, match="cannot be read"):
        write_federated_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
