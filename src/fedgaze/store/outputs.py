"""Write results beside what is already there: whole or not at all, and over nobody's file."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedgaze.errors import FedgazeError

__all__ = ["OutputFolder"]


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

    def write_maps(
        self, stem: str, overlay: NDArray[np.uint8], heatmap: NDArray[np.float32]
    ) -> tuple[Path, Path]:
        """Write ``STEM.overlay.png`` and ``STEM.heatmap.npy``, and return where they lie.

        Args:
            stem: What the picture is called.
            overlay: (H, W, 3).
            heatmap: (H, W), in [0, 1].
        """
        picture = Image.fromarray(overlay)
        for name in self._free(stem):
            pair = self.folder / f"{name}.overlay.png", self.folder / f"{name}.heatmap.npy"
            # The overlay takes the name; nothing of ours is written as a heatmap without one.
            if pair[1].exists() or not self._publish(pair[0], lambda f: picture.save(f, "png")):
                continue
            whole = False
            try:
                whole = self._publish(pair[1], lambda f: np.save(f, heatmap))
            finally:
                if not whole:
                    pair[0].unlink()
            if whole:
                return pair
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
