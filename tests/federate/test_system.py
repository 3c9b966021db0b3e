"""What a machine says of itself, and what of it is believed."""

import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedgaze.federate.exchange import pack
from fedgaze.federate.replies import read_reply
from fedgaze.federate.system import Meter, carried_bytes, read_system
from fedgaze.store import Run, load_tensors

STATE = {"w": torch.tensor([[1.5, -2.0]]), "count": torch.tensor(7)}


def npy_bytes(value: torch.Tensor) -> int:
    """The length of a tensor as a .npy file, which is how Flower carries it."""
    buffer = io.BytesIO()
    array = value.numpy()
    np.save(buffer, array if array.dtype.kind == "f" else array.astype(np.float64))
    return len(buffer.getvalue())


def test_bytes_are_those_of_weights_and_shared_files(carry_out: Callable[..., Run]) -> None:
    run = carry_out()
    for record in run.summary["rounds"]:
        number = record["round"]
        weights = load_tensors(run.checkpoint(number - 1)).values()
        received = sum(map(npy_bytes, weights))
        sent = []
        for entry in record["clients"]:
            folder = run.path / "heatmaps" / f"round_{number}" / f"client_{entry['client']}"
            # samples_per_class is 1, so every picture and map is one that is shared.
            shared = [*folder.glob("*.jpg"), *folder.glob("*.npy")]
            sent.append(received + sum(file.stat().st_size for file in shared))
            assert entry["system"]["received_bytes"] == received
            assert entry["system"]["sent_bytes"] == sent[-1]
        # The server counts for itself.
        assert record["system"]["sent_bytes"] == 3 * received
        assert record["system"]["received_bytes"] == sum(sent)


def test_clients_and_server_tell_time_and_memory(carry_out: Callable[..., Run]) -> None:
    before = psutil.Process().memory_info().rss
    run = carry_out(num_rounds=1)
    [record] = run.summary["rounds"]
    assert json.loads((run.path / "summary.json").read_text())["rounds"] == [record]
    entries = [entry["system"] for entry in record["clients"]]
    for each in [*entries, record["system"]]:
        assert 0 < each["cpu_seconds"] <= each["seconds"] + 0.5  # resources.cpu is 1
        assert each["peak_memory_bytes"] >= each["memory_bytes"] >= before / 2
    assert {(each["threads"], each["device"]) for each in entries} == {(1, "cpu")}
    assert sum(each["seconds"] for each in entries) <= record["system"]["seconds"]
    assert record["system"]["shared_process"] is True


@pytest.mark.slow
def test_on_the_simulation_processes_are_not_shared(carry_out: Callable[..., Run]) -> None:
    pytest.importorskip("ray")
    [record] = carry_out(num_rounds=1, engine="simulation").summary["rounds"]
    assert record["system"]["shared_process"] is False
    assert len(record["clients"]) == 3
    for entry in record["clients"]:
        assert entry["system"]["cpu_seconds"] <= entry["system"]["seconds"] + 0.5
        assert entry["system"]["memory_bytes"] > 50e6


def test_a_meter_measures_the_work_since_it_was_made() -> None:
    sum(range(2_000_000))  # not its concern
    meter = Meter()
    time.sleep(0.3)
    idle = meter.read()
    assert isinstance(idle["seconds"], float)
    assert isinstance(idle["cpu_seconds"], float)
    assert 0.3 <= idle["seconds"] < 5
    assert idle["cpu_seconds"] < 0.2
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert meter.read()["cpu_seconds"] == pytest.approx(idle["cpu_seconds"] + 0.3, abs=0.1)
    block = np.ones(200_000_000, np.uint8)
    held = meter.read()["memory_bytes"]
    assert isinstance(held, int)
    assert isinstance(idle["memory_bytes"], int)
    assert held - idle["memory_bytes"] == pytest.approx(len(block), rel=0.2)
    del block
    peak = meter.read()["peak_memory_bytes"]
    assert isinstance(peak, int)
    assert peak >= 0.95 * held


def test_bytes_of_a_message_by_hand() -> None:
    content = RecordDict(
        {
            "arrays": pack(STATE),
            "more": pack(STATE),
            "shared": ConfigRecord({"a.jpg": b"12345", "note": "not a file"}),
            "metrics": MetricRecord({"loss": 1.0}),
        }
    )
    # A .npy header of 128 bytes each; two float32, and a whole number as float64.
    assert carried_bytes(content) == 2 * (128 + 8 + 128 + 8) + 5


@pytest.mark.parametrize(
    "nonsense",
    [-1, -0.5, math.nan, math.inf, -math.inf, 1e400, 10**400, 2**63, "7", None, [1], True],
)
@pytest.mark.parametrize("name", ["seconds", "memory_bytes", "sent_bytes", "threads", "device"])
def test_nonsense_is_left_out(name: str, nonsense: Any) -> None:
    fine = {"seconds": 2, "cpu_seconds": 1.5, "memory_bytes": 10.0, "device": "cuda:0"}
    kept = {"seconds": 2.0, "cpu_seconds": 1.5, "memory_bytes": 10, "device": "cuda:0"}
    if name != "device" or nonsense != "7":
        kept.pop(name, None)
    else:
        del kept["device"]
    assert read_system(fine | {name: nonsense}) == kept
    assert read_system({name: nonsense, "uptime": 5, "seconds ": 1, "sent_bytes\n": 2}) == {}


@pytest.mark.parametrize("device", ["<b>cpu</b>", "cuda:12345", "", "CPU", "c" * 99, "cpu\n"])
def test_a_device_is_a_short_word(device: str) -> None:
    assert read_system({"device": device}) == {}


def test_a_reply_is_read_without_or_with_strange_facts() -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    question = Message(RecordDict(), 5, "train")

    def entry(**records: Any) -> dict[str, Any]:
        usual = {
            "arrays": pack(STATE),
            "metrics": MetricRecord({"num-examples": 3}),
            "client": ConfigRecord({"client": 2}),
        }
        return read_reply(Message(RecordDict(usual | records), reply_to=question), 2, STATE).entry

    assert "system" not in entry()
    assert "system" not in entry(system=ConfigRecord({"seconds": [1.0, 2.0], "root": b"x"}))
    assert "system" not in entry(system=MetricRecord({"seconds": 1.0}))  # the wrong kind of record
    said = ConfigRecord({"seconds": 1.0, "threads": -2, "sent_bytes": math.inf, "home": "/root"})
    assert entry(system=said)["system"] == {"seconds": 1.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu_is_that_of_the_work() -> None:
    device = torch.device("cuda:0")
    torch.empty(400_000_000, dtype=torch.uint8, device=device)
    meter = Meter(device)
    torch.empty(100_000_000, dtype=torch.uint8, device=device)
    most = meter.read()["device_memory_bytes"]
    assert isinstance(most, int)
    assert most == pytest.approx(100_000_000, rel=0.1)


def test_where_nothing_can_be_read_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> Any:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "Process", refuse)
    assert "memory_bytes" not in Meter().read()
