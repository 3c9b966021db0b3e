"""`fedgaze run`: carry out a task, or go on with one."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedgaze.errors import FedgazeError

if TYPE_CHECKING:
    from fedgaze.federate import Observer
    from fedgaze.store import Run

__all__ = ["carry_out", "run"]

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
) -> None:
    """Carry out a task: federated learning in which each client explains itself each round."""
    from fedgaze.config import load_task
    from fedgaze.federate import find_unfinished, start
    from fedgaze.federate import resume as go_on

    console = Console(highlight=False)
    task = load_task(config, overrides or []) if config else None
    if resume:
        name = task.task_id if task else None
        path = output or find_unfinished(RUNS, name)
        carry_out(console, lambda watch: go_on(path, task, watch), output)
    elif task:
        path = output or RUNS / task.task_id
        carry_out(console, lambda watch: start(task, path, watch), output)
    else:
        raise FedgazeError("say which task: fedgaze run conf/config.yaml, or try fedgaze demo")


def carry_out(
    console: Console, work: Callable[["Observer"], "Run"], output: Path | None = None
) -> "Run":
    """Do a run's work under a progress bar and print how it ended.

    Args:
        console: Where to print.
        work: Starts or resumes the run that it returns.
        output: The folder that was asked for, to say how to go on after an interruption.
    """
    from fedgaze.cli.watch import Watch, final_table

    try:
        with Watch(console) as watch:
            done = work(watch)
    except KeyboardInterrupt:
        where = f" --output {output}" if output else ""
        console.print(f"interrupted; whole rounds are kept: fedgaze run --resume{where} goes on")
        raise typer.Exit(130) from None
    summary = done.summary
    planted = (summary["task"]["dataset"]["plant"] or {}).get("clients", [])
    console.print()
    console.print(final_table(summary["rounds"][-1], planted))
    console.print(f"report  {done.path / 'report.html'}", soft_wrap=True)
    console.print(f"record  {done.path / 'summary.json'}", soft_wrap=True)
    return done
