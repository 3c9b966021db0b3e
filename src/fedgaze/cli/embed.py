"""`fedgaze embed`: how classes separate from layer to layer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedgaze.cli.options import (
    PICTURES,
    RUN,
    SHOWN,
    Checkpoint,
    ClassNames,
    Device,
    Json,
    Model,
    ModelCode,
    Preparation,
    Quiet,
    Seed,
    Verbose,
    open_model,
    option,
    progress_bar,
    speak,
    words,
)
from fedgaze.errors import FedgazeError, nearest

if TYPE_CHECKING:
    from fedgaze.report import FolderPictures, StoredPictures

__all__ = ["embed"]

PROJECTIONS = ("pca", "tsne", "umap")


def embed(  # noqa: PLR0913, PLR0917 - one argument an option
    directory: Annotated[
        Path,
        typer.Argument(
            help="A folder with one folder of pictures a class; with `--dataset`, where its files "
            "are.",
            metavar="DIR",
        ),
    ],
    dataset: Annotated[
        str | None,
        option(
            PICTURES,
            "The test images of a data set: `mnist`, `fashion_mnist`, `cifar10`, `cifar100` (DIR "
            "as torchvision has it), `digits`.",
            metavar="NAME",
        ),
    ] = None,
    train: Annotated[
        bool, option(PICTURES, "Of a data set, the images to train on instead.", "--train")
    ] = False,
    output: Annotated[
        Path,
        option(PICTURES, "Where results go: a folder that is empty or not there.", metavar="DIR"),
    ] = Path("embedding"),
    model: Model = None,
    checkpoint: Checkpoint = None,
    model_code: ModelCode = None,
    classes: ClassNames = None,
    preprocess: Preparation = None,
    device: Device = "auto",
    layers: Annotated[
        str,
        option(
            SHOWN,
            "Layers separated by commas, in the order of their depth: names, or `first`, "
            "`middle`, `last` of the convolutions (of a transformer: of the blocks).",
        ),
    ] = "first,middle,last",
    projection: Annotated[
        str, option(SHOWN, "`pca`, `tsne` or `umap`.", "--project", metavar="HOW")
    ] = "pca",
    method: Annotated[
        str, option(SHOWN, "The heatmaps' method; see `explain --list-methods`.")
    ] = "gradcam",
    points: Annotated[
        int, option(SHOWN, "How many pictures the page shows.", min=3, max=1500)
    ] = 600,
    neighbours: Annotated[int, option(SHOWN, "How many neighbours vote.", min=1)] = 10,
    batch_size: Annotated[int, option(RUN, "How many pictures run at once.", min=1)] = 64,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show how a model's layers tell labelled pictures apart.

    The model runs once over all pictures; what its layers hold of them, averaged over positions,
    goes to the disk as it comes (`features.LAYER.npy`), so that tens of thousands of pictures fit
    into little memory. `embedding.json` has kNN accuracy and silhouette a layer, `points.csv` the
    plane, and `report.html` a plot a layer: point at a spot to see the picture and its heatmap.

    **Example:** `fedgaze embed photos --model resnet50 --layers first,layer2,layer3,last`
    """
    speak(verbose)
    console = Console(highlight=False, soft_wrap=True, quiet=quiet or as_json)
    if projection not in PROJECTIONS:
        raise FedgazeError(
            f"--project is {projection!r}; allowed are {', '.join(PROJECTIONS)}"
            f"{nearest(projection, PROJECTIONS)}"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FedgazeError(f"the output {output} is there already; choose another")
    asked = words(layers, "--layers")
    with console.status("Opening the model"):
        from fedgaze.report import embed as run
        from fedgaze.report import write_embedding
        from fedgaze.xai import find_method

        find_method(method)
        pictures = _pictures(directory, dataset, train=train)
        _check(pictures, neighbours)
        classifier = open_model(model, checkpoint, model_code, classes, preprocess, device)
    with progress_bar(console, "Embedding", len(pictures.labels)) as advance:
        embedding = run(classifier, pictures, asked, output, batch_size=batch_size, done=advance)
    for each in embedding.failed:
        typer.secho(f"fedgaze: {each}", err=True, fg=typer.colors.RED)
    with console.status("Measuring"):
        written = write_embedding(
            output,
            classifier,
            pictures,
            embedding,
            projection=projection,  # type: ignore[arg-type]  # checked above
            method=method,
            points=points,
            neighbours=neighbours,
            seed=seed,
        )
    if as_json:
        typer.echo(json.dumps(written.summary))
    else:
        table = Table("layer", "channels", "kNN accuracy", "silhouette")
        for layer in written.summary["layers"]:
            knn, width = layer["knn"], layer["silhouette"]
            table.add_row(
                escape(layer["layer"]),
                str(layer["channels"]),
                f"{knn['mean']:.3f} [dim]{knn['low']:.3f}…{knn['high']:.3f}[/]",
                f"{width['mean']:.3f} [dim]{width['low']:.3f}…{width['high']:.3f}[/]",
            )
        console.print(table)
        console.print(f"[bold]{escape(written.summary['headline'])}[/]")
        console.print(f"report: {escape(str(written.page))}", style="bold")
    if embedding.failed:
        raise typer.Exit(1)


def _check(pictures: "FolderPictures | StoredPictures", neighbours: int) -> None:
    """Find out before the model runs whether there is enough to measure."""
    count, classes = len(pictures.labels), len(set(pictures.labels.tolist()))
    if classes < 2:
        raise FedgazeError(f"there is {classes} class; classes separate from two on")
    if neighbours >= count:
        raise FedgazeError(
            f"neighbours is {neighbours}; allowed is 1 to {count - 1}, one less than there are "
            "pictures"
        )


def _pictures(
    directory: Path, dataset: str | None, *, train: bool
) -> "FolderPictures | StoredPictures":
    from fedgaze.data import load_dataset
    from fedgaze.report import FolderPictures, StoredPictures

    if dataset is None:
        if train:
            raise FedgazeError("--train goes with --dataset; name the folder itself instead")
        return FolderPictures(directory)
    found = load_dataset(dataset, directory)
    return StoredPictures(found.train if train else found.test, found.classes)
