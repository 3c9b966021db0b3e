"""The doctor says what is well, and what to do where it is not."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedgaze.cli import doctor as room
from fedgaze.cli.app import app


def doctor() -> Result:
    return CliRunner().invoke(app, ["doctor"])


def test_here_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    done = doctor()
    lines = done.stdout.splitlines()
    assert done.exit_code == 0
    found = {line[5:18].strip(): line[19:] for line in lines if line.startswith("ok ")}
    assert found["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert found["Flower"].startswith("1.41.")
    assert found["write access"] == str(tmp_path)
    assert {"device", "torchvision"} <= found.keys()
    assert not any(line.startswith("fix") for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_an_extra_that_is_missing_is_no_illness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_EXTRAS", (("no_such_package", "simulation", "engine: simulation"),))
    done = doctor()
    assert done.exit_code == 0
    assert "not installed: for engine: simulation: pip install 'fedgaze[simulation]'" in done.stdout


def test_another_flower_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    true = room.version
    monkeypatch.setattr(room, "version", lambda name: "1.42.0" if name == "flwr" else true(name))
    done = doctor()
    assert done.exit_code == 1
    assert "fix  Flower        1.42.0: fedgaze is built on 1.41: " in done.stdout
    assert "pip install --force-reinstall flwr==1.41.0" in done.stdout


def test_a_broken_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    done = doctor()
    assert done.exit_code == 1
    assert "fix  torchvision" in done.stdout


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room.tempfile, "TemporaryFile", refused)
    done = doctor()
    assert done.exit_code == 1
    assert f"fix  write access  {tmp_path} (Permission denied): runs are written" in done.stdout
