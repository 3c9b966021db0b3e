"""What a task may say of clients that misbehave."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgaze.config import BehaviourSpec, Task, parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate import prepare

KINDS = BehaviourSpec.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]


def task_of(**behaviour: Any) -> Task:
    model = {"_target_": "fedgaze.models.DigitsNet"}
    return parse_task({"model": model, "behaviour": {"clients": [1]} | behaviour})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "patsh"}, "behaviour.kind=patsh: allowed are .*did you mean 'patch'"),
        ({"kind": "patch", "scale": 2}, "'scale' belongs to kind=replacement, noise, not to kind"),
        ({"kind": "patch", "opacity": 0.3}, "'opacity' belongs to kind=blend, not to kind=patch"),
        ({"kind": "blend", "weight": 2}, "'weight' belongs to kind=adaptive, not to kind=blend"),
        ({"kind": "patch", "source": 2}, "'source' belongs to kind=label_flip, semantic, not"),
        ({"kind": "noise", "target": 2}, "'target' belongs to .*, not to kind=noise"),
        ({"kind": "semantic", "fraction": 0.3}, "'fraction' belongs to .*, not to kind=semantic"),
        ({"kind": "stale", "fraction": 0.3}, "'fraction' belongs to .*, not to kind=stale"),
        ({"kind": "patch", "fraction": 0}, "behaviour.fraction=0: .*greater than 0"),
        ({"kind": "patch", "first_round": 0}, "behaviour.first_round=0: .*greater than or equal"),
        ({"kind": "patch", "clients": []}, "behaviour.clients="),
        ({"kind": "patch", "clients": [1, 1]}, r"clients=\[1, 1\] names a client twice"),
        (
            {"kind": "patch", "clients": [4]},
            r"behaviour.clients=\[4\] names a client that is not there: .* from 0 to 3",
        ),
        ({"kind": "label_flip", "target": 3}, "target=3 of kind=label_flip needs 'source'"),
        ({"kind": "label_flip", "source": 0}, "source=0 and target=0 are one class"),
        ({"kind": "semantic", "source": 2, "target": 2}, "source=2 and target=2 are one class"),
        ({"clients": [0]}, "the key 'behaviour.kind' is missing"),
    ],
)
def test_one_sentence_says_what_does_not_go(given: dict[str, Any], said: str) -> None:
    with pytest.raises(FedgazeError) as caught:
        task_of(**given)
    assert re.search(said, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recorded_reads_back_as_the_same_task(kind: str) -> None:
    task = task_of(kind=kind)
    assert parse_task(json.loads(json.dumps(task.public()))) == task


@pytest.mark.parametrize(
    ("given", "fraction"),
    [
        ({"kind": "patch"}, 0.5),
        ({"kind": "label_noise"}, 0.5),
        ({"kind": "label_flip"}, 1.0),
        ({"kind": "label_flip", "fraction": 0.25}, 0.25),
        ({"kind": "label_flip", "source": 3}, 0.5),
        ({"kind": "semantic"}, None),
        ({"kind": "noise"}, None),
    ],
)
def test_the_part_that_is_changed_where_nothing_is_said(
    given: dict[str, Any], fraction: float | None
) -> None:
    spec = task_of(**given).behaviour
    assert spec is not None
    assert spec.fraction == fraction


def test_it_stays_in_the_laboratory() -> None:
    task = task_of(kind="stale")
    with pytest.raises(FedgazeError, match=r"^behaviour is for a laboratory.*engine=simulation$"):
        task.on_a_server()
    with pytest.raises(FedgazeError, match=r"^behaviour is for a laboratory.*engine=simulation$"):
        parse_task(task.public() | {"engine": "deployment"})
    assert parse_task(task.public() | {"behaviour": None}).on_a_server().engine == "deployment"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"behaviour": {"kind": "patch", "clients": [0], "target": 3}},
            "behaviour.target=3 is no class of digits: they are counted from 0 to 2",
        ),
        (
            {"behaviour": {"kind": "semantic", "clients": [0], "source": 7}},
            "behaviour.source=7 is no class of digits: they are counted from 0 to 2",
        ),
        (
            {
                "behaviour": {"kind": "label_noise", "clients": [0]},
                "dataset": {"classes": ["1"], "partition": "iid"},
            },
            "behaviour.kind=label_noise needs two classes: digits has one",
        ),
        (
            {"behaviour": {"kind": "adaptive", "clients": [0]}, "xai": {"method": "rise"}},
            "maps of xai.method=rise, which cannot be trained with: allowed are gradcam",
        ),
    ],
)
def test_what_only_the_images_or_the_model_can_tell(
    small: Callable[..., dict[str, Any]], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(FedgazeError, match=re.escape(said)):
        prepare(parse_task(small(**changes)))


def test_a_loop_of_the_task_s_own_takes_no_penalty(
    small: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "models.py").write_text(
        "from fedgaze.models import DigitsNet\n"
        "class Net(DigitsNet):\n    pass\n"
        "def train_torch(model, loader, epochs, cfg):\n    pass\n"
    )
    task = small(model={"_target_": "models.Net"}, behaviour={"kind": "adaptive", "clients": [0]})
    with pytest.raises(FedgazeError, match="own training, and the task has its own: leave train_t"):
        prepare(parse_task(task, tmp_path))


def test_a_patch_needs_room(small: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    np.savez(tmp_path / "tiny.npz", x=np.zeros((60, 5, 9), np.uint8), y=np.arange(60) % 2)
    data = {"name": "npz", "root": str(tmp_path / "tiny.npz"), "classes": ["0", "1"]}
    xai = {"enabled": False}
    kinds = {"patch": "needs images of 6 × 6 pixels: those of tiny have 5 × 9", "label_noise": ""}
    for kind, said in kinds.items():
        task = parse_task(small(dataset=data, xai=xai, behaviour={"kind": kind, "clients": [0]}))
        if said:
            with pytest.raises(FedgazeError, match=said):
                prepare(task)
        else:
            prepare(task)
