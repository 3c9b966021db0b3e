"""`fedgaze explain`: the right place, the right class, and what happens to files that are wrong.

The model of most of these tests is worked by hand: a 1 × 1 convolution that averages the colours,
the mean over the picture, and a linear layer that gives scores (m, -m) for the mean brightness m.
Its Grad-CAM for class 0 is the brightness itself; for class 1, which speaks against it, nothing.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from fedgaze.cli.app import app
from fedgaze.report import explained

MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        self.fc = nn.Linear(1, 2)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

class OnlySixteen(Net):
    def forward(self, x):
        return super().forward(x.view(-1, 3, 16, 16))
"""
WEIGHTS = {
    "conv.weight": torch.full((1, 3, 1, 1), 1 / 3),
    "conv.bias": torch.zeros(1),
    "fc.weight": torch.tensor([[1.0], [-1.0]]),
    "fc.bias": torch.zeros(2),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with the model and its weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "names.txt").write_text("bright\ndark\n")
    torch.save(WEIGHTS, tmp_path / "net.pt")
    return tmp_path


def explain(*words: object, model: str = "Net") -> Result:
    code = ["--model-code", f"net.py:{model}", "--checkpoint", "net.pt", "--classes", "names.txt"]
    return CliRunner().invoke(app, ["explain", *map(str, words), *code])


def lines(path: str = "explanations/explanations.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def square(path: Path, size: tuple[int, int], box: tuple[int, int, int, int], **more: Any) -> None:
    """Write a black picture with a white square from (left, top) to (right, bottom)."""
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), box)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **more)


def test_heatmap_and_overlay_lie_on_what_the_model_saw(place: Path) -> None:
    """40 × 20 with a square at columns 10 to 20, rows 4 to 8; columns 10 to 30 are cut out."""
    square(place / "a.png", (40, 20), (10, 4, 20, 8))
    (place / "how.json").write_text('{"size": 20}')
    assert explain("a.png", "--preprocess", "how.json", "--alpha", "0").exit_code == 0
    seen = np.zeros((20, 20))
    seen[4:8, 0:10] = 1
    np.testing.assert_allclose(np.load("explanations/a.heatmap.npy"), seen, atol=1e-6)
    # Without colour, the overlay is what the model saw, enlarged to be seen: 12 × 20 ≥ 224.
    overlay = np.asarray(Image.open("explanations/a.overlay.png"))
    enlarged = np.kron(seen, np.ones((12, 12)))
    np.testing.assert_array_equal(overlay, np.repeat(enlarged[..., None] * 255, 3, axis=2))
    # With colour alone, the square is no longer white, and what is cold stays the picture.
    explain("a.png", "--preprocess", "how.json", "--alpha", "1")
    coloured = np.asarray(Image.open("explanations/a-2.overlay.png")).astype(int)
    assert np.ptp(coloured[72, 60]) > 50
    assert not coloured[150:].any()


def test_overlay_keeps_the_pictures_own_resolution(place: Path) -> None:
    """800 × 1600, of which the model sees the middle 800 × 800, reduced to 20 × 20."""
    square(place / "a.png", (800, 1600), (0, 400, 200, 800))
    (place / "how.yaml").write_text("size: 20\ninterpolation: box\n")
    assert explain("a.png", "--preprocess", "how.yaml", "--alpha", "0").exit_code == 0
    seen = np.zeros((20, 20))
    seen[:10, :5] = 1
    np.testing.assert_allclose(np.load("explanations/a.heatmap.npy"), seen, atol=1e-6)
    overlay = np.asarray(Image.open("explanations/a.overlay.png"))[..., 0]
    np.testing.assert_array_equal(overlay, np.kron(seen, np.full((40, 40), 255)))
    square(place / "b.png", (1200, 600), (0, 0, 600, 600))
    assert explain("b.png", "--layer", "conv").exit_code == 0
    assert Image.open("explanations/b.overlay.png").size == (1024, 512)


