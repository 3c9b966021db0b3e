"""`fedgaze compare`: models, layers and methods side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fedgaze.cli.options import (
    MODEL,
    PICTURES,
    SHOWN,
    Checkpoint,
    ClassNames,
    Device,
    Json,
    Memory,
    MethodOptions,
    ModelCode,
    PictureFolder,
    Pictures,
    Preparation,
    Quiet,
    Seed,
    TrackerName,
    Verbose,
    given_files,
    option,
    progress_bar,
    read_options,
    speak,
    words,
)
from fedgaze.errors import FedgazeError

if TYPE_CHECKING:
    from fedgaze.report import Asked, Comparison, Row, Subject

__all__ = ["compare"]


def compare(  # noqa: PLR0913, PLR0917 - one argument an option
    images: Pictures = None,
    image_dir: PictureFolder = None,
    output: Annotated[
        Path,
        option(PICTURES, "Where results go; nothing that is there is overwritten.", metavar="DIR"),
    ] = Path("comparison"),
    model: Annotated[
        list[str] | None,
        option(
            MODEL,
            "A model as for `explain`; may be repeated. `NAME=FILE` gives it weights. Where "
            "neither a file is given nor the published weights can be had, they are random, and "
            "the figure says so.",
            metavar="NAME",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    model_code: ModelCode = None,
    classes: ClassNames = None,
    preprocess: Preparation = None,
    device: Device = "auto",
    method: Annotated[
        str, option(SHOWN, "Methods separated by commas; see `explain --list-methods`.")
    ] = "gradcam,gradcam++,eigencam,xgradcam",
    layers: Annotated[
        str,
        option(
            SHOWN,
            "Layers separated by commas: names, or `first`, `middle`, `last` of the convolutions "
            "(of a transformer: of the blocks), or `auto`.",
        ),
    ] = "first,middle,last",
    targets: Annotated[
        str,
        option(
            SHOWN,
            "The classes to explain: `top1`, `top3` …, or names or indices separated by commas. "
            "Each gets a figure of its own.",
        ),
    ] = "top1",
    multi_label: Annotated[
        bool, option(SHOWN, "Each class is a yes or no of its own.", "--multi-label")
    ] = False,
    options: MethodOptions = None,
    memory: Memory = None,
    tracker: TrackerName = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Lay models, layers and methods side by side.

    For each picture and class one figure (`NAME.comparison.png` and `.pdf`) with a row a model and
    layer and a column a method, `comparison.jsonl` with a line a heatmap, and
    `comparison.report.html` with all of them.

    **Example:** `fedgaze compare cat.jpg --model resnet152 --model densenet121 --targets top3`
    """
    files = given_files(images or [], image_dir)
    method_options = read_options(options)
    speak(verbose)
    console = Console(highlight=False, soft_wrap=True, quiet=quiet or as_json)
    with console.status("Starting"):
        from fedgaze.models import choose_device
        from fedgaze.report import Asked, targets_of, write_comparison
        from fedgaze.report import compare as rows_of
        from fedgaze.store import OutputFolder, check_tracker

        if tracker is not None:
            check_tracker(tracker)
        folder, place = OutputFolder(output), choose_device(device)
        asked = Asked(
            methods=words(method, "--method"),
            layers=words(layers, "--layers"),
            targets=targets,
            multi_label=multi_label,
            options=method_options,
            memory=memory,
        )
        _check(asked, files)
    names = _models(model or [], checkpoint, model_code)
    rows: list[Row] = []
    with progress_bar(console, "Comparing", len(names) * len(files)) as advance:
        for name in names:
            subject = _subject(name, checkpoint, model_code, classes, preprocess, seed)
            subject.classifier.model.to(place)
            targets_of(targets, subject.classifier)
            for file in files:
                rows += rows_of(subject, [file], asked)
                advance(1)
    written = write_comparison(folder, rows)
    if tracker is not None:
        _track(tracker, output, rows, written)
    if as_json:
        _print_json(written)
    else:
        _print(rows, written, console)


def _track(tracker: str, output: Path, rows: Sequence["Row"], written: "Comparison") -> None:
    """Hand probabilities, figures and the report over to a tracker."""
    from fedgaze.store import open_tracker

    config = {"models": sorted({row.model for row in rows}), "methods": list(rows[0].cells)}
    sent = open_tracker(tracker, output, config)
    try:
        for step, row in enumerate(_firsts(rows)):
            sent.numbers({f"{row.model}/probability": row.target["probability"]}, step=step)
        for figure in written.figures:
            if figure.suffix == ".png":
                sent.picture(figure.stem, figure)
        sent.file(written.record)
        sent.file(written.page)
    finally:
        sent.close()


def _check(asked: "Asked", files: Sequence[Path]) -> None:
    """Find what cannot be used before any model is opened."""
    from fedgaze.data import read_image
    from fedgaze.xai import find_method

    known = [find_method(name) for name in asked.methods]
    for name in asked.options:
        if not any(name in each.options for each in known):
            known[0].check_options({name: None})
    for file in files:
        read_image(file)


def _models(names: Sequence[str], checkpoint: Path | None, code: str | None) -> list[str | None]:
    """The models' names; None for one of the user's own code."""
    if not names and code is None:
        raise FedgazeError("say which models: --model NAME, for instance --model resnet50")
    if names and code is not None:
        raise FedgazeError("--model-code goes without --model")
    if checkpoint is not None and len(names) > 1:
        raise FedgazeError("--checkpoint is for one model; of several, say --model NAME=FILE")
    return [None] if code is not None else list(dict.fromkeys(names))


def _print_json(written: "Comparison") -> None:
    lines = written.record.read_text(encoding="utf-8").splitlines()
    figures = [str(each) for each in written.figures]
    held = {"report": str(written.page), "figures": figures}
    typer.echo(json.dumps(held | {"heatmaps": [json.loads(each) for each in lines]}))


def _print(rows: Sequence["Row"], written: "Comparison", console: Console) -> None:
    for row in _firsts(rows):
        random = "  [yellow]random weights[/]" if row.random else ""
        console.print(
            f"{escape(row.file.name)}  {escape(row.model)}: "
            f"[bold]{escape(row.target['label'])}[/] {row.target['probability']:.1%}{random}"
        )
    for figure in written.figures:
        console.print(f"[dim]→ {escape(str(figure))}[/]")
    console.print(f"report: {escape(str(written.page))}", style="bold")


def _firsts(rows: Sequence["Row"]) -> list["Row"]:
    """One row a picture, class and model."""
    return list({(row.file, row.model, row.rank): row for row in rows}.values())


def _subject(
    name: str | None,
    checkpoint: Path | None,
    code: str | None,
    classes: Path | None,
    preprocess: str | None,
    seed: int,
) -> "Subject":
    """Open a model with the weights that there are, or else with random ones."""
    import torch

    from fedgaze.models import MissingWeightsError, open_classifier
    from fedgaze.report import Subject

    if name is not None and "=" in name:
        name, _, file = name.partition("=")
        checkpoint = Path(file)
    try:
        classifier = open_classifier(
            name, checkpoint=checkpoint, code=code, classes=classes, preprocess=preprocess
        )
    except MissingWeightsError as error:
        typer.secho(
            f"fedgaze: {error}; until then the weights of {name} are RANDOM and its heatmaps mean "
            "nothing",
            err=True,
            fg=typer.colors.YELLOW,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = open_classifier(
                name, classes=classes, preprocess=preprocess, random_weights=True
            )
        return Subject(classifier, "random", random=True)
    return Subject(classifier, "published" if checkpoint is None else checkpoint.name)
