"""Experiment trackers: numbers, pictures and files to where a team keeps its experiments."""

import hashlib
import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fedgaze.errors import FedgazeError, nearest

__all__ = ["TRACKERS", "Account", "Tracker", "check_tracker", "open_tracker"]

TRACKERS = {"mlflow": "mlflow", "tensorboard": "tensorboard", "wandb": "wandb"}
"""Packages by the trackers' names, which are also those of the extras that install them."""


_BATCH = 1000
"""Numbers that MLflow takes at once."""


class Tracker(Protocol):
    """A run at an experiment tracker."""

    def numbers(self, values: Mapping[str, float], step: int = 0) -> None:
        """Take down numbers of a step."""

    def picture(self, name: str, file: Path, step: int | None = None) -> None:
        """Take in a picture (PNG, JPEG or WebP); of a name with steps, a slider over them."""

    def file(self, file: Path) -> None:
        """Take in a file, such as a report, in place of an earlier one of its name."""

    def close(self) -> None:
        """Send what is left."""


class Account(Protocol):
    """Whose account at Weights & Biases; what is None is as its own configuration says."""

    account: str | None
    project: str | None

    @property
    def secret(self) -> str | None:
        """The key, which is written nowhere."""


def check_tracker(name: str) -> None:
    """See that a tracker can be used, without opening it.

    Raises:
        FedgazeError: There is none of that name, or its package is not installed.
    """
    if name not in TRACKERS:
        raise FedgazeError(
            f"there is no tracker {name!r}; allowed are {', '.join(TRACKERS)}"
            f"{nearest(name, TRACKERS)}"
        )
    if find_spec(TRACKERS[name]) is None:
        raise FedgazeError(f"{name} is not installed: pip install 'fedgaze[{name}]'")


def open_tracker(
    name: str, folder: Path, config: Mapping[str, Any], account: Account | None = None
) -> Tracker:
    """Begin a run at a tracker. One that is opened again for the same folder goes on.

    Where things go is up to the trackers' own settings: ``MLFLOW_TRACKING_URI`` and
    ``MLFLOW_EXPERIMENT_NAME``; ``WANDB_MODE=offline``, ``WANDB_PROJECT`` and so on. TensorBoard's
    files lie in ``tensorboard/`` in the folder.

    Args:
        name: ``"mlflow"``, ``"tensorboard"`` or ``"wandb"``.
        folder: The run's folder, after which it is called.
        config: What was asked for.
        account: Of Weights & Biases.

    Raises:
        FedgazeError: It cannot be used, or cannot be reached.
    """
    check_tracker(name)
    folder.mkdir(parents=True, exist_ok=True)
    if name == "wandb":
        return _Wandb(folder, config, account)
    return _Mlflow(folder, config) if name == "mlflow" else _TensorBoard(folder)


class _Wandb:
    def __init__(self, folder: Path, config: Mapping[str, Any], account: Account | None) -> None:
        import wandb

        self._wandb = wandb
        try:
            self._run = wandb.init(
                entity=account.account if account else None,
                project=(account.project if account else None)
                or os.environ.get("WANDB_PROJECT", "fedgaze"),
                name=folder.name,
                id=_id(folder),
                resume="allow",
                dir=str(folder),
                config=dict(config),
                settings=wandb.Settings(
                    api_key=account.secret if account else None, silent=True, console="off"
                ),
            )
        except (wandb.Error, OSError) as error:
            raise FedgazeError(
                f"Weights & Biases said: {str(error).splitlines()[0]}; check the key and the "
                "network, or set WANDB_MODE=offline"
            ) from None

    def numbers(self, values: Mapping[str, float], step: int = 0) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, name: str, file: Path, step: int | None = None) -> None:
        self._run.log({name: self._wandb.Image(str(file))}, step=step)

    def file(self, file: Path) -> None:
        self._run.save(str(file), base_path=str(file.parent), policy="now")

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow
        from mlflow.exceptions import MlflowException

        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedgaze")
        try:
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            same = self._client.search_runs(
                [experiment], f"tags.`fedgaze.folder` = '{_id(folder)}'", max_results=1
            )
            if same:
                self._run = same[0].info.run_id
                self._client.set_terminated(self._run, status="RUNNING")
            else:
                tags = {"fedgaze.folder": _id(folder), "mlflow.runName": folder.name}
                self._run = self._client.create_run(experiment, tags=tags).info.run_id
                for key, value in config.items():
                    self._client.log_param(self._run, key, str(value)[:500])
        except (MlflowException, OSError) as error:
            raise FedgazeError(
                f"MLflow said: {str(error).splitlines()[0]}; check MLFLOW_TRACKING_URI"
            ) from None

    def numbers(self, values: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_plain(key), value, now, step) for key, value in values.items()]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run, metrics[start : start + _BATCH])

    def picture(self, name: str, file: Path, step: int | None = None) -> None:
        from PIL import Image

        if step is None:
            self._client.log_artifact(self._run, str(file), _plain(f"pictures/{name}"))
            return
        with Image.open(file) as picture:
            self._client.log_image(
                self._run, picture.convert("RGB"), key=_plain(name), step=step, synchronous=True
            )

    def file(self, file: Path) -> None:
        self._client.log_artifact(self._run, str(file))

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._noted: set[Path] = set()
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def numbers(self, values: Mapping[str, float], step: int = 0) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def picture(self, name: str, file: Path, step: int | None = None) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(file) as picture:
            pixels = np.array(picture.convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def file(self, file: Path) -> None:
        # TensorBoard keeps no files; where this one lies is all that it can say.
        if file not in self._noted:
            self._writer.add_text("files", str(file.resolve()))
            self._noted.add(file)

    def close(self) -> None:
        self._writer.close()


def _id(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _plain(name: str) -> str:
    """A name without the signs that MLflow refuses."""
    return "".join(each if each.isalnum() or each in "_-./ " else "_" for each in name)
