"""`fedgaze export`: a run's model as files that others can load."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fedgaze.cli.options import RUN, Json, Quiet, option, words
from fedgaze.cli.run import RUNS
from fedgaze.errors import FedgazeError

if TYPE_CHECKING:
    from fedgaze.federate import Exported

__all__ = ["export"]

WRITTEN = "What is written"


def export(  # noqa: PLR0913, PLR0917 - one argument an option
    run: Annotated[
        str,
        typer.Argument(
            help="A run's folder, or its name below `runs`.", metavar="RUN", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        option(
            WRITTEN,
            "The folder to make. By default `RUN/export/round_<r>`; one that is there is left "
            "alone and `-2` is added.",
            metavar="DIR",
        ),
    ] = None,
    which: Annotated[
        str,
        option(
            WRITTEN,
            "After which round: its number, `last`, or `best` by the merged model's accuracy on "
            "the server's held-out images.",
            "--round",
            metavar="N",
        ),
    ] = "last",
    formats: Annotated[
        str | None,
        option(
            WRITTEN,
            "`safetensors`, `onnx`, `state-dict`, or several separated by commas. By default all "
            "that can be made of the model.",
            "--format",
            metavar="FORMAT,…",
        ),
    ] = None,
    pictures: Annotated[
        bool,
        option(
            WRITTEN,
            "Show heatmaps in the model card: the server's, which are drawn on its own images, "
            "and those that clients shared.",
        ),
    ] = True,
    task_dir: Annotated[
        Path | None,
        option(
            RUN,
            "The task's own directory, where it has moved since the run.",
            metavar="DIR",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's model as files that others can load, with a model card.

    The folder gets `model.safetensors`, `state_dict.pt` and `model.onnx` (which was run, and
    compared with the model), the code that builds the model, `classes.json`, `preprocess.json`, and
    `README.md`: a model card with the metrics of each round, where the model looks, and how to load
    each file. The data set need not be at hand. ONNX needs `pip install 'fedgaze[onnx]'`.

    **Example:** `fedgaze export runs/starter --round best --format safetensors,onnx`
    """
    if task_dir is not None and not task_dir.is_dir():
        raise FedgazeError(f"--task-dir {task_dir} is not a folder")
    from fedgaze.federate import export_run
    from fedgaze.store import find_run

    console = Console(highlight=False, soft_wrap=True, quiet=quiet or as_json)
    path = find_run(run, RUNS)
    with console.status("Exporting"):
        done = export_run(
            path,
            which=which,
            formats=None if formats is None else words(formats, "--format"),
            output=output,
            directory=task_dir,
            pictures=pictures,
        )
    if as_json:
        typer.echo(json.dumps(asdict(done) | {"folder": str(done.folder)}, ensure_ascii=False))
    _say(console, done)
    troubles = [f"no {kind}: {why}" for kind, why in done.left_out.items()]
    if done.missing and done.missing not in done.left_out.values():
        troubles.append(done.missing)
    for trouble in troubles:
        typer.secho(f"fedgaze: {trouble}", err=True, fg=typer.colors.YELLOW)


def _say(console: Console, done: "Exported") -> None:
    goes_on = ", of a run that is not finished" if done.unfinished else ""
    console.print(f"the merged model after round {done.round}{goes_on}")
    for name, what in done.files.items():
        console.print(f"  {escape(name):<20} [dim]{escape(what)}[/]")
    if done.pictures:
        console.print(f"  {'heatmaps/':<20} [dim]{done.pictures} pictures for the card[/]")
    if done.onnx:
        console.print(
            f"model.onnx was run on {done.onnx.images} images: its logits differ from the model's "
            f"by {done.onnx.difference:.1e} at most"
        )
    console.print(f"→ {escape(str(done.folder))}", style="bold")
