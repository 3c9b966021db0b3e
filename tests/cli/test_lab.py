"""`fedgaze lab` on runs that take a second each."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.federate.lab.conftest import TINY
from typer.testing import Result

Call = Callable[..., Result]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("lab.yaml").write_text(json.dumps(TINY))
    return "lab.yaml"


def test_an_experiment_ends_in_one_table_and_one_page(tiny: str, fedgaze: Call) -> None:
    done = fedgaze("lab", tiny, "defences=[none,median]", "--json", "--workers", 2)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary == json.loads(Path("lab/summary.json").read_text())
    assert summary["cells"] == {"planned": 4, "done": 4, "failed": 0}
    (group,) = summary["groups"]
    rows = {each["defence"]: each["numbers"] for each in group["rows"]}
    assert {"none", "median", "gate", "krum", "fltrust"} - rows.keys() == {"krum"}  # of 3 clients
    assert 0 <= rows["gate"]["auc"]["mean"] <= 1
    assert {each.name for each in Path("lab").iterdir()} == {
        ".lock", "cells", "lab.json", "results.csv", "results.parquet", "summary.json",
        "report.html",
    }  # fmt: skip
    page = Path("lab/report.html").read_text()
    assert f"{rows['median']['auc']['mean']:.3f}" in page
    # The same again has nothing to do, and shows the same as a table.
    again = fedgaze("lab", tiny, "defences=[none,median]")
    assert again.exit_code == 0, again.output
    assert "4 of 4 runs are done already" in again.output
    assert f"{rows['gate']['auc']['mean']:.3f}" in again.output
    # A table of what is done can be had before all is.
    more = fedgaze("lab", tiny, "seeds=0-4", "defences=[none,median]", "--report", "--json")
    assert more.exit_code == 0, more.output
    assert json.loads(more.stdout)["cells"] == {"planned": 20, "done": 4, "failed": 0}


def test_without_a_file_words_overrule_the_trial(tiny: str, fedgaze: Call) -> None:
    done = fedgaze("lab", "seeds=x")
    assert done.exit_code == 2
    assert "seeds.0='x'" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such file; without one, fedgaze lab makes a small"),
        (["lab.yaml", "defences"], "'defences' is not of the form key=value, such as seeds=0-9"),
        (["lab.yaml", "defences=[krumm]"], "there is no defence 'krumm'"),
        (["lab.yaml", "--output", "lab.yaml"], "is there already and is no folder"),
        (["lab.yaml", "--report"], "no cell of lab is done"),
    ],
)
def test_one_sentence_says_what_is_wrong(
    tiny: str, fedgaze: Call, words: list[str], said: str
) -> None:
    done = fedgaze("lab", *words)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.stderr.split())
    assert done.stderr.count("\n") == 1
    assert not Path("lab").exists()


def test_behaviours_and_defences_are_listed_with_their_sources(fedgaze: Call) -> None:
    done = fedgaze("lab", "--list")
    assert done.exit_code == 0
    for word in ("adaptive", "Bagdasaryan", "fltrust", "Blanchard", "gate+NAME"):
        assert word in done.output
