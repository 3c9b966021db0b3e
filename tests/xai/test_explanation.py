import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import nn

from fedgaze.errors import FedgazeError
from fedgaze.xai import Explanation, explain, overlay

MakeCNN = Callable[..., nn.Module]


@pytest.fixture
def explanation(make_cnn: MakeCNN) -> Explanation:
    return explain(make_cnn(), torch.rand(2, 3, 8, 6), targets=[1, 2], layers="bn2")


def test_cold_parts_show_the_picture_and_hot_parts_the_colour() -> None:
    pictures = torch.rand(2, 3, 4, 5)
    cold, hot = torch.zeros(2, 4, 5), torch.ones(2, 4, 5)
    plain = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(overlay(pictures, cold, alpha=1), plain)
    assert torch.equal(overlay(pictures, hot, alpha=0), plain)
    for name in ("turbo", "inferno"):
        expected = torch.tensor(colormaps[name](1.0)[:3]) * 255
        painted = overlay(pictures, hot, alpha=1, colormap=name)
        assert torch.equal(painted, expected.round().to(torch.uint8).expand(2, 4, 5, 3))


def test_in_between_it_is_mixed_by_the_heat() -> None:
    pixel = overlay(torch.zeros(1, 1, 1), torch.full((1, 1), 0.36), alpha=0.5)
    colour = np.array(colormaps["inferno"](92)[:3])  # 0.36 * 255
    assert pixel.flatten().tolist() == [round(c) for c in colour * 0.5 * 0.6 * 255]  # √0.36


def test_pictures_may_be_grey_8_bit_and_of_another_size() -> None:
    heatmaps = torch.rand(2, 4, 4)
    grey = torch.rand(2, 1, 4, 4)
    assert torch.equal(overlay(grey, heatmaps), overlay(grey.expand(-1, 3, -1, -1), heatmaps))
    eight = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    painted = overlay(eight, heatmaps)
    assert painted.shape == (2, 9, 7, 3)
    assert painted.dtype == torch.uint8
    assert torch.equal(painted, overlay(eight / 255, heatmaps))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, r"alpha is 1\.5; allowed is 0 to 1"),
        ({"colormap": "turbi"}, "no colour map 'turbi'; .*did you mean 'turbo'"),
        ({"images": torch.rand(2, 4, 8, 8)}, r"\(2, 4, 8, 8\) do not go with .* \(2, 8, 8\)"),
        ({"images": torch.rand(3, 3, 8, 8)}, "do not go with"),
        ({"images": torch.rand(8, 8)}, "do not go with"),
    ],
)
def test_what_cannot_be_painted_is_said(arguments: dict[str, Any], message: str) -> None:
    given = {"images": torch.rand(2, 3, 8, 8), "heatmaps": torch.rand(2, 8, 8)} | arguments
    with pytest.raises(FedgazeError, match=message):
        overlay(**given)


def test_save_writes_what_it_says(explanation: Explanation, tmp_path: Path) -> None:
    pictures = torch.rand(2, 1, 8, 6)
    written = explanation.save(tmp_path / "new" / "maps", pictures, names=["cat", "dog"], alpha=0.7)
    assert [path.name for path in written] == [
        "cat.heatmap.npy",
        "dog.heatmap.npy",
        "cat.overlay.png",
        "dog.overlay.png",
        "explanation.json",
    ]
    assert sorted(path.name for path in written) == sorted(
        p.name for p in (tmp_path / "new" / "maps").iterdir()
    )
    assert np.array_equal(np.load(written[1]), explanation.heatmaps[1].numpy())
    painted = explanation.overlay(pictures, alpha=0.7)[0]
    assert np.array_equal(np.asarray(Image.open(written[2])), painted.numpy())
    manifest = json.loads(written[-1].read_text())
    assert manifest["method"] == "gradcam"
    assert manifest["layers"] == ["bn2"]
    assert manifest["images"][1] == {
        "name": "dog",
        "image": 1,
        "target": 2,
        "predicted": int(explanation.predicted[1]),
        "score": pytest.approx(float(explanation.scores[1])),
        "flags": list(explanation.flags[1]),
    }


def test_save_without_pictures_numbers_the_maps(explanation: Explanation, tmp_path: Path) -> None:
    written = explanation.save(str(tmp_path))
    names = ["0000.heatmap.npy", "0001.heatmap.npy", "explanation.json"]
    assert [path.name for path in written] == names


def test_a_manifest_can_be_read_whatever_was_explained(make_cnn: MakeCNN, tmp_path: Path) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 8, 8)
    function = explain(model, images, targets=lambda logits: logits.sum(1))
    odd = replace(
        function, scores=torch.tensor([float("nan")]), predicted=torch.zeros(1, 8, 8).long()
    )
    entry = json.loads(odd.save(tmp_path)[-1].read_text())["images"][0]
    assert (entry["target"], entry["score"], entry["predicted"]) == (None, None, None)


def test_nothing_that_is_there_is_overwritten(explanation: Explanation, tmp_path: Path) -> None:
    (tmp_path / "0001.heatmap.npy").write_text("mine")
    with pytest.raises(FedgazeError, match=r"0001\.heatmap\.npy is there already"):
        explanation.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0001.heatmap.npy"]
    assert (tmp_path / "0001.heatmap.npy").read_text() == "mine"


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(
    explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(source: Any, target: Any) -> None:
        Path(target).write_text("theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(FedgazeError, match=r"0000\.heatmap\.npy cannot be written: File exists"):
        explanation.save(tmp_path)
    assert (tmp_path / "0000.heatmap.npy").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["0000.heatmap.npy"]


def test_a_file_system_without_links_will_do(
    explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert all(path.exists() for path in explanation.save(tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_that_cannot_be_written_whole_is_not_there(
    explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, arr: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(FedgazeError, match="cannot be written: No space left"):
        explanation.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one"], "1 different names for 2 maps"),
        (["one", "one"], "1 different names for 2 maps"),
        (["one", "../two"], r"'\.\./two' cannot name a file"),
        (["one", ""], "'' cannot name a file"),
    ],
)
def test_names_stay_in_the_directory(
    explanation: Explanation, tmp_path: Path, names: list[str], message: str
) -> None:
    with pytest.raises(FedgazeError, match=message):
        explanation.save(tmp_path, names=names)


def test_an_explanation_cannot_be_changed(explanation: Explanation) -> None:
    with pytest.raises(AttributeError):
        explanation.method = "other"
