"""The record of a run: a folder that is whole after every round.

```
runs/<name>/
  run.json                      what it takes to go on: the task, where its code lies, its marks
  summary.json                  what happened: rounds, metrics, explanations
  checkpoints/round_<r>.safetensors
  heatmaps/round_<r>/…          pictures, raw maps and manifests (xai.save_dir)
  clients/client_<c>/           what would lie at the client's home
  report.html
```
A round counts once it stands in ``summary.json``, which is replaced as a whole and last.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from fedgaze.errors import FedgazeError, nearest
from fedgaze.store.files import no_room, remove_parts, save_tensors, write_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Run", "checkpoint_of", "find_run", "task_directory", "unfinished_runs"]

RUN, SUMMARY = "run.json", "summary.json"
WAITS = "not stored yet"
"""Why a version is pending that was not tried."""


class Run:
    """A run's folder, held by one process.

    Attributes:
        path: The folder.
        directory: The task's own directory, or None.
        summary: What ``summary.json`` holds.
    """

    def __init__(
        self,
        path: Path,
        description: dict[str, Any],
        summary: dict[str, Any],
        *,
        patience: float = 0.0,
    ) -> None:
        self.path = path
        self.description = description
        self.summary = summary
        directory = description["directory"]
        self.directory = Path(directory) if directory else None
        self._lock = _lock(path, patience)

    @classmethod
    def create(
        cls,
        path: Path,
        task: Mapping[str, Any],
        classes: tuple[str, ...],
        *,
        image_shape: tuple[int, int, int] | None = None,
        directory: Path | None = None,
        demo: bool = False,
    ) -> Self:
        """Start a record.

        Args:
            path: Where. An existing folder is left alone and ``-2``, ``-3`` … is added to the
                name; only the demo's own earlier record is replaced by the demo.
            task: The task as plain values, without secrets.
            classes: Class names by index.
            image_shape: Channels, height and width of the images.
            directory: The task's own directory.
            demo: Marks the record as the demo's.

        Raises:
            FedgazeError: It cannot be written; nothing is left of it.
        """
        if demo and _is_demo(path):
            with _lock(path):
                shutil.rmtree(path)
        path = _make_folder(path)
        description = {
            "task": task,
            "directory": str(directory) if directory else None,
            "demo": demo,
        }
        try:
            run = cls(path, description, _empty(task, classes, image_shape))
            run.write()
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            why = "the disk is full" if no_room(error) else error.strerror
            raise FedgazeError(f"{path} cannot be written: {why}") from error
        return run

    @classmethod
    def open(cls, path: Path, patience: float = 0.0) -> Self:
        """Open an existing record to go on with it; what was half-written there is removed.

        Args:
            path: The record.
            patience: Seconds to wait for a process that still holds it.

        Raises:
            FedgazeError: There is no record, it cannot be read, or another process holds it.
        """
        try:
            texts = [(path / name).read_text(encoding="utf-8") for name in (RUN, SUMMARY)]
            description, summary = map(json.loads, texts)
        except FileNotFoundError:
            raise FedgazeError(f"{path} holds no record of a run") from None
        except ValueError as error:
            raise FedgazeError(f"the record in {path} cannot be read: {error}") from None
        run = cls(path, description, summary, patience=patience)
        remove_parts(path)
        return run

    @property
    def rounds_done(self) -> int:
        """How many rounds are whole."""
        return len(self.summary["rounds"])

    def checkpoint(self, number: int) -> Path:
        """Where the global weights after a round lie; 0 is before the first."""
        return checkpoint_of(self.path, number)

    def commit(
        self,
        record: dict[str, Any],
        weights: "Mapping[str, Tensor]",
        state: "Mapping[str, Tensor]",
    ) -> None:
        """Write a whole round: weights, then the strategy's state, then the summary.

        Args:
            record: The round's entry of the summary.
            weights: The global model's state after it.
            state: What the strategy remembers from round to round.
        """
        number = record["round"]
        save_tensors(self.checkpoint(number), weights)
        if state:
            save_tensors(self.strategy_state(number), state)
        whole = self.summary | {"rounds": [*self.summary["rounds"], record]}
        if "versions_pending" in whole:
            waits = {"round": number, "reason": WAITS}
            whole["versions_pending"] = [*whole["versions_pending"], waits]
        write_json(self.path / SUMMARY, whole)
        self.summary = whole
        if number > 1:
            self.strategy_state(number - 1).unlink(missing_ok=True)

    def strategy_state(self, number: int) -> Path:
        """Where the strategy's memory after a round lies, if it has one."""
        return self.path / "checkpoints" / f"strategy_{number}.safetensors"

    def fail(self, reason: str) -> None:
        """Mark the run as given up, and say why; it can be resumed."""
        self.summary |= {"status": "failed", "failure": reason}
        self.write_summary()

    def reopen(self) -> None:
        """Mark a run that failed or was stopped as running again."""
        self.summary["status"] = "running"
        self.summary.pop("failure", None)
        self.write_summary()

    def stop(self) -> None:
        """Mark the run as stopped by somebody; it can be resumed."""
        self.summary["status"] = "stopped"
        self.write_summary()

    def finish(self) -> None:
        """Mark the run as complete."""
        self.summary = self.finished
        self.write_summary()

    @property
    def finished(self) -> dict[str, Any]:
        """The summary as it is once the run is complete."""
        whole = self.summary | {"status": "complete"}
        whole.pop("failure", None)
        return whole

    def write(self) -> None:
        """Replace both files of the record by what it holds now."""
        write_json(self.path / RUN, self.description)
        self.write_summary()

    def write_summary(self) -> None:
        """Replace ``summary.json`` by what the summary holds now."""
        write_json(self.path / SUMMARY, self.summary)

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.release()


