"""A run's model versions on their way to its storage: recorded once confirmed, else pending.

In ``summary.json``, ``versions`` and ``versions_pending`` together name each whole round once.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from secrets import token_hex
from typing import Any

from fedgaze.errors import FedgazeError
from fedgaze.store.run import WAITS, Run
from fedgaze.store.storage import Storage, Stored

__all__ = ["Versions", "not_stored"]

STALL = 60.0
"""Seconds without a sign of life after which a storage is given up for the moment."""
SLOWEST = 1e6
"""Bytes a second that a storage is expected to take."""
TRIES, PAUSE = 4, 1.0
"""How often what is pending is tried at a run's end, and the first pause in seconds; it doubles."""


class Versions:
    """Stores the model of each whole round while the next rounds go on.

    A thread uploads; the record is written by those who call, never by the thread.

    Args:
        run: The record.
        url: The storage, or None for none.
    """

    def __init__(self, run: Run, url: str | None) -> None:
        self._run = run
        self._attempt: _Attempt | None = None
        self._storage: Storage | None = None
        if url is None:
            run.summary.pop("versions_pending", None)
            return
        if "mark" not in run.description:
            # Runs of the same name, on other machines too, have folders of their own.
            run.description["mark"] = token_hex(4)
        folder = f"{run.path.resolve().name}-{run.description['mark']}"
        self._storage = Storage(url, folder)
        run.summary.setdefault("versions", [])
        reasons = {each["round"]: each["reason"] for each in self._pending}
        stored = {each["round"] for each in run.summary["versions"]}
        run.summary["versions_pending"] = [
            {"round": number, "reason": reasons.get(number, WAITS)}
            for number in (each["round"] for each in run.summary["rounds"])
            if number not in stored
        ]
        run.write()

    @property
    def _pending(self) -> list[dict[str, Any]]:
        pending: list[dict[str, Any]] = self._run.summary.get("versions_pending", [])
        return pending

    @property
    def pending(self) -> list[int]:
        """The rounds whose versions are not stored."""
        return [each["round"] for each in self._pending]

    def offer(self, record: Mapping[str, Any] | None = None) -> None:
        """Take down what was stored meanwhile and try what is pending, the oldest first.

        Args:
            record: The round that has just become whole; it is among what is pending.
        """
        del record
        if self._storage is None:
            return
        if self._collect():
            self._begin(self._storage)

    def finish(self) -> None:
        """Wait for what is under way, and try a few more times what is pending after that."""
        from flwr.supercore.retry.retry_invoker import RetryInvoker, exponential

        if self._storage is None:
            return
        patient = RetryInvoker(
            lambda: exponential(PAUSE), _PendingError, max_tries=TRIES, max_time=None, jitter=None
        )
        with suppress(_PendingError, _StalledError):
            patient.invoke(self._try, self._storage)

    def close(self) -> None:
        """Take down what was stored meanwhile, without waiting for more."""
        self._collect()

    def _try(self, storage: Storage) -> None:
        self._wait()
        if self.pending:
            self._begin(storage)
            self._wait()
        if self.pending:
            raise _PendingError

    def _wait(self) -> None:
        while self._attempt is not None:
            attempt = self._attempt
            attempt.join(0.05)
            if self._collect() and attempt.left:
                raise _StalledError

    def _begin(self, storage: Storage) -> None:
        if self.pending:
            files = {number: self._run.checkpoint(number) for number in self.pending}
            self._attempt = _Attempt(storage, files)
            self._attempt.start()

    def _collect(self) -> bool:
        """Take down what the attempt said, and return whether there is none any more."""
        attempt = self._attempt
        if attempt is None:
            return True
        over = not attempt.is_alive()  # before it is listened to: it may end in between
        outcomes: dict[int, Stored | str] = dict(attempt.said())
        if not over and attempt.stalled:
            attempt.leave()
            late = f"the storage gave no sign of life for {attempt.patience:.0f} s"
            silent: dict[int, Stored | str] = dict.fromkeys(attempt.files, late)
            outcomes = silent | outcomes
        if over or attempt.left:
            self._attempt = None
        if outcomes:
            self._note(outcomes)
        return self._attempt is None

    def _note(self, outcomes: Mapping[int, Stored | str]) -> None:
        summary, left = self._run.summary, []
        for each in self._pending:
            outcome = outcomes.get(each["round"], each["reason"])
            if isinstance(outcome, Stored):
                summary["versions"].append({"round": each["round"], **asdict(outcome)})
            else:
                left.append({"round": each["round"], "reason": outcome})
        summary["versions"].sort(key=lambda version: version["round"])
        summary["versions_pending"] = left
        self._run.write_summary()


class _PendingError(Exception):
    """Something is pending still."""


class _StalledError(Exception):
    """The storage does not answer, so that there is no use in trying again now."""


class _LeftError(Exception):
    """Nobody waits for this attempt any more."""


class _Attempt(threading.Thread):
    """Tries some versions once each. A daemon: a storage that hangs must not keep the process."""

    def __init__(self, storage: Storage, files: Mapping[int, Path]) -> None:
        super().__init__(name="fedgaze-versions", daemon=True)
        self.files = files
        self._storage = storage
        self._outcomes: SimpleQueue[tuple[int, Stored | str]] = SimpleQueue()
        self._sign = time.monotonic()
        self.left = False
        # Some drivers say nothing while they copy a file.
        self.patience = STALL + max(file.stat().st_size for file in files.values()) / SLOWEST

    @property
    def stalled(self) -> bool:
        """Whether the storage has been silent for too long."""
        return time.monotonic() > self._sign + self.patience

    def leave(self) -> None:
        """Let it end by itself as soon as its storage answers."""
        self.left = True

    def said(self) -> Iterable[tuple[int, Stored | str]]:
        """What came of the rounds that were tried: the version, or why there is none."""
        with suppress(Empty):
            while True:
                yield self._outcomes.get_nowait()

    def run(self) -> None:
        """Upload one after the other."""
        for number, file in self.files.items():
            outcome: Stored | str
            try:
                outcome = self._storage.put(file, f"round_{number}.safetensors", self._alive)
            except _LeftError:
                return
            except Exception as error:  # noqa: BLE001 - whatever a driver raises, training goes on
                outcome = _reason(error)
            self._outcomes.put((number, outcome))

    def _alive(self) -> None:
        if self.left:
            raise _LeftError
        self._sign = time.monotonic()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    said = lines[0][:300] if lines else ""
    if isinstance(error, FedgazeError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def not_stored(summary: Mapping[str, Any]) -> str | None:
    """One clause on the versions that are not stored and why; None where there are none."""
    by_reason: dict[str, list[str]] = {}
    for each in summary.get("versions_pending", []):
        by_reason.setdefault(each["reason"], []).append(str(each["round"]))
    if not by_reason:
        return None
    said = "; ".join(
        f"{'rounds' if len(rounds) > 1 else 'round'} {', '.join(rounds)}: {reason}"
        for reason, rounds in by_reason.items()
    )
    return f"versions that are not stored in {summary['task']['storage']}: {said}"
