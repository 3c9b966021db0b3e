"""Write results beside what is already there: whole or not at all, and over nobody's file."""

import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fedgaze.errors import FedgazeError

__all__ = ["OutputFolder", "write_folder"]

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


class OutputFolder:
    """A folder that explanations are written to.

    A name that is taken is never used again, whether an earlier run, another folder's ``cat.jpg``
    or a program running at the same time took it: after ``cat`` come ``cat-2``, ``cat-3`` …

    Args:
        folder: Made when the first file is written.

    Raises:
        FedgazeError: There is something of that name that is no folder.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise FedgazeError(f"the output {folder} is there already and is no folder")
        self.folder = folder
        self._next: dict[str, int] = {}

    def write_together(
        self, stem: str, files: Mapping[str, Callable[[BinaryIO], object]]
    ) -> dict[str, Path]:
        """Write files that belong together, such as ``STEM.overlay.png`` and ``STEM.heatmap.npy``.

        Args:
            stem: What they are called; a number is added where one of the names is taken.
            files: By what follows the stem, how each is written.

        Returns:
            By what follows the stem, where each lies.
        """
        for name in self._free(stem):
            paths = {suffix: self.folder / f"{name}{suffix}" for suffix in files}
            if any(path.exists() for path in paths.values()):
                continue
            written: list[Path] = []
            try:
                for suffix, path in paths.items():
                    if not self._publish(path, files[suffix]):
                        break
                    written.append(path)
            finally:
                # All of them or none, whatever went wrong.
                if len(written) < len(paths):
                    for path in written:
                        path.unlink()
            if len(written) == len(paths):
                return paths
        raise AssertionError  # the names do not end

    def write_lines(self, name: str, lines: Iterable[Mapping[str, Any]]) -> Path:
        """Write one JSON object a line to ``NAME.jsonl``, and return where it lies."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        for free in self._free(name):
            path = self.folder / f"{free}.jsonl"
            if self._publish(path, lambda f: f.write(text.encode())):
                return path
        raise AssertionError  # the names do not end

    def _free(self, stem: str) -> Iterable[str]:
        for number in itertools.count(self._next.get(stem, 1)):
            self._next[stem] = number + 1
            yield stem if number == 1 else f"{stem}-{number}"

    def _publish(self, path: Path, write: Callable[[BinaryIO], object]) -> bool:
        """Give a file its name once it is whole; False if the name is taken."""
        if path.exists():
            return False
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                write(file)
            try:
                # Unlike a renaming, a link fails where another program has just made the name.
                os.link(part, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                part.rename(path)
        except OSError as error:
            raise FedgazeError(f"{path} cannot be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)
        return True


def write_folder(path: Path, fill: Callable[[Path], object]) -> Path:
    """Make a folder that has its name once it is whole; what goes wrong before leaves nothing.

    Args:
        path: Where. A name that is taken, but for an empty folder, is left alone, and ``-2``,
            ``-3`` … is added.
        fill: Writes everything into the folder that it is given.

    Returns:
        The folder.

    Raises:
        FedgazeError: It cannot be written.
    """
    if path.name in ("", ".."):
        path = path.resolve()
    above = next(each for each in path.absolute().parents if each.is_dir())
    part = None
    try:
        # On the same file system, so that it only needs to be renamed.
        part = Path(tempfile.mkdtemp(dir=above, prefix=f".{path.name}."))
        fill(part)
        part.chmod(0o755)
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            chosen = path if number == 1 else path.with_name(f"{path.name}-{number}")
            try:
                part.rename(chosen)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            else:
                return chosen
    except OSError as error:
        raise FedgazeError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
    raise AssertionError  # the names do not end
