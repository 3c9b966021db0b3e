"""Writing files so that a reader, or a power cut, never meets half of one."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgaze.errors import FedgazeError

if TYPE_CHECKING:  # processes that only supervise others need no torch
    from torch import Tensor

__all__ = [
    "PART",
    "atomic",
    "load_tensors",
    "no_room",
    "remove_parts",
    "save_tensors",
    "write_bytes",
    "write_json",
    "write_text",
]

PART = ".part"
"""How the hidden names of what is not whole yet end."""


def no_room(error: BaseException) -> bool:
    """Whether an error means that the disk, or what somebody may use of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed had begun to write, here and in all folders below."""
    for part in folder.rglob(f".*{PART}"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Hand out a temporary path beside ``path`` and put it in place only after success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; folders are made as needed."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; a NaN is an error, since it is no JSON."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def save_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically."""
    from safetensors.torch import save

    write_bytes(path, save({k: v.contiguous() for k, v in tensors.items()}, metadata))


def load_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file, on the CPU.

    Raises:
        FedgazeError: The file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FedgazeError(f"{path} cannot be read: {error}") from None
