"""A run that was stopped goes on as if nothing had happened."""

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
import torch
from tests.federate.conftest import Silent, merged

from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate import find_unfinished, resume, start
from fedgaze.store import Run, load_tensors

Small = Callable[..., dict[str, Any]]


class Stop(Exception):  # noqa: N818
    pass


class StopsIn(Silent):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def round_started(self, number: int, clients: list[int]) -> None:
        super().round_started(number, clients)
        if number == self.number:
            raise Stop


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    rounds = [
        {key: value for key, value in each.items() if key not in ("seconds", "system")}
        | {"clients": [{k: v for k, v in one.items() if k != "system"} for one in each["clients"]]}
        for each in summary["rounds"]
    ]
    return summary | {"rounds": rounds}


def read(path: Path) -> dict[str, Any]:
    return without_times(json.loads((path / "summary.json").read_text()))


STRATEGIES = ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedbn", "scaffold"]


def keys_of(strategy: str) -> dict[str, Any]:
    extra = {"server_momentum": 0.9} if strategy == "fedavgm" else {}
    sgd = {"optimizer": "sgd", "learning_rate": 0.05} if strategy == "scaffold" else {}
    return {"strategy": {"_target_": strategy, **extra}, **sgd}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_equals_undisturbed(small: Small, tmp_path: Path, strategy: str) -> None:
    task = parse_task(small(num_rounds=4, clients_per_round=2, **keys_of(strategy)))
    start(task, tmp_path / "whole", Silent())
    with pytest.raises(Stop):
        start(task, tmp_path / "cut", StopsIn(3))
    watch = Silent()
    resume(tmp_path / "cut", None, watch)
    assert watch.told[0] == ("run", 4, 2)
    assert read(tmp_path / "cut") == read(tmp_path / "whole")
    final = [
        load_tensors(tmp_path / name / "checkpoints/round_4.safetensors")
        for name in ("cut", "whole")
    ]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


@pytest.mark.parametrize("strategy", ["fedbn", "scaffold"])
def test_what_clients_keep_is_as_old_as_the_round(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """The server dies when all clients of round 2 have written what they keep, and repeats it."""
    values = small(num_rounds=3, xai={"enabled": False}, **keys_of(strategy))
    start(parse_task(values), tmp_path / "whole", Silent())
    commit = Run.commit

    def dies(self: Run, record: dict[str, Any], *rest: Any) -> None:
        if record["round"] == 2:
            raise Stop
        commit(self, record, *rest)

    monkeypatch.setattr(Run, "commit", dies)
    with pytest.raises(Stop):
        start(parse_task(values), tmp_path / "cut", Silent())
    monkeypatch.undo()
    assert len(list((tmp_path / "cut").glob("clients/*/*/round_2.safetensors"))) == 3
    resume(tmp_path / "cut", None, Silent())
    files = [
        file.relative_to(tmp_path / "whole")
        for pattern in ("checkpoints/*_3.safetensors", "clients/*/*/round_3.safetensors")
        for file in (tmp_path / "whole").glob(pattern)
    ]
    assert len(files) == (4 if strategy == "fedbn" else 5)
    for file in files:
        left, right = (load_tensors(tmp_path / name / file) for name in ("cut", "whole"))
        assert list(left) == list(right)
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_killed_in_round_three(small: Small, tmp_path: Path) -> None:
    """SIGKILL while clients of round 3 train: the process has no chance to tidy up."""
    task = merged(small(num_rounds=4, num_epochs=2), {"task_id": "killed"})
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    call = [sys.executable, "-m", "fedgaze.cli", "run", "task.yaml", "--output"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*call, "killed"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    third = tmp_path / "killed" / "heatmaps" / "round_3" / "client_0"
    deadline = time.monotonic() + 120
    while not third.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rounds = read(tmp_path / "killed")["rounds"]
    assert [each["round"] for each in rounds] == [1, 2]
    resumed = subprocess.run(
        [*call[:-1], "--resume", "--output", "killed"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    start(parse_task(task), tmp_path / "whole", Silent())
    assert read(tmp_path / "killed") == read(tmp_path / "whole")


def test_more_rounds_may_be_asked_for_and_nothing_else(small: Small, tmp_path: Path) -> None:
    start(parse_task(small(num_rounds=1)), tmp_path / "r", Silent())
    with pytest.raises(FedgazeError, match="is complete: it has 1 rounds"):
        resume(tmp_path / "r", None, Silent())
    with pytest.raises(FedgazeError, match=r"with learning_rate=0.003, not 0.1: only num_rounds"):
        resume(tmp_path / "r", parse_task(small(num_rounds=2, learning_rate=0.1)), Silent())
    resume(tmp_path / "r", parse_task(small(num_rounds=2)), Silent())
    start(parse_task(small(num_rounds=2)), tmp_path / "whole", Silent())
    assert read(tmp_path / "r") == read(tmp_path / "whole")


def test_the_unfinished_run_is_found(small: Small, tmp_path: Path) -> None:
    with pytest.raises(FedgazeError, match="no unfinished run"):
        find_unfinished(tmp_path)
    for name in ("small", "small-2", "other"):
        run = Run.create(tmp_path / name, small(), ("a",))
        run.close()
        os.utime(run.path / "summary.json", (len(name), len(name)))
    assert find_unfinished(tmp_path).name == "small-2"
    assert find_unfinished(tmp_path, "other").name == "other"
    with pytest.raises(FedgazeError, match="no unfinished run of large"):
        find_unfinished(tmp_path, "large")
