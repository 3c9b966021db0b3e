"""The starter project: written whole, over nothing, and each of its files works."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from fedgaze.cli.app import app
from fedgaze.models import build_model, task_object

CLASSIC = {
    "conf/config.yaml", "models.py", "data_preparation.py", "client_main.py",
    "client_manager_main.py", "server_main.py", "xai_utils.py", "requirements.txt", "README.md",
}  # fmt: skip


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "new")])
    assert done.exit_code == 0
    assert "fedgaze run conf/config.yaml" in done.stdout
    return tmp_path / "new"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_has_the_classic_files_and_no_other(starter: Path) -> None:
    found = {str(path.relative_to(starter)) for path in starter.rglob("*") if path.is_file()}
    assert found == CLASSIC
    assert list(starter.parent.iterdir()) == [starter]
    readme = (starter / "README.md").read_text()
    for name in CLASSIC - {"README.md", "requirements.txt"}:
        assert name in readme


def test_an_empty_folder_is_filled_and_stays_the_same_folder(tmp_path: Path) -> None:
    inode = tmp_path.stat().st_ino
    assert CliRunner().invoke(app, ["init", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "models.py").is_file()
    assert tmp_path.stat().st_ino == inode


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("mine")
    (tmp_path / ".git").mkdir()
    done = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr == f"fedgaze: {tmp_path} is not empty: it holds .git, models.py\n"
    assert (tmp_path / "models.py").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2
    done = CliRunner().invoke(app, ["init", str(tmp_path / "models.py")])
    assert done.exit_code == 2
    assert "is no folder" in done.stderr


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["init", str(tmp_path / "file" / "new")])
    assert done.exit_code == 2
    assert "file/new cannot be written: Not a directory" in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_its_configuration_is_a_task(starter: Path) -> None:
    from fedgaze.config import load_task

    task = load_task(starter / "conf/config.yaml")
    assert task.directory == starter
    assert task.model.target == "models.Net"
    assert task.dataset.name == "data_preparation.load"
    # Every section that the file speaks of is one of the schema; nothing is said twice.
    assert load_task(starter / "conf/config.yaml", ["num_rounds=1"]).num_rounds == 1


def test_its_model_and_its_data_fit_together(starter: Path) -> None:
    arguments = OmegaConf.to_container(OmegaConf.load(starter / "conf/config.yaml").model)
    target = arguments.pop("_target_")  # type: ignore[union-attr, call-overload]
    data = task_object(starter, "data_preparation.load")(None, 0)
    model = build_model(
        target, arguments=arguments, task_dir=starter, num_classes=len(data.classes)
    )  # type: ignore[arg-type]
    images = data.train[torch.arange(3)]
    assert model(images).shape == (3, len(data.classes))


def test_its_explanation_is_that_of_explain(starter: Path) -> None:
    from fedgaze import explain

    torch.manual_seed(0)
    model = build_model("models.Net", task_dir=starter).eval()
    image = task_object(starter, "data_preparation.load")(None, 0).train[torch.arange(1)]
    cfg = OmegaConf.load(starter / "conf/config.yaml")
    show = load(starter / "xai_utils.py").apply_gradcam_configurable
    for shape in (image, image[0]):
        overlay, heatmap = show(model, shape, 3, cfg)
        expected = explain(model, image, method="gradcam", targets=[3])
        np.testing.assert_array_equal(heatmap, expected.heatmaps[0].numpy())
        assert overlay.dtype == np.uint8
        assert overlay.shape == (24, 24, 3)
        assert heatmap.min() >= 0
        assert heatmap.max() <= 1
    other, _ = show(model, image, 5, {"xai": {"layer": "features.0"}})
    assert not np.array_equal(other, overlay)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("client_main", "say which client: no client joined from here yet"),
        ("client_manager_main", "say which client: no client joined from here yet"),
        ("server_main --listen nowhere", "--listen nowhere: address and port are allowed"),
    ],
)
def test_its_mains_say_what_they_lack(starter: Path, name: str, said: str) -> None:
    program, *words = name.split()
    done = subprocess.run(
        [sys.executable, f"{program}.py", *words],
        cwd=starter,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"fedgaze: {said}")
    assert done.stderr.count("\n") == 1
