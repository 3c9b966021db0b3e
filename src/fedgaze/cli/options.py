"""Options that several commands have, and what is read from them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedgaze.errors import FedgazeError, check_names, nearest

if TYPE_CHECKING:
    from fedgaze.models import Classifier

__all__ = [
    "MODEL",
    "PICTURES",
    "RUN",
    "SHOWN",
    "Checkpoint",
    "ClassNames",
    "Device",
    "Json",
    "Memory",
    "MethodOptions",
    "Model",
    "ModelCode",
    "PictureFolder",
    "Pictures",
    "Preparation",
    "Quiet",
    "Seed",
    "TrackerName",
    "Verbose",
    "given_files",
    "open_model",
    "option",
    "progress_bar",
    "read_options",
    "speak",
    "words",
]

PICTURES, MODEL, SHOWN, RUN = "Pictures", "Model", "Explanation", "How it runs"


def option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """An option of a command, in a panel of its help."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


Pictures = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Pictures: JPEG, PNG (8 or 16 bits), WebP, DICOM …",
        metavar="IMAGE…",
        show_default=False,
    ),
]
PictureFolder = Annotated[
    Path | None,
    option(PICTURES, "All pictures in a folder and below it.", "--image-dir", metavar="DIR"),
]
Model = Annotated[
    str | None,
    option(
        MODEL,
        "A model of torchvision (`resnet50`) or timm (`timm:vit_tiny_patch16_224`), a "
        "transformers directory (`hf:PATH`), or a class such as `fedgaze.models.DigitsNet`. "
        "Without `--checkpoint`, its published weights are used, and fetched the first time.",
        metavar="NAME",
    ),
]
Checkpoint = Annotated[
    Path | None,
    option(
        MODEL,
        "Weights: `.safetensors`, or what `torch.save` wrote of a state dict.",
        metavar="FILE",
    ),
]
ModelCode = Annotated[
    str | None,
    option(
        MODEL,
        "A class or function in a Python file of yours, which is run.",
        metavar="FILE.py:NAME",
    ),
]
ClassNames = Annotated[
    Path | None,
    option(MODEL, "Class names: one a line, or JSON. By default ImageNet's.", metavar="FILE"),
]
Preparation = Annotated[
    str | None,
    option(
        MODEL,
        "`imagenet`, `none` (the picture as it is), or a JSON or YAML file with `size`, "
        "`resize`, `mean`, `std`, `interpolation`, `channels`. By default what the weights "
        "ask for.",
        metavar="HOW",
    ),
]
Device = Annotated[str, option(MODEL, "`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.", metavar="DEVICE")]
MethodOptions = Annotated[
    list[str] | None,
    option(
        SHOWN,
        "An option of the method, such as `steps=50`; may be repeated.",
        "--option",
        metavar="NAME=VALUE",
    ),
]
Memory = Annotated[
    str | None, option(RUN, "How much a pass may take, such as `512MiB`.", metavar="SIZE")
]
Seed = Annotated[int, option(RUN, "Of all that is drawn at random.", min=0)]
Json = Annotated[
    bool, option(RUN, "Print one JSON object, for programs, and nothing else.", "--json")
]
TrackerName = Annotated[
    str | None,
    option(
        RUN,
        "Also send numbers, pictures and the report to `mlflow`, `wandb` or `tensorboard`; where "
        "to, their own settings say.",
        "--tracker",
        metavar="NAME",
    ),
]
Quiet = Annotated[bool, option(RUN, "Print nothing but what went wrong.", "--quiet", "-q")]

Verbose = Annotated[bool, option(RUN, "Tell each step and how long it takes.", "--verbose", "-v")]


def speak(verbose: bool) -> None:
    """Let the steps and what they take be told, on the error output."""
    if verbose:
        import logging

        from rich.logging import RichHandler

        from fedgaze.timing import LOGGER

        if not LOGGER.handlers:
            LOGGER.addHandler(RichHandler(console=Console(stderr=True), show_path=False))
        LOGGER.setLevel(logging.INFO)


def given_files(files: list[Path], directory: Path | None) -> list[Path]:
    """Gather the pictures, each once, and find out what is missing before any work.

    Args:
        files: As they were given.
        directory: A folder of more; None for none.

    Raises:
        FedgazeError: One is no file, or there is none at all.
    """
    check_names(files)
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


def open_model(
    name: str | None,
    checkpoint: Path | None,
    code: str | None,
    classes: Path | None,
    preprocess: str | None,
    device: str,
) -> "Classifier":
    """Open the classifier that the options describe, on its device.

    Raises:
        FedgazeError: An option cannot be used.
    """
    from fedgaze.models import choose_device, open_classifier

    place = choose_device(device)
    classifier = open_classifier(
        name, checkpoint=checkpoint, code=code, classes=classes, preprocess=preprocess
    )
    classifier.model.to(place)
    return classifier


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that goes when it is done, and only where somebody can see it.

    Args:
        console: Where.
        what: Is done.
        total: How many times.

    Yields:
        A function that says that so many more are done.
    """
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = console.quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task("", total=total)
        yield lambda count: progress.advance(bar, count)


def read_options(given: Sequence[str] | None, name: str = "--option") -> dict[str, Any]:
    """Read ``name=value``: numbers, true and false as what they are, all else as text.

    Args:
        given: What was given.
        name: Of the option, for people.

    Raises:
        FedgazeError: One is not so.
    """
    import yaml

    found: dict[str, Any] = {}
    for word in given or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise FedgazeError(f"{name} {word!r} should be NAME=VALUE, such as steps=50")
        try:
            found[key.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise FedgazeError(f"{name} {word!r} has a value that cannot be read") from error
    return found


def words(given: str, name: str) -> list[str]:
    """The words of a list separated by commas, each once.

    Args:
        given: What was given.
        name: Of the option, for people.

    Raises:
        FedgazeError: There is none.
    """
    found = list(dict.fromkeys(each.strip() for each in given.split(",") if each.strip()))
    if not found:
        raise FedgazeError(f"{name} is {given!r}; allowed is one name, or several with commas")
    return found
