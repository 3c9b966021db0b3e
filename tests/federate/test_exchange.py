"""What goes between server and client is checked, since it comes from elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.federate.exchange import fingerprint, pack, settle, unpack
from fedgaze.federate.replies import keep_shared, read_reply

STATE = {
    "w": torch.tensor([[1.5, -2.0]]),
    "half": torch.tensor([0.5], dtype=torch.float16),
    "brain": torch.tensor([0.25], dtype=torch.bfloat16),
    "count": torch.tensor(7),
}


def test_a_state_comes_back_to_the_bit() -> None:
    back = unpack(pack(STATE), STATE)
    assert list(back) == list(STATE)
    for name, value in STATE.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


def changed(**arrays: Any) -> ArrayRecord:
    record = pack(STATE)
    for name, value in arrays.items():
        if value is None:
            del record[name]
        else:
            record[name] = Array(np.asarray(value))
    return record


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"w": None}, "the weights lack 'w'"),
        ({"more": [1.0]}, "the model has no 'more'"),
        (
            {"w": np.float32([1.5, -2.0])},
            r"'w' is torch.float32 \(2,\), not torch.float32 \(1, 2\)",
        ),
        ({"w": np.float64([[1.5, -2.0]])}, "'w' is torch.float64"),
        ({"w": np.float32([[np.nan, 0]])}, "'w' holds a value that is not finite"),
        ({"w": np.float32([[np.inf, 0]])}, "'w' holds a value that is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(FedgazeError, match=said):
        unpack(changed(**arrays), STATE)


def test_what_a_strategy_computed_is_settled() -> None:
    like = {"n.running_var": torch.ones(2), "count": torch.tensor(3), "w": torch.ones(1)}
    arrays = {
        "n.running_var": np.float64([-0.5, 2]),
        "count": np.float64(4.6),
        "w": np.float64([-3]),
    }
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    settled = unpack(settle(record, like), like)
    assert settled["n.running_var"].tolist() == [0, 2]  # a variance is not negative
    assert settled["count"].item() == 5
    assert settled["w"].tolist() == [-3]


def test_fingerprints_see_every_bit_and_nothing_else() -> None:
    first = fingerprint(STATE)
    assert fingerprint(dict(reversed(STATE.items()))) == first
    others: list[dict[str, Tensor]] = [
        STATE | {"count": torch.tensor(8)},
        STATE | {"w": torch.tensor([1.5, -2.0])},
        STATE | {"w": STATE["w"].double()},
    ]
    assert len({first, *(fingerprint(other) for other in others)}) == 4


@pytest.fixture
def answer() -> Callable[..., Message]:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    question = Message(RecordDict(), 5, "train")

    def reply(**parts: Any) -> Message:
        usual = {
            "arrays": pack(STATE),
            "metrics": MetricRecord({"num-examples": 3, "train_loss": 0.5}),
            "client": ConfigRecord({"client": 2, "explained": True}),
        }
        records = {key: value for key, value in (usual | parts).items() if value is not None}
        return Message(RecordDict(records), reply_to=question)

    return reply


def test_a_reply_becomes_an_entry_and_what_strategies_want(answer: Callable[..., Message]) -> None:
    profile = MetricRecord({"entropy": 0.5, "entropy.n": 4, "bad": float("nan")})
    metrics = MetricRecord({"num-examples": 3, "train_loss": float("inf"), "train_accuracy": 0.25})
    update = read_reply(answer(profile=profile, metrics=metrics), 2, STATE)
    assert update.entry["train"] == {"accuracy": 0.25, "loss": None}
    assert update.entry["explanation"] == {
        "entropy": 0.5,
        "quartiles": {},
        "n": {"entropy": 4},
        "shared": "profile",
    }
    assert sorted(update.message.content) == ["arrays", "metrics"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"arrays": None}, "lacks weights or metrics"),
        ({"metrics": None}, "lacks weights or metrics"),
        ({"metrics": MetricRecord({"num-examples": 0})}, "num-examples=0"),
        ({"metrics": MetricRecord({"num-examples": -5})}, "num-examples=-5"),
        ({"metrics": MetricRecord({"num-examples": 1e9})}, "num-examples=1000000000.0"),
        ({"metrics": MetricRecord({})}, "num-examples=None"),
    ],
)
def test_replies_that_would_spoil_the_merge(
    answer: Callable[..., Message], parts: dict[str, Any], said: str
) -> None:
    with pytest.raises(FedgazeError, match=said):
        read_reply(answer(**parts), 2, STATE)


def test_an_error_says_its_last_line(answer: Callable[..., Message]) -> None:
    error = Message(Error(1, "Traceback\n  File x\nKeyError: 'y'\n"), reply_to=answer())
    with pytest.raises(FedgazeError, match=r"^KeyError: 'y'$"):
        read_reply(error, 2, STATE)


def test_a_client_cannot_choose_where_its_files_go(
    answer: Callable[..., Message], tmp_path: Path
) -> None:
    files = ConfigRecord(
        {
            "gradcam_class_3.jpg": b"good",
            "../../evil.jpg": b"bad",
            "/etc/gradcam_class_3.jpg": b"bad",
            "gradcam_class_3.html": b"bad",
            "manifest.json": b"bad",
        }
    )
    update = read_reply(answer(shared=files), 2, STATE)
    keep_shared(tmp_path / "a" / "b", update.files)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written == [tmp_path / "a" / "b" / "gradcam_class_3.jpg"]
    assert update.entry["explanation"]["shared"] == "overlays"
