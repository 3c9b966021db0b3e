"""An exported model is the run's model, whole, and the card beside it says what the record says."""

import ast
import errno
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from tests.federate.conftest import SMALL, Silent, merged
from torch import Tensor

from fedgaze.config import parse_task
from fedgaze.data import load_digits
from fedgaze.errors import FedgazeError
from fedgaze.federate import Exported, export_run, start
from fedgaze.store import load_tensors

MODELS = """
from layers import block
from nets.head import Head
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, width=4):
        super().__init__()
        self.body = block(width)
        self.head = Head(width, num_classes)

    def forward(self, images):
        return self.head(self.body(images).amax((2, 3)))
"""
FILES = {
    "models.py": MODELS,
    "layers.py": """
from torch import nn

def block(width):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())
""",
    "nets/head.py": """
from torch.nn import Linear as Head
""",
    "data_preparation.py": """
from fedgaze.data import load_digits
def load(root, seed):
    return load_digits(root, seed)
""",
    "patients.csv": "name\nsomebody\n",
}
TASK: dict[str, Any] = merged(
    SMALL,
    {
        "model": {"_target_": "models.Net", "width": 6},
        "dataset": {"name": "data_preparation.load"},
        "xai": {"layer": "body.0", "run_location": "both", "share": "profile"},
    },
)
WEIGHTS = ("model.safetensors", "model.onnx", "state_dict.pt")


