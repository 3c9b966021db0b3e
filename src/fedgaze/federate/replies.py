"""What a client answered: checked, since it comes from elsewhere."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedgaze.errors import FedgazeError
from fedgaze.federate.exchange import pack, unpack
from fedgaze.federate.look import nested
from fedgaze.federate.system import read_system
from fedgaze.store import write_bytes
from fedgaze.train import State

__all__ = ["Asked", "Update", "finite", "keep_shared", "read_reply"]

METRICS = 50
"""How many numbers of a client's own test a record takes at most."""

_METRIC_NAME = re.compile(r"[A-Za-z]\w{0,63}")
_SHARED_NAME = re.compile(r"gradcam_class_\d{1,6}(_\d{1,6}_received)?\.(jpg|npy)")


@dataclass(frozen=True, eq=False)
class Asked:
    """What a reply has to hold beside weights, for the strategy.

    Attributes:
        numbers: Names of metrics.
        control: What SCAFFOLD's change of a control looks like; empty for other strategies.
    """

    numbers: Sequence[str] = ()
    control: State = field(default_factory=dict)


NOTHING = Asked()


@dataclass(frozen=True, eq=False)
class Update:
    """A client's update.

    Attributes:
        client: Whose.
        state: Its weights, checked.
        entry: What the round's record says of it.
        files: Pictures and maps that it shares, by file name.
        message: The reply as Flower's strategies want it.
    """

    client: int
    state: State
    entry: dict[str, Any]
    files: dict[str, bytes]
    message: Message


def read_reply(reply: Message, client: int, like: State, asked: Asked = NOTHING) -> Update:
    """Read a reply to a training message.

    Args:
        reply: What came; its content is cut down to what strategies expect.
        client: Who sent it.
        like: A state of the model, which says what weights look like.
        asked: What the strategy cannot do without.

    Raises:
        FedgazeError: It is an error, or its weights or numbers do not fit.
    """
    if reply.has_error():
        # Ray hands on whole tracebacks; their last line says what happened.
        lines = (reply.error.reason or "").strip().splitlines()
        raise FedgazeError(lines[-1] if lines else f"Flower's error {reply.error.code}")
    content = reply.content
    if "arrays" not in content.array_records or "metrics" not in content.metric_records:
        raise FedgazeError("the reply lacks weights or metrics")
    state = unpack(content.array_records["arrays"], like)
    metrics = content.metric_records["metrics"]
    samples = metrics.get("num-examples")
    if not isinstance(samples, int) or samples < 1:
        raise FedgazeError(f"the reply's num-examples={samples} is no count of samples")
    for name in asked.numbers:
        value = finite(metrics.get(name))
        if value is None or value < 0:
            raise FedgazeError(f"the reply's {name}={metrics.get(name)} is no number of at least 0")
    said: Mapping[str, Any] = content.config_records.get("client", ConfigRecord())
    files = {
        name: bytes(value)
        for name, value in content.config_records.get("shared", {}).items()
        if isinstance(value, bytes) and _SHARED_NAME.fullmatch(name)
    }
    entry: dict[str, Any] = {
        "client": client,
        "samples": samples,
        "train": _score(metrics, "train"),
        "validation": _score(metrics, "validation"),
    }
    if system := read_system(content.config_records.get("system", ConfigRecord())):
        entry["system"] = system
    if "failed" in said:
        entry["explanation"] = {"failed": str(said["failed"])[:1000]}
    elif "explained" in said:
        entry["explanation"] = nested(content.metric_records.get("profile", MetricRecord()))
        endings = {name.rpartition(".")[2] for name in files}
        kinds = {"overlays": "jpg" in endings, "maps": "npy" in endings}
        kinds |= {"profile": "profile" in content.metric_records, "none": True}
        entry["explanation"]["shared"] = next(kind for kind, true in kinds.items() if true)
    arrays = content.array_records["arrays"]
    reply.content = RecordDict(
        {
            # Some strategies pair arrays by their order, which is the model's, not the sender's.
            "arrays": ArrayRecord({name: arrays[name] for name in like}),
            "metrics": MetricRecord(
                {key: metrics[key] for key in ("num-examples", *asked.numbers)}
            ),
        }
    )
    if asked.control:
        change = content.array_records.get("control", ArrayRecord())
        reply.content["control"] = pack(unpack(change, asked.control))
    return Update(client, state, entry, files, reply)


def _score(metrics: Mapping[str, Any], part: str) -> dict[str, float | None]:
    own = (key.removeprefix(f"{part}_") for key in metrics if key.startswith(f"{part}_"))
    names = ["accuracy", "loss", *sorted(set(filter(_METRIC_NAME.fullmatch, own)))]
    return {name: finite(metrics.get(f"{part}_{name}")) for name in names[:METRICS]}


def finite(value: Any) -> float | None:
    """A number that JSON knows; None for anything else, such as the loss of a run gone astray."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def keep_shared(folder: Path, files: Mapping[str, bytes]) -> None:
    """Keep what a client shared; what lies there already, in process, is the client's own copy."""
    for name, content in files.items():
        if not (folder / name).exists():
            write_bytes(folder / name, content)
