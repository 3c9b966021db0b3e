"""Trackers take numbers, pictures and files, each in its own way."""

import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from fedgaze.errors import FedgazeError
from fedgaze.store import open_tracker


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 6), (255, 0, 0)).save(path)
    return path


def settled(log: Path) -> bytes:
    """What W&B's log holds: its own process may write it a moment after the run is closed."""
    end = time.monotonic() + 20
    while log.stat().st_size < 100 and time.monotonic() < end:
        time.sleep(0.1)
    return log.read_bytes()


def tell(name: str, folder: Path, picture: Path, step: int) -> None:
    tracker = open_tracker(name, folder, {"model": "net"})
    tracker.numbers({"gradcam++/deletion": 0.25 * step}, step=step)
    tracker.picture("client_2/class_3", picture, step)
    tracker.picture("where", picture)
    tracker.file(picture)
    tracker.close()


def test_tensorboard(tmp_path: Path, picture: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (1, 2):
        tell("tensorboard", tmp_path / "run", picture, step)
    held = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    held.Reload()
    assert [(each.step, each.value) for each in held.Scalars("gradcam++/deletion")] == [
        (1, 0.25),
        (2, 0.5),
    ]
    (image, *_) = held.Images("where")
    assert (image.width, image.height) == (8, 6)
    assert [each.step for each in held.Images("client_2/class_3")] == [1, 2]


@pytest.mark.slow
def test_mlflow_goes_on_with_the_same_folder(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "looks")
    import mlflow

    for step in (1, 2):
        tell("mlflow", tmp_path / "run", picture, step)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("looks")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model": "net"}
    history = client.get_metric_history(run.info.run_id, "gradcam__/deletion")
    assert [(each.step, each.value) for each in history] == [(1, 0.25), (2, 0.5)]
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {
        "images",
        "pictures",
        "red.png",
    }
    names = [Path(each.path).name for each in client.list_artifacts(run.info.run_id, "images")]
    steps = sorted(name.split("+")[2] for name in names if name.endswith(".png"))
    assert {name.split("+")[0] for name in names} == {"client_2~class_3"}
    assert steps == ["1", "2"]


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tell("wandb", tmp_path / "run", picture, 1)
    (log,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    assert b"gradcam++/deletion" in settled(log)
    [kept] = (tmp_path / "run").glob("wandb/offline-run-*/files/media/images/client_2/*.png")
    assert kept.name.startswith("class_3_1_")  # the step
    assert Image.open(kept).size == (8, 6)


@pytest.mark.slow
def test_mlflow_takes_more_numbers_than_one_call_may_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    import mlflow

    tracker = open_tracker("mlflow", tmp_path / "run", {})
    tracker.numbers({f"client_{i}/loss": i / 2 for i in range(1001)}, step=4)
    tracker.close()
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("fedgaze")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert len(run.data.metrics) == 1001
    [last] = client.get_metric_history(run.info.run_id, "client_1000/loss")
    assert (last.step, last.value) == (4, 500)


def test_wrong_and_missing_trackers_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FedgazeError, match=r"no tracker 'mlfow'.*did you mean 'mlflow'"):
        open_tracker("mlfow", tmp_path / "run", {})
    monkeypatch.setattr("fedgaze.store.tracking.find_spec", lambda _: None)
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(FedgazeError, match=r"pip install 'fedgaze\[mlflow\]'"):
        open_tracker("mlflow", tmp_path / "run", {})
    assert not (tmp_path / "run").exists()
