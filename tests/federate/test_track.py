"""Numbers of a run at an experiment tracker."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgaze.errors import FedgazeError
from fedgaze.federate.track import numbers
from fedgaze.store import Run


def test_numbers_by_flat_names() -> None:
    record: dict[str, Any] = {
        "round": 3,
        "global": {"accuracy": 0.5, "loss": None},
        "clients": [
            {
                "client": 2,
                "samples": 9,
                "train": {"loss": 1.5},
                "explanation": {"entropy": 0.25, "n": {"entropy": 4}, "shared": "profile"},
            }
        ],
    }
    assert dict(numbers(record)) == {
        "global/accuracy": 0.5,
        "client_2/train/loss": 1.5,
        "client_2/explanation/entropy": 0.25,
    }


@pytest.mark.slow
def test_wandb_takes_the_run_and_not_the_key(
    carry_out: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = carry_out(wandb={"use": True, "key": key, "project": "p"})
    [log] = run.path.glob("wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert b"client_2/explanation/object_mass" in content
    assert b"global/accuracy" in content
    for path in run.path.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path


def test_what_is_missing_is_said_before_anything_is_written(
    carry_out: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(FedgazeError, match=re.escape("pip install 'fedgaze[wandb]'")):
        carry_out(trackers=["wandb"])
    assert not list(tmp_path.iterdir())


def test_tensorboard_takes_the_numbers_of_each_round(carry_out: Callable[..., Run]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = carry_out(trackers=["tensorboard"])
    held = EventAccumulator(str(run.path / "tensorboard"))
    held.Reload()
    seen = [(each.step, round(each.value, 5)) for each in held.Scalars("global/accuracy")]
    rounds = json.loads((run.path / "summary.json").read_text())["rounds"]
    assert seen == [(each["round"], round(each["global"]["accuracy"], 5)) for each in rounds]
