"""Runs over processes: what is done is not done again, and what goes wrong stops nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tests.federate.lab.conftest import TINY

from fedgaze.errors import FedgazeError
from fedgaze.federate.lab import Cell, LabFolder, parse_plan, run_cells, write_results

FEDGAZE = Path(sys.executable).with_name("fedgaze")


LOADER = """
from pathlib import Path
from fedgaze.data import load_digits

def load(root, seed):
    if seed == 1 and Path(__file__).with_name("broken").exists():
        raise RuntimeError("the camera is broken")
    return load_digits()
"""


class Told:
    """Remembers what came of each cell."""

    def __init__(self) -> None:
        self.found: dict[str, Mapping[str, Any]] = {}

    def __call__(self, cell: Cell, found: Mapping[str, Any]) -> None:
        self.found[cell.id] = found


def times(folder: LabFolder) -> dict[str, int]:
    files = (folder.path / "cells").iterdir()
    return {each.name.rsplit(".", 2)[0]: each.stat().st_mtime_ns for each in files}


def carry_out(path: Path, directory: Path | None = None, **keys: Any) -> tuple[LabFolder, Told]:
    folder, told = LabFolder(path, parse_plan(TINY | keys, directory)), Told()
    run_cells(folder, 1, told)  # to start a process takes longer than what it does
    return folder, told


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"defences": ["median", "trimmed_mean"], "rounds": 1}
    folder, told = carry_out(tmp_path / "lab", **quick)
    ids = {each.id for each in folder.plan.cells}
    assert set(told.found) == ids == set(times(folder))
    assert len(ids) == 4
    assert sorted(each.name for each in folder.path.iterdir()) == [".lock", "cells", "lab.json"]
    before = times(folder)
    # One was not finished, and one was made by another version.
    halved, older, *_ = sorted(ids)
    where = {each.id: folder.file(each) for each in folder.plan.cells}
    file = where[halved]
    file.write_text(file.read_text()[:100])
    other = where[older]
    other.write_text(json.dumps(json.loads(other.read_text()) | {"fingerprint": "0"}))
    folder, told = carry_out(tmp_path / "lab", **quick, seeds=[0])
    assert set(told.found) == {halved, older}
    after = times(folder)
    assert {name for name in ids if after[name] == before[name]} == ids - {halved, older}
    assert len(folder.results()) == 4
    # A larger experiment has only the rest to do, and another one everything.
    larger = LabFolder(folder.path, parse_plan(TINY | quick | {"seeds": [0, 1]}))
    assert {each.seed for each in larger.left()} == {1}
    another = LabFolder(folder.path, parse_plan(TINY | quick | {"rounds": 2}))
    assert len(another.left()) == 4
    assert another.results() == []
    places = {another.file(each) for each in another.plan.cells}
    assert not places & set(where.values()), "results of one would replace those of the other"


def test_a_run_that_fails_is_told_counts_nowhere_and_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(LOADER)
    (tmp_path / "broken").touch()
    data = TINY["data"] | {"dataset": {"name": "data.load", "classes": ["1", "4", "7"]}}
    keys = {"data": data, "seeds": [0, 1], "behaviours": "none", "defences": "median", "rounds": 1}
    folder, told = carry_out(tmp_path / "lab", tmp_path, **keys)
    good, bad = (each.id for each in folder.plan.cells)
    assert "failed" not in told.found[good]
    assert told.found[bad]["failed"] == "RuntimeError: the camera is broken"
    assert [each.id for each in folder.left()] == [bad]
    summary = write_results(folder, "fedgaze lab")
    assert summary["cells"] == {"planned": 2, "done": 1, "failed": 1}
    assert [each["id"] for each in summary["failed"]] == [bad]
    page = (folder.path / "report.html").read_text()
    assert told.found[bad]["failed"] in page
    before = times(folder)
    (tmp_path / "broken").unlink()
    folder, told = carry_out(tmp_path / "lab", tmp_path, **keys)
    assert set(told.found) == {bad}
    assert times(folder)[good] == before[good]
    assert folder.left() == []


def test_what_no_run_could_do_is_found_out_before_any(tmp_path: Path) -> None:
    data = TINY["data"] | {"xai": {"layer": "conv9"}}
    folder = LabFolder(tmp_path / "lab", parse_plan(TINY | {"data": data}))
    with pytest.raises(FedgazeError, match="conv9"):
        run_cells(folder, 2, Told())
    behaviours = ["none", {"kind": "patch", "target": 3}]  # there are three classes
    folder = LabFolder(tmp_path / "lab", parse_plan(TINY | {"behaviours": behaviours}))
    with pytest.raises(FedgazeError, match=r"behaviour\.target=3 is no class"):
        run_cells(folder, 2, Told())
    assert not (tmp_path / "lab").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    plan = parse_plan(TINY)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FedgazeError, match="holds no experiment; choose another"):
        LabFolder(tmp_path, plan)
    with pytest.raises(FedgazeError, match="is there already and is no folder"):
        LabFolder(tmp_path / "note.txt", plan)
    folder = LabFolder(tmp_path / "lab", plan)
    (tmp_path / "lab").mkdir()
    with (
        FileLock(tmp_path / "lab" / ".lock"),
        pytest.raises(FedgazeError, match="is being carried out by another process"),
    ):
        run_cells(folder, 1, Told())
    with pytest.raises(FedgazeError, match="no cell of "):
        write_results(folder, "fedgaze lab")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_experiment_that_is_ended_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    file, lab = tmp_path / "lab.yaml", tmp_path / "lab"
    file.write_text(json.dumps(TINY | {"defences": ["median", "trimmed_mean"], "seeds": [0, 1]}))
    words = [FEDGAZE, "lab", file, "--output", lab, "--workers", "2"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    cells = lab / "cells"
    until = time.monotonic() + 200
    while not list(cells.glob("*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(process.pid, how) if how is signal.SIGINT else process.kill()
    _, told = process.communicate(timeout=30)  # until nobody of the pool is there to write
    done = {each.name: each.read_bytes() for each in cells.glob("*.json")}
    assert 0 < len(done) < 8
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert f"interrupted; {len(done)} of 8 runs are kept" in told
        assert "Traceback" not in told
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} of 8 runs are done already" in again.stdout
    whole = {each.name: each.read_bytes() for each in cells.glob("*.json")}
    assert len(whole) == 8
    assert all(whole[name] == content for name, content in done.items())
    assert not (lab / ".work").exists()