def carry_out(home: Path, **changes: Any) -> Path:
    for name, text in FILES.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    task = parse_task(merged(TASK, changes), home)
    return start(task, home / "runs" / "small", Silent()).path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a task with code of its own; no test changes it."""
    return carry_out(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def exported(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_run(original, output=tmp_path_factory.mktemp("out") / "export")


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """The same run to be changed: its task still lies where it was."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    edit(summary)
    (run / "summary.json").write_text(json.dumps(summary))
    return summary


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def table(text: str, first: str) -> list[list[str]]:
    """The rows below the heading of the one table whose first column is called so."""
    lines = text.splitlines()
    [start] = [i for i, line in enumerate(lines) if line.startswith(f"| {first} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def load_module(folder: Path, name: str) -> Any:
    """Import a file as Python itself does, with its folder first on the path."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"exported_{name}", folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(folder))
        for each in set(sys.modules) - before:
            sys.modules.pop(each)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_weights_are_the_checkpoint_bit_for_bit(original: Path, exported: Exported) -> None:
    wanted = load_tensors(original / "checkpoints" / "round_2.safetensors")
    assert exported.round == 2
    assert same(load_tensors(exported.folder / "model.safetensors"), wanted)
    plain = torch.load(exported.folder / "state_dict.pt", weights_only=True)
    assert type(plain) is dict
    assert same(plain, wanted)


def test_files_of_weights_say_what_they_are(original: Path, exported: Exported) -> None:
    import onnx
    from safetensors import safe_open

    with safe_open(exported.folder / "model.safetensors", "pt") as file:
        about = file.metadata()
    look = original / "heatmaps" / "round_2" / "server" / "global" / "manifest.json"
    # The server's own look wrote down which weights it looked at.
    assert about["sha256"] == json.loads(look.read_text())["weights_sha256"]["trained"]
    assert (about["task"], about["round"], json.loads(about["classes"])) == (
        "small",
        "2",
        ["1", "4", "7"],
    )
    read = onnx.load(exported.folder / "model.onnx")
    said = {each.key: each.value for each in read.metadata_props}
    assert said.items() >= {key: about[key] for key in about if key != "format"}.items()
    assert json.loads(said["preprocessing"]) == {
        "size": 24, "mean": 0.0, "std": 1.0, "channels": 1,
    }  # fmt: skip


def test_onnx_gives_the_models_logits_in_another_runtime(
    original: Path, exported: Exported
) -> None:
    from onnx.reference import ReferenceEvaluator

    model = load_module(original.parents[1], "models").Net(num_classes=3, width=6).eval()
    model.load_state_dict(load_tensors(original / "checkpoints" / "round_2.safetensors"))
    evaluator = ReferenceEvaluator(str(exported.folder / "model.onnx"))
    test = load_digits().test
    for count in (1, 7):
        images = test[torch.arange(count)]
        with torch.no_grad():
            wanted = model(images).numpy()
        [found] = evaluator.run(["logits"], {"images": images.numpy()})
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert exported.onnx is not None
    assert exported.onnx.difference <= 1e-5


def test_nothing_is_told_of_this_machine(original: Path, exported: Exported) -> None:
    for file in files_of(exported.folder):
        content = (exported.folder / file).read_bytes()
        for secret in (str(original.parents[1]), "site-packages", str(Path.home())):
            assert secret.encode() not in content, file
    onnx = (exported.folder / "model.onnx").read_bytes()
    assert b"self.head" not in onnx
    assert b".py" not in onnx


def test_own_code_goes_along_and_nothing_else(exported: Exported) -> None:
    assert files_of(exported.folder) - {
        each for each in files_of(exported.folder) if each.startswith("heatmaps/")
    } == {
        *WEIGHTS, "README.md", "classes.json", "preprocess.json", "architecture.py", "models.py",
        "layers.py", "nets/head.py",
    }  # fmt: skip
    assert (exported.folder / "models.py").read_text() == MODELS
    assert exported.missing is None
    assert exported.left_out == {}


def snippets(folder: Path, language: str) -> list[str]:
    _, text = read_card(folder)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_cards_code_works_elsewhere(exported: Exported, tmp_path: Path) -> None:
    """Each block of Python is run as it stands, where nothing but the export is at hand."""
    folder = shutil.copytree(exported.folder, tmp_path / "elsewhere")
    blocks = snippets(folder, "python")
    assert len(blocks) == 3
    seeds = "import torch, numpy\ntorch.manual_seed(3)\nnumpy.random.seed(3)\n"
    call = [sys.executable, "-c", "".join(seeds + block for block in blocks)]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip().splitlines()
    torch.manual_seed(3)
    model = load_module(folder, "architecture").build().eval()
    model.load_state_dict(load_tensors(folder / "model.safetensors"))
    with torch.no_grad():
        wanted = model(torch.rand(1, 1, 24, 24)).softmax(1)
        assert said[0] == said[1] == str(wanted)
        np.random.seed(3)  # noqa: NPY002 - as the card's code draws
        images = torch.from_numpy(np.random.rand(1, 1, 24, 24).astype(np.float32))  # noqa: NPY002
        assert ast.literal_eval(said[2]) == [["1", "4", "7"][int(model(images).argmax())]]


def test_the_cards_command_explains_a_picture(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from fedgaze.cli.app import app

    folder = shutil.copytree(exported.folder, tmp_path / "elsewhere")
    monkeypatch.chdir(folder)
    image = load_digits().test[torch.tensor([0])]
    Image.fromarray((255 * image[0, 0]).round().byte().numpy()).save("picture.png")
    [command] = snippets(folder, "console")
    words = command.replace("\\\n", " ").split()
    assert words[:2] == ["$", "fedgaze"]
    result = CliRunner().invoke(app, words[2:])
    assert result.exit_code == 0, result.output
    line = json.loads((folder / "explanations" / "explanations.jsonl").read_text())
    model = load_module(folder, "architecture").build().eval()
    model.load_state_dict(load_tensors(folder / "model.safetensors"))
    with torch.no_grad():
        chances = model((255 * image).round() / 255).softmax(1)[0]
    assert line["predicted"]["class"] == int(chances.argmax())
    assert line["predicted"]["label"] == ["1", "4", "7"][int(chances.argmax())]
    assert line["predicted"]["probability"] == pytest.approx(chances.max().item(), abs=1e-5)


def test_front_matter_has_the_records_numbers(original: Path, exported: Exported) -> None:
    front, _ = read_card(exported.folder)
    last = json.loads((original / "summary.json").read_text())["rounds"][-1]["global"]
    assert front["license"] == "unknown"
    assert {"federated-learning", "image-classification", "onnx"} <= set(front["tags"])
    assert front["metrics"] == ["accuracy", "loss"]
    [model] = front["model-index"]
    [result] = model["results"]
    assert model["name"] == "small"
    assert result["dataset"]["name"] == "data_preparation.load"
    found = {each["type"]: each["value"] for each in result["metrics"]}
    assert found == {key: last[key] for key in ("accuracy", "loss")}


def test_the_hubs_own_reader_takes_the_card(exported: Exported) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(exported.folder / "README.md")
    assert card.data.library_name == "pytorch"
    assert {each.metric_type for each in card.data.eval_results} == {"accuracy", "loss"}
    assert card.data.eval_results[0].dataset_split == "held-out"


def test_tables_have_the_records_numbers(original: Path, exported: Exported) -> None:
    _, text = read_card(exported.folder)
    summary = json.loads((original / "summary.json").read_text())
    merged_models = [summary["initial"], *(each["global"] for each in summary["rounds"])]
    assert [row[:3] for row in table(text, "round")] == [
        [str(i), f"{100 * each['accuracy']:.1f}\xa0%", f"{each['loss']:.3f}"]
        for i, each in enumerate(merged_models)
    ]
    last = summary["rounds"][-1]
    assert table(text, "client") == [
        [
            str(each["client"]),
            str(each["samples"]),
            f"{100 * each['train']['accuracy']:.1f}\xa0%",
            f"{100 * each['validation']['accuracy']:.1f}\xa0%",
            f"{each['validation']['loss']:.3f}",
        ]
        for each in last["clients"]
    ]
    looks = [last["global"]["explanation"], *(e["server_explanation"] for e in last["clients"])]
    names = ["Merged model", *(f"Client {each['client']}" for each in last["clients"])]
    assert [row[:3] for row in table(text, "model")] == [
        [name, f"{100 * each['object_mass']:.1f}\xa0%", f"{100 * each['object_drop']:.1f}"]
        for name, each in zip(names, looks, strict=True)
    ]
    for line in (
        "| Strategy | FedAvg |",
        "| Random seed | 42 |",
        "| Parameters | 93 |",  # 6 × 9 + 6, twice 6, and 6 × 3 + 3
        "| Architecture | `models.Net(width=6)` |",
    ):
        assert line in text


def test_the_card_says_what_the_report_says(original: Path, exported: Exported) -> None:
    from fedgaze.report import read_record
    from fedgaze.report.federated.verdict import judge

    _, text = read_card(exported.folder)
    verdict = judge(read_record(original))
    report = (original / "report.html").read_text(encoding="utf-8")
    for each in (verdict.headline, *verdict.details[:2]):
        assert each in report
        assert each in text


def test_an_earlier_round_knows_nothing_of_later_ones(run: Path, tmp_path: Path) -> None:
    done = export_run(run, which="1", formats=["safetensors"], output=tmp_path / "out")
    assert same(
        load_tensors(done.folder / "model.safetensors"),
        load_tensors(run / "checkpoints" / "round_1.safetensors"),
    )
    front, text = read_card(done.folder)
    record = json.loads((run / "summary.json").read_text())["rounds"][0]["global"]
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == record["accuracy"]
    assert [row[0] for row in table(text, "round")] == ["0", "1"]
    assert "In round 1, measured on" in text
    assert "| Rounds | 1 of 2 |" in text


@pytest.mark.parametrize(
    ("accuracies", "losses", "best"),
    [((0.9, 0.8), (1.0, 0.1), 1), ((0.8, 0.8), (0.3, 0.2), 2), ((None, 0.1), (0.1, None), 2)],
)
def test_the_best_round(
    run: Path, accuracies: tuple[float, ...], losses: tuple[float, ...], best: int
) -> None:
    def edit(summary: dict[str, Any]) -> None:
        for each, accuracy, loss in zip(summary["rounds"], accuracies, losses, strict=True):
            each["global"] |= {"accuracy": accuracy, "loss": loss}

    change(run, edit)
    assert export_run(run, which="best", formats=["safetensors"]).round == best


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    first = export_run(run, formats=["state-dict"])
    assert first.folder == run / "export" / "round_2"
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    assert export_run(run, formats=["state-dict"]).folder == run / "export" / "round_2-2"
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "mine").write_text("mine")
    assert export_run(run, output=tmp_path / "mine", formats=["state-dict"]).folder == (
        tmp_path / "mine-2"
    )
    assert (tmp_path / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert export_run(run, output=tmp_path / "empty", formats=["state-dict"]).folder == (
        tmp_path / "empty"
    )


@pytest.mark.parametrize(
    "writer", ["save_tensors", "write_bytes", "write_json", "write_text", "check_onnx"]
)
def test_a_full_disk_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = files_of(tmp_path)
    monkeypatch.setattr(f"fedgaze.federate.export.{writer}", full)
    with pytest.raises(FedgazeError, match="cannot be written: No space left on device"):
        export_run(run, output=tmp_path / "new" / "out")
    assert files_of(tmp_path) == before
    assert not (tmp_path / "new").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_an_interrupt_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedgaze.federate.export.model_card", pressed)
    with pytest.raises(KeyboardInterrupt):
        export_run(run, output=tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_an_unfinished_run_gives_its_last_whole_round(run: Path) -> None:
    def edit(summary: dict[str, Any]) -> None:
        del summary["rounds"][1:]
        summary["status"] = "running"

    change(run, edit)  # the weights of round 2 lie there, and do not count yet
    done = export_run(run, formats=["safetensors"])
    assert (done.round, done.unfinished) == (1, True)
    assert same(
        load_tensors(done.folder / "model.safetensors"),
        load_tensors(run / "checkpoints" / "round_1.safetensors"),
    )
    assert "> **Not finished.**" in read_card(done.folder)[1]
    assert "the run was at round 1 of 2" in read_card(done.folder)[1]


def test_a_run_that_goes_on_can_be_exported(run: Path) -> None:
    """Its folder is held by the process that carries it out; reading needs no hold."""
    from fedgaze.store import Run

    held = Run.open(run)
    try:
        assert export_run(run, formats=["safetensors"]).round == 2
    finally:
        held.close()


def test_without_a_whole_round_there_is_nothing(run: Path) -> None:
    change(run, lambda summary: summary["rounds"].clear())
    with pytest.raises(FedgazeError, match="has no whole round yet"):
        export_run(run)
    assert not (run / "export").exists()


@pytest.mark.parametrize("word", ["0", "3", "-1", "lst", "1.0", "²"])
def test_a_round_that_is_not_there(run: Path, word: str) -> None:
    with pytest.raises(FedgazeError, match=f"no round '{re.escape(word)}'; allowed are 1 to 2, "):
        export_run(run, which=word)
    assert not (run / "export").exists()


def test_weights_that_are_gone(run: Path) -> None:
    (run / "checkpoints" / "round_2.safetensors").unlink()
    with pytest.raises(FedgazeError, match=r"round_2\.safetensors cannot be read"):
        export_run(run)
    assert not (run / "export").exists()


def test_the_data_need_not_be_at_hand(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise FedgazeError("no data here")

    monkeypatch.setattr("fedgaze.federate.setup._load", gone)
    done = export_run(run)
    assert set(WEIGHTS) <= files_of(done.folder)


def test_code_that_has_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = carry_out(tmp_path / "here", num_rounds=1)
    wanted = load_tensors(run / "checkpoints" / "round_1.safetensors")
    (tmp_path / "here").rename(tmp_path / "there")
    run = tmp_path / "there" / "runs" / "small"
    done = export_run(run)
    assert done.left_out["onnx"] == done.missing
    assert "models.Net, was not at hand" in str(done.missing)
    assert same(load_tensors(done.folder / "model.safetensors"), wanted)
    assert same(torch.load(done.folder / "state_dict.pt", weights_only=True), wanted)
    _, text = read_card(done.folder)
    assert "> **Missing.** The model’s own code, models.Net" in text
    assert str(tmp_path) not in text
    assert files_of(done.folder).isdisjoint({"models.py", "architecture.py", "model.onnx"})
    monkeypatch.chdir(done.folder)
    for block in snippets(done.folder, "python"):
        exec(block, {})  # noqa: S102 - the card's own
        assert int(capsys.readouterr().out) == sum(each.numel() for each in wanted.values())
    with pytest.raises(FedgazeError, match=r"not at hand: .*; without onnx, safetensors and state"):
        export_run(run, formats=["onnx"])
    monkeypatch.chdir(tmp_path / "there")
    found = export_run(run, directory=Path())
    assert found.missing is None
    assert {"models.py", "architecture.py", "model.onnx"} <= files_of(found.folder)


def test_code_that_needs_a_file_that_is_no_code(tmp_path: Path) -> None:
    home = tmp_path / "task"
    run = carry_out(home, num_rounds=1)
    (home / "layers.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('patients.csv').read_text()\n"
        + FILES["layers.py"]
    )
    done = export_run(run)
    assert "cannot be built from the files here alone: layers.py, line 2" in str(done.missing)
    assert str(tmp_path) not in str(done.missing)
    assert set(WEIGHTS) <= files_of(done.folder)
    assert "patients.csv" not in files_of(done.folder)
    assert "> **Missing.** The model cannot be built" in read_card(done.folder)[1]


def test_a_file_of_the_task_that_is_called_like_ours(tmp_path: Path) -> None:
    home = tmp_path / "task"
    home.mkdir()
    (home / "architecture.py").write_text(FILES["models.py"])
    run = carry_out(home, num_rounds=1, model={"_target_": "architecture.Net"})
    done = export_run(run)
    assert done.missing is None
    assert (done.folder / "architecture.py").read_text() == MODELS
    assert "from architecture import Net" in (done.folder / "architecture_.py").read_text()
    assert "--model-code architecture_.py:build" in read_card(done.folder)[1]


def test_without_the_packages_for_onnx(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fedgaze.models.onnxfile.find_spec", lambda name: None if name == "onnxscript" else name
    )
    for formats in (["onnx"], ["safetensors", "onnx"]):
        with pytest.raises(FedgazeError, match=r"needs onnxscript: pip install 'fedgaze\[onnx\]'"):
            export_run(run, formats=formats)
    assert not (run / "export").exists()
    done = export_run(run)
    assert done.left_out == {"onnx": "ONNX needs onnxscript: pip install 'fedgaze[onnx]'"}
    assert files_of(done.folder) >= {"model.safetensors", "state_dict.pt", "architecture.py"}
    front, text = read_card(done.folder)
    assert "onnx" not in front["tags"]
    assert "onnxruntime" not in text


def test_a_model_that_onnx_cannot_hold(tmp_path: Path) -> None:
    home = tmp_path / "task"
    home.mkdir()
    gated = MODELS.replace("(images)", "(images * (2 if images.mean() > 0.9 else 1))")
    (home / "gated.py").write_text(gated)
    run = carry_out(home, num_rounds=1, model={"_target_": "gated.Net"})
    with pytest.raises(
        FedgazeError, match=r"Net cannot be exported to ONNX: .*; without onnx, saf"
    ):
        export_run(run, formats=["safetensors", "onnx"])
    assert not (run / "export").exists()
    done = export_run(run)
    assert "Net cannot be exported to ONNX: Could not guard" in done.left_out["onnx"]
    assert "Left out: onnx, since Net cannot be exported" in read_card(done.folder)[1]
    assert "model.onnx" not in files_of(done.folder)
    assert done.missing is None


def test_an_onnx_file_that_differs_is_not_passed_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: object) -> None:
        raise FedgazeError("the file's logits differ")

    monkeypatch.setattr("fedgaze.federate.export.check_onnx", differs)
    done = export_run(run)
    assert (done.onnx, done.left_out) == (None, {"onnx": "the file's logits differ"})
    assert "model.onnx" not in files_of(done.folder) | done.files.keys()
    with pytest.raises(FedgazeError, match="logits differ; without onnx, safetensors and state-d"):
        export_run(run, formats=["onnx"])


def test_a_record_that_does_not_say_how_large_images_are(run: Path) -> None:
    shapes = []
    change(run, lambda summary: shapes.append(summary.pop("image_shape")))
    assert shapes == [[1, 24, 24]]
    done = export_run(run)
    assert "does not say how large its images are" in done.left_out["onnx"]
    assert done.missing is None
    assert files_of(done.folder).isdisjoint({"model.onnx", "preprocess.json"})
    _, text = read_card(done.folder)
    assert "| Input |" not in text
    assert "images = torch.rand(1, C, H, W)  # yours" in text


def shown(folder: Path) -> set[str]:
    """The pictures that a card shows; each lies there and opens."""
    _, text = read_card(folder)
    found = set(re.findall(r"!\[[^]]*\]\(([^)]*)\)", text))
    assert found == {each for each in files_of(folder) if each.startswith("heatmaps/")}
    for each in found:
        with Image.open(folder / each) as picture:
            assert picture.size == (192, 192)
    return found


def test_pictures_are_those_that_the_server_made(original: Path, exported: Exported) -> None:
    names = ("merged_model", "client_0", "client_1", "client_2")
    assert shown(exported.folder) == {
        f"heatmaps/{who}_class_{label}.webp" for who in names for label in range(3)
    }
    # The same pictures, to what compressing them again does.
    for who, folder in (("merged_model", "global"), ("client_1", "client_1")):
        for label in range(3):
            made = original / f"heatmaps/round_2/server/{folder}/gradcam_class_{label}.jpg"
            with (
                Image.open(exported.folder / f"heatmaps/{who}_class_{label}.webp") as copy,
                Image.open(made) as first,
            ):
                one, other = (np.asarray(each.convert("RGB"), np.float32) for each in (copy, first))
                assert np.abs(one - other).mean() < 4


@pytest.mark.parametrize(
    ("share", "expected"), [("none", 0), ("profile", 0), ("maps", 0), ("overlays", 9)]
)
def test_of_clients_only_what_they_shared(tmp_path: Path, share: str, expected: int) -> None:
    run = carry_out(tmp_path, num_rounds=1, xai={"run_location": "client", "share": share})
    # In process every client's pictures lie in the run's folder, whatever it shares.
    assert len(list(run.glob("heatmaps/round_1/client_*/gradcam_class_?.jpg"))) == 9
    done = export_run(run, formats=["safetensors"])
    assert len(shown(done.folder)) == done.pictures == expected
    if not expected:
        assert "the run has none that may be passed on" in read_card(done.folder)[1]


def test_pictures_can_be_left_out(run: Path) -> None:
    done = export_run(run, formats=["safetensors"], pictures=False)
    assert shown(done.folder) == set()
    assert "they were left out of this export" in read_card(done.folder)[1]


def test_a_run_without_explanations(tmp_path: Path) -> None:
    run = carry_out(tmp_path, num_rounds=1, xai={"enabled": False})
    done = export_run(run, formats=["state-dict"])
    _, text = read_card(done.folder)
    assert "was not compared in this run" in text
    assert "| Explanations | none |" in text


def test_what_went_wrong_is_told(run: Path) -> None:
    def edit(summary: dict[str, Any]) -> None:
        first, last = summary["rounds"]
        first["not_merged"] = "too few"
        last["failures"] = [{"client": 7, "reason": "out of memory"}]
        summary["task"]["dataset"]["plant"] = {"clients": [1], "fraction": 1.0}

    change(run, edit)
    _, text = read_card(export_run(run, formats=["safetensors"]).folder)
    assert "In round 1 nothing was merged: too few." in text
    assert [row[-1] for row in table(text, "client")][-1] == "failed"
    assert "out of memory" not in text  # a reason may hold paths and lines of code
    assert [row[4] for row in table(text, "round")] == ["–", "0", "1"]
    assert "planted a mark in the data of client 1, on purpose. Do not rely" in text


def test_a_long_run_has_a_table_that_can_be_read(run: Path) -> None:
    def edit(summary: dict[str, Any]) -> None:
        first = summary["rounds"][0]
        summary["rounds"] = [first | {"round": number} for number in range(1, 201)]

    change(run, edit)
    shutil.copy(run / "checkpoints/round_2.safetensors", run / "checkpoints/round_200.safetensors")
    _, text = read_card(export_run(run, formats=["safetensors"]).folder)
    rounds = [int(row[0]) for row in table(text, "round")]
    assert len(rounds) == 50
    assert (rounds[0], rounds[-1]) == (0, 200)
    assert {after - before for before, after in pairwise(rounds)} == {4, 5}
    assert "Shown are 50 of 201 rows" in text


HOSTILE = (
    "</td><img src=x onerror=alert(1)> | **b** [x](http://a) `c` <script>$x$\n# h\n"
    "---\nlicense: mit"
)


def test_nothing_in_a_record_becomes_markup(run: Path) -> None:
    def edit(summary: dict[str, Any]) -> None:
        summary["classes"][0] = HOSTILE
        summary["fedgaze"] = HOSTILE
        summary["task"]["dataset"]["name"] = HOSTILE
        last = summary["rounds"][-1]
        last["not_merged"] = HOSTILE
        last["failures"] = [{"client": HOSTILE, "reason": HOSTILE}]

    change(run, edit)
    done = export_run(run)
    front, text = read_card(done.folder)
    line = " ".join(HOSTILE.split())
    assert front["license"] == "unknown"
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == line
    assert json.loads((done.folder / "classes.json").read_text())[0] == HOSTILE
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    inner = [each for token in tokens for each in token.children or ()]
    assert {each.type for each in (*tokens, *inner)}.isdisjoint({"html_block", "html_inline"})
    links = {each.attrs["href"] for each in inner if each.type == "link_open"}
    assert links == {"https://github.com/fedgaze/fedgaze"}
    words = ["".join(e.content for e in token.children or ()) for token in tokens]
    assert sum(line in each for each in words) >= 5
    headings = [
        tokens[i + 1].content for i, each in enumerate(tokens) if each.type == "heading_open"
    ]
    assert [each for each in headings if each.strip() == "h"] == []
    assert {len(row) for row in table(text, "round")} == {5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "library", "logits"),
    [
        (
            {
                "_target_": "transformers.ViTForImageClassification",
                "image_size": 24,
                "patch_size": 8,
                "num_channels": 1,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
            },
            "transformers",
            'model(images)["logits"]',
        ),
        (
            {"name": "timm:test_vit", "img_size": 24, "patch_size": 8, "in_chans": 1},
            "timm",
            "model(images)",
        ),
    ],
)
def test_models_of_libraries_are_built_without_fedgaze(
    tmp_path: Path, model: dict[str, Any], library: str, logits: str
) -> None:
    task = merged(SMALL, {"num_rounds": 1, "xai": {"enabled": False}})
    run = start(parse_task(task | {"model": model}), tmp_path / "run", Silent()).path
    done = export_run(run)
    assert (done.missing, done.left_out) == (None, {})
    assert "fedgaze import" not in (done.folder / "architecture.py").read_text()
    front, _ = read_card(done.folder)
    assert front["library_name"] == library
    block = snippets(done.folder, "python")[0]
    assert f"print({logits}.softmax(1))" in block
    call = [sys.executable, "-c", block]
    subprocess.run(call, cwd=done.folder, capture_output=True, text=True, check=True)
    if library == "transformers":
        from transformers import AutoModelForImageClassification

        found = AutoModelForImageClassification.from_pretrained(done.folder)
        assert same(found.state_dict(), load_tensors(done.folder / "model.safetensors"))
        assert found.config.id2label == {0: "1", 1: "4", 2: "7"}
        # An export is a folder of transformers that another run can begin with.
        task = task | {"model": {"name": f"hf:{done.folder}"}}
        again = start(parse_task(task), tmp_path / "again", Silent()).path
        done = export_run(again)
        assert (done.missing, done.left_out) == (None, {})
        assert "| Architecture | `hf:round_1()` |" in read_card(done.folder)[1]
        for file in ("config.json", "architecture.py", "README.md"):
            assert str(tmp_path) not in (done.folder / file).read_text()
