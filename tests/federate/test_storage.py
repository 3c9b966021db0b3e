"""A run whose models are stored elsewhere, too."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.federate.conftest import Silent
from tests.federate.test_resume import Stop, StopsIn, read
from tests.flaky import Flaky
from typer.testing import CliRunner

from fedgaze.cli.app import app
from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate import find_unfinished, resume, start
from fedgaze.store import Run, versions

Small = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PAUSE", 0.01)


def few(small: Small, storage: object, **changes: Any) -> dict[str, Any]:
    return small(num_clients=2, dataset={"classes": ["1", "7"]}, storage=str(storage), **changes)


def check(path: Path, stored: list[int]) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
    assert [each["round"] for each in summary["versions"]] == stored
    pending = [each["round"] for each in summary["versions_pending"]]
    assert sorted(stored + pending) == [each["round"] for each in summary["rounds"]]
    for each in summary["versions"]:
        content = Path(each["uri"].partition("://")[2]).read_bytes()
        assert content == (path / f"checkpoints/round_{each['round']}.safetensors").read_bytes()
        assert each["sha256"] == hashlib.sha256(content).hexdigest()
    return summary


def test_a_run_stores_its_rounds(small: Small, tmp_path: Path) -> None:
    task = few(small, f"file://{tmp_path}/share")
    run = start(parse_task(task), tmp_path / "r", Silent())
    assert run.summary["status"] == "complete"
    check(tmp_path / "r", [1, 2])
    with pytest.raises(FedgazeError, match="is complete: it has 2 rounds"):
        resume(tmp_path / "r", None, Silent())
    resume(tmp_path / "r", parse_task(task | {"num_rounds": 3}), Silent())
    check(tmp_path / "r", [1, 2, 3])
    uris = {Path(each["uri"]).parent.name for each in Run.open(run.path).summary["versions"]}
    assert len(uris) == 1


def test_resuming_a_whole_run_only_stores(
    small: Small, tmp_path: Path, flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky.plan(put=itertools.repeat("raise"))
    task = few(small, f"flaky://{tmp_path}/share")
    run = start(parse_task(task), tmp_path / "runs" / "r", Silent())
    assert run.summary["status"] == "complete"
    check(run.path, [])
    before = {path: path.read_bytes() for path in run.path.rglob("*.*") if path.is_file()}
    assert find_unfinished(tmp_path / "runs") == run.path
    flaky.plan(put=["raise"])
    with monkeypatch.context() as patched:
        # Neither its images nor its model are needed.
        patched.setattr("fedgaze.federate.run.prepare", None)
        resume(run.path, None, Silent())
    check(run.path, [1, 2])
    assert not list((tmp_path / "share").rglob("*.part"))
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed <= {"summary.json", "report.html"}
    with pytest.raises(FedgazeError, match="no unfinished run"):
        find_unfinished(tmp_path / "runs")


def test_the_storage_may_change(small: Small, tmp_path: Path, flaky: type[Flaky]) -> None:
    flaky.plan(put=itertools.repeat("raise"))
    start(parse_task(few(small, f"flaky://{tmp_path}/a", num_rounds=1)), tmp_path / "r", Silent())
    right = few(small, f"file://{tmp_path}/b", num_rounds=1)
    resume(tmp_path / "r", parse_task(right), Silent())
    summary = check(tmp_path / "r", [1])
    assert summary["versions"][0]["uri"].startswith(f"file://{tmp_path}/b/")
    assert summary["task"]["storage"] == right["storage"]
    with pytest.raises(FedgazeError, match="is complete"):  # the new one is remembered
        resume(tmp_path / "r", None, Silent())


def test_a_storage_that_is_not_wanted_any_more(
    small: Small, tmp_path: Path, flaky: type[Flaky]
) -> None:
    flaky.plan(put=itertools.repeat("raise"))
    task = few(small, f"flaky://{tmp_path}/a", num_rounds=1)
    start(parse_task(task), tmp_path / "runs" / "r", Silent())
    run = resume(tmp_path / "runs" / "r", parse_task(task | {"storage": None}), Silent())
    assert "versions_pending" not in run.summary
    with pytest.raises(FedgazeError, match="no unfinished run"):
        find_unfinished(tmp_path / "runs")


def test_an_interrupted_run_stores_all_its_rounds(small: Small, tmp_path: Path) -> None:
    task = few(small, f"file://{tmp_path}/share", num_rounds=3)
    with pytest.raises(Stop):
        start(parse_task(task), tmp_path / "cut", StopsIn(3))
    resume(tmp_path / "cut", None, Silent())
    check(tmp_path / "cut", [1, 2, 3])
    whole = start(parse_task(task), tmp_path / "whole", Silent())

    def hashes(path: Path) -> list[str]:
        return [each["sha256"] for each in read(path)["versions"]]

    assert hashes(tmp_path / "cut") == hashes(whole.path)


SLOW = """
import sys, time
from pathlib import Path
import fsspec
from fsspec.implementations.local import LocalFileSystem
from tests.federate.conftest import Silent
from fedgaze.config import parse_task
from fedgaze.federate import start
import json

