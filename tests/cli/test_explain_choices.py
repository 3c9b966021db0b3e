"""`fedgaze explain` with several methods, targets, regions, options, medical pictures and lists.

The model is worked by hand, as in test_explain.py: the scores are (m, -m) for the mean brightness
m, so that Grad-CAM for class 0 is the brightness itself, and for class 1 its negative.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from fedgaze.cli.app import app
from fedgaze.xai import list_methods

MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        self.fc = nn.Linear(1, 2)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))
"""
WEIGHTS = {
    "conv.weight": torch.full((1, 3, 1, 1), 1 / 3),
    "conv.bias": torch.zeros(1),
    "fc.weight": torch.tensor([[1.0], [-1.0]]),
    "fc.bias": torch.zeros(2),
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with the model, its weights and a picture half of which is white."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "names.txt").write_text("bright\ndark\n")
    torch.save(WEIGHTS, tmp_path / "net.pt")
    picture = Image.new("RGB", (10, 10))
    picture.paste((255, 255, 255), (0, 0, 5, 10))
    picture.save("a.png")
    return tmp_path


def explain(*words: object) -> Result:
    code = ["--model-code", "net.py:Net", "--checkpoint", "net.pt", "--classes", "names.txt"]
    return CliRunner().invoke(app, ["explain", *map(str, words), *code])


def lines() -> list[dict[str, Any]]:
    written = Path("explanations/explanations.jsonl").read_text()
    return [json.loads(line) for line in written.splitlines()]


def load(line: dict[str, Any]) -> Any:
    return np.load(Path("explanations") / line["heatmap"])


def test_several_methods_and_classes_are_laid_side_by_side() -> None:
    done = explain("a.png", "--method", "gradcam,occlusion", "--top-k", "2", "--signed")
    assert done.exit_code == 0
    assert "→ explanations/a.side_by_side.png" in done.stdout
    found = [(line["method"], line["explained"]["label"]) for line in lines()]
    assert found == [
        ("gradcam", "bright"),
        ("occlusion", "bright"),
        ("gradcam", "dark"),
        ("occlusion", "dark"),
    ]
    bright, _, dark, _ = lines()
    np.testing.assert_allclose(load(bright), [[1] * 5 + [0] * 5] * 10)
    np.testing.assert_allclose(load(dark), -load(bright))
    for line in lines():
        assert line["side_by_side"] == "a.side_by_side.png"
        for key in ("overlay", "heatmap", "heatmap_picture"):
            assert (Path("explanations") / line[key]).is_file()
            assert f"a.{line['method']}.{line['explained']['class']}." in line[key]
    # The picture and the two methods in a row, a row for each class.
    width, height = Image.open("explanations/a.side_by_side.png").size
    assert width > 3 * 224
    assert height > 2 * 224


def test_targets_may_be_repeated() -> None:
    assert explain("a.png", "--target", "dark", "--target", "0").exit_code == 0
    assert [line["explained"]["class"] for line in lines()] == [1, 0]
    assert [line["flags"] for line in lines()] == [["no_positive_evidence"], []]


def test_one_class_against_another() -> None:
    assert explain("a.png", "--against", "dark").exit_code == 0
    [line] = lines()
    assert line["explained"]["label"] == "bright"
    assert line["against"]["label"] == "dark"
    assert load(line)[:, :5].min() == 1


def test_the_region_is_found_in_the_files_own_pixels(place: Path) -> None:
    """40 × 20 at half size: of the middle 20 × 20 the model sees 10 × 10.

    A white square at columns 12 to 20, rows 4 to 8, and a grey one, which is less than hot, at
    columns 24 to 28, rows 12 to 16. The box is round the hotter, the mask is both.
    """
    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 255, 255), (12, 4, 20, 8))
    picture.paste((153, 153, 153), (24, 12, 28, 16))
    picture.save(place / "b.png")
    (place / "how.json").write_text('{"size": 10, "interpolation": "box"}')
    words = ["b.png", "--preprocess", "how.json", "--region"]
    assert explain(*words, "0.75").exit_code == 0
    [line] = lines()
    assert line["box"] == [12, 4, 20, 8]
    mask = np.zeros((20, 40), np.uint8)
    mask[4:8, 12:20] = 255
    found = np.asarray(Image.open(Path("explanations") / line["mask"]))
    # Between two of the model's pixels heat falls off: within a pixel of the file, it may be both.
    assert (found != mask).sum() <= 8
    assert explain(*words, "0.4", "--output", "both").exit_code == 0
    both = np.asarray(Image.open("both/b.mask.png"))
    assert both[13:15, 25:27].all()
    record = json.loads(Path("both/explanations.jsonl").read_text())
    assert np.abs(np.array(record["box"]) - [12, 4, 20, 8]).max() <= 1


def test_nothing_hot_has_no_box() -> None:
    assert explain("a.png", "--target", "dark", "--region", "0.5").exit_code == 0
    [line] = lines()
    assert line["box"] is None
    assert not np.asarray(Image.open("explanations/a.mask.png")).any()


