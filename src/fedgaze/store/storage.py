"""Model versions at any place that fsspec reaches, each confirmed by reading it back."""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from fedgaze.errors import FedgazeError, nearest

__all__ = ["Storage", "Stored", "check_storage"]

BLOCK = 2**20
"""Bytes that are read at once: a version may be larger than memory."""

# There a folder is nothing but a part of a name; asked for one, their drivers make buckets.
_OBJECT_STORES = {"gcs", "gs", "oci", "oss", "s3", "s3a", "tos"}


def check_storage(url: str) -> None:
    """See that a storage can be used, without asking it.

    Raises:
        FedgazeError: It is no URL, its protocol is unknown, the package for it is not installed,
            or it holds what looks like a secret, which the message does not repeat.
    """
    from fsspec import available_protocols, get_filesystem_class

    protocol, found, rest = url.partition("://")
    if "?" in rest or re.search(r":.*@", rest):
        raise FedgazeError(
            "storage holds a password or a query, which every record would show: name the place "
            "only, such as s3://bucket/prefix; credentials belong in the environment "
            "(AWS_ACCESS_KEY_ID …) or in fsspec's configuration (~/.config/fsspec/conf.json)"
        )
    if not found or not rest.strip("/") or "::" in url:
        near = f"; did you mean 'file://{url}'?" if url.startswith("/") else ""
        raise FedgazeError(
            f"storage={url}: one fsspec URL is allowed, such as s3://bucket/prefix or "
            f"file:///mnt/share{near}"
        )
    if protocol in ("file", "local") and not rest.startswith("/"):
        raise FedgazeError(f"storage={url}: an absolute path is allowed, such as file:///mnt/share")
    try:
        get_filesystem_class(protocol)
    except ValueError:
        raise FedgazeError(
            f"storage={url}: fsspec knows no protocol '{protocol}'"
            f"{nearest(protocol, available_protocols())}"
        ) from None
    except ImportError as error:
        raise FedgazeError(f"storage={url} cannot be used: {error}") from None


@dataclass(frozen=True)
class Stored:
    """A file in the storage, confirmed.

    Attributes:
        uri: Where.
        sha256: Of what is there, 64 hexadecimal digits.
        bytes: How many.
    """

    uri: str
    sha256: str
    bytes: int


class Storage:
    """A folder of a storage.

    Args:
        url: As :func:`check_storage` allows it.
        folder: The folder's name below.
    """

    def __init__(self, url: str, folder: str) -> None:
        self.url = f"{url.rstrip('/')}/{folder}"
        self._protocol = url.partition("://")[0]

    def put(self, file: Path, name: str, alive: Callable[[], object]) -> Stored:
        """Store a file, unless it is there already, and confirm what is there.

        It goes to a hidden name first and gets its own once it was read back, so that a reader
        never meets half of it.

        Args:
            file: What to store.
            name: What it is called in the folder.
            alive: Called whenever the storage gave a sign of life.

        Raises:
            FedgazeError: Something else is there, or what arrived is not what was sent.
            Exception: Whatever the storage's driver raises.
        """
        from fsspec import url_to_fs

        with file.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        wanted = Stored(f"{self.url}/{name}", sha256, file.stat().st_size)
        place, path = url_to_fs(wanted.uri)
        place.invalidate_cache()
        alive()
        if not place.exists(path):
            self._upload(place, file, path, wanted, alive)
        elif _read_back(place, path, wanted.uri, alive) != wanted:
            raise FedgazeError(f"{wanted.uri} is there already and is something else")
        return wanted

    def _upload(
        self, place: Any, file: Path, path: str, wanted: Stored, alive: Callable[[], object]
    ) -> None:
        folder, _, name = path.rpartition("/")
        part = f"{folder}/.{name}.{token_hex(4)}.part"
        try:
            if self._protocol not in _OBJECT_STORES:
                place.makedirs(folder, exist_ok=True)
            place.put_file(str(file), part, callback=_signs(alive))
            if (arrived := _read_back(place, part, wanted.uri, alive)) != wanted:
                raise FedgazeError(
                    f"{arrived.bytes} bytes with SHA-256 {arrived.sha256[:12]}… arrived instead "
                    f"of {wanted.bytes} with {wanted.sha256[:12]}…"
                )
            place.mv(part, path)
            place.invalidate_cache()
            alive()
            if (size := place.size(path)) != wanted.bytes:
                with suppress(Exception):  # nobody else made it, and the next attempt needs room
                    place.rm_file(path)
                raise FedgazeError(f"{size} bytes instead of {wanted.bytes} were left by a move")
        finally:
            # Also what an attempt that was killed has left behind.
            with suppress(Exception):
                for each in place.glob(f"{folder}/.{name}.*.part"):
                    place.rm_file(each)


def _read_back(place: Any, path: str, uri: str, alive: Callable[[], object]) -> Stored:
    digest, size = hashlib.sha256(), 0
    with place.open(path, "rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
            size += len(block)
            alive()
    return Stored(uri, digest.hexdigest(), size)


def _signs(alive: Callable[[], object]) -> Any:
    """What fsspec tells of its progress."""
    from fsspec.callbacks import Callback

    class Signs(Callback):  # type: ignore[misc]
        def call(self, *_: Any, **__: Any) -> None:
            alive()

    return Signs()
