"""A model that is worked by hand, pictures with a white square, and boxes round it.

The model is a 1 × 1 convolution that averages the colours, the mean over the picture, and a linear
layer that gives scores (9 m, -9 m) for the mean brightness m. Its Grad-CAM for class 0 is the
brightness itself; for class 1, which speaks against it, nothing.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from fedgaze.cli.app import app

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
VOC = """<annotation><filename>{name}</filename><object><name>square</name><bndbox>
<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object></annotation>"""


@pytest.fixture
def bright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in: the model, and in ``pictures`` squares at places that differ."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "names.txt").write_text("bright\ndark\n")
    weights = {
        "conv.weight": torch.full((1, 3, 1, 1), 1 / 3),
        "conv.bias": torch.zeros(1),
        "fc.weight": torch.tensor([[9.0], [-9.0]]),
        "fc.bias": torch.zeros(2),
    }
    torch.save(weights, tmp_path / "net.pt")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "voc").mkdir()
    for index in range(5):
        left, top = 2 + index, 12 - 2 * index
        box = left, top, left + 6, top + 4
        picture = Image.new("RGB", (24, 24))
        picture.paste((255, 255, 255), box)
        picture.save(tmp_path / "pictures" / f"{index}.png")
        # Pascal VOC counts from 1, the last ones within.
        text = VOC.format(box[0] + 1, box[1] + 1, box[2], box[3], name=f"{index}.png")
        (tmp_path / "voc" / f"{index}.xml").write_text(text)
    return tmp_path


@pytest.fixture
def fedgaze() -> Callable[..., Result]:
    """Calls a command with the words given."""

    def call(*words: object) -> Result:
        return CliRunner().invoke(app, [str(each) for each in words])

    return call
