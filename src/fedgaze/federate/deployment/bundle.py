"""A task on its way to clients: its configuration and its own code, signed by who sends it."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedgaze import __version__
from fedgaze.config import Task, parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate.deployment.flower import build_bundle, unpack_bundle
from fedgaze.federate.deployment.keys import sign, signed_by

__all__ = [
    "ASK",
    "RECORD",
    "SIGNATURE",
    "check_trust",
    "client_task",
    "open_bundle",
    "pack_task",
    "signature_of",
]

SIGNATURE, RECORD, ASK = "fedgaze-signature", "fedgaze-record", "fedgaze-ask"
"""The keys of a run's configuration: who vouches for it, where its record lies, what it asks."""

_PYPROJECT = f"""\
[project]
name = "fedgaze-task"
version = "1.0.0"
description = "A task of fedgaze"
license = "LicenseRef-Unknown"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "fedgaze"

[tool.flwr.app.components]
serverapp = "fedgaze_task:server_app"
clientapp = "fedgaze_task:client_app"

[tool.flwr.app.config]
{SIGNATURE} = ""
{RECORD} = ""
{ASK} = ""
"""

_APPS = '''\
"""A task of fedgaze as a Flower app."""

from pathlib import Path

from fedgaze.federate.deployment.apps import bundled_client_app, bundled_server_app

server_app = bundled_server_app()
client_app = bundled_client_app(Path(__file__).parent)
'''


def pack_task(task: Task, classes: tuple[str, ...]) -> bytes:
    """Bundle a task: what clients may know of its configuration, and its directory's Python files.

    Paths of this machine, trackers and their accounts are left out: a client's data lies where the
    client says.

    Args:
        task: The task.
        classes: Its class names by index.

    Raises:
        FedgazeError: The files are too many or too large for Flower.
    """
    values = task.public()
    values["dataset"]["root"] = None
    values["xai"]["probe"] = None
    values["xai"]["save_dir"] = "heatmaps"
    values.pop("wandb")
    values.pop("trackers")
    files = {
        "pyproject.toml": _PYPROJECT.encode(),
        "fedgaze_task.py": _APPS.encode(),
        "task.json": json.dumps(
            {"fedgaze": __version__, "task": values, "classes": classes}, sort_keys=True, indent=1
        ).encode(),
    }
    if task.directory is not None:
        for path in _own_code(task.directory):
            files[f"task/{path.relative_to(task.directory).as_posix()}"] = path.read_bytes()
    return build_bundle(files)


def _own_code(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__pycache__")) or path.is_symlink():
            continue
        if path.is_file() and path.suffix == ".py":
            yield path
        elif path.is_dir() and not (path / "pyvenv.cfg").exists():
            yield from _own_code(path)


def _signed_content(sha256: str, config: Mapping[str, Any]) -> bytes:
    rest = {key: str(value) for key, value in config.items() if key != SIGNATURE and value != ""}
    return json.dumps([sha256, rest], sort_keys=True).encode()


def signature_of(bundle: bytes, config: Mapping[str, Any], publisher: Path) -> str:
    """Sign a bundle together with the configuration that it runs with."""
    return sign(publisher, _signed_content(hashlib.sha256(bundle).hexdigest(), config))


def check_trust(
    bundle: bytes, config: Mapping[str, Any], publisher: str, hashes: tuple[str, ...]
) -> str:
    """See that a bundle's code may run here.

    Args:
        bundle: The bundle.
        config: The configuration that it runs with.
        publisher: Whose signature is trusted: a public key.
        hashes: SHA-256 of bundles that are trusted whoever signed them.

    Returns:
        The bundle's SHA-256.

    Raises:
        FedgazeError: Neither holds.
    """
    sha256 = hashlib.sha256(bundle).hexdigest()
    signature = str(config.get(SIGNATURE, ""))
    if sha256 in hashes or signed_by(publisher, signature, _signed_content(sha256, config)):
        return sha256
    raise FedgazeError(
        f"the task's code {sha256[:12]}… is not signed by the publisher that this client trusts: "
        f"look at it, and `fedgaze client trust {sha256}` if it may run here"
    )


def open_bundle(bundle: bytes, folder: Path) -> Path:
    """Unpack a bundle into a folder named by its hash, once, and return that folder."""
    place = folder / hashlib.sha256(bundle).hexdigest()
    if place.is_dir():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder, prefix=".part."))
    try:
        unpack_bundle(bundle, part)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def client_task(place: Path, data: Path | None) -> tuple[Task, tuple[str, ...]]:
    """The task of an unpacked bundle as a client carries it out, and its class names.

    Args:
        place: Where it was unpacked.
        data: The client's own images, or None.

    Raises:
        FedgazeError: It is of another version, or names something outside its own directory.
    """
    try:
        content = json.loads((place / "task.json").read_text(encoding="utf-8"))
        version, values = content["fedgaze"], content["task"]
        classes = tuple(map(str, content["classes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FedgazeError(f"the task's bundle is damaged: {error}") from None
    if _series(version) != _series(__version__):
        raise FedgazeError(f"this client runs fedgaze {__version__}, the task needs {version}")
    directory = place / "task"
    task = parse_task(values, directory if directory.is_dir() else None)
    for key, path in (("dataset.root", task.dataset.root), ("xai.probe", task.xai.probe)):
        if path is not None:
            raise FedgazeError(f"the task names {key}={path}: a client's data is its own affair")
    if task.xai.save_dir.is_absolute():
        raise FedgazeError(f"the task names xai.save_dir={task.xai.save_dir}, outside its folder")
    outside = [
        (key, value)
        for key, value in _strings(values, "")
        if key.startswith(("model.", "dataset.name", "xai.options.", "xai.layer"))
        and _leads_outside(value)
    ]
    if outside:
        key, value = outside[0]
        raise FedgazeError(f"the task names {key}={value}, which leads outside its own directory")
    if task.dataset.partition == "own" and data is None:
        raise FedgazeError(
            "the task has no images for its clients: join with --data DIR, the folder of yours"
        )
    task.dataset.root = data
    return task, classes


def _series(version: str) -> list[str]:
    return str(version).split(".")[:2]


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _strings(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _strings(each, f"{key}.{place}")


def _leads_outside(text: str) -> bool:
    """Whether a word could be a path that does not stay where it is read from."""
    word = text.partition(":")[2] if re.match(r"^[A-Za-z_]{2,}:", text) else text
    parts = re.split(r"[/\\]", word)
    return ".." in parts or word.startswith(("/", "\\", "~")) or bool(re.match(r"^[A-Za-z]:", word))
