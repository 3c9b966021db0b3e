"""`fedgaze ask`: where does a model of a run look in this picture, now?"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedgaze.cli.server import SERVER_HOME
from fedgaze.errors import FedgazeError

__all__ = ["ask"]


def ask(
    image: Annotated[Path, typer.Option(help="The picture.", metavar="FILE", show_default=False)],
    client: Annotated[
        str | None,
        typer.Option(
            help="A connected client, by name or number: its own model. By default the merged one.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="A run of the server by its name, or the folder of any run. By default the "
            "server's last.",
            show_default=False,
        ),
    ] = None,
    round_: Annotated[
        int | None,
        typer.Option("--round", help="The model after this round; by default the last.", min=0),
    ] = None,
    target: Annotated[
        int | None, typer.Option(help="A class index; by default the predicted one.", min=0)
    ] = None,
    output: Annotated[Path, typer.Option(help="Where to write.", metavar="DIR")] = Path("asked"),
    home: Annotated[Path, typer.Option(help="The server's folder.", metavar="DIR")] = SERVER_HOME,
) -> None:
    """Ask a connected client, or a merged model, where it looks in a picture.

    A client answers within what it agreed to share: numbers with `profile`, the map from `maps` on.
    """
    from fedgaze.federate.ask import Question, ask_record
    from fedgaze.federate.deployment import Jobs, ServerHome, ask_client
    from fedgaze.store import OutputFolder

    console = Console(highlight=False, soft_wrap=True)
    question, folder = Question.of_file(image, target, round_), OutputFolder(output)
    jobs = Jobs(ServerHome(home))
    with console.status("Asking"):
        if client is not None:
            job = jobs.find(run) if run else jobs.last()
            said = ask_client(ServerHome(home), job, client, question, 120.0)
            record = Path(job.record)
        else:
            known = {job.name: Path(job.record) for job in jobs.all()}
            record = known.get(run, Path(run)) if run else Path(jobs.last().record)
            said = ask_record(record, question)
    classes = _classes(record)
    facts = {"picture": str(image), "client": client, "run": record.name, **said.facts}
    facts |= {f"{key}_name": classes[said.facts[key]] for key in ("predicted", "explained")}
    files = {".json": lambda file: file.write(json.dumps(facts, indent=1).encode())}
    picture, heatmap = said.overlay(question), said.heatmap
    if picture is not None and heatmap is not None:
        import numpy as np

        files[".overlay.png"] = lambda file: picture.save(file, "PNG")
        files[".heatmap.npy"] = lambda file: np.save(file, heatmap)
    written = folder.write_together(image.stem, files)
    who = f"client {client}" if client else "the merged model"
    console.print(
        f"{who} sees {facts['predicted_name']}; it gives {facts['explained_name']} "
        f"{facts['probability']:.3f}"
    )
    if picture is None:
        console.print("its heatmap is kept at the client, which shares numbers only")
    for path in written.values():
        console.print(str(path))


def _classes(record: Path) -> list[str]:
    try:
        names: list[str] = json.loads((record / "summary.json").read_text("utf-8"))["classes"]
    except (OSError, ValueError, KeyError) as error:
        raise FedgazeError(f"the record in {record} cannot be read: {error}") from None
    return names
