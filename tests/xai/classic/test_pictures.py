"""What people have at hand goes in; what OpenCV would write comes out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fedgaze import GradCAM, GradCAMConfig
from fedgaze.errors import FedgazeError
from fedgaze.xai.classic.opencv import OPENCV

CNN = Callable[..., nn.Module]
CONFIG = GradCAMConfig(target_layers=["conv2"])


def test_pictures_of_all_kinds_are_the_same_input(make_cnn: CNN) -> None:
    gradcam = GradCAM(make_cnn(), CONFIG)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).movedim(-1, 0) / 255
    truth = gradcam.generate_heatmap(tensor)
    opaque = np.concatenate([pixels, np.full((10, 12, 1), 255, np.uint8)], axis=-1)
    for given in (
        tensor[None],
        tensor.half(),
        torch.from_numpy(pixels).movedim(-1, 0),
        pixels,
        pixels[None],
        pixels.astype(np.float64) / 255,
        np.moveaxis(pixels, -1, 0),
        (pixels.astype(np.uint16) * 257),
        opaque,
        Image.fromarray(pixels),
        Image.fromarray(opaque),
    ):
        assert np.allclose(gradcam.generate_heatmap(given), truth, atol=2e-2), type(given)
    both = gradcam.generate_batch_heatmaps([Image.fromarray(pixels), pixels])
    assert all(np.allclose(each, truth, atol=1e-5) for each in both)


def test_channels_become_those_of_the_model(make_cnn: CNN) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (10, 12), dtype=np.uint8)
    model = make_cnn()
    truth = GradCAM(model, CONFIG).generate_heatmap(np.stack([grey] * 3, -1))
    for given in (grey, Image.fromarray(grey), grey[..., None]):
        assert np.allclose(GradCAM(model, CONFIG).generate_heatmap(given), truth, atol=1e-6)
    single = make_cnn(channels=1)
    truth = GradCAM(single, CONFIG).generate_heatmap(grey)
    colour = Image.fromarray(np.stack([grey] * 3, -1))
    assert np.allclose(GradCAM(single, CONFIG).generate_heatmap(colour), truth, atol=1e-5)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode in {"I;16", "I"}
    assert np.allclose(GradCAM(single, CONFIG).generate_heatmap(deep), truth, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3, 8), r"shape \(3, 8\); allowed is \(C, H, W\)"),
        (np.zeros((8, 8, 5)), r"shape \(8, 8, 5\)"),
        (np.zeros(8), r"shape \(8,\)"),
        ("cat.jpg", "str.*allowed is a tensor, an array"),
        (np.array([["a", "b"]]), "allowed is a tensor, an array"),
    ],
)
def test_what_is_no_picture_is_refused(make_cnn: CNN, given: Any, message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        GradCAM(make_cnn(), CONFIG).generate_heatmap(given)


def test_visualize_blends_as_opencv_does() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    heatmap = rng.random((9, 7), dtype=np.float32)
    coloured = cv2.applyColorMap((heatmap * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    truth = cv2.addWeighted(picture[..., ::-1].copy(), 0.7, coloured, 0.3, 0)
    mixed = GradCAM.visualize(picture, heatmap, alpha=0.3, colormap=cv2.COLORMAP_VIRIDIS)
    assert mixed.dtype == np.uint8
    assert mixed.flags.c_contiguous
    assert np.abs(mixed.astype(int) - truth).max() <= 1
    named = GradCAM.visualize(picture, heatmap, alpha=0.3, colormap="viridis")
    assert np.array_equal(named, mixed)
    coloured = cv2.applyColorMap((heatmap * 255).astype(np.uint8), cv2.COLORMAP_JET)
    truth = cv2.addWeighted(picture[..., ::-1].copy(), 0.5, coloured, 0.5, 0)
    assert np.abs(GradCAM.visualize(picture, heatmap).astype(int) - truth).max() <= 1
    pil = GradCAM.visualize(picture, heatmap, 0.3, "viridis", return_pil=True)
    assert pil.mode == "RGB"
    assert np.array_equal(np.asarray(pil), mixed[..., ::-1])


def test_opencv_codes_are_its_colours() -> None:
    cv2 = pytest.importorskip("cv2")
    codes = {getattr(cv2, name): name for name in dir(cv2) if name.startswith("COLORMAP_")}
    assert sorted(codes) == list(range(len(OPENCV)))
    ramp = np.arange(256, dtype=np.uint8)[None]
    for code, name in codes.items():
        ours = GradCAM.visualize(np.zeros((1, 256, 3)), ramp / 255, 1, code).astype(int)
        away = np.abs(ours - cv2.applyColorMap(ramp, code))
        assert OPENCV[code] == name.removeprefix("COLORMAP_").lower()
        # Parula is not made of straight lines, and pink begins with a root.
        assert away.mean() < (3 if name == "COLORMAP_PARULA" else 1), name
        assert away.max() <= (30 if name in {"COLORMAP_PARULA", "COLORMAP_PINK"} else 5), name


def test_visualize_takes_any_picture_and_size() -> None:
    heat = np.array([[0.0, 1.0]], dtype=np.float32)
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    tensor = torch.from_numpy(picture).movedim(-1, 0)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    truth = picture[..., ::-1]
    normal = (tensor / 255 - mean) / std
    for given in (
        picture,
        picture / 255,
        picture.astype(float),
        tensor,
        tensor[None] / 255,
        normal,
        Image.fromarray(picture),
    ):
        assert np.abs(GradCAM.visualize(given, heat, alpha=0).astype(int) - truth).max() <= 1
    grey = GradCAM.visualize(torch.tensor([[[-1.0, 0.0, 3.0]]]), heat, alpha=0)
    assert grey[0, :, 0].tolist() == [0, 64, 255]
    hot = GradCAM.visualize(picture, heat, alpha=1, colormap="gray")
    assert hot.shape == (6, 8, 3)
    assert hot[0, 0].max() == 0
    assert hot[0, -1].min() == 255
    for wrong, message in (
        ({"alpha": 2}, "alpha is 2; allowed is 0 to 1"),
        ({"colormap": 22}, "colormap is 22; allowed are OpenCV's codes 0 to 21"),
        ({"colormap": None}, "colormap is None"),
        ({"colormap": "jett"}, "no colour map 'jett'.*did you mean 'jet'"),
    ):
        with pytest.raises(FedgazeError, match=message):
            GradCAM.visualize(picture, heat, **wrong)
    with pytest.raises(FedgazeError, match=r"shape \(2, 3, 6, 8\)"):
        GradCAM.visualize(torch.stack([tensor, tensor]), heat)
