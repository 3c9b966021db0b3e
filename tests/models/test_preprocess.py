"""Pictures become what the weights ask for: compared with the libraries' own transforms."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fedgaze.errors import FedgazeError
from fedgaze.models import IMAGENET, Preprocess, read_preprocess, weights_preprocess


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (37, 53, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((530, 370), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet50", "efficientnet_b1", "vit_h_14"])
def test_torchvision(picture: Image.Image, name: str) -> None:
    from torchvision.models import get_model_weights

    ours = weights_preprocess(nn.Identity(), "torchvision", name)
    theirs = get_model_weights(name).DEFAULT.transforms()(picture)
    torch.testing.assert_close(ours.tensor(ours.view(picture)), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "mobilenetv3_small_050"])
def test_timm(picture: Image.Image, name: str) -> None:
    import timm

    model = timm.create_model(name)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(picture)
    ours = weights_preprocess(model, "timm", name)
    torch.testing.assert_close(ours.tensor(ours.view(picture)), theirs, rtol=0, atol=1e-6)


def test_timm_squash(picture: Image.Image) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224")
    model.pretrained_cfg |= {"crop_mode": "squash", "crop_pct": 0.8}
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(picture)
    ours = weights_preprocess(model, "timm", "vit_tiny_patch16_224")
    torch.testing.assert_close(ours.tensor(ours.view(picture)), theirs, rtol=0, atol=1e-6)
    model.pretrained_cfg["crop_mode"] = "border"
    with pytest.raises(FedgazeError, match="crop mode 'border'"):
        weights_preprocess(model, "timm", "vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ViTImageProcessor", {}),
        ("ViTImageProcessor", {"do_normalize": False}),
        ("ViTImageProcessor", {"do_rescale": False}),
        ("ViTImageProcessor", {"size": {"height": 200, "width": 120}, "resample": 3}),
        ("BitImageProcessor", {}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ],
)
def test_transformers(
    picture: Image.Image, tmp_path: Path, kind: str, changes: dict[str, object]
) -> None:
    import transformers

    processor = getattr(transformers, kind)(**changes)
    processor.save_pretrained(tmp_path)
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0].float()
    ours = weights_preprocess(nn.Identity(), "transformers", str(tmp_path))
    found = ours.tensor(ours.view(picture))
    assert found.shape == theirs.shape
    # Theirs resizes tensors and ours pictures: one of 255 steps, now and then, is rounding.
    step = float(theirs.max() - theirs.min()) / 255
    assert float((found - theirs).abs().mean()) < step


def test_transformers_without_a_processor(tmp_path: Path) -> None:
    with pytest.raises(FedgazeError, match="preprocessor_config"):
        weights_preprocess(nn.Identity(), "transformers", str(tmp_path))


def test_the_view_is_the_middle_of_the_picture() -> None:
    """Worked by hand: 40 × 20, shorter side to 10 → 20 × 10, middle 10 × 10 → columns 10 to 30."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:30] = 255
    whole = Preprocess(resize=10, crop=(10, 10), interpolation="box").view(Image.fromarray(pixels))
    assert np.asarray(whole).min() == 255
    wide = Preprocess(resize=10, interpolation="box").view(Image.fromarray(pixels))
    assert np.asarray(wide)[0, :, 0].tolist() == [0] * 5 + [255] * 10 + [0] * 5


@pytest.mark.parametrize(
    "how",
    [
        Preprocess(resize=64, crop=(56, 56)),
        Preprocess(resize=(64, 80), crop=(56, 48)),
        Preprocess(crop=(201, 101)),
        Preprocess(resize=(48, 64)),
        Preprocess(),
    ],
)
@pytest.mark.parametrize("size", [(530, 370), (370, 530), (301, 301)])
def test_the_frame_shows_what_the_view_shows(
    how: Preprocess, size: tuple[int, int], picture: Image.Image
) -> None:
    """At its own resolution; reduced, it is the view."""
    smooth = picture.resize((8, 8), Image.Resampling.BOX).resize(size, Image.Resampling.BICUBIC)
    view = how.view(smooth)
    reduced = how.frame(smooth).resize(view.size, Image.Resampling.BILINEAR)
    difference = np.abs(np.asarray(view, dtype=float) - np.asarray(reduced, dtype=float))
    assert difference.mean() < 1.5


