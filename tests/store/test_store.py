"""The record of a run survives what happens to processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedgaze.errors import FedgazeError
from fedgaze.store import (
    Run,
    atomic,
    find_run,
    load_tensors,
    task_directory,
    unfinished_runs,
    write_json,
    write_text,
)

WEIGHTS = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}


def new(path: Path, *, demo: bool = False) -> Run:
    return Run.create(path, {"task_id": "t"}, ("a", "b"), demo=demo)


def test_a_failing_writer_leaves_the_old_file_and_no_trash(tmp_path: Path) -> None:
    file = tmp_path / "f.txt"
    write_text(file, "old")

    def fail_half_way() -> None:
        with atomic(file) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_process_had_begun_to_write_goes_when_the_record_is_opened(
    tmp_path: Path,
) -> None:
    run = new(tmp_path / "r")
    run.close()
    (run.path / "notes.part").write_text("somebody's own")
    before = sorted(run.path.rglob("*"))
    script = f"""
import os, tempfile
from pathlib import Path
from fedgaze.store import PART, atomic
folder = Path({str(run.path)!r}) / "heatmaps" / "round_3"
folder.mkdir(parents=True)
pictures = tempfile.mkdtemp(dir=folder, prefix=".client_0.", suffix=PART)
(Path(pictures) / "0.jpg").write_bytes(b"half")
with atomic(folder / "manifest.json") as part:
    part.write_text("half of the m")
    os._exit(9)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == 9
    folder = run.path / "heatmaps" / "round_3"
    assert len(list(folder.iterdir())) == 2
    Run.open(run.path).close()
    assert list(folder.iterdir()) == []
    assert set(run.path.rglob("*")) - set(before) == {folder.parent, folder}


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "x")
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


def test_damaged_tensors_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    with pytest.raises(FedgazeError, match="cannot be read"):
        load_tensors(tmp_path / "w.safetensors")


def test_a_round_is_committed_and_read_back(tmp_path: Path) -> None:
    run = new(tmp_path / "r")
    run.commit({"round": 1}, WEIGHTS, {"m": torch.ones(2)})
    run.commit({"round": 2}, WEIGHTS, {"m": torch.zeros(2)})
    run.close()
    again = Run.open(tmp_path / "r")
    assert again.rounds_done == 2
    assert load_tensors(again.strategy_state(2))["m"].tolist() == [0, 0]
    assert not again.strategy_state(1).exists()  # only the last one is of use
    back = load_tensors(again.checkpoint(1))
    assert all(torch.equal(back[name], WEIGHTS[name]) for name in WEIGHTS)
    assert json.loads((again.path / "summary.json").read_text())["classes"] == ["a", "b"]


def test_existing_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine.txt").write_text("mine")
    assert [new(tmp_path / "r").path.name for _ in range(2)] == ["r-2", "r-3"]
    assert new(tmp_path / "r", demo=True).path.name == "r-4"
    assert (tmp_path / "r" / "mine.txt").read_text() == "mine"


def test_the_demo_replaces_only_its_own(tmp_path: Path) -> None:
    first = new(tmp_path / "d", demo=True)
    (first.path / "old").touch()
    first.close()
    second = new(tmp_path / "d", demo=True)
    assert second.path == first.path
    assert not (second.path / "old").exists()


def test_a_run_in_progress_cannot_be_taken(tmp_path: Path) -> None:
    run = new(tmp_path / "r", demo=True)
    code = (
        "import sys; from pathlib import Path; from fedgaze.store import Run\n"
        "Run.open(Path(sys.argv[1]))"
    )
    call = [sys.executable, "-c", code, str(run.path)]
    taken = subprocess.run(call, capture_output=True, text=True, check=False)
    assert "being carried out by another process" in taken.stderr
    with pytest.raises(FedgazeError, match="another process"):
        new(tmp_path / "r", demo=True)
    run.close()
    assert subprocess.run(call, capture_output=True, check=False).returncode == 0


def test_unfinished_runs_newest_first(tmp_path: Path) -> None:
    for age, name in enumerate(["old", "young", "complete"]):
        run = new(tmp_path / name)
        if name == "complete":
            run.finish()
        run.close()
        os.utime(run.path / "summary.json", (age, age))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "summary.json").write_text("{")
    assert [path.name for path in unfinished_runs(tmp_path)] == ["young", "old"]


def test_a_run_is_found_by_its_folder_or_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("runs/first", "runs/second", "elsewhere/third"):
        new(tmp_path / name).close()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "second").mkdir()  # no run, and not in the way of one
    base = Path("runs")
    assert find_run("first", base) == find_run("runs/first", base) == Path("runs/first")
    assert find_run("second", base) == Path("runs/second")
    assert find_run("elsewhere/third", base) == Path("elsewhere/third")
    assert find_run(str(tmp_path / "runs/first"), base) == tmp_path / "runs/first"
    for word, near in (
        ("frist", "'first'"),
        ("runs/frist", "'runs/first'"),
        ("elsewhere/thrid", "'elsewhere/third'"),
    ):
        with pytest.raises(FedgazeError, match=f"no run {word}; did you mean {near}"):
            find_run(word, base)
    with pytest.raises(FedgazeError, match=r"no run x$"):
        find_run("x", tmp_path / "nowhere")
    with pytest.raises(FedgazeError, match="elsewhere holds no record of a run"):
        find_run("elsewhere", base)


def test_where_a_tasks_files_lie(tmp_path: Path) -> None:
    Run.create(tmp_path / "r", {}, ("a",), directory=tmp_path / "task").close()
    new(tmp_path / "s").close()
    assert task_directory(tmp_path / "r") == tmp_path / "task"
    assert task_directory(tmp_path / "s") is None
    (tmp_path / "s" / "run.json").write_text("[")
    assert task_directory(tmp_path / "s") is None
    assert task_directory(tmp_path / "nowhere") is None


def test_no_record_and_broken_record(tmp_path: Path) -> None:
    with pytest.raises(FedgazeError, match="holds no record"):
        Run.open(tmp_path)
    for name in ("run.json", "summary.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(FedgazeError, match="cannot be read"):
        Run.open(tmp_path)
