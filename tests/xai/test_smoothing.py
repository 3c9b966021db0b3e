"""Around the maps: augmentation, eigen-smoothing, several layers, and maps with a sign."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain, list_methods, overlay, segmentation

MakeCNN = Callable[..., nn.Module]
Maps = Callable[[Tensor], Tensor]


@pytest.fixture
def model(make_cnn: MakeCNN) -> nn.Module:
    return make_cnn()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 12, 8, generator=torch.Generator().manual_seed(1))


def augmented(maps_of: Maps, images: Tensor) -> Tensor:
    """The mean over six versions, in a loop: mirrored maps are mirrored back."""
    total = torch.zeros(())
    for factor in (0.9, 1.0, 1.1):
        total = total + maps_of(factor * images)
        mirrored = torch.stack([image[:, :, range(7, -1, -1)] for image in factor * images])
        total = total + maps_of(mirrored).flip(-1)
    return total / 6


@pytest.mark.parametrize("method", ["gradcam", "eigencam", "scorecam", "saliency"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_augmentation_is_the_mean_over_versions(
    model: nn.Module, images: Tensor, method: str, batch_size: int | None
) -> None:
    layers = {} if method == "saliency" else {"layers": "bn2"}
    targets = [[2, 0], [1, 3], [4, 4]]
    found = explain(
        model, images, method, targets, smoothing="augment", batch_size=batch_size, **layers
    )
    expected = augmented(lambda x: explain(model, x, method, targets, **layers).raw, images)
    torch.testing.assert_close(found.raw, expected)
    # Scores and logits are those of the images themselves.
    plain = explain(model, images, method, targets, **layers)
    torch.testing.assert_close(found.scores, plain.scores)
    torch.testing.assert_close(found.logits, plain.logits)


def test_all_versions_are_explained_for_what_the_image_itself_shows(
    model: nn.Module, images: Tensor
) -> None:
    # Two classes that are almost as high, so that a version tips over.
    model.fc.weight.data[3], model.fc.bias.data[3] = 1.02 * model.fc.weight[2], model.fc.bias[2]
    model.fc.bias.data[[0, 1, 4]] = -50
    found = explain(model, images, layers="bn2", smoothing="augment")
    named = explain(model, images, targets=found.predicted, layers="bn2", smoothing="augment")
    torch.testing.assert_close(found.raw, named.raw)


def test_masks_are_mirrored_with_the_image() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1))
    images, mask = torch.rand(2, 3, 12, 8), torch.zeros(12, 8)
    mask[2:6, 0:3] = 1
    found = explain(
        model, images, targets=segmentation(1, mask), layers="1", smoothing="augment", relu=False
    )
    total = torch.zeros(2, 12, 8)
    for factor in (0.9, 1.0, 1.1):
        for flip in (False, True):
            x, m = factor * images, mask
            x, m = (x.flip(-1), m.flip(-1)) if flip else (x, m)
            maps = explain(model, x, targets=segmentation(1, m), layers="1", relu=False).raw
            total += maps.flip(-1) if flip else maps
    torch.testing.assert_close(found.raw, total / 6)


def test_augmentation_is_that_of_pytorch_grad_cam_before_it_scales(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_grad_cam import GradCAM, base_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    # It stretches the map of each version to [0, 1] before it takes the mean; that apart it agrees.
    monkeypatch.setattr(base_cam, "scale_cam_image", lambda maps, _size=None: maps)
    targets = [2, 1, 4]
    with GradCAM(model=model, target_layers=[model.conv2]) as cam:
        theirs = cam(
            input_tensor=images.clone(),
            targets=[ClassifierOutputTarget(k) for k in targets],
            aug_smooth=True,
        )
    ours = explain(model, images, targets=targets, layers="conv2", smoothing="augment")
    np.testing.assert_allclose(ours.raw.numpy(), theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["gradcam", "layercam", "gradcam++"])
def test_eigen_smoothing_is_a_decomposition_of_weighted_activations(
    model: nn.Module, images: Tensor, full_graph: Callable[..., Any], method: str
) -> None:
    targets = torch.tensor([2, 1, 4])
    activations, gradients = full_graph(model, model.bn2, images, targets)
    a, g = activations.double().numpy(), gradients.double().numpy()
    if method == "gradcam":
        w = g.mean((2, 3), keepdims=True)
    elif method == "layercam":
        w = np.maximum(g, 0)
    else:
        alpha = 1 / (2 + g * a.sum((2, 3), keepdims=True))
        w = (alpha * np.maximum(g, 0)).sum((2, 3), keepdims=True)
    found = explain(model, images, method, targets, layers="bn2", smoothing="eigen", relu=False)
    for n in range(3):
        product = (w * a)[n].reshape(8, -1).T  # positions by channels
        _, _, right = np.linalg.svd(product - product.mean(0), full_matrices=False)
        component = (product - product.mean(0)) @ right[0]
        component *= np.sign(component @ product.sum(1))
        np.testing.assert_allclose(
            found.raw[n].flatten(), component, rtol=1e-3, atol=1e-5 * np.abs(component).max()
        )


def test_both_smoothings_go_together(model: nn.Module, images: Tensor) -> None:
    both = explain(model, images, targets=1, layers="bn2", smoothing=["augment", "eigen"])
    expected = augmented(
        lambda x: explain(model, x, targets=1, layers="bn2", smoothing="eigen").raw, images
    )
    torch.testing.assert_close(both.raw, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": "augmented"}, "smoothing is 'augmented'; .*did you mean 'augment'"),
        ({"smoothing": "eigen", "method": "eigencam"}, "'eigen', which eigencam has no use for"),
        ({"smoothing": "eigen", "method": "scorecam"}, "'eigen', which scorecam has no use for"),
    ],
)
def test_wrong_smoothings(model: nn.Module, images: Tensor, options: Any, message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        explain(model, images, **options)


# --- Several layers -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["layercam", "eigencam", "scorecam", "smooth_gradcam++"])
@pytest.mark.parametrize("fusion", ["mean", "max", "weighted"])
@pytest.mark.parametrize("relu", [True, False])
def test_several_layers(
    model: nn.Module, images: Tensor, method: str, fusion: str, relu: bool
) -> None:
    options: dict[str, Any] = {"targets": [[2, 0], [1, 3], [4, 4]], "relu": relu}
    if method == "smooth_gradcam++":
        options["samples"] = 2
    layers = ("conv1", "bn1", "bn2")
    found = explain(model, images, method, layers=layers, fusion=fusion, **options)
    assert found.layers == layers
    scaled = []
    for name in layers:
        alone = explain(model, images, method, layers=name, **options)
        torch.testing.assert_close(found.per_layer[name], alone.raw)
        rows = [row / row.abs().max() if row.abs().max() > 0 else row for row in alone.raw]
        enlarged = F.interpolate(torch.stack(rows)[:, None], (12, 8), mode="bilinear")[:, 0]
        scaled.append(enlarged)
    expected = {
        "mean": sum(scaled) / 3,
        "max": torch.maximum(torch.maximum(*scaled[:2]), scaled[2]),
        "weighted": (scaled[0] + 2 * scaled[1] + 3 * scaled[2]) / 6,
    }
    torch.testing.assert_close(found.raw, expected[fusion])


# --- Signs --------------------------------------------------------------------------------------

SIGNED = ("gradcam", "xgradcam", "hirescam", "eigengradcam", "ablationcam", "cam")


@pytest.mark.parametrize("method", SIGNED)
def test_a_signed_map_is_the_other_before_its_relu(
    model: nn.Module, images: Tensor, method: str
) -> None:
    layer = "relu" if method == "cam" else "bn2"
    every = [[0, 1, 2, 3, 4]] * 3
    signed = explain(model, images, method, every, layers=layer, relu=False)
    plain = explain(model, images, method, every, layers=layer, relu=True)
    assert signed.raw.min() < 0 < signed.raw.max()
    torch.testing.assert_close(signed.raw.clamp(min=0), plain.raw)
    assert -1 <= signed.heatmaps.min() < 0 < signed.heatmaps.max() <= 1
    peaks = signed.heatmaps.abs().amax((1, 2))
    torch.testing.assert_close(peaks, torch.ones(15))
    # What is positive where one looks stays so.
    large = F.interpolate(signed.raw[:, None], (12, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(signed.heatmaps, large / large.abs().amax((1, 2), keepdim=True))


def test_a_map_that_is_all_against_is_not_flagged_as_no_evidence(
    model: nn.Module, images: Tensor
) -> None:
    model.fc.weight.data[1] = -model.fc.weight[1].abs()
    signed = explain(model, images, "hirescam", 1, layers="relu", relu=False)
    assert signed.raw.max() <= 0
    assert all("no_positive_evidence" not in flags for flags in signed.flags)
    plain = explain(model, images, "hirescam", 1, layers="relu")
    assert all("no_positive_evidence" in flags for flags in plain.flags)
    assert plain.heatmaps.count_nonzero() == 0


def test_colours_tell_what_speaks_for_from_what_speaks_against() -> None:
    heat = torch.tensor([[-1.0, -0.25, 0.0, 0.25, 1.0]])
    shown = overlay(torch.full((1, 1, 5), 0.5), heat, alpha=1)[0, 0].tolist()
    for pixel, value in zip(shown, heat[0].tolist(), strict=True):
        colour = np.array(colormaps["RdBu_r"](round((value + 1) / 2 * 255))[:3])
        weight = abs(value) ** 0.5
        expected = (0.5 * (1 - weight) + colour * weight) * 255
        np.testing.assert_allclose(pixel, expected, atol=0.51)
    against, nothing, speaks_for = shown[0], shown[2], shown[4]
    assert against[2] > 2 * against[0]  # blue
    assert speaks_for[0] > 2 * speaks_for[2]  # red
    assert nothing == [128, 128, 128]  # the picture
    # Another colour map is taken as it is, over the same range.
    other = overlay(torch.zeros(1, 1, 5), heat, alpha=1, colormap="turbo")[0, 0, -1].tolist()
    assert other == [round(255 * c) for c in colormaps["turbo"](255)[:3]]


def test_overlays_of_images_with_different_numbers_of_maps(
    model: nn.Module, images: Tensor
) -> None:
    """Three maps for three images, but not one each."""
    from dataclasses import replace

    found = explain(model, images, targets=1, layers="bn2")
    found = replace(found, images=torch.tensor([0, 0, 2]))
    shown = found.overlay(images, alpha=0)
    pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(shown, pictures[[0, 0, 2]])


def test_every_method_can_be_asked_for_signs_or_not(model: nn.Module, images: Tensor) -> None:
    for method in list_methods():
        if method.kind in {"weights", "map"}:
            maps = explain(model, images, method, 1, layers="bn2", relu=True).raw
            assert maps.min() >= 0
