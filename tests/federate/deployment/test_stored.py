"""What a server was asked to run, and could not store."""

import json
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from tests.federate.conftest import Silent
from tests.flaky import Flaky
from typer.testing import CliRunner

from fedgaze.cli.app import app
from fedgaze.cli.run import carry_out as show
from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate import start
from fedgaze.federate.deployment import Jobs, ServerHome, follow, resubmit
from fedgaze.federate.deployment.apps import conduct
from fedgaze.federate.deployment.bundle import open_bundle, pack_task
from fedgaze.store import versions


def test_a_served_run_tells_what_is_not_stored(
    small: Callable[..., dict[str, Any]],
    tmp_path: Path,
    flaky: type[Flaky],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(versions, "PAUSE", 0.01)
    flaky.plan(put=repeat("raise"))
    storage = f"flaky://{tmp_path}/share"
    task = parse_task(small(num_clients=2, dataset={"classes": ["1", "7"]}, storage=storage))
    home = ServerHome(tmp_path / "server")
    home.jobs.mkdir(parents=True)
    run = start(task, tmp_path / "runs" / "r", Silent())
    job = Jobs(home).submit(run, task, ("1", "7"))

    def status() -> str:
        listed = CliRunner().invoke(
            app, ["server", "runs", "--home", str(home.path)], env={"COLUMNS": "200"}
        )
        assert listed.exit_code == 0
        return listed.output

    assert job.status == "complete"
    assert "complete, 2 not stored" in status()
    with pytest.raises(typer.Exit) as left:  # as `fedgaze run --remote` ends
        show(Console(), lambda watch: follow(job, watch))
    assert left.value.exit_code == 1
    assert f"not stored in {storage}: rounds 1, 2: ConnectionResetError" in capsys.readouterr().err

    job = resubmit(home, "r")
    assert job.status == "running"
    conduct(None, run.path)  # type: ignore[arg-type]  # no clients are asked
    assert job.status == "complete"
    assert (
        "the run is complete but for versions that are not stored"
        in (run.path / "run.log").read_text()
    )

    flaky.plan()
    job = resubmit(home, "r")
    conduct(None, run.path)  # type: ignore[arg-type]
    assert (run.path / "run.log").read_text().endswith("the run is complete\n")
    assert [each["round"] for each in job.summary["versions"]] == [1, 2]
    assert "not stored" not in status()
    assert follow(job, Silent()).rounds_done == 2
    with pytest.raises(FedgazeError, match="there is nothing to resume"):
        resubmit(home, "r")


def test_clients_are_not_told_of_the_storage(
    small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    task = parse_task(small(storage="s3://secret-bucket/x"))
    assert "secret-bucket" in json.dumps(task.public())
    place = open_bundle(pack_task(task, ("1",)), tmp_path)
    packed = json.loads((place / "task.json").read_text())["task"]
    assert packed["num_clients"] == 3
    assert "secret-bucket" not in json.dumps(packed)
