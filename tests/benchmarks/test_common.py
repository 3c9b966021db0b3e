"""Benchmarks tell the truth about what they measured."""

import importlib
import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield Namespace(
            common=importlib.import_module("common"), run_all=importlib.import_module("run_all")
        )


def test_targets_are_met_or_missed(scripts: Any, capsys: Any, tmp_path: Path) -> None:
    common = scripts.common
    report = common.Report("Title", "Lead.", ("a", "b"))
    report.row("x", 1)
    report.check("time", 1.06, at_most=1.05)
    report.check("memory", 16, "MiB", at_most=16)
    report.check("speed", 1.2, at_least=1.25)
    report.check("correlation", 0.995, at_least=0.99)
    assert [each.met for each in report.checks] == [False, True, False, True]
    file = tmp_path / "report.json"
    common.tell(report, Namespace(json=file))
    printed = capsys.readouterr().out
    assert "| time | ≤ 1.05 | 1.06 | missed |" in printed
    assert "| memory | ≤ 16 MiB | 16 MiB | met |" in printed
    assert "| speed | ≥ 1.25 | 1.2 | missed |" in printed
    assert common.markdown(common.read_report(file)) == printed.rstrip("\n") + "\n"


def test_what_is_not_a_number_is_missed(scripts: Any) -> None:
    assert not scripts.common.Check("time", float("nan"), at_most=1).met


def test_runs_take_turns(scripts: Any) -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    medians = scripts.common.interleaved(runs, repeats=2, warmup=1)
    assert order == ["a", "b"] * 3
    assert all(each >= 0 for each in medians.values())


def test_peak_is_seen(scripts: Any) -> None:
    import mmap
    import time

    def run() -> None:
        # Pages of its own: what the heap has left over would not show.
        with mmap.mmap(-1, 64 * 2**20) as held:
            held.write(b"1" * len(held))
            time.sleep(0.05)

    before = scripts.common.peak(lambda: time.sleep(0.01), 1)
    assert scripts.common.peak(run, 1) - before > 32 * 2**20


def test_the_page_says_what_failed_and_what_was_missed(scripts: Any) -> None:
    common = scripts.common
    report = common.Report("Title", "Lead.", ())
    report.check("time", 2, at_most=1)
    page = scripts.run_all.page("head", {"leak": report, "pointing": None}, quick=False)
    assert "Of 1 targets 0 are met, and 1 missed." in page
    assert "`benchmarks/pointing.py` failed." in page
    assert "## Title (`benchmarks/leak.py`)" in page


def test_every_script_that_is_run_is_there(scripts: Any) -> None:
    for name in scripts.run_all.SCRIPTS:
        assert (ROOT / "benchmarks" / f"{name}.py").exists(), name


def test_the_frame_is_json(scripts: Any) -> None:
    from dataclasses import asdict

    assert json.loads(json.dumps(asdict(scripts.common.Check("a", 1.0))))["name"] == "a"