def test_of_several_labels_each_is_a_yes_or_no() -> None:
    assert explain("a.png", "--multi-label", "--top-k", "2").exit_code == 0
    expected = [1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))]
    assert [line["explained"]["probability"] for line in lines()] == pytest.approx(
        expected, abs=1e-6
    )


def test_options_go_to_the_methods_that_have_them() -> None:
    words = ["--method", "rise,occlusion", "--option", "masks=40", "--option", "window=5"]
    assert explain("a.png", *words, "--option", "stride=5").exit_code == 0
    # Four windows: what is lost is all of the brightness that there is on the left.
    occlusion = load(lines()[1])
    assert (occlusion[:, :5] == 1).all()
    assert (occlusion[:, 5:] == 0).all()


def test_a_precision_that_gains_nothing_is_said() -> None:
    done = explain("a.png", "--precision", "fast")
    assert done.exit_code == 0
    assert lines()[0]["precision"].startswith("full: ")
    assert lines()[0]["precision"] in done.stdout.replace("\n", "")


def test_pixels_are_drawn_so_that_they_can_be_seen(place: Path) -> None:
    """Saliency is the same for each pixel here, but for one row that a single weight makes hot."""
    code = MODEL.replace("self.conv(x).mean((2, 3))", "(self.conv(x) * self.often(x)).mean((2, 3))")
    code += """
    def often(self, x):
        weights = x.new_ones(x.shape[2:])
        weights[0, 0] = 100
        return weights
"""
    (place / "net.py").write_text(code)
    assert explain("a.png", "--method", "saliency").exit_code == 0
    [line] = lines()
    heatmap = load(line)
    assert heatmap[0, 0] == 1
    assert heatmap[5, 5] == pytest.approx(0.01)
    # Drawn is the rest as hot as 1 / (what one pixel in a hundred exceeds).
    drawn = np.asarray(Image.open("explanations/a.heatmap.png")).astype(int)
    assert drawn[5, 5].sum() > 60


def test_sixteen_bits_and_dicom_are_pictures(place: Path) -> None:
    pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    pixels = np.zeros((10, 10), np.uint16)
    pixels[:, :5] = 65535
    Image.fromarray(pixels).save(place / "deep.png")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dicom = FileDataset(str(place / "scan.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
    dicom.Rows = dicom.Columns = 10
    dicom.SamplesPerPixel, dicom.PhotometricInterpretation = 1, "MONOCHROME2"
    dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit = 16, 16, 15
    dicom.PixelRepresentation = 0
    dicom.PixelData = pixels.tobytes()
    dicom.save_as(place / "scan.dcm")
    assert explain("deep.png", "scan.dcm").exit_code == 0
    for line in lines():
        heatmap = load(line)
        assert heatmap[:, :5].min() == 1
        assert heatmap[:, 5:].max() == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--top-k", "3"], "k is 3; the model knows 2 classes"),
        (["--top-k", "2", "--target", "dark"], "--top-k goes without --target and --against"),
        (["--against", "drak"], "no class is called 'drak'; did you mean 'dark'?"),
        (["--method", "gradcam,rsie"], "did you mean 'rise'"),
        (["--method", "rise", "--layer", "conv"], "rise explains no layer; leave --layer out"),
        (["--option", "steps"], "--option 'steps' should be NAME=VALUE"),
        (["--option", "masks=9"], "gradcam has no option 'masks'; allowed are none"),
        (["--method", "rise", "--option", "msks=9"], "did you mean 'masks'?"),
        (["--method", "rise", "--option", "masks=0"], "masks is 0"),
        (["--method", "attention_rollout"], "no attention maps captured"),
        (["--region", "0"], "--region is 0.0; allowed is more than 0, up to 1"),
        (["--memory", "5x"], "memory is '5x'; allowed is a size such as '512MiB'"),
        (["--precision", "fst"], "did you mean 'fast'?"),
        (["--smoothing", "aug"], "smoothing is 'aug'; allowed are augment, eigen"),
        (["--fusion", "men"], "did you mean 'mean'?"),
        (["--list-layers", "resnet51"], "resnet50"),
    ],
)
def test_what_is_refused_is_one_sentence_and_writes_nothing(
    place: Path, words: list[str], why: str
) -> None:
    done = explain("a.png", *words)
    assert done.exit_code == 2
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "explanations").exists()


def test_methods_are_listed_with_cost_and_options() -> None:
    done = CliRunner().invoke(app, ["explain", "--list-methods"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    listed = done.stdout
    for method in list_methods():
        [row] = [line for line in listed.splitlines() if line.split()[:1] == [method.name]]
        for option in method.options:
            assert f"{option}=" in row
    assert listed.index("one forward pass") < listed.index("eigencam")
    assert listed.index("many passes") < listed.index("rise")


def test_layers_are_listed_with_what_they_return() -> None:
    done = CliRunner().invoke(app, ["explain", "--list-layers", "resnet18"], env={"COLUMNS": "99"})
    assert done.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.split()}
    assert rows["layer4"] == ["Sequential", *["512", "×", "7", "×", "7"], "auto"]
    assert rows["conv1"] == ["Conv2d", *["64", "×", "112", "×", "112"]]
    assert "fc" not in rows