def test_a_photograph_on_its_side_is_explained_upright(place: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the sensor's top is the right of what is seen
    square(place / "a.png", (20, 10), (0, 0, 5, 5), exif=exif)
    assert explain("a.png", "--alpha", "0").exit_code == 0
    seen = np.zeros((20, 10))
    seen[0:5, 5:10] = 1
    np.testing.assert_allclose(np.load("explanations/a.heatmap.npy"), seen, atol=1e-6)
    overlay = np.asarray(Image.open("explanations/a.overlay.png"))[..., 0]
    np.testing.assert_array_equal(overlay, np.kron(seen, np.full((12, 12), 255)))


def test_the_record_says_what_was_predicted_and_explained(place: Path) -> None:
    square(place / "a.png", (10, 10), (0, 0, 5, 10))  # half of it white: m = 1/2
    done = explain("a.png")
    assert "a.png  bright 73.1%  → explanations/a.overlay.png" in done.stdout
    assert "1 explained; recorded in explanations/explanations.jsonl" in done.stdout
    probability = pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6)
    bright = {"class": 0, "label": "bright", "probability": probability}
    assert lines() == [
        {
            "file": "a.png",
            "predicted": bright,
            "explained": bright,
            "model": "net.py:Net",
            "method": "gradcam",
            "layers": ["conv"],
            "flags": [],
            "overlay": "a.overlay.png",
            "heatmap": "a.heatmap.npy",
            "heatmap_picture": "a.heatmap.png",
        }
    ]


@pytest.mark.parametrize("word", ["dark", "DARK", "1"])
def test_a_target_by_name_or_index(place: Path, word: str) -> None:
    square(place / "a.png", (10, 10), (0, 0, 5, 10))
    done = explain("a.png", "--target", word)
    assert done.exit_code == 0
    [line] = lines()
    assert line["predicted"]["label"] == "bright"
    assert line["explained"]["label"] == "dark"
    assert line["explained"]["probability"] == pytest.approx(1 / (1 + math.e), abs=1e-6)
    # Nothing speaks for the dark class: that is said, not scaled until it looks like something.
    assert line["flags"] == ["no_positive_evidence"]
    assert not np.load("explanations/a.heatmap.npy").any()
    assert "explained: dark 26.9%" in done.stdout
    assert "no_positive_evidence" in done.stdout


def test_a_broken_file_is_reported_and_the_rest_go_on(place: Path) -> None:
    for name in ("a", "c"):
        square(place / f"pictures/{name}.png", (10, 10), (0, 0, 5, 5))
    (place / "pictures/b.png").write_text("no picture")
    done = explain("--image-dir", "pictures")
    assert done.exit_code == 1
    assert done.stderr == "fedgaze: pictures/b.png is not a picture that can be read\n"
    assert [Path(line["file"]).name for line in lines()] == ["a.png", "b.png", "c.png"]
    assert lines()[1] == {"file": "pictures/b.png", "error": done.stderr[9:-1]}
    assert "2 explained" in done.stdout
    assert len(list((place / "explanations").iterdir())) == 2 * 3 + 1


def test_only_broken_files_write_nothing(place: Path) -> None:
    (place / "a.png").write_text("no picture")
    assert explain("a.png").exit_code == 1
    assert not (place / "explanations").exists()


def test_pictures_of_one_name_and_second_runs_do_not_collide(place: Path) -> None:
    square(place / "one/cat.png", (8, 8), (0, 0, 4, 4))
    square(place / "two/cat.png", (8, 8), (4, 4, 8, 8))
    assert explain("one/cat.png", "--image", "two/cat.png", "two/cat.png").exit_code == 0
    assert [line["heatmap"] for line in lines()] == ["cat.heatmap.npy", "cat-2.heatmap.npy"]
    assert np.load("explanations/cat.heatmap.npy")[0, 0] == 1
    assert np.load("explanations/cat-2.heatmap.npy")[0, 0] == 0
    before = {path: path.read_bytes() for path in (place / "explanations").iterdir()}
    assert explain("two/cat.png").exit_code == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert [line["heatmap"] for line in lines("explanations/explanations-2.jsonl")] == [
        "cat-3.heatmap.npy"
    ]


