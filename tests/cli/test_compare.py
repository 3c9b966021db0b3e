"""`fedgaze compare`: a row a model and layer, a column a method."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

BRIGHT = ["--model-code", "net.py:Net", "--checkpoint", "net.pt", "--classes", "names.txt"]
Call = Callable[..., Result]


def lines(folder: str = "comparison") -> list[dict[str, Any]]:
    text = Path(folder, "comparison.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights lie here, and none can be fetched."""
    from urllib.error import URLError

    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr("torch.hub.urlopen", refuse)


def test_a_figure_a_picture_with_every_method_and_layer(bright: Path, fedgaze: Call) -> None:
    done = fedgaze(
        "compare", "pictures/0.png", "pictures/1.png", *BRIGHT,
        "--method", "gradcam,saliency", "--layers", "conv,auto",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert sorted(each.name for each in Path("comparison").iterdir()) == [
        "0.comparison.pdf", "0.comparison.png", "1.comparison.pdf", "1.comparison.png",
        "comparison.jsonl", "comparison.report.html",
    ]  # fmt: skip
    found = lines()
    assert [(each["layer"], each["method"], each["shown"]) for each in found[:4]] == [
        ("conv", "gradcam", True),
        ("conv", "saliency", True),
        ("conv", "gradcam", True),
        # Of a method that explains no layer, there is one map.
        ("conv", "saliency", False),
    ]
    assert {each["explained"]["label"] for each in found} == {"bright"}
    assert Path("comparison/0.comparison.pdf").read_bytes().startswith(b"%PDF")
    # The square is the only thing that is hot: warm colour there, and nowhere else.
    with Image.open("comparison/0.comparison.png") as picture:
        assert picture.width > 700


def test_each_target_has_a_figure_of_its_own(bright: Path, fedgaze: Call) -> None:
    words = ["compare", "pictures/0.png", *BRIGHT, "--method", "gradcam", "--layers", "last"]
    assert fedgaze(*words, "--targets", "top2", "--multi-label").exit_code == 0
    found = lines()
    assert [each["explained"]["label"] for each in found] == ["bright", "dark"]
    # Each a yes or no of its own: m = 24 / 576, the logits are 9 m and -9 m.
    yes = 1 / (1 + np.exp(-9 * 24 / 576))
    assert found[0]["explained"]["probability"] == pytest.approx(yes, abs=1e-5)
    assert found[1]["explained"]["probability"] == pytest.approx(1 - yes, abs=1e-5)
    assert found[1]["flags"] == ["no_positive_evidence"]
    names = sorted(each.name for each in Path("comparison").glob("*.png"))
    assert names == ["0.1.comparison.png", "0.2.comparison.png"]
    page = Path("comparison/comparison.report.html").read_text()
    assert "no positive evidence" in page
    # Named classes give the same.
    assert fedgaze(*words, "--targets", "dark,bright", "--output", "named").exit_code == 0
    assert [each["explained"]["label"] for each in lines("named")] == ["dark", "bright"]


@pytest.mark.usefixtures("offline")
def test_random_weights_are_said_to_be_random(bright: Path, fedgaze: Call) -> None:
    words = ["compare", "pictures/0.png", "--model", "squeezenet1_1", "--method", "gradcam"]
    done = fedgaze(*words, "--layers", "last")
    assert done.exit_code == 0, done.output
    assert "the weights of squeezenet1_1 are RANDOM" in done.output
    assert {each["weights"] for each in lines()} == {"random"}
    page = Path("comparison/comparison.report.html").read_text()
    assert "random weights" in page
    # The same seed, the same maps.
    assert fedgaze(*words, "--layers", "last", "--output", "again").exit_code == 0
    first, again = (Path(each, "0.comparison.png").read_bytes() for each in ("comparison", "again"))
    assert first == again


@pytest.mark.usefixtures("offline")
def test_first_middle_last_are_convolutions_that_are_there(bright: Path, fedgaze: Call) -> None:
    words = ["compare", "pictures/0.png", "--method", "gradcam,eigencam"]
    assert fedgaze(*words, "--model", "alexnet", "--model", "squeezenet1_1").exit_code == 0
    assert list(dict.fromkeys((each["model"], each["layer"]) for each in lines())) == [
        ("alexnet", "features.0"),
        ("alexnet", "features.6"),
        ("alexnet", "features.10"),
        ("squeezenet1_1", "features.0"),
        ("squeezenet1_1", "features.9.squeeze"),
        ("squeezenet1_1", "classifier.1"),
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--layers", "cnov"], "Net: the model has no layer 'cnov'"),
        (["--targets", "brigt"], "no class is called 'brigt'; did you mean 'bright'?"),
        (["--targets", "top9"], "k is 9"),
        (["--method", "gradcm"], "did you mean 'gradcam'?"),
        (["--method", ","], "--method is ','; allowed is one name, or several with commas"),
        (["--option", "steps=3"], "gradcam has no option 'steps'"),
        (["--model", "resnet18"], "--model-code goes without --model"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(
    bright: Path, fedgaze: Call, words: list[str], says: str
) -> None:
    done = fedgaze("compare", "pictures/0.png", *BRIGHT, *words)
    assert done.exit_code == 2
    assert says in done.output
    assert not Path("comparison").exists()


def test_one_checkpoint_is_not_for_two_models(bright: Path, fedgaze: Call) -> None:
    words = ["compare", "pictures/0.png", "--model", "alexnet", "--model", "resnet18"]
    done = fedgaze(*words, "--checkpoint", "net.pt")
    assert done.exit_code == 2
    assert "of several, say --model NAME=FILE" in done.output
    none = fedgaze("compare", "pictures/0.png")
    assert none.exit_code == 2
    assert "say which models: --model NAME" in none.output


def test_json_names_figures_and_heatmaps(bright: Path, fedgaze: Call) -> None:
    done = fedgaze("compare", "pictures/0.png", *BRIGHT, "--layers", "conv", "--json")
    held = json.loads(done.stdout)
    assert held["heatmaps"] == lines()
    assert [Path(each).name for each in held["figures"]] == ["0.comparison.png", "0.comparison.pdf"]
