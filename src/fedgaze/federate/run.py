"""A run from its first check to its report, on either engine."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgaze.config import Task, parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate.client import client_app
from fedgaze.federate.division import describe_split
from fedgaze.federate.grid import LocalGrid
from fedgaze.federate.page import Page
from fedgaze.federate.server import Observer, Server
from fedgaze.federate.setup import NO_ROOM, prepare
from fedgaze.federate.track import Tracking
from fedgaze.report import write_federated_report
from fedgaze.store import Run, Versions, check_storage, no_room, unfinished_runs

__all__ = ["carry_out", "close_record", "find_unfinished", "resume", "start"]

MAY_CHANGE = ("num_rounds", "storage")
"""Keys that a task may change between the parts of a run."""


def start(task: Task, path: Path, observer: Observer, *, demo: bool = False) -> Run:
    """Carry out a task.

    Args:
        task: The task.
        path: The run's folder; where it exists a number is added to the name.
        observer: Is told what happens.
        demo: The record is the demo's own, and replaces the demo's earlier one.

    Returns:
        The complete run.

    Raises:
        FedgazeError: The task cannot be carried out; nothing was written.
    """
    _check_engine(task)
    setup = prepare(task)
    folder = task.xai.save_dir
    if folder.is_absolute() and any(folder.glob("round_*")):
        raise FedgazeError(
            f"xai.save_dir={folder} holds heatmaps of another run: name another folder, or a "
            "relative one, which lies inside the run's own"
        )
    run = Run.create(
        path,
        task.public(),
        setup.dataset.classes,
        image_shape=setup.image_shape,
        directory=task.directory,
        demo=demo,
    )
    return _on_engine(Server(setup, run, observer))


def resume(path: Path, task: Task | None, observer: Observer) -> Run:
    """Go on with a run after its last whole round.

    A run whose rounds are all whole is closed: what is not stored is stored, the report written.

    Args:
        path: The run's folder.
        task: The task as its file says it now; it may only have more rounds or another storage.
            By default the task as it was recorded.
        observer: Is told what happens.

    Raises:
        FedgazeError: The run is complete, or the task is another one.
    """
    run = Run.open(path)
    try:
        recorded = parse_task(run.description["task"], run.directory)
        task = task or recorded
        old, new = recorded.public(), task.public()
        for key in new:
            if old[key] != new[key] and key not in MAY_CHANGE:
                raise FedgazeError(
                    f"{path} was started with {key}={old[key]}, not {new[key]}: "
                    f"only {' and '.join(MAY_CHANGE)} may change"
                )
        whole = run.rounds_done >= task.num_rounds
        if whole:
            _check_unclosed(run, task)
        _check_engine(task)
        server = None if whole else Server(prepare(task), run, observer)
    except FedgazeError:
        run.close()
        raise
    run.description["task"] = new
    run.summary |= {"task": new, "status": "running"}
    if server is not None:
        return _on_engine(server)
    observer.run_started(task.num_rounds, run.rounds_done)
    return close_record(run, task)


def _check_unclosed(run: Run, task: Task) -> None:
    """See that a run whose rounds are all whole lacks something else."""
    if task.storage is not None:
        check_storage(task.storage)
        stored = {each["round"] for each in run.summary.get("versions", [])}
        if any(each["round"] not in stored for each in run.summary["rounds"]):
            return
    elif run.summary.get("versions_pending"):
        return  # they are not wanted any more
    if run.summary["status"] == "complete" and (run.path / "report.html").is_file():
        raise FedgazeError(f"{run.path} is complete: it has {run.rounds_done} rounds")


def find_unfinished(base: Path, name: str | None = None) -> Path:
    """The unfinished run below a folder that was written to last.

    Args:
        base: Where runs lie.
        name: Only runs of this name, with or without a number added.

    Raises:
        FedgazeError: There is none.
    """
    for path in unfinished_runs(base):
        stem, _, number = path.name.rpartition("-")
        if name in (None, path.name) or (stem == name and number.isdigit()):
            return path
    what = f" of {name}" if name else ""
    raise FedgazeError(f"there is no unfinished run{what} in {base}: nothing to resume")


def _check_engine(task: Task) -> None:
    """See that a task can be carried out by this process."""
    for key, value in (("engine", task.engine), ("dataset.partition", task.dataset.partition)):
        if value in ("deployment", "own"):
            raise FedgazeError(
                f"{key}={value} is for clients on other machines: fedgaze server start, then "
                "fedgaze run --remote"
            )


def _on_engine(server: Server) -> Run:
    engines: dict[str, Callable[[Server], None]] = {"local": _local, "simulation": _simulation}
    return carry_out(server, partial(engines[server.setup.task.engine], server))


def carry_out(server: Server, engine: Callable[[], None]) -> Run:
    """Let an engine run a server's rounds, and close the record with its report.

    Args:
        server: The server.
        engine: Calls the server's ``main`` with its grid.

    Returns:
        The complete run.

    Raises:
        FedgazeError: It went wrong; the record says why, and can be resumed.
    """
    _quiet()
    run, task = server.run, server.setup.task
    tracking = None
    try:
        with _ending(run, task):
            if (split := describe_split(server.setup)) is not None:
                run.summary["split"] = split
            run.write()
            tracking = Tracking(task, run, server.observer.trouble)
            page = Page(run.path, server.observer.trouble, always=tracking.wanted)
            versions = Versions(run, task.storage)
            server.after_round += [page.after_round, tracking.log, versions.offer]
            versions.offer()
            try:
                engine()
            finally:
                versions.close()
            _close(run, versions)
    finally:
        try:
            # Where the disk is full that was said above, and the note on a tracker has no room.
            with suppress(OSError, FedgazeError):
                if tracking and not tracking.close():
                    write_federated_report(run.path)  # which says so
        finally:
            run.close()
    return run


def close_record(run: Run, task: Task) -> Run:
    """Close a record whose rounds are all whole: store what is not stored, write the report.

    Raises:
        FedgazeError: It went wrong; the record says why, and can be resumed.
    """
    try:
        with _ending(run, task):
            run.write()
            _close(run, Versions(run, task.storage))
    finally:
        run.close()
    return run


def _close(run: Run, versions: Versions) -> None:
    """A version that cannot be stored is no error here: the record names it and says why."""
    versions.finish()
    write_federated_report(run.path, run.finished)  # what is complete has its last report
    run.finish()


@contextmanager
def _ending(run: Run, task: Task) -> Iterator[None]:
    """Say what goes wrong in one sentence, in the record as well."""
    try:
        yield
    except (FedgazeError, OSError) as error:
        sentence = str(error)
        if no_room(error) or sentence == NO_ROOM:
            place = f"--remote --resume --output {run.path.name}"
            if task.engine != "deployment":
                place = f"--resume --output {run.path}"
            sentence = (
                f"{NO_ROOM}: {run.rounds_done} whole rounds are kept; make room, and fedgaze run "
                f"{place} goes on"
            )
        with suppress(OSError):  # what is whole stays whole, and says that it is not complete
            run.fail(sentence)
        raise FedgazeError(sentence) from error


def _local(server: Server) -> None:
    task, home = server.setup.task, server.run.path.resolve()
    app = client_app(task, home)
    server.main(LocalGrid(app, task.num_clients, server.observer.client_started))


def _simulation(server: Server) -> None:
    from flwr.simulation import run_simulation

    # Flower's thread would import it while this one imports other things, which once went wrong.
    import_module("ray")
    task = server.setup.task
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        server.main(grid)

    resources: dict[str, Any] = {"num_cpus": task.resources.cpu, "num_gpus": 0}
    if server.setup.device.type == "cuda":
        resources["num_gpus"] = 1
    run_simulation(
        server_app=app,
        client_app=client_app(task, server.run.path.resolve()),
        num_supernodes=task.num_clients,
        backend_config={
            "client_resources": resources,
            "init_args": {"log_to_driver": False, "logging_level": logging.ERROR},
        },
    )


def _quiet() -> None:
    """Flower logs every step and counts its users: say only what goes wrong, and to nobody else."""
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "1",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("flwr").setLevel(logging.ERROR)
