"""A task's code on its way: what travels, whom a client believes, and what it refuses."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fedgaze.config import parse_task
from fedgaze.errors import FedgazeError
from fedgaze.federate.deployment.bundle import (
    SIGNATURE,
    check_trust,
    client_task,
    open_bundle,
    pack_task,
    signature_of,
)
from fedgaze.federate.deployment.flower import unpack_bundle
from fedgaze.federate.deployment.keys import make_publisher, publisher_name

CLASSES = ("cat", "dog")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in ("models.py", "lib/nets.py", "test_models.py", "data/labels.csv", "key.pem"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "hidden.py").write_text("")
    (folder / "env" / "lib").mkdir(parents=True)
    (folder / "env" / "pyvenv.cfg").write_text("")
    (folder / "env" / "lib" / "site.py").write_text("")
    (tmp_path / "outside.py").write_text("secret = 1\n")
    (folder / "link.py").symlink_to(tmp_path / "outside.py")
    return folder


def task_of(folder: Path | None, **keys: Any) -> Any:
    return parse_task({"model": {"_target_": "models.Net"}, **keys}, folder)


def test_only_the_tasks_own_code_travels(project: Path, tmp_path: Path) -> None:
    task = task_of(
        project,
        dataset={"root": "/secret/place", "partition": "iid"},
        xai={"probe": "/secret/probe", "save_dir": "/secret/maps"},
        trackers=["tensorboard"],
        wandb={"account": "somebody"},
    )
    bundle = pack_task(task, CLASSES)
    place = open_bundle(bundle, tmp_path / "bundles")
    code = sorted(path.relative_to(place).as_posix() for path in (place / "task").rglob("*.*"))
    assert code == ["task/lib/nets.py", "task/models.py"]
    for path in place.rglob("*"):
        if path.is_file():
            assert not any(word in path.read_text() for word in ("secret", "somebody", "tensorb"))
    assert pack_task(task, CLASSES) == bundle, "the same task has the same hash"


def test_a_client_reads_back_the_task(project: Path, tmp_path: Path) -> None:
    bundle = pack_task(task_of(project, num_rounds=7), CLASSES)
    place = open_bundle(bundle, tmp_path / "bundles")
    task, classes = client_task(place, tmp_path / "images")
    assert classes == CLASSES
    assert (task.num_rounds, task.dataset.root) == (7, tmp_path / "images")
    assert task.directory == place / "task"


@pytest.fixture
def publisher(tmp_path: Path) -> Path:
    make_publisher(tmp_path / "publisher.key")
    return tmp_path / "publisher.key"


def test_a_client_runs_what_its_publisher_signed_and_nothing_else(
    project: Path, publisher: Path, tmp_path: Path
) -> None:
    bundle, config = pack_task(task_of(project), CLASSES), {"fedgaze-record": "/runs/a"}
    signature = signature_of(bundle, config, publisher)
    name = publisher_name(publisher)
    signed = {**config, SIGNATURE: signature}
    sha256 = check_trust(bundle, signed, name, ())

    make_publisher(tmp_path / "other.key")
    (project / "models.py").write_text("import os\n")
    attacks = {
        "unsigned": (bundle, config, name),
        "signed by another": (
            bundle,
            {**config, SIGNATURE: signature_of(bundle, config, tmp_path / "other.key")},
            name,
        ),
        "other code": (pack_task(task_of(project), CLASSES), signed, name),
        "run with another configuration": (bundle, {**signed, "fedgaze-ask": "/etc"}, name),
        "a client that trusts another": (bundle, signed, publisher_name(tmp_path / "other.key")),
        "a client that trusts nobody": (bundle, signed, ""),
    }
    for code, said, trusted in attacks.values():
        with pytest.raises(FedgazeError, match="is not signed by the publisher"):
            check_trust(code, said, trusted, ())
    assert check_trust(bundle, config, "", (sha256,)) == sha256, "trusted by its hash"


def changed(place: Path, **keys: Any) -> None:
    content = json.loads((place / "task.json").read_text())
    for path, value in keys.items():
        target = content["task"]
        *sections, last = path.split("__")
        for section in sections:
            target = target[section]
        target[last] = value
    (place / "task.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"dataset__root": "/etc"}, r"dataset\.root=/etc: a client's data is its own affair"),
        ({"dataset__root": "data"}, r"dataset\.root=data"),
        ({"xai__probe": "/home"}, r"xai\.probe=/home"),
        ({"xai__save_dir": "/home/maps"}, r"xai\.save_dir=/home/maps, outside"),
        ({"xai__save_dir": "../../maps"}, r"xai\.save_dir='?\.\./\.\./maps"),
        ({"model": {"name": "/etc/model.pt"}}, r"model\.name=/etc/model\.pt, which leads outside"),
        ({"model": {"name": "hf:../../secret"}}, r"model\.name=hf:\.\./\.\./secret, which leads"),
        ({"model": {"name": "hf:/home/me"}}, r"model\.name=hf:/home/me, which leads outside"),
        (
            {"model": {"_target_": "timm.create_model", "checkpoint_path": "~/x.pt"}},
            r"model\.checkpoint_path=~/x\.pt, which leads outside",
        ),
        (
            {"model": {"_target_": "models.Net", "files": [{"a": "b/../../c"}]}},
            r"model\.files\.0\.a=b/\.\./\.\./c, which leads outside",
        ),
        ({"xai__options": {"concepts": "C:\\secret"}}, r"xai\.options\.concepts=C:\\secret"),
        ({"task_id": "../../escape"}, "task_id='../../escape'"),
    ],
)
def test_a_configuration_leads_nowhere_outside(
    project: Path, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    place = open_bundle(pack_task(task_of(project), CLASSES), tmp_path / "bundles")
    changed(place, **keys)
    with pytest.raises(FedgazeError, match=said):
        client_task(place, tmp_path)


@pytest.mark.parametrize(
    "target",
    ["os.system", "models.os.system", "subprocess.Popen", "builtins.eval", "..outside.Net"],
)
def test_a_configuration_imports_nothing_outside(
    project: Path, tmp_path: Path, target: str
) -> None:
    from fedgaze.models import build_model

    (project / "models.py").write_text("import os\n")
    place = open_bundle(pack_task(task_of(project), CLASSES), tmp_path / "bundles")
    changed(place, model={"_target_": target, "command": "exit 1"})
    task, _ = client_task(place, tmp_path)
    model = task.model
    with pytest.raises(FedgazeError):
        build_model(model.target, None, model.arguments, task_dir=task.directory, num_classes=2)


def test_a_task_without_images_needs_the_clients_own(project: Path, tmp_path: Path) -> None:
    bundle = pack_task(task_of(project).on_a_server(), CLASSES)
    place = open_bundle(bundle, tmp_path / "bundles")
    with pytest.raises(FedgazeError, match="join with --data DIR"):
        client_task(place, None)


@pytest.mark.parametrize("version", ["9.0.0", "0.0.1"])
def test_a_client_of_another_version_says_so(project: Path, tmp_path: Path, version: str) -> None:
    place = open_bundle(pack_task(task_of(project), CLASSES), tmp_path / "bundles")
    content = json.loads((place / "task.json").read_text())
    (place / "task.json").write_text(json.dumps(content | {"fedgaze": version}))
    with pytest.raises(FedgazeError, match=f"the task needs {version}"):
        client_task(place, None)


@pytest.mark.parametrize("name", ["../owned.py", "/owned.py", "task/../../owned.py"])
def test_a_bundle_writes_nowhere_else(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "owned")
    (tmp_path / "inside").mkdir()
    with pytest.raises(FedgazeError, match="damaged"):
        unpack_bundle(buffer.getvalue(), tmp_path / "inside")
    assert not (tmp_path / "owned.py").exists()
    with pytest.raises(FedgazeError, match="damaged"):
        open_bundle(b"no zip", tmp_path / "bundles")
    assert list((tmp_path / "bundles").iterdir()) == []
