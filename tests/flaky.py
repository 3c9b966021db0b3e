"""A storage that fails where it is told to."""

import io
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from fsspec.implementations.local import LocalFileSystem


class Flaky(LocalFileSystem):
    """Local files below ``flaky:///…`` whose calls go wrong as planned.

    ``faults`` has by a call's name what happens at each: ``"raise"``, ``"half"`` (half of the
    bytes, without a word), ``"hang"`` or None.
    """

    protocol = "flaky"
    cachable = False
    faults: ClassVar[dict[str, Iterator[str | None]]] = {}
    calls: ClassVar[list[str]] = []
    go_on: ClassVar[threading.Event] = threading.Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(LocalFileSystem._strip_protocol(str(path).removeprefix("flaky://")))

    @classmethod
    def plan(cls, **faults: Iterable[str | None]) -> None:
        cls.faults = {name: iter(each) for name, each in faults.items()}

    def _fault(self, name: str) -> str | None:
        self.calls.append(name)
        fault = next(self.faults.get(name, iter(())), None)
        if fault == "hang":
            self.go_on.wait(60)
        return fault

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        content, fault = Path(lpath).read_bytes(), self._fault("put")
        if fault in ("raise", "half"):
            content = content[: len(content) // 2]
        Path(self._strip_protocol(rpath)).write_bytes(content)
        if fault == "raise":
            raise ConnectionResetError("the line went dead\nand more")

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        fault = self._fault("mv")
        if fault == "raise":
            raise PermissionError("no moving here")
        if fault == "half":
            whole = Path(path1).read_bytes()
            Path(path1).write_bytes(whole[:100])
        shutil.move(path1, path2)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        fault = self._fault("open")
        if fault == "half":
            whole = Path(path).read_bytes()
            return io.BytesIO(whole[: len(whole) // 2])
        return super()._open(path, mode, **kwargs)
