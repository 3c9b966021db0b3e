"""Arrays travel as one file, and arrive as they were."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load

from fedgaze.errors import FedgazeError
from fedgaze.federate.deployment.parcels import ParcelGrid, answer_parcels, opened, parcelled
from fedgaze.federate.exchange import pack, unpack
from fedgaze.models import DigitsNet


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower wants to know before it makes a message."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def values(record: ArrayRecord) -> dict[str, Any]:
    return {name: array.numpy() for name, array in record.items()}


def equal(one: ArrayRecord, two: ArrayRecord) -> bool:
    left, right = values(one), values(two)
    return list(left) == list(right) and all(
        (left[name].dtype, left[name].shape, left[name].tobytes())
        == (right[name].dtype, right[name].shape, right[name].tobytes())
        for name in left
    )


class Nodes:
    """A grid that notes what passes, and answers with what it was given."""

    def __init__(self, answers: list[Message]) -> None:
        self.passed: list[RecordDict] = []
        self.answers = answers

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.passed = [message.content for message in messages]
        return ["id"] * len(self.passed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        del message_ids
        return self.answers


def test_a_model_is_one_array_on_its_way_and_itself_at_both_ends() -> None:
    state = DigitsNet().state_dict()
    record = pack(state)
    messages = [Message(RecordDict({"arrays": record}), node, "train") for node in (1, 2)]
    contents = [message.content for message in messages]
    nodes: Any = Nodes([])
    grid = ParcelGrid(nodes)
    grid.push_messages(messages)
    assert [message.content for message in messages] == contents
    assert contents[0]["arrays"] is record
    one, two = nodes.passed
    assert len(one["arrays"]) == 1
    assert one["arrays"] is two["arrays"], "made once for all"
    assert list(load(next(iter(values(one["arrays"]).values())).tobytes())) != []
    nodes.answers = [Message(one, 1, "train")]
    [answer] = grid.pull_messages(["id"])
    assert list(answer.content.array_records["arrays"]) == list(state), "in the same order"
    found = unpack(answer.content.array_records["arrays"], state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_what_a_record_may_hold_arrives_as_it_was() -> None:
    record = ArrayRecord(
        {
            "empty": Array(np.zeros((0, 3), np.float32)),
            "number": Array(np.array(7, np.int64)),
            "half": Array(np.array([1, np.nan, -np.inf], np.float16)),
            "columns": Array(np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3))),
            "yes": Array(np.array([True, False])),
        }
    )
    config = ConfigRecord({"round": 3})
    sent = RecordDict(
        {"arrays": record, "config": config, "one": ArrayRecord({"a": record["yes"]})}
    )
    there = parcelled(sent)
    assert len(there["arrays"]) == 1
    assert there["one"] is sent["one"]
    back = opened(there)
    assert list(back) == list(sent)
    assert equal(back["arrays"], record)
    assert back["config"] == config


def test_what_safetensors_cannot_hold_travels_as_before() -> None:
    strange = {"a": Array(np.array(["x"])), "b": Array(np.zeros(2))}
    record = ArrayRecord(strange)
    assert parcelled(RecordDict({"arrays": record}))["arrays"] is record


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"abc",
        (2**40).to_bytes(8, "little") + b"{}",
        (60).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[999999],"data_offsets":[0,4]}}  ',
    ],
)
def test_a_parcel_that_is_none_fits_no_model(file: bytes) -> None:
    parcel = parcelled(RecordDict({"arrays": pack({"a": torch.ones(2), "b": torch.ones(1)})}))
    [key] = parcel["arrays"]
    broken = RecordDict({"arrays": ArrayRecord({key: Array(np.frombuffer(file, np.uint8))})})
    with pytest.raises(FedgazeError, match="the arrays cannot be read"):
        opened(broken)
    nodes: Any = Nodes([Message(broken, 1, "train")])
    [answer] = ParcelGrid(nodes).pull_messages(["id"])
    with pytest.raises(FedgazeError, match="lack 'a'"):
        unpack(answer.content.array_records["arrays"], {"a": torch.ones(2), "b": torch.ones(1)})


def test_no_pickle_is_opened() -> None:
    array = Array(np.array([1, 2], np.uint8))
    array.data = np.lib.format.magic(1, 0) + b"\x80\x04."
    with pytest.raises(FedgazeError, match="the arrays cannot be read"):
        opened(RecordDict({"arrays": ArrayRecord({"fedgaze.safetensors": array})}))


def test_a_client_works_on_what_was_packed_and_its_answer_is_packed() -> None:
    record = pack({"a": torch.arange(3.0), "b": torch.ones(1)})

    def double(message: Message, context: Any) -> Message:
        del context
        doubled = {
            name: torch.from_numpy(array.numpy()) * 2
            for name, array in message.content.array_records["arrays"].items()
        }
        return Message(RecordDict({"arrays": pack(doubled)}), 0, "train")

    message = Message(parcelled(RecordDict({"arrays": record})), 1, "train")
    nothing: Any = None
    reply = answer_parcels(message, nothing, double)
    assert len(reply.content["arrays"]) == 1
    back = opened(reply.content)
    assert equal(back["arrays"], pack({"a": 2 * torch.arange(3.0), "b": 2 * torch.ones(1)}))