@pytest.mark.parametrize("crop", [(48, 48), (41, 52), (20, 41)])
def test_a_crop_over_the_edge_adds_a_border(crop: tuple[int, int]) -> None:
    from torchvision.transforms.functional import center_crop

    white = Image.new("RGB", (62, 64), "white")
    how = Preprocess(resize=31, crop=crop, interpolation="nearest")
    view = np.asarray(how.view(white))
    np.testing.assert_array_equal(view, np.asarray(center_crop(white.resize((31, 32)), list(crop))))
    np.testing.assert_array_equal(np.asarray(how.frame(white)), np.kron(view, np.ones((2, 2, 1))))


def test_numbers_worked_by_hand() -> None:
    one = Image.new("RGB", (1, 1), (255, 51, 0))
    tensor = Preprocess(mean=(0.5, 0.1, 0.25), std=(0.5, 0.1, 0.5)).tensor(one)
    assert tensor.flatten().tolist() == pytest.approx([1.0, 1.0, -0.5], abs=1e-6)
    grey = Preprocess(channels=1, mean=(0.5,), std=(0.25,))
    # ITU-R 601: 0.299 · 255 + 0.587 · 51 = 106 of 255
    assert grey.tensor(grey.view(one)).item() == pytest.approx((106 / 255 - 0.5) / 0.25, abs=1e-6)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({}, Preprocess()),
        ({"size": 32}, Preprocess(resize=32, crop=(32, 32))),
        ({"size": [24, 32]}, Preprocess(resize=(24, 32))),
        ({"size": 224, "resize": 256}, Preprocess(resize=256, crop=(224, 224))),
        ({"size": [24, 32], "resize": [30, 40]}, Preprocess(resize=(30, 40), crop=(24, 32))),
        ({"resize": 64}, Preprocess(resize=64)),
        (
            {"mean": 0.5, "std": [1, 2, 3], "interpolation": "bicubic"},
            Preprocess(mean=(0.5,), std=(1.0, 2.0, 3.0), interpolation="bicubic"),
        ),
        ({"channels": 1, "mean": [0.5]}, Preprocess(channels=1, mean=(0.5,))),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_files(tmp_path: Path, held: dict[str, object], expected: Preprocess, suffix: str) -> None:
    # JSON is YAML as well.
    (tmp_path / f"a.{suffix}").write_text(json.dumps(held))
    assert read_preprocess(tmp_path / f"a.{suffix}") == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("siez: 3", "unknown key 'siez'; did you mean 'size'"),
        ("size: 0", "size must be"),
        ("size: -3", "size must be"),
        ("size: true", "size must be"),
        ("size: [1, 2, 3]", "size must be"),
        ("size: big", "size must be"),
        ("mean: [1, 2]", "mean must be a number or a list of 3"),
        ("mean: .nan", "mean must be"),
        ("std: 0", "greater than 0"),
        ("std: x", "std must be"),
        ("channels: 4", "channels must be 1 or 3"),
        ("interpolation: cubic", "interpolation must be one of"),
        ("- 1", "should map"),
        ("{", "cannot be read"),
        ("!!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(FedgazeError, match=why) as caught:
        read_preprocess(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_imagenet_is_the_usual_recipe(picture: Image.Image) -> None:
    from torchvision.models import SqueezeNet1_1_Weights

    theirs = SqueezeNet1_1_Weights.DEFAULT.transforms()(picture)
    assert torch.equal(IMAGENET.tensor(IMAGENET.view(picture)), theirs)


def test_a_detector_has_no_recipe() -> None:
    with pytest.raises(FedgazeError, match="no classifier"):
        weights_preprocess(nn.Identity(), "torchvision", "fcn_resnet50")
