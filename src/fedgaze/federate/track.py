"""Numbers, heatmaps and the report of each round to the trackers that the task asks for."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from PIL import Image

from fedgaze.config import Task
from fedgaze.federate.setup import reason, wanted_trackers
from fedgaze.report import first_overlays
from fedgaze.store import Run, Tracker, open_tracker

__all__ = ["Tracking", "numbers", "pictures"]

PATIENCE = 60.0
"""Seconds that a tracker may take for a round, after which the run goes on without it."""

MOST_PICTURES = 50
"""Heatmaps of one round that a tracker is given."""

LONGEST = 200
"""Letters of a reason: libraries say where, what, why and once more."""

_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


class Tracking:
    """A run at each tracker that the task asks for; a resumed run goes on in the same places.

    A tracker that fails, or takes too long, is noted in the run's summary and tried again with the
    next round. It never ends the run.

    Args:
        task: Names them; a key is used and written nowhere.
        run: The record.
        trouble: Told of each tracker's first failure.
    """

    def __init__(self, task: Task, run: Run, trouble: Callable[[str], None]) -> None:
        self._run = run
        self._trouble = trouble
        self._secrets = [task.wandb.secret, *map(os.environ.get, _SECRETS)]
        self._failures: dict[str, list[str]] = {}
        self._lines = {
            name: _Line(partial(open_tracker, name, run.path, task.public(), task.wandb))
            for name in wanted_trackers(task)
        }
        self._each("at the start", lambda _: None)

    @property
    def wanted(self) -> bool:
        """Whether there is any tracker."""
        return bool(self._lines)

    @property
    def _report(self) -> Path:
        return self._run.path / "report.html"

    def log(self, record: Mapping[str, Any]) -> None:
        """Hand over a whole round.

        Args:
            record: Its entry of the summary.
        """
        number = record["round"]
        values = dict(numbers(record))
        shown = pictures(record, self._run.path)

        def hand_over(tracker: Tracker) -> None:
            tracker.numbers(values, number)
            for name, file in shown.items():
                tracker.picture(name, file, number)
            if self._report.is_file():
                tracker.file(self._report)

        self._each(f"in round {number}", hand_over)

    def close(self) -> bool:
        """Hand over the report as it is in the end, and send what is left.

        Returns:
            Whether all went well.
        """

        def finish(tracker: Tracker) -> None:
            with closing(tracker):
                if self._report.is_file():
                    tracker.file(self._report)

        return self._each("at the end", finish, only_open=True)

    def _each(self, when: str, work: Callable[[Tracker], None], *, only_open: bool = False) -> bool:
        well = True
        for name, line in self._lines.items():
            if only_open and not line.open:
                continue
            if (why := line.do(work)) is not None:
                well = False
                self._note(name, when, self._cleaned(why))
        return well

    def _note(self, name: str, when: str, why: str) -> None:
        times = self._failures.setdefault(name, [])
        times.append(when)
        how = when if len(times) == 1 else f"{len(times)} times, first {times[0]}, last {when}"
        self._run.summary.setdefault("trackers", {})[name] = f"failed {how}: {why}"
        self._run.write_summary()
        if len(times) == 1:
            self._trouble(f"{name} failed {when}: {why}; the run goes on")

    def _cleaned(self, why: str) -> str:
        """The first line without keys, nor the user and password of an address."""
        line = next(iter(why.strip().splitlines()), "no reason given")
        for secret in filter(None, self._secrets):
            line = line.replace(secret, "…")
        line = re.sub(r"://\S*@", "://", line)
        return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


class _Line:
    """The line to a tracker: its calls run in a thread of their own, which may fail or hang.

    Args:
        connect: Opens the tracker.
    """

    def __init__(self, connect: Callable[[], Tracker]) -> None:
        self._connect = connect
        self._tracker: Tracker | None = None
        self._thread: Thread | None = None

    @property
    def open(self) -> bool:
        """Whether the tracker was ever reached."""
        return self._tracker is not None

    def do(self, work: Callable[[Tracker], None]) -> str | None:
        """Do something with the tracker, which is opened first where it is not.

        Returns:
            Why it failed; None where all went well.
        """
        if self._thread is not None and self._thread.is_alive():
            return "it is still busy with what it was given before"
        said: list[str] = []
        # A daemon: one that hangs does not keep the process from its end.
        self._thread = Thread(target=self._work, args=(work, said), daemon=True)
        self._thread.start()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            return f"it took longer than {PATIENCE:g} s"
        return said[0] if said else None

    def _work(self, work: Callable[[Tracker], None], said: list[str]) -> None:
        try:
            if self._tracker is None:
                self._tracker = self._connect()
            work(self._tracker)
        except BaseException as error:  # noqa: BLE001 - not even an exit of its ends the run
            said.append(reason(error))


def numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A round's numbers by flat names: ``global/accuracy``, ``client_2/explanation/object_mass``.

    Quartiles and counts stay in the summary.
    """
    yield from _flat("global", record["global"])
    yield from _flat("server/system", record.get("system", {}))
    yield from _flat("privacy", record.get("privacy", {}))
    for entry in record["clients"]:
        parts = {key: value for key, value in entry.items() if key not in ("client", "samples")}
        yield from _flat(f"client_{entry['client']}", parts)
    for decision in record.get("gate", {}).get("clients", []):
        said = {key: decision[key] for key in ("suspicion", "factor")}
        yield from _flat(f"client_{decision['client']}/gate", said)


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict) and key not in ("quartiles", "n"):
            yield from _flat(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{key}", value


def pictures(record: Mapping[str, Any], path: Path) -> dict[str, Path]:
    """A round's overlays by names such as ``client_2/class_3``: each class's first sample.

    The server's own where there are any, else what the client shared. Where there are more than
    :data:`MOST_PICTURES`, everybody's first classes come before anybody's last.

    Args:
        record: The round's entry of the summary.
        path: The run's folder.
    """
    models = {"global": record["global"]} | {
        f"client_{entry['client']}": entry for entry in record["clients"]
    }
    found = [
        (label, place, name, file)
        for place, (name, said) in enumerate(models.items())
        for label, file in (
            first_overlays(path, said.get("server_explanation"))
            or first_overlays(path, said.get("explanation"))
        ).items()
    ]
    return {
        f"{name}/class_{label}": file
        for label, _, name, file in sorted(found)[:MOST_PICTURES]
        if _readable(file)
    }


def _readable(file: Path) -> bool:
    """Whether it is a picture: no tracker shall fail at a file that some client sent."""
    try:
        with Image.open(file) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True
