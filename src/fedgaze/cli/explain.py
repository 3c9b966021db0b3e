"""`fedgaze explain`: where does a model look in these pictures?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from fedgaze.cli.listing import print_layers, print_methods
from fedgaze.cli.options import (
    PICTURES,
    RUN,
    SHOWN,
    Checkpoint,
    ClassNames,
    Device,
    Json,
    Memory,
    MethodOptions,
    Model,
    ModelCode,
    PictureFolder,
    Pictures,
    Preparation,
    Quiet,
    TrackerName,
    Verbose,
    given_files,
    open_model,
    option,
    progress_bar,
    read_options,
    speak,
    words,
)
from fedgaze.errors import FedgazeError

__all__ = ["explain"]


def explain(  # noqa: PLR0913, PLR0917 - one argument an option
    images: Pictures = None,
    image: Annotated[
        list[Path] | None, option(PICTURES, "A picture; may be repeated.", metavar="FILE")
    ] = None,
    image_dir: PictureFolder = None,
    output: Annotated[
        Path,
        option(PICTURES, "Where results go; nothing that is there is overwritten.", metavar="DIR"),
    ] = Path("explanations"),
    model: Model = None,
    checkpoint: Checkpoint = None,
    model_code: ModelCode = None,
    classes: ClassNames = None,
    preprocess: Preparation = None,
    device: Device = "auto",
    method: Annotated[
        str,
        option(
            SHOWN,
            "A method, or several separated by commas, which are laid side by side; see "
            "`--list-methods`.",
            metavar="METHOD,…",
        ),
    ] = "gradcam",
    layer: Annotated[
        list[str] | None,
        option(
            SHOWN,
            "A layer's name (`layer4`), a Conv2d index (`-1`), or `first`, `middle`, `last`; may "
            "be repeated. By default the last layer that still has height and width.",
            metavar="LAYER",
        ),
    ] = None,
    fusion: Annotated[
        str | None,
        option(
            SHOWN,
            "How several layers become one: `mean`, `max`, `weighted`, `layercam`. By default as "
            "the method's paper does.",
            metavar="HOW",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        option(
            SHOWN,
            "The class to explain, by name or index; may be repeated. By default the predicted.",
            metavar="CLASS",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        option(SHOWN, "Explain so many of the likeliest classes.", min=1, metavar="K"),
    ] = None,
    against: Annotated[
        str | None,
        option(SHOWN, "Explain the target rather than this class.", metavar="CLASS"),
    ] = None,
    multi_label: Annotated[
        bool, option(SHOWN, "Each class is a yes or no of its own.", "--multi-label")
    ] = False,
    signed: Annotated[
        bool, option(SHOWN, "Show also what speaks against the target.", "--signed")
    ] = False,
    smoothing: Annotated[
        list[str] | None,
        option(SHOWN, "`augment`, `eigen`; may be repeated.", metavar="HOW"),
    ] = None,
    options: MethodOptions = None,
    region: Annotated[
        float | None,
        option(
            SHOWN,
            "Find what reaches this part of the heatmap's maximum, in (0, 1]: `NAME.mask.png`, "
            "and in the record the box round the hottest spot.",
            metavar="THRESHOLD",
        ),
    ] = None,
    alpha: Annotated[
        float, option(SHOWN, "How strongly the heatmap covers the picture.", min=0.0, max=1.0)
    ] = 0.7,
    colormap: Annotated[
        str | None, option(SHOWN, "A colour map of Matplotlib.", metavar="NAME")
    ] = None,
    batch_size: Annotated[int, option(RUN, "How many pictures are explained at once.", min=1)] = 16,
    precision: Annotated[
        str,
        option(
            RUN,
            "`full`; `fast`: convolutions fused with BatchNorm, channels last; `bf16`: that in "
            "bfloat16, where it is sound.",
        ),
    ] = "full",
    memory: Memory = None,
    report: Annotated[
        bool,
        option(PICTURES, "Also write a page with all of them, `explanations.report.html`."),
    ] = False,
    tracker: TrackerName = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    list_methods: Annotated[
        bool,
        typer.Option(
            "--list-methods",
            help="List the methods with their cost and options.",
            is_eager=True,
            callback=print_methods,
        ),
    ] = False,
    list_layers: Annotated[
        str | None,
        typer.Option(
            help="List the layers of a model that can be explained.",
            metavar="MODEL",
            is_eager=True,
            callback=print_layers,
        ),
    ] = None,
) -> None:
    """Show where an image classifier looks.

    For each picture an overlay (`NAME.overlay.png`: the part that the model saw, in the picture's
    own resolution up to 1024 pixels) and the heatmap (in the model's: `NAME.heatmap.npy`, values in
    [0, 1], with `--signed` in [-1, 1], and in colour `NAME.heatmap.png`) are written. Where each
    pixel is judged, the strongest in a hundred are drawn alike, so that the others can be seen.
    `explanations.jsonl` has a JSON line a map: its file, the predicted and the explained class with
    their probabilities, the method and the layers. With several methods or targets there are
    `NAME.METHOD.overlay.png` and so on, and `NAME.side_by_side.png`.
    A name that is taken gets `-2`, `-3` …

    A picture that cannot be read is reported, and the others go on; the exit code is then 1.

    **Example:** `fedgaze explain cat.jpg --model resnet50 --method gradcam,layercam --target tabby`
    """
    del list_methods, list_layers
    method_options = read_options(options)
    if region is not None and not 0 < region <= 1:
        raise FedgazeError(f"--region is {region}; allowed is more than 0, up to 1")
    files = given_files([*(images or []), *(image or [])], image_dir)

    from fedgaze.store import OutputFolder, check_tracker

    if tracker is not None:
        check_tracker(tracker)
    folder = OutputFolder(output)
    speak(verbose)
    console = Console(highlight=False, soft_wrap=True, quiet=quiet or as_json)
    with console.status("Opening the model"):
        from fedgaze.report import How, explain_files

        classifier = open_model(model, checkpoint, model_code, classes, preprocess, device)
    how = How(
        methods=words(method, "--method"),
        layers=layer or (),
        targets=target or (),
        top_k=top_k,
        against=against,
        alpha=alpha,
        colormap=colormap,
        batch_size=batch_size,
        region=region,
        multi_label=multi_label,
        settings={
            "fusion": fusion,
            "relu": False if signed else None,
            "smoothing": smoothing or (),
            "precision": precision,
            "memory": memory,
        },
        options=method_options,
    )
    records: list[dict[str, Any]] = []
    done = failed = 0
    try:
        with progress_bar(console, "Explaining", len(files)) as advance:
            for result in explain_files(classifier, files, folder, how):
                records.extend(result.records)
                advance(1)
                if result.error is None:
                    done += 1
                    console.print(_line(result.records, output))
                else:
                    failed += 1
                    typer.secho(f"fedgaze: {result.error}", err=True, fg=typer.colors.RED)
    finally:
        # What is done is recorded, however the rest ended; if nothing was, nothing is written.
        if done:
            written = [folder.write_lines("explanations", records)]
            console.print(f"{done} explained; recorded in {escape(str(written[0]))}")
            if report:
                from fedgaze.report import write_explanations

                written.append(write_explanations(folder, classifier, records, how))
                console.print(f"report: {escape(str(written[-1]))}", style="bold")
            if tracker is not None:
                _track(tracker, output, records, written)
            if as_json:
                typer.echo(json.dumps(records, ensure_ascii=False))
    if failed:
        raise typer.Exit(1)


def _track(
    tracker: str, output: Path, records: Sequence[dict[str, Any]], written: Sequence[Path]
) -> None:
    """Hand probabilities, overlays, the record and the report over to a tracker."""
    from fedgaze.store import open_tracker

    done = [each for each in records if "error" not in each]
    keys = ("model", "method", "layers")
    sent = open_tracker(tracker, output, {key: done[0][key] for key in keys})
    try:
        for step, each in enumerate(done):
            if each["explained"] is not None:
                values = {f"{each['method']}/probability": each["explained"]["probability"]}
                sent.numbers(values, step=step)
            sent.picture(Path(each["overlay"]).stem, output / each["overlay"])
        for file in written:
            sent.file(file)
    finally:
        sent.close()


def _line(records: Sequence[dict[str, Any]], output: Path) -> str:
    first = records[0]
    predicted, explained = first["predicted"], first["explained"]
    text = (
        f"{escape(first['file'])}  [bold]{escape(predicted['label'])}[/] "
        f"{predicted['probability']:.1%}"
    )
    if len(records) == 1 and explained is None:
        text += ", explained: one class against another"
    elif len(records) == 1 and explained != predicted:
        text += f", explained: {escape(explained['label'])} {explained['probability']:.1%}"
    flags = dict.fromkeys(
        flag if len(records) == 1 else f"{record['method']}: {flag}"
        for record in records
        for flag in record["flags"]
    )
    if flags:
        text += f"  [yellow]{escape(', '.join(flags))}[/]"
    if "precision" in first and ": " in first["precision"]:
        text += f"  [yellow]{escape(first['precision'])}[/]"
    shown = first.get("side_by_side", first["overlay"])
    return f"{text}  [dim]→ {escape(str(output / shown))}[/]"
