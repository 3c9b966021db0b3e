"""`fedgaze export` as a person meets it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedgaze.cli.app import app

TASK = """
task_id: tiny
model: {_target_: fedgaze.models.DigitsNet}
num_clients: 2
num_rounds: 1
dataset: {classes: ["1", "7"]}
xai: {layer: conv3, samples_per_class: 1}
"""


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "task.yaml").write_text(TASK)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(home)
        assert call("run", "task.yaml")[0] == 0
    return home


@pytest.fixture
def home(carried_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a run below `runs`."""
    shutil.copytree(carried_out, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_everything_by_the_runs_name(home: Path) -> None:
    code, output = call("export", "tiny")
    assert code == 0, output
    assert output.splitlines()[0] == "the merged model after round 1"
    assert output.splitlines()[-1] == "→ runs/tiny/export/round_1"
    for path in Path("runs/tiny/export/round_1").iterdir():
        assert f"  {path.name} " in output
    assert re.search(r"on 5 images: its logits differ from the model's by \d\.\de-0[5-9]", output)


def test_one_object_for_programs(home: Path) -> None:
    code, output = call(
        "export", "runs/tiny", "--format", "state-dict", "--output", "a/b", "--json"
    )
    assert code == 0, output
    said = json.loads(output)
    assert said["folder"] == "a/b"
    assert (said["round"], said["unfinished"], said["onnx"]) == (1, False, None)
    assert {path.name for path in Path("a/b").iterdir()} == set(said["files"])
    assert set(torch.load("a/b/state_dict.pt", weights_only=True))


def test_what_could_not_be_made_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgaze.models.onnxfile.find_spec", lambda _: None)
    code, output = call("export", "tiny", "--quiet")
    assert (code, output) == (
        0,
        "fedgaze: no onnx: ONNX needs onnx, onnxscript, onnxruntime: pip install 'fedgaze[onnx]'\n",
    )
    assert not Path("runs/tiny/export/round_1/model.onnx").exists()
    assert Path("runs/tiny/export/round_1/model.safetensors").is_file()


def test_an_unfinished_run_says_so(home: Path) -> None:
    file = Path("runs/tiny/summary.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "running"}))
    code, output = call("export", "tiny", "--format", "safetensors")
    assert code == 0, output
    assert output.startswith("the merged model after round 1, of a run that is not finished\n")


def test_quiet_is_quiet(home: Path) -> None:
    assert call("export", "tiny", "--format", "safetensors", "-q") == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tinny"], "there is no run tinny; did you mean 'tiny'"),
        (["runs/tinny"], "there is no run runs/tinny; did you mean 'runs/tiny'"),
        (["runs"], "runs holds no record of a run"),
        (["tiny", "--round", "2"], "no round '2'; allowed are 1, last and best"),
        (["tiny", "--round", "bst"], "no round 'bst'; .*did you mean 'best'"),
        (
            ["tiny", "--format", "onxx"],
            "no format 'onxx'; allowed are safetensors, onnx, state-dict",
        ),
        (["tiny", "--format", "safetensors,state_dict"], "did you mean 'state-dict'"),
        (["tiny", "--format", ","], "--format is ','"),
        (["tiny", "--task-dir", "task.yaml"], "--task-dir task.yaml is not a folder"),
        (["tiny", "--output", "task.yaml/x"], "task.yaml/x cannot be written"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    home: Path, words: list[str], said: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    code, output = call("export", *words)
    assert code == 2, output
    assert re.search(said, output), output
    assert len(output.strip().splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