class Slow(LocalFileSystem):
    protocol = "flaky"

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(str(path).removeprefix("flaky://"))

    def put_file(self, lpath, rpath, **_):
        content = Path(lpath).read_bytes()
        with open(rpath, "wb") as file:
            for start in range(0, len(content), 2000):
                file.write(content[start:start + 2000])
                file.flush()
                time.sleep(0.02)

fsspec.register_implementation("flaky", Slow)
start(parse_task(json.loads(sys.argv[1])), Path(sys.argv[2]), Silent())
"""


def test_killed_while_it_uploads(small: Small, tmp_path: Path, flaky: type[Flaky]) -> None:
    """SIGKILL: the record is whole, and names as stored only what is."""
    task = few(small, f"flaky://{tmp_path}/share", num_rounds=3)
    call = [sys.executable, "-c", SLOW, json.dumps(task), str(tmp_path / "r")]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    process = subprocess.Popen(call, env=environment, cwd=root)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("share/*/.round_2.*.part")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    check(tmp_path / "r", [each["round"] for each in summary["versions"]])
    assert 2 in [each["round"] for each in summary["versions_pending"]]
    resume(tmp_path / "r", None, Silent())
    check(tmp_path / "r", [1, 2, 3])
    names = sorted(path.name for path in tmp_path.glob("share/*/*"))
    assert names == [f"round_{number}.safetensors" for number in (1, 2, 3)]


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "100"})
    return result.exit_code, " ".join(result.output.split())


def test_the_exit_code_tells(
    small: Small, tmp_path: Path, flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = few(small, f"flaky://{tmp_path}/share")
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    flaky.plan(put=itertools.chain([None], itertools.repeat("raise")))
    code, output = call("run", "task.yaml")
    assert code == 1, output
    assert (
        f"the run is complete but for versions that are not stored in flaky://{tmp_path}/share: "
        "round 2: ConnectionResetError: the line went dead; fedgaze run --resume --output "
        "runs/small tries again"
    ) in output
    assert "Traceback" not in output
    check(tmp_path / "runs/small", [1])
    code, output = call("run", "--resume")
    assert code == 1, output  # the storage is still away
    flaky.plan()
    code, output = call("run", "--resume")
    assert code == 0, output
    check(tmp_path / "runs/small", [1, 2])
    assert "not stored" not in output


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("s4://b/x", "fsspec knows no protocol 's4'; did you mean 's3'?"),
        ("ftp://me:hunter2@host/x", "credentials belong in the environment"),
        ("{url: 's3://me:hunter2@host'}", "storage='***'"),
    ],
)
def test_a_bad_storage_is_told_before_anything_is_written(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yaml").write_text(json.dumps(small()))
    code, output = call("run", "task.yaml", f"storage={storage}")
    assert code == 2, output
    assert said in output
    assert "hunter2" not in output
    assert [path.name for path in tmp_path.iterdir()] == ["task.yaml"]
