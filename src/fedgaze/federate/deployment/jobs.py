"""What a server was asked to run, so that it is run to its end whatever happens in between."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedgaze.config import Task
from fedgaze.errors import FedgazeError, nearest
from fedgaze.federate.deployment.bundle import ASK, RECORD, SIGNATURE, pack_task, signature_of
from fedgaze.federate.deployment.flower import Control
from fedgaze.federate.deployment.homes import ServerHome
from fedgaze.federate.deployment.processes import owner_of
from fedgaze.store import Run, write_bytes, write_json

__all__ = ["Job", "Jobs"]

ATTEMPTS = 5
"""How often in a row a run that ended without a word, and without a new round, is started again."""


@dataclass(frozen=True)
class Job:
    """A run that a server was asked for.

    Attributes:
        name: Of its record's folder.
        record: That folder.
        run: Flower's id of the attempt that goes on, or was last; 0 before the first.
        attempts: How many attempts in a row ended without a new round.
        rounds: How many rounds were whole when the last attempt began.
    """

    name: str
    record: str
    run: int = 0
    attempts: int = 0
    rounds: int = 0

    @property
    def summary(self) -> dict[str, Any]:
        """The record's summary; empty where it is gone."""
        try:
            found: dict[str, Any] = json.loads(
                (Path(self.record) / "summary.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError):
            return {}
        return found

    @property
    def status(self) -> str:
        """``running``, ``complete``, ``failed`` or ``stopped``; ``lost`` without a record."""
        return str(self.summary.get("status", "lost"))


class Jobs:
    """The jobs of a server, a file each.

    Args:
        home: The server's folder.
    """

    def __init__(self, home: ServerHome) -> None:
        self._home = home

    def all(self) -> list[Job]:
        """All jobs, the first one first."""
        files = sorted(self._home.jobs.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        found = []
        for path in files:
            try:
                found.append(Job(**json.loads(path.read_text(encoding="utf-8"))))
            except (ValueError, TypeError, FileNotFoundError):
                continue
        return found

    def find(self, name: str) -> Job:
        """The job of a name.

        Raises:
            FedgazeError: There is none.
        """
        jobs = {job.name: job for job in self.all()}
        if name not in jobs:
            raise FedgazeError(
                f"there is no run '{name}' on this server; there are {', '.join(jobs) or 'none'}"
                f"{nearest(name, jobs)}"
            )
        return jobs[name]

    def last(self) -> Job:
        """The job that was submitted last.

        Raises:
            FedgazeError: There is none.
        """
        if not (jobs := self.all()):
            raise FedgazeError("this server was asked for no run yet: name a run's folder")
        return jobs[-1]

    def submit(self, run: Run, task: Task, classes: tuple[str, ...]) -> Job:
        """Take down a new job: its record is there already.

        Args:
            run: The record.
            task: The task.
            classes: Its class names by index.
        """
        job = Job(run.path.name, str(run.path.resolve()))
        write_bytes(self._bundle(job), pack_task(task, classes))
        self._write(job)
        return job

    def forgive(self, job: Job) -> Job:
        """Let a job be tried again as if for the first time."""
        forgiven = replace(job, run=0, attempts=0)
        self._write(forgiven)
        return forgiven

    def start(self, job: Job, control: Control) -> Job:
        """Begin an attempt."""
        bundle = self._bundle(job).read_bytes()
        config = {RECORD: job.record}
        config[SIGNATURE] = signature_of(bundle, config, self._home.publisher)
        rounds = len(job.summary.get("rounds", []))
        fresh = rounds > job.rounds or job.run == 0
        started = replace(
            job,
            run=control.start(bundle, config),
            attempts=1 if fresh else job.attempts + 1,
            rounds=rounds,
        )
        self._write(started)
        return started

    def start_ask(self, job: Job, control: Control, folder: Path) -> int:
        """Start a run that puts a question to a client; returns Flower's id of it."""
        bundle = self._bundle(job).read_bytes()
        config = {RECORD: job.record, ASK: str(folder)}
        config[SIGNATURE] = signature_of(bundle, config, self._home.publisher)
        return control.start(bundle, config)

    def tend(self, job: Job, control: Control, *, fresh: bool) -> Job:
        """See that a job goes on.

        Args:
            job: The job.
            control: The server's.
            fresh: The server has just started, so that whatever Flower thinks goes on does not.
        """
        if job.status != "running":
            return job
        if job.run and not fresh and self._goes_on(job, control):
            return job
        if fresh:
            if job.run and control.status(job.run)[0] != "finished":
                control.stop(job.run)
            # That it ended with the server says nothing against it.
            return self.start(replace(job, attempts=0), control)
        if job.attempts >= ATTEMPTS and len(job.summary.get("rounds", [])) <= job.rounds:
            _close(job, f"{ATTEMPTS} attempts ended without a new round; see the server's log")
            return job
        return self.start(job, control)

    def _goes_on(self, job: Job, control: Control) -> bool:
        """Whether an attempt is not over; that a process is gone, Flower notices after a minute."""
        gone = self._is_gone(job)  # before the question: who ends well says so, and then goes
        if control.status(job.run)[0] == "finished":
            return False
        if gone:
            control.stop(job.run)
        return not gone

    def _is_gone(self, job: Job) -> bool:
        owner = self._home.attempt(job.name)
        try:
            noted = json.loads(owner.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False  # it has not begun
        return noted.get("run") == job.run and owner_of(owner) is None

    def _bundle(self, job: Job) -> Path:
        return self._home.jobs / f"{job.name}.fab"

    def _write(self, job: Job) -> None:
        write_json(self._home.jobs / f"{job.name}.json", asdict(job))


def _close(job: Job, reason: str) -> None:
    """Mark a record as failed, from outside."""
    run = Run.open(Path(job.record))
    try:
        run.fail(reason)
    finally:
        run.close()