def test_batches_change_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are mixed, a broken one is between, and no batch is larger than asked for."""
    sizes = [(10, 10)] * 5 + [(12, 8)] * 3 + [(10, 10)] * 2
    for index, size in enumerate(sizes):
        square(place / f"p/{index}.png", size, (index % 5, 0, index % 5 + 2, 3))
    (place / "p/2x.png").touch()
    seen: list[int] = []
    true = explained.explain

    def counted(model: Any, images: Any, *rest: Any, **more: Any) -> Any:
        seen.append(len(images))
        return true(model, images, *rest, **more)

    monkeypatch.setattr(explained, "explain", counted)
    assert explain("--image-dir", "p", "--batch-size", "2", "--output", "two").exit_code == 1
    assert seen == [2, 1, 2, 2, 1, 2]
    assert explain("--image-dir", "p", "--batch-size", "1", "--output", "one").exit_code == 1
    for index in range(len(sizes)):
        np.testing.assert_array_equal(
            np.load(f"one/{index}.heatmap.npy"), np.load(f"two/{index}.heatmap.npy")
        )


def test_a_model_that_cannot_take_a_picture_says_so(place: Path) -> None:
    square(place / "a.png", (16, 16), (0, 0, 8, 8))
    square(place / "b.png", (20, 16), (0, 0, 8, 8))
    done = explain("a.png", "b.png", model="OnlySixteen")
    assert done.exit_code == 1
    assert done.stderr.startswith("fedgaze: b.png: the model could not run on 3 × 16 × 20 numbers")
    assert "1 explained" in done.stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nowhere.png"], "nowhere.png is not a file"),
        (["a.pgn"], "a.pgn is not a file; did you mean 'a.png'?"),
        (["."], ". is a folder; give it with --image-dir"),
        ([], "no picture was given"),
        (["--image-dir", "nowhere"], "nowhere is not a directory"),
        (["a.png", "--output", "net.py"], "net.py is there already and is no folder"),
        (["a.png", "--target", "brigth"], "no class is called 'brigth'; did you mean 'bright'?"),
        (["a.png", "--target", "2"], "class 2 does not exist: the classes are 0 to 1"),
        (["a.png", "--layer", "cnv"], "did you mean 'conv'"),
        (["a.png", "--method", "gradcan"], "did you mean 'gradcam'"),
        (["a.png", "--colormap", "turbp"], "turbo"),
        (["a.png", "--preprocess", "imagnet"], "must be 'imagenet', 'none' or"),
        (["a.png", "--device", "gpu"], "the device 'gpu' cannot be used here; there is auto, cpu"),
        (["a.png", "--model", "resnet18"], "say which model"),
    ],
)
def test_what_is_refused_is_one_sentence_and_writes_nothing(
    place: Path, words: list[str], why: str
) -> None:
    square(place / "a.png", (10, 10), (0, 0, 5, 5))
    before = sorted(place.rglob("*"))
    done = explain(*words)
    assert done.exit_code == 2
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    after = [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before


def test_ctrl_c_keeps_the_record_of_what_is_done(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        square(place / f"{name}.png", (10, 10), (0, 0, 5, 5))
    true = explained.read_image

    def interrupted(path: Path) -> Image.Image:
        if path.name == "c.png":
            raise KeyboardInterrupt
        return true(path)

    monkeypatch.setattr(explained, "read_image", interrupted)
    done = explain("a.png", "b.png", "c.png", "--batch-size", "1")
    assert done.exit_code == 130
    assert [line["file"] for line in lines()] == ["a.png"]
    assert len(list((place / "explanations").iterdir())) == 3 + 1


def test_brackets_in_names_are_no_markup(place: Path) -> None:
    square(place / "[red]a[/].png".replace("/", ""), (10, 10), (0, 0, 5, 5))
    assert "[red]a[].png  bright" in explain("[red]a[].png").stdout


@pytest.mark.parametrize(
    ("model", "weights", "photograph"),
    [
        ("squeezenet1_1", "squeezenet1_1_imagenet", "n01443537_goldfish"),
        ("mobilenet_v2", "mobilenet_v2_imagenet_fp16", "n02102973_Irish_water_spaniel"),
        ("timm:vit_tiny_patch16_224", "vit_tiny_patch16_224_imagenet_fp16", "n01443537_goldfish"),
    ],
)
def test_real_weights_on_real_photographs(
    real_data: Path, place: Path, model: str, weights: str, photograph: str
) -> None:
    path = real_data / f"photos/imagenet/{photograph}.JPEG"
    words = ["explain", path, "--model", model, "--method", "gradcam++", "--checkpoint"]
    words.append(real_data / f"weights/{weights}.safetensors")
    if model.startswith("timm:vit"):
        words += ["--layer", "patch_embed.proj"]  # the one feature map that a ViT has
    if model == "squeezenet1_1":  # in a process of its own, as a person does it
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        fedgaze = Path(sys.executable).with_name("fedgaze")
        done = subprocess.run(
            [fedgaze, *words], capture_output=True, text=True, check=False, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{path}  goldfish 9" in done.stdout
    else:
        assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    [line] = lines()
    labels = json.loads((real_data / "photos/imagenet/labels.json").read_text())
    expected = {entry["file"]: entry["label"] for entry in labels}[path.name]
    assert line["predicted"]["class"] == line["explained"]["class"] == expected
    assert line["method"] == "gradcam++"
    heatmap = np.load(place / "explanations" / line["heatmap"])
    assert heatmap.shape == (224, 224)
    assert heatmap.max() == pytest.approx(1, abs=1e-5)
    # At the photograph's own resolution, or the model's where that is finer.
    preprocess = {"squeezenet1_1": 256, "mobilenet_v2": 232}.get(model, 248)
    side = max(min(Image.open(path).size) * 224 / preprocess, 224)
    shown = Image.open(place / "explanations" / line["overlay"]).size
    assert shown == pytest.approx((side, side), abs=1)


def test_a_class_that_is_not_predicted_is_found_elsewhere(real_data: Path, place: Path) -> None:
    """Two animals in one picture: the map for the cat is not where the map for the dog is."""
    done = CliRunner().invoke(
        app,
        [
            "explain", str(real_data / "photos/dog_and_cat.png"), "--model", "squeezenet1_1",
            "--checkpoint", str(real_data / "weights/squeezenet1_1_imagenet.safetensors"),
            "--target", "tabby",
        ],
    )  # fmt: skip
    assert done.exit_code == 0
    [line] = lines()
    assert line["explained"] == {**line["explained"], "class": 281, "label": "tabby"}
    assert line["predicted"]["class"] != 281


def test_the_page_json_and_silence(place: Path) -> None:
    square(place / "a.png", (16, 16), (2, 2, 6, 6))
    (place / "b.png").write_bytes(b"no picture")
    told = explain("a.png", "b.png", "--report", "--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout) == lines()
    page = (place / "explanations" / "explanations.report.html").read_text()
    assert "b.png is not a picture that can be read" in page
    assert page.count("<figure>") == 2
    quiet = explain("a.png", "--quiet", "--output", "second")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert not (place / "second" / "explanations.report.html").exists()


def test_a_tracker_gets_probabilities_and_overlays(place: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    square(place / "a.png", (16, 16), (2, 2, 6, 6))
    assert explain("a.png", "--tracker", "tensorboard").exit_code == 0
    held = EventAccumulator("explanations/tensorboard")
    held.Reload()
    (event,) = held.Scalars("gradcam/probability")
    assert event.value == pytest.approx(lines()[0]["explained"]["probability"], abs=1e-5)
    assert held.Tags()["images"] == ["a.overlay"]
    wrong = explain("a.png", "--tracker", "mlfow", "--output", "second")
    assert wrong.exit_code == 2
    assert "did you mean 'mlflow'?" in wrong.output
    assert not (place / "second").exists()
