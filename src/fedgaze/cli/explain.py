"""`fedgaze explain`: where does a model look in these pictures?"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedgaze.errors import FedgazeError, nearest

__all__ = ["explain"]

_PICTURES, _MODEL, _SHOWN = "Pictures", "Model", "Explanation"


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def explain(  # noqa: PLR0913, PLR0917 - one argument an option
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Pictures: JPEG, PNG, WebP …", metavar="IMAGE…", show_default=False),
    ] = None,
    image: Annotated[
        list[Path] | None, _option(_PICTURES, "A picture; may be repeated.", metavar="FILE")
    ] = None,
    image_dir: Annotated[
        Path | None, _option(_PICTURES, "All pictures in a folder and below it.", metavar="DIR")
    ] = None,
    output: Annotated[
        Path,
        _option(
            _PICTURES, "Where results go; nothing that is there is overwritten.", metavar="DIR"
        ),
    ] = Path("explanations"),
    model: Annotated[
        str | None,
        _option(
            _MODEL,
            "A model of torchvision (`resnet50`) or timm (`timm:vit_tiny_patch16_224`), a "
            "transformers directory (`hf:PATH`), or a class such as `fedgaze.models.DigitsNet`. "
            "Without `--checkpoint`, its published weights are used, and fetched the first time.",
            metavar="NAME",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        _option(
            _MODEL,
            "Weights: `.safetensors`, or what `torch.save` wrote of a state dict.",
            metavar="FILE",
        ),
    ] = None,
    model_code: Annotated[
        str | None,
        _option(
            _MODEL,
            "A class or function in a Python file of yours, which is run.",
            metavar="FILE.py:NAME",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        _option(_MODEL, "Class names: one a line, or JSON. By default ImageNet's.", metavar="FILE"),
    ] = None,
    preprocess: Annotated[
        str | None,
        _option(
            _MODEL,
            "`imagenet`, `none` (the picture as it is), or a JSON or YAML file with `size`, "
            "`resize`, `mean`, `std`, `interpolation`, `channels`. By default what the weights "
            "ask for.",
            metavar="HOW",
        ),
    ] = None,
    device: Annotated[
        str, _option(_MODEL, "`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.", metavar="DEVICE")
    ] = "auto",
    method: Annotated[
        str, _option(_SHOWN, "`gradcam` or `gradcam++`.", metavar="METHOD")
    ] = "gradcam",
    layer: Annotated[
        list[str] | None,
        _option(
            _SHOWN,
            "A layer's name (`layer4`), a Conv2d index (`-1`), or `first`, `middle`, `last`; may "
            "be repeated. By default the last layer that still has height and width.",
            metavar="LAYER",
        ),
    ] = None,
    target: Annotated[
        str | None,
        _option(
            _SHOWN,
            "The class to explain, by name or index; by default the predicted.",
            metavar="CLASS",
        ),
    ] = None,
    alpha: Annotated[
        float, _option(_SHOWN, "How strongly the heatmap covers the picture.", min=0.0, max=1.0)
    ] = 0.7,
    colormap: Annotated[
        str | None, _option(_SHOWN, "A colour map of Matplotlib.", metavar="NAME")
    ] = None,
    batch_size: Annotated[
        int, _option(_SHOWN, "How many pictures are explained at once.", min=1)
    ] = 16,
) -> None:
    """Show where an image classifier looks.

    For each picture an overlay (`NAME.overlay.png`: the part that the model saw, in the picture's
    own resolution up to 1024 pixels) and the heatmap (`NAME.heatmap.npy`: in the model's, values in
    [0, 1]) are written, and for all of them `explanations.jsonl`: a JSON line a picture with its
    file, the predicted and the explained class with their probabilities, the method and the layers.
    A name that is taken gets `-2`, `-3` …

    A picture that cannot be read is reported, and the others go on; the exit code is then 1.

    **Example:** `fedgaze explain cat.jpg --model resnet50 --target tabby`
    """
    files = _files([*(images or []), *(image or [])], image_dir)

    from fedgaze.store import OutputFolder

    folder = OutputFolder(output)
    console = Console(highlight=False, soft_wrap=True)
    with console.status("Opening the model"):
        from fedgaze.models import choose_device, open_classifier
        from fedgaze.report import How, explain_files

        place = choose_device(device)
        classifier = open_classifier(
            model, checkpoint=checkpoint, code=model_code, classes=classes, preprocess=preprocess
        )
        classifier.model.to(place)
    how = How(method, layer or (), target, alpha, colormap, batch_size)
    records: list[dict[str, Any]] = []
    failed = 0
    columns = (
        TextColumn("Explaining"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress:
            bar = progress.add_task("", total=len(files))
            for result in explain_files(classifier, files, folder, how):
                records.append(result.record)
                progress.advance(bar)
                if result.error is None:
                    console.print(_line(result.record, output))
                else:
                    failed += 1
                    typer.secho(f"fedgaze: {result.error}", err=True, fg=typer.colors.RED)
    finally:
        # What is done is recorded, however the rest ended; if nothing was, nothing is written.
        if len(records) > failed:
            written = folder.write_lines("explanations", records)
            console.print(f"{len(records) - failed} explained; recorded in {escape(str(written))}")
    if failed:
        raise typer.Exit(1)


def _files(files: list[Path], directory: Path | None) -> list[Path]:
    """Gather the pictures, each once, and find out what is missing before any work."""
    for file in files:
        if file.is_dir():
            raise FedgazeError(f"{file} is a folder; give it with --image-dir")
        if not file.is_file():
            there = [each.name for each in file.parent.iterdir()] if file.parent.is_dir() else []
            raise FedgazeError(f"{file} is not a file{nearest(file.name, there)}")
    if directory is not None:
        from fedgaze.data import find_images

        files = [*files, *find_images(directory)]
    if not files:
        raise FedgazeError("no picture was given: name files, or a folder with --image-dir")
    return list(dict.fromkeys(files))


def _line(record: dict[str, Any], output: Path) -> str:
    predicted, explained = record["predicted"], record["explained"]
    text = (
        f"{escape(record['file'])}  [bold]{escape(predicted['label'])}[/] "
        f"{predicted['probability']:.1%}"
    )
    if explained != predicted:
        text += f", explained: {escape(explained['label'])} {explained['probability']:.1%}"
    if record["flags"]:
        text += f"  [yellow]{escape(', '.join(record['flags']))}[/]"
    return f"{text}  [dim]→ {escape(str(output / record['overlay']))}[/]"
