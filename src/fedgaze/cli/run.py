"""`fedgaze run`: carry out a task, or go on with one."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedgaze.cli.server import SERVER_HOME
from fedgaze.errors import FedgazeError

if TYPE_CHECKING:
    from fedgaze.config import Task
    from fedgaze.federate import Observer
    from fedgaze.store import Run

__all__ = ["carry_out", "how_to_go_on", "run"]

RUNS = Path("runs")


def run(
    config: Annotated[
        Path | None,
        typer.Argument(help="The task's YAML file.", metavar="CONFIG", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Overrule the file: `num_rounds=3 xai.layer=conv2`.",
            metavar="[KEY=VALUE]…",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the unfinished run, after its last whole round."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The run's folder. By default `runs/<task_id>`; one that exists is left alone and "
            "`-2` is added.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    remote: Annotated[
        bool,
        typer.Option(
            "--remote",
            help="Let this machine's server (`fedgaze server start`) run it on its clients. "
            "Leaving with Ctrl-C leaves the run going.",
        ),
    ] = False,
    home: Annotated[
        Path, typer.Option(help="The server's folder, with `--remote`.", metavar="DIR")
    ] = SERVER_HOME,
) -> None:
    """Carry out a task: federated learning in which each client explains itself each round."""
    from fedgaze.config import load_task
    from fedgaze.federate import find_unfinished, start
    from fedgaze.federate import resume as go_on

    console = Console(highlight=False)
    task = load_task(config, overrides or []) if config else None
    if remote:
        _remote(console, task, home, output if resume else None)
    elif resume:
        name = task.task_id if task else None
        path = output or find_unfinished(RUNS, name)
        carry_out(
            console,
            lambda watch: go_on(path, task, watch),
            how_to_go_on(output),
            threshold=_recorded_threshold(path),
        )
    elif task:
        path = output or RUNS / task.task_id
        carry_out(
            console,
            lambda watch: start(task, path, watch),
            how_to_go_on(output),
            threshold=task.gate.threshold,
        )
    else:
        raise FedgazeError("say which task: fedgaze run conf/config.yaml, or try fedgaze demo")


def how_to_go_on(output: Path | None) -> str | None:
    """How to go on with a run whose folder was named."""
    kept = "interrupted; whole rounds are kept: fedgaze run --resume --output"
    return f"{kept} {output} goes on" if output else None


def _remote(console: Console, task: "Task | None", home: Path, resumed: Path | None) -> None:
    from fedgaze.cli.watch import threshold_of
    from fedgaze.federate.deployment import ServerHome, control_of, follow, resubmit, submit

    place = ServerHome(home)
    control_of(place).close()  # says so where it does not run
    if resumed:
        job = resubmit(place, resumed.name)
    elif task:
        job = submit(place, task)
    else:
        raise FedgazeError("say which task, or with --resume --output RUN which run of the server")
    left = f"{job.name} goes on without you: fedgaze server logs {job.name} -f"
    threshold = threshold_of(job.summary)
    carry_out(console, lambda watch: follow(job, watch), left, threshold=threshold)


def _recorded_threshold(path: Path) -> float:
    from fedgaze.cli.watch import threshold_of
    from fedgaze.store import Run

    run = Run.open(path)
    try:
        return threshold_of(run.summary)
    finally:
        run.close()


def carry_out(
    console: Console,
    work: Callable[["Observer"], "Run"],
    left: str | None = None,
    *,
    threshold: float = 0.5,
) -> "Run":
    """Do a run's work under a progress bar and print how it ended.

    Args:
        console: Where to print.
        work: Starts or resumes the run that it returns.
        left: What to say after an interruption; by default, how to go on.
        threshold: The task's ``gate.threshold``.
    """
    from fedgaze.cli.watch import Watch, final_table
    from fedgaze.store import not_stored

    try:
        with Watch(console, threshold) as watch:
            done = work(watch)
    except KeyboardInterrupt:
        usual = "interrupted; whole rounds are kept: fedgaze run --resume goes on"
        console.print(left or usual)
        raise typer.Exit(130) from None
    summary = done.summary
    planted = (summary["task"]["dataset"]["plant"] or {}).get("clients", [])
    console.print()
    console.print(final_table(summary["rounds"][-1], planted))
    console.print(f"report  {done.path / 'report.html'}", soft_wrap=True)
    console.print(f"record  {done.path / 'summary.json'}", soft_wrap=True)
    if left := not_stored(summary):
        remote = "--remote " if summary["task"]["engine"] == "deployment" else ""
        place = done.path.name if remote else done.path
        typer.secho(
            f"fedgaze: the run is complete but for {left}; fedgaze run {remote}--resume --output "
            f"{place} tries again",
            err=True,
            fg=typer.colors.RED,
        )
        raise typer.Exit(1)
    return done
