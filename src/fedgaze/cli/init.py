"""`fedgaze init`: a starter project."""

import os
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from fedgaze.errors import FedgazeError

__all__ = ["init"]


def init(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A folder that is new or empty.", show_default=False),
    ],
) -> None:
    """Write a starter project: a task, its model and its data, ready for `fedgaze run`."""
    if directory.exists() and not directory.is_dir():
        raise FedgazeError(f"{directory} is there already and is no folder")
    there = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if there:
        more = f" and {len(there) - 5} more" if len(there) > 5 else ""
        raise FedgazeError(f"{directory} is not empty: it holds {', '.join(there[:5])}{more}")
    part = directory.absolute().parent / f".{directory.absolute().name}.{os.getpid()}.part"
    try:
        with as_file(files("fedgaze") / "templates" / "starter") as starter:
            shutil.copytree(starter, part, ignore=shutil.ignore_patterns("__pycache__"))
        directory.mkdir(exist_ok=True)
        for path in sorted(part.iterdir()):
            path.rename(directory / path.name)
    except OSError as error:
        raise FedgazeError(f"{directory} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    typer.echo(
        f"{directory} holds a starter project. Next:\n"
        f"  cd {directory}\n"
        "  fedgaze run conf/config.yaml"
    )
