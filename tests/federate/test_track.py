"""A run at experiment trackers: what they are given, and that none of them ends it."""

import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.federate.conftest import Silent, merged
from tests.store.test_tracking import settled

from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate import start, track
from fedgaze.federate.page import Page
from fedgaze.federate.track import MOST_PICTURES, numbers, pictures
from fedgaze.store import Run, load_tensors

CarryOut = Callable[..., Run]


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
                "system": {"sent_bytes": 7, "device": "cpu"},
            }
        ],
        "system": {"sent_bytes": 21, "shared_process": True},
        "gate": {
            "policy": "reject",
            "clients": [
                {
                    "client": 2,
                    "suspicion": 0.75,
                    "evidence": 4.0,
                    "factor": 0.0,
                    "reasons": ["far"],
                    "spreads": {"loss": 3.0},
                }
            ],
            "spreads": {"loss": 0.1},
        },
    }
    assert dict(numbers(record)) == {
        "global/accuracy": 0.5,
        "client_2/train/loss": 1.5,
        "client_2/explanation/entropy": 0.25,
        "client_2/system/sent_bytes": 7,
        "client_2/gate/suspicion": 0.75,
        "client_2/gate/factor": 0.0,
        "server/system/sent_bytes": 21,
    }


@pytest.mark.slow
def test_wandb_takes_the_run_and_not_the_key(
    carry_out: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = carry_out(wandb={"use": True, "key": key, "project": "p"})
    [log] = run.path.glob("wandb/offline-run-*/run-*.wandb")
    content = settled(log)
    assert b"client_2/explanation/object_mass" in content
    assert b"global/accuracy" in content
    assert b"client_2/system/cpu_seconds" in content
    kept = run.path.glob("wandb/offline-run-*/files/media/images/client_1/class_?_?_*.jpg")
    assert sorted(each.name[:9] for each in kept) == [
        f"class_{label}_{step}" for label in range(3) for step in (1, 2)
    ]
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

    run = carry_out(trackers=["tensorboard"], xai={"run_location": "both"})
    held = EventAccumulator(str(run.path / "tensorboard"))
    held.Reload()
    seen = [(each.step, round(each.value, 5)) for each in held.Scalars("global/accuracy")]
    rounds = json.loads((run.path / "summary.json").read_text())["rounds"]
    assert seen == [(each["round"], round(each["global"]["accuracy"], 5)) for each in rounds]
    assert {
        f"{who}/class_{label}"
        for who in ("global", "client_0", "client_1", "client_2")
        for label in range(3)
    } == set(held.Tags()["images"])
    assert [each.step for each in held.Images("client_2/class_1")] == [1, 2]
    sent = held.Scalars("client_2/system/sent_bytes")
    assert [each.value for each in sent] == [
        each["clients"][2]["system"]["sent_bytes"] for each in rounds
    ]


@pytest.mark.slow
def test_mlflow_takes_pictures_and_the_report_of_each_round(
    carry_out: CarryOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "at").mkdir()
    monkeypatch.chdir(tmp_path / "at")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/at/mlflow.db")
    import mlflow

    run = carry_out(trackers=["mlflow"])
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("fedgaze")
    assert experiment is not None
    [held] = client.search_runs([experiment.experiment_id])
    names = [Path(each.path).name for each in client.list_artifacts(held.info.run_id, "images")]
    found = Counter(tuple(name.split("+")[:3:2]) for name in names if name.endswith(".png"))
    assert found == {
        (f"client_{who}~class_{label}", str(step)): 1
        for who in range(3)
        for label in range(3)
        for step in (1, 2)
    }
    report = client.download_artifacts(held.info.run_id, "report.html", str(tmp_path))
    assert Path(report).read_bytes() == (run.path / "report.html").read_bytes()
    assert held.data.metrics["server/system/received_bytes"] > 0


@pytest.mark.slow
def test_a_server_that_is_not_there_does_not_end_the_run(
    carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:sesame@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = carry_out(trackers=["mlflow"])
    assert run.summary["status"] == "complete"
    said = json.loads((run.path / "summary.json").read_text())["trackers"]["mlflow"]
    assert said.startswith("failed 3 times, first at the start, last in round 2: MLflow said: ")
    for name in ("summary.json", "report.html"):
        assert "sesame" not in (run.path / name).read_text()
    assert "The tracker mlflow failed 3 times" in (run.path / "report.html").read_text()


class Fake:
    """A tracker that keeps what it is given, and fails where it is told to."""

    def __init__(self, run: Path, fails: Callable[[str, int], None]) -> None:
        self.run = run
        self.fails = fails
        self.opened = 0
        self.steps: list[tuple[int, Mapping[str, float]]] = []
        self.pictures: dict[tuple[str, int | None], bytes] = {}
        self.reports: list[str] = []
        self.closed = 0

    def open(self, *_: Any) -> "Fake":
        self.opened += 1
        self.fails("open", self.opened)
        return self

    def numbers(self, values: Mapping[str, float], step: int = 0) -> None:
        self.fails("numbers", step)
        self.steps.append((step, values))

    def picture(self, name: str, file: Path, step: int | None = None) -> None:
        self.fails("picture", step or 0)
        self.pictures[name, step] = file.read_bytes()

    def file(self, file: Path) -> None:
        self.fails("file", len(self.reports))
        self.reports.append(file.read_text(encoding="utf-8"))

    def close(self) -> None:
        self.closed += 1
        self.fails("close", 0)


@pytest.fixture
def with_fake(
    tmp_path: Path, small: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Run, Fake, Silent]]:
    """Carries out a task with a tracker of ours in the place of TensorBoard."""

    def carry_out(
        fails: Callable[[str, int], None] = lambda *_: None, **changes: Any
    ) -> tuple[Run, Fake, Silent]:
        fake, watch = Fake(tmp_path / "run", fails), Silent()
        monkeypatch.setattr(track, "open_tracker", fake.open)
        task = parse_task(merged(small(trackers=["tensorboard"]), changes))
        return start(task, tmp_path / "run", watch), fake, watch

    return carry_out


def troubles(watch: Silent) -> list[str]:
    return [each[1] for each in watch.told if each[0] == "trouble"]


def test_each_round_is_handed_over_as_it_is_then(
    with_fake: Callable[..., tuple[Run, Fake, Silent]],
) -> None:
    run, fake, watch = with_fake(xai={"samples_per_class": 2, "run_location": "both"})
    assert [step for step, _ in fake.steps] == [1, 2]
    assert len(fake.pictures) == 2 * 4 * 3  # rounds, models, classes
    for (name, step), content in fake.pictures.items():
        who, label = name.split("/")
        folder = run.path / "heatmaps" / f"round_{step}" / "server" / who
        assert content == (folder / f"gradcam_{label}.jpg").read_bytes()
    assert [re.findall(r"Round (\d) in numbers", text) for text in fake.reports] == [
        ["1"],
        ["2"],
        ["2"],
    ]
    assert ["not finished" in text for text in fake.reports] == [True, True, False]
    assert fake.reports[-1] == (run.path / "report.html").read_text(encoding="utf-8")
    assert (fake.opened, fake.closed) == (1, 1)
    assert "trackers" not in run.summary
    assert not troubles(watch)


@pytest.mark.parametrize("share", ["overlays", "maps"])
def test_pictures_that_stay_at_the_client_stay_there(
    with_fake: Callable[..., tuple[Run, Fake, Silent]], share: str
) -> None:
    _, fake, _ = with_fake(num_rounds=1, xai={"share": share})
    names = {f"client_{who}/class_{label}" for who in range(3) for label in range(3)}
    assert {name for name, _ in fake.pictures} == (names if share == "overlays" else set())


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ("open", OSError("no route"), "failed 3 times, first at the start, last in round 2: OSErr"),
        ("numbers", SystemExit(1), "failed 2 times, first in round 1, last in round 2: SystemExit"),
        ("picture", KeyboardInterrupt(), "failed 2 times, first in round 1, last in round 2: Key"),
        (
            "file",
            FedgazeError("the quota\nis"),
            "failed 3 times, first in round 1, last at the end",
        ),
        ("close", RuntimeError(""), "failed at the end: RuntimeError:"),
        ("close", FedgazeError(""), "failed at the end: no reason given"),
    ],
)
def test_a_tracker_that_fails_ends_nothing(
    with_fake: Callable[..., tuple[Run, Fake, Silent]],
    carry_out: CarryOut,
    where: str,
    error: BaseException,
    said: str,
) -> None:
    def fails(what: str, _: int) -> None:
        if what == where:
            raise error

    run, fake, watch = with_fake(fails)
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert summary["trackers"]["tensorboard"].startswith(said)
    [warning] = troubles(watch)
    assert warning.startswith("tensorboard failed ")
    assert warning.endswith("; the run goes on")
    shown = summary["trackers"]["tensorboard"]
    assert f"The tracker tensorboard {shown}" in (run.path / "report.html").read_text()
    assert fake.closed == (where != "open")
    calm = carry_out(name="calm")
    left, right = (load_tensors(each.checkpoint(2)) for each in (run, calm))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_tracker_that_comes_back_is_used_again(
    with_fake: Callable[..., tuple[Run, Fake, Silent]],
) -> None:
    def fails(what: str, count: int) -> None:
        if (what, count) in {("open", 1), ("numbers", 2)}:
            raise ConnectionError("gone")

    run, fake, watch = with_fake(fails, num_rounds=3)
    assert fake.opened == 2
    assert [step for step, _ in fake.steps] == [1, 3]
    assert {step for _, step in fake.pictures} == {1, 3}
    assert run.summary["trackers"] == {
        "tensorboard": "failed 2 times, first at the start, last in round 2: ConnectionError: gone"
    }
    assert len(troubles(watch)) == 1


