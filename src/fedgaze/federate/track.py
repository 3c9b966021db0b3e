"""Numbers of each round to an experiment tracker, where the task asks for one."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedgaze.config import Task
from fedgaze.errors import FedgazeError

__all__ = ["Wandb", "numbers", "wants_wandb"]


def wants_wandb(task: Task) -> bool:
    """Whether the task asks for Weights & Biases, by its newer or its older key."""
    return task.wandb.use or "wandb" in task.trackers


class Wandb:
    """A run at Weights & Biases; ``WANDB_MODE=offline`` keeps it on this machine.

    A resumed run goes on in the same place.

    Args:
        task: Names account and project; its key is used and written nowhere.
        folder: The run's folder.

    Raises:
        FedgazeError: The service cannot be reached or refuses the key.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        import wandb

        spec = task.wandb
        key = spec.key.get_secret_value() if spec.key else None
        try:
            self._run = wandb.init(
                entity=spec.account,
                project=spec.project or "fedgaze",
                name=folder.name,
                id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
                resume="allow",
                dir=str(folder),
                config=task.public(),
                settings=wandb.Settings(api_key=key, silent=True, console="off"),
            )
        except (wandb.Error, OSError) as error:
            raise FedgazeError(
                f"wandb.use=true, but Weights & Biases said: {str(error).splitlines()[0]}; "
                "check wandb.key and the network, or set WANDB_MODE=offline"
            ) from None

    def log(self, record: Mapping[str, Any]) -> None:
        """Take down a round: its entry of the summary."""
        self._run.log(dict(numbers(record)), step=record["round"])

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


def numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A round's numbers by flat names: ``global/accuracy``, ``client_2/explanation/object_mass``.

    Quartiles and counts stay in the summary.
    """
    yield from _flat("global", record["global"])
    for entry in record["clients"]:
        parts = {key: value for key, value in entry.items() if key not in ("client", "samples")}
        yield from _flat(f"client_{entry['client']}", parts)


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("quartiles", "n"):
            yield from _flat(f"{prefix}/{key}", value)
        elif isinstance(value, int | float):
            yield f"{prefix}/{key}", value
