"""`fedgaze embed` on pictures of which a layer's mean is known."""

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


@pytest.fixture
def folders(bright: Path) -> Path:
    """Two classes: pictures of one grey each, dark and bright ones."""
    for index in range(24):
        kind = "bright" if index % 2 else "dark"
        (bright / "set" / kind).mkdir(parents=True, exist_ok=True)
        grey = 10 + 2 * index + (150 if index % 2 else 0)
        Image.new("RGB", (12, 10), (grey,) * 3).save(bright / "set" / kind / f"{index:02d}.png")
    return bright


def summary(folder: str = "embedding") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "embedding.json").read_text())
    return found


def test_features_are_the_layer_s_means_in_the_order_of_the_pictures(
    folders: Path, fedgaze: Call
) -> None:
    done = fedgaze("embed", "set", *BRIGHT, "--layers", "conv,last", "--batch-size", "5")
    assert done.exit_code == 0, done.output
    held = np.load("embedding/features.conv.npy")
    # The convolution averages the colours, and is one layer, however it is asked for.
    files = sorted(Path("set").rglob("*.png"))
    greys = [np.asarray(Image.open(each)).mean() / 255 for each in files]
    np.testing.assert_allclose(held[:, 0], greys, rtol=1e-5)
    assert held.dtype == np.float32
    assert sorted(each.name for each in Path("embedding").iterdir()) == [
        "embedding.json", "features.conv.npy", "points.csv", "report.html",
    ]  # fmt: skip
    assert [each["layer"] for each in summary()["layers"]] == ["conv"]


def test_pictures_that_cannot_be_read_are_named_and_left_out(folders: Path, fedgaze: Call) -> None:
    Path("set/dark/04.png").write_bytes(b"no picture")
    done = fedgaze("embed", "set", *BRIGHT, "--layers", "conv", "--json")
    assert done.exit_code == 1
    assert "04.png is not a picture that can be read" in done.output
    found = summary()
    assert found["pictures"] == 23
    assert len(found["failed"]) == 1
    assert len(np.load("embedding/features.conv.npy")) == 23


def test_nothing_is_written_over(folders: Path, fedgaze: Call) -> None:
    Path("embedding").mkdir()
    Path("embedding/mine.txt").write_text("mine")
    done = fedgaze("embed", "set", *BRIGHT)
    assert done.exit_code == 2
    assert "the output embedding is there already" in done.output
    assert [each.name for each in Path("embedding").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--project", "tnse"], "allowed are pca, tsne, umap; did you mean 'tsne'?"),
        (["--layers", "cnov"], "did you mean 'conv'?"),
        (["--layers", "conv", "--neighbours", "24"], "neighbours is 24; allowed is 1 to 23"),
        (["--train"], "--train goes with --dataset"),
        (["--dataset", "mnits"], "did you mean 'mnist'?"),
        (["--method", "gradcm"], "did you mean 'gradcam'?"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(
    folders: Path, fedgaze: Call, words: list[str], says: str
) -> None:
    done = fedgaze("embed", "set", *BRIGHT, *words)
    assert done.exit_code == 2
    assert says in done.output
    assert not Path("embedding/report.html").exists()


@pytest.mark.parametrize("projection", ["pca", "tsne", "umap"])
def test_digits_separate_with_depth_in_a_trained_model(
    bright: Path, fedgaze: Call, projection: str, trained_digits: Path
) -> None:
    done = fedgaze(
        "embed", ".", "--dataset", "digits", "--model", "fedgaze.models.DigitsNet",
        "--checkpoint", trained_digits, "--project", projection, "--points", "60",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = summary()
    rates = [each["knn"]["mean"] for each in found["layers"]]
    assert [each["layer"] for each in found["layers"]] == ["conv1", "conv2", "conv3"]
    assert rates == sorted(rates)
    assert rates[-1] > 0.8 > rates[0]
    assert found["headline"].startswith("Classes separate with depth")
    rows = Path("embedding/points.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 60


@pytest.fixture(scope="module")
def trained_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from fedgaze.data import load_digits
    from fedgaze.models import DigitsNet
    from fedgaze.store import save_tensors
    from fedgaze.train import train

    torch.manual_seed(0)
    model = DigitsNet()
    train(model, load_digits().train, epochs=6, batch_size=32, learning_rate=4e-3)
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_tensors(path, model.state_dict())
    return path