def unfinished_runs(base: Path) -> list[Path]:
    """The runs below a folder that lack rounds or stored versions, the latest written first."""
    found = []
    for path in base.glob(f"*/{SUMMARY}"):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            left = summary["status"] != "complete" or summary.get("versions_pending")
        except (ValueError, KeyError):
            continue
        if left and (path.parent / RUN).is_file():
            found.append(path)
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in found]


def find_run(word: str, base: Path) -> Path:
    """Find a run by its folder, or by its name below a folder of runs.

    Args:
        word: As it was given.
        base: Where runs lie.

    Raises:
        FedgazeError: There is none.
    """
    for path in (Path(word), base / word):
        if (path / SUMMARY).is_file():
            return path
    beside = Path(word).parent
    names = [path.parent.name for path in base.glob(f"*/{SUMMARY}")]
    paths = [str(path.parent) for path in beside.glob(f"*/{SUMMARY}")]
    what = f"{word} holds no record of a run" if Path(word).exists() else f"there is no run {word}"
    raise FedgazeError(f"{what}{nearest(word, [*names, *paths])}")


def checkpoint_of(run: Path, number: int) -> Path:
    """Where a run's global weights after a round lie; 0 is before the first."""
    return run / "checkpoints" / f"round_{number}.safetensors"


def task_directory(run: Path) -> Path | None:
    """The own directory of a run's task, as it was recorded; None where it had none."""
    try:
        directory = json.loads((run / RUN).read_text(encoding="utf-8"))["directory"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(directory) if directory else None


def _lock(path: Path, patience: float = 0.0) -> FileLock:
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise FedgazeError(f"{path} is being carried out by another process") from None
    return lock


def _empty(
    task: Mapping[str, Any], classes: tuple[str, ...], image_shape: tuple[int, int, int] | None
) -> dict[str, Any]:
    from fedgaze import __version__

    return {
        "fedgaze": __version__,
        "status": "running",
        "task": dict(task),
        "classes": list(classes),
        "image_shape": image_shape and list(image_shape),
        "rounds": [],
    }


def _is_demo(path: Path) -> bool:
    try:
        return bool(json.loads((path / RUN).read_text(encoding="utf-8"))["demo"])
    except (OSError, ValueError, KeyError):
        return False


def _make_folder(path: Path) -> Path:
    number = 1
    while True:
        chosen = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            chosen.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise FedgazeError(f"{chosen} cannot be made: {error.strerror}") from None
        else:
            return chosen
