"""Numbers of each round to experiment trackers, where the task asks for them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedgaze.config import Task
from fedgaze.store import Tracker, open_tracker

__all__ = ["Tracking", "numbers", "wanted_trackers"]


def wanted_trackers(task: Task) -> list[str]:
    """The trackers that the task asks for, by its newer or its older key."""
    older = ["wandb"] if task.wandb.use else []
    return list(dict.fromkeys([*task.trackers, *older]))


class Tracking:
    """A run at each tracker that the task asks for; a resumed run goes on in the same places.

    Args:
        task: Names them; a key is used and written nowhere.
        folder: The run's folder.

    Raises:
        FedgazeError: A tracker cannot be used or reached.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self._trackers: list[Tracker] = []
        with ExitStack() as opened:
            for name in wanted_trackers(task):
                tracker = open_tracker(name, folder, task.public(), task.wandb)
                opened.callback(tracker.close)
                self._trackers.append(tracker)
            opened.pop_all()

    def log(self, record: Mapping[str, Any]) -> None:
        """Take down a round: its entry of the summary."""
        values = dict(numbers(record))
        for tracker in self._trackers:
            tracker.numbers(values, step=record["round"])

    def close(self, report: Path) -> None:
        """Hand over the report, if there is one, and send what is left."""
        with ExitStack() as closing:
            for tracker in self._trackers:
                closing.callback(tracker.close)
                if report.is_file():
                    tracker.file(report)


def numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A round's numbers by flat names: ``global/accuracy``, ``client_2/explanation/object_mass``.

    Quartiles and counts stay in the summary.
    """
    yield from _flat("global", record["global"])
    yield from _flat("privacy", record.get("privacy", {}))
    for entry in record["clients"]:
        parts = {key: value for key, value in entry.items() if key not in ("client", "samples")}
        yield from _flat(f"client_{entry['client']}", parts)


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("quartiles", "n"):
            yield from _flat(f"{prefix}/{key}", value)
        elif isinstance(value, int | float):
            yield f"{prefix}/{key}", value
