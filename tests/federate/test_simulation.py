"""The same apps on Flower's own simulation, which runs clients in other processes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.federate.conftest import Silent
from tests.federate.test_resume import read

from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate import start
from fedgaze.store import Run, load_tensors

MODELS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 5, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.drop(self.norm(self.conv(x)).relu()).amax((2, 3)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"strategy": "scaffold", "optimizer": "sgd"}])
def test_same_seed_same_weights_as_in_process(
    small: Callable[..., dict[str, Any]], tmp_path: Path, keys: dict[str, Any]
) -> None:
    """Own code, dropout, a subset of clients, what they keep: nothing may depend on the engine."""
    (tmp_path / "models.py").write_text(MODELS)
    runs: dict[str, Run] = {}
    for engine in ("local", "simulation"):
        values = small(
            engine=engine,
            num_clients=4,
            clients_per_round=2,
            model={"_target_": "models.Net"},
            xai={"layer": "conv", "run_location": "both"},
            **keys,
        )
        runs[engine] = start(parse_task(values, tmp_path), tmp_path / engine, Silent())
    local, simulated = (load_tensors(run.checkpoint(2)) for run in runs.values())
    assert all(torch.equal(local[name], simulated[name]) for name in local)
    left, right = (read(run.path) for run in runs.values())
    assert left.pop("task") != right.pop("task")  # they differ in the engine
    assert json.dumps(left) == json.dumps(right)


def test_without_ray_the_remedy_is_named(
    small: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FedgazeError, match=r"pip install 'fedgaze\[simulation\]'"):
        start(parse_task(small(engine="simulation")), tmp_path / "r", Silent())
    assert not (tmp_path / "r").exists()