def test_a_tracker_that_hangs_is_left_behind_and_taken_up_again(
    with_fake: Callable[..., tuple[Run, Fake, Silent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "PATIENCE", 0.3)
    hung, go_on = threading.Event(), threading.Event()

    def fails(what: str, step: int) -> None:
        if what == "numbers" and step == 1:
            hung.set()
            assert go_on.wait(60)
        if what == "picture" and step == 2:
            raise AssertionError("it was still at work on round 1")

    class Letting(Silent):
        def round_done(self, record: dict[str, Any]) -> None:
            super().round_done(record)
            if record["round"] == 2:
                go_on.set()

    monkeypatch.setattr("tests.federate.test_track.Silent", Letting)
    run, fake, watch = with_fake(fails, num_rounds=3)
    assert hung.is_set()
    assert troubles(watch) == [
        "tensorboard failed in round 1: it took longer than 0.3 s; the run goes on"
    ]
    assert run.summary["trackers"]["tensorboard"] == (
        "failed 2 times, first in round 1, last in round 2: "
        "it is still busy with what it was given before"
    )
    assert [step for step, _ in fake.steps] == [1, 3]


def test_no_key_and_no_password_is_written_with_a_reason(
    with_fake: Callable[..., tuple[Run, Fake, Silent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "open-sesame")

    def fails(what: str, _: int) -> None:
        if what == "numbers":
            raise ValueError("POST http://ann:pass/w@host:5000/x with open-sesame, abracadabra")

    run, _, watch = with_fake(fails, num_rounds=1, wandb={"key": "abracadabra"})
    said = "ValueError: POST http://host:5000/x with …, …"
    assert run.summary["trackers"]["tensorboard"] == f"failed in round 1: {said}"
    assert troubles(watch) == [f"tensorboard failed in round 1: {said}; the run goes on"]


def test_many_pictures_are_cut_fairly(tmp_path: Path) -> None:
    def drawn(name: str) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        for label in range(10):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"gradcam_class_{label}.jpg")
        return {"shared": "overlays", "folder": name}

    clients = [{"client": i, "explanation": drawn(f"c{i}")} for i in range(9)]
    clients[3]["server_explanation"] = {"failed": "no room"}  # its own are shown instead
    (tmp_path / "c4" / "gradcam_class_0.jpg").write_bytes(b"no picture")
    record = {"round": 1, "global": {"explanation": drawn("all")}, "clients": clients}
    shown = pictures(record, tmp_path)
    assert MOST_PICTURES == 50
    counts = Counter(name.split("/")[0] for name in shown)
    assert counts == {"global": 5, **{f"client_{i}": 5 for i in range(9)}, "client_4": 4}
    assert shown["client_3/class_4"] == tmp_path / "c3" / "gradcam_class_4.jpg"


def test_a_page_that_costs_too_much_is_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = [0.0], []

    def write(_: Path) -> None:
        clock[0] += 3.0
        written.append(clock[0])

    monkeypatch.setattr("fedgaze.federate.page.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("fedgaze.federate.page.write_federated_report", write)
    for always, count in ((False, 4), (True, 10)):
        written.clear()
        page = Page(tmp_path, print, always=always)
        for _ in range(10):  # 3 s may be spent in 30 s: in rounds 1, 3, 6 and 9
            page.after_round({"seconds": 10.0})
        assert len(written) == count


def test_a_page_that_cannot_be_written_ends_nothing(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    page = Page(tmp_path, said.append, always=True)
    for _ in range(2):
        page.after_round({"seconds": 1.0})
    [sentence] = said
    assert "holds no summary.json of a run; the run goes on" in sentence
