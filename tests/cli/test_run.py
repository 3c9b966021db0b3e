"""`fedgaze run` and `fedgaze demo` as a person meets them."""

import json
import re
from pathlib import Path

import pytest
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


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yaml").write_text(TASK)
    return Path("task.yaml")


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.yaml", "xai.layer=conv33"], "xai.layer=conv33: .*did you mean 'conv3'"),
        (["task.yaml", "strategy=fedavgg"], "fedavgg: there is no such strategy"),
        (["task.yaml", "num_rounds=-1"], "num_rounds=-1"),
        (["task.yaml", "xai.method=gradcamm"], "gradcamm.*did you mean 'gradcam'"),
        (["task.yaml", "xai.method=rise", "xai.options.msks=9"], "msks.*did you mean 'masks'"),
        (["task.yaml", "xai.method=rise", "xai.options.masks=0"], "masks is 0"),
        (["task.yaml", "model._target_=torch.os.system"], "torch.os.system"),
        (["task.yaml", "model._target_=models.Net"], "has no models.py"),
        (["task.yaml", "model.chanels=3"], "chanels.*did you mean 'channels'"),
        (["task.yaml", "model.channels=3"], "cannot run on an image of digits .1x24x24."),
        (["task.yaml", "dataset.name=digit"], "dataset.name=digit: .*did you mean 'digits'"),
        (["task.yaml", "dataset.classes=[1x]"], "has no class '1x'"),
        (["task.yaml", "num_clients=100"], "num_clients=100 is too many for"),
        (["task.yaml", "engine=deployment"], "engine=deployment"),
        (
            ["task.yaml", "model_type=Huggingface"],
            "model_type=Huggingface has no learner in this version",
        ),
        (["missing.yaml"], "missing.yaml: no such file"),
        ([], "say which task"),
        (["--resume"], "no unfinished run in runs"),
        (["task.yaml", "--resume"], "no unfinished run of tiny in runs"),
        (["--resume", "--output", "elsewhere"], "elsewhere holds no record"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    task: Path, tmp_path: Path, words: list[str], said: str
) -> None:

    code, output = call("run", *words)
    assert code == 2, output
    assert re.search(said, output.replace("\n", " ")), output
    assert "Traceback" not in output
    assert len(output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / task]


def test_a_run_ends_with_a_table_and_the_report(task: Path) -> None:
    code, output = call("run", str(task))
    assert code == 0, output
    summary = json.loads(Path("runs/tiny/summary.json").read_text())
    [record] = summary["rounds"]
    assert f"{record['global']['accuracy']:.3f}" in output
    for entry in record["clients"]:
        assert f"{entry['explanation']['object_mass']:.3f}" in output
    assert "runs/tiny/report.html" in output
    assert Path("runs/tiny/report.html").is_file()


def test_a_second_run_leaves_the_first_alone(task: Path) -> None:
    call("run", str(task))
    before = Path("runs/tiny/summary.json").read_bytes()
    code, output = call("run", str(task), "random_seed=7")
    assert code == 0, output
    assert Path("runs/tiny/summary.json").read_bytes() == before
    assert json.loads(Path("runs/tiny-2/summary.json").read_text())["task"]["random_seed"] == 7


def test_ctrl_c_says_how_to_go_on(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fedgaze.federate.server.Server.read_updates", pressed)
        code, output = call("run", str(task))
    assert code == 130
    assert "fedgaze run --resume" in output
    code, output = call("run", "--resume")
    assert code == 0, output
    assert json.loads(Path("runs/tiny/summary.json").read_text())["status"] == "complete"


def test_the_starter_project_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init", "mine")[0] == 0
    monkeypatch.chdir(tmp_path / "mine")
    code, output = call(
        "run", "conf/config.yaml", "num_rounds=3", "xai.method=gradcam++", "server.strategy=fedavg"
    )
    assert code == 0, output
    summary = json.loads(Path("runs/starter/summary.json").read_text())
    assert summary["rounds"][-1]["global"]["accuracy"] > 0.8
    assert "failed" not in json.dumps(summary["rounds"])


@pytest.mark.slow
def test_the_demo_names_the_planted_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = call("demo", "--seed", "3", "--output", "demo")
    assert code == 0, output
    summary = json.loads(Path("demo/summary.json").read_text())
    assert summary["rounds"][-1]["global"]["accuracy"] >= 0.9
    for record in summary["rounds"]:
        for entry in record["clients"]:
            for place in ("explanation", "server_explanation"):
                assert len(list(Path("demo", entry[place]["folder"]).glob("*.jpg"))) >= 10
    words = " ".join(output.split())
    assert "client 2 looks least at the strokes, and client 2 loses most" in words
    assert "planted in the data of client 2" in words


@pytest.mark.slow
def test_the_demo_keeps_the_planted_client_out_and_nobody_where_none_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept_out(*words: str) -> list[set[int]]:
        code, output = call("demo", "gate.policy=reject", "num_rounds=4", *words)
        assert code == 0, output
        assert ("The mark was planted" in output) == (not words)
        rounds = json.loads(Path("runs/demo/summary.json").read_text())["rounds"]
        return [
            {each["client"] for each in record["gate"]["clients"] if each["factor"] == 0}
            for record in rounds
        ]

    monkeypatch.chdir(tmp_path)
    assert kept_out()[-1] == {2}
    assert kept_out("dataset.plant=null") == [set()] * 4


@pytest.mark.parametrize(
    ("word", "said"),
    [("gate.polcy=reject", "unknown key 'gate.polcy'"), ("reject", "not of the form key=value")],
)
def test_the_demo_says_what_cannot_be_overruled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = call("demo", word)
    assert code == 2
    assert said in output
    assert not list(tmp_path.iterdir())
