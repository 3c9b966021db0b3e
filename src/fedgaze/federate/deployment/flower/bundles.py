"""Bundles (FAB): a task and its code as Flower carries it."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from fedgaze.errors import FedgazeError

__all__ = ["build_bundle", "unpack_bundle"]


def build_bundle(files: Mapping[str, bytes]) -> bytes:
    """Pack files, ``pyproject.toml`` among them, as the bundle (FAB) that Flower carries.

    Raises:
        FedgazeError: Flower does not take them, for instance since they are too large.
    """
    from flwr.cli.build import build_fab_from_files

    try:
        bundle, _ = build_fab_from_files(files)
    except ValueError as error:
        raise FedgazeError(f"the task's code cannot be bundled: {error}") from None
    return bundle


def unpack_bundle(bundle: bytes, folder: Path) -> None:
    """Unpack a bundle into an empty folder, and nowhere else.

    Raises:
        FedgazeError: It is damaged, or names a place outside.
    """
    import zipfile

    import click
    from flwr.cli.archive_utils import safe_extract_zip

    try:
        with zipfile.ZipFile(BytesIO(bundle)) as archive:
            safe_extract_zip(archive, folder)
    except (zipfile.BadZipFile, ValueError, click.ClickException) as error:
        raise FedgazeError(f"the task's bundle is damaged: {error}") from None
