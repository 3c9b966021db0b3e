"""Classic names and NumPy around `explain`, against loops."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedgaze
from fedgaze import (
    GradCAM,
    GradCAMConfig,
    GradCAMPlusPlus,
    create_gradcam,
    explain,
)
from fedgaze.errors import FedgazeError
from fedgaze.xai import list_methods

CNN = Callable[..., nn.Module]
Graph = Callable[..., tuple[Tensor, Tensor]]


def config(*layers: str, **settings: Any) -> GradCAMConfig:
    return GradCAMConfig(target_layers=[*layers] or ["conv2"], **settings)


def images(count: int = 1, seed: int = 0, size: tuple[int, int] = (10, 12)) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def loop(
    activations: Tensor, gradients: Tensor, change: Callable[[float], float] = float
) -> np.ndarray:
    """Grad-CAM, Eq. 1 and 2, in float64, with each gradient changed."""
    a, g = activations.double().numpy(), gradients.double().numpy()
    channels, height, width = a.shape
    raw = np.zeros((height, width))
    for k in range(channels):
        weight = sum(change(g[k, i, j]) for i in range(height) for j in range(width))
        raw += weight / (height * width) * a[k]
    return np.maximum(raw, 0)


def enlarged(raw: np.ndarray, size: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    return F.interpolate(torch.from_numpy(raw)[None, None], size, mode=mode)[0, 0].numpy()


def heated(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    heat = enlarged(raw, size)
    return heat / heat.max()


def test_the_classic_defaults() -> None:
    settings = GradCAMConfig()
    assert settings.target_layers == ["layer4"]
    assert settings.use_cuda
    assert settings.batch_size == 32
    assert settings.output_size is None
    assert settings.interpolation_mode == "bilinear"
    assert settings.normalize_heatmap
    assert not settings.relu_on_gradients
    assert not settings.eigen_smooth
    assert not settings.use_abs_gradients


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_layers": []}, "target_layers cannot be empty"),
        ({"interpolation_mode": "bicubik"}, "'bicubik'.*did you mean 'bicubic'"),
        ({"batch_size": 0}, "batch_size is 0; allowed is a whole number from 1"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"output_size": (8,)}, r"output_size is \(8,\); allowed is \(H, W\)"),
        ({"output_size": (8, 0)}, r"output_size is \(8, 0\)"),
        ({"output_size": (8, 8, 8)}, "output_size"),
        ({"output_size": 8}, "output_size is 8"),
    ],
)
def test_wrong_settings_are_refused_when_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        GradCAMConfig(**settings)


def test_names_are_there_without_importing_torch() -> None:
    code = (
        "import sys, fedgaze; assert 'torch' not in sys.modules; "
        "from fedgaze import GradCAM, AttentionRollout; "
        "assert 'matplotlib' not in sys.modules and 'PIL' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(hasattr(fedgaze, name) for name in fedgaze.__all__)


def test_a_heatmap_worked_by_hand() -> None:
    # Channel 0 is the image and channel 1 its negative; the score is 3 mean(0) + mean(1).
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1)
    )
    model[0].weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    model[3].weight.data = torch.tensor([[3.0, 1.0]])
    model.append(nn.Linear(1, 3, bias=False))
    model[4].weight.data = torch.tensor([[1.0], [-1.0], [2.0]])
    image = torch.tensor([[[4.0, 0.0], [2.0, -6.0]]])
    # Weights (3/4, 1/4): 3/4 A0 + 1/4 A1 = A0 / 2, of which relu leaves 2, 0, 1, 0.
    gradcam = GradCAM(model, config("0", normalize_heatmap=False))
    assert np.allclose(gradcam.generate_heatmap(image, 0), [[2, 0], [1, 0]])
    # Class 1 has the opposite weights: only the negative pixel speaks for it.
    assert np.allclose(gradcam.generate_heatmap(image, 1), [[0, 0], [0, 3]])
    normal = GradCAM(model, config("0"))
    assert np.allclose(normal.generate_heatmap(image, 2), [[1, 0], [0.5, 0]])


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({}, float),
        ({"relu_on_gradients": True}, lambda g: max(g, 0.0)),
        ({"use_abs_gradients": True}, abs),
        ({"relu_on_gradients": True, "use_abs_gradients": True}, lambda g: max(g, 0.0)),
    ],
)
def test_heatmap_is_the_papers(
    make_cnn: CNN, full_graph: Graph, settings: dict[str, Any], change: Callable[[float], float]
) -> None:
    model, image = make_cnn(), images()
    a, g = full_graph(model, model.conv2, image, torch.tensor([2]))
    gradcam = GradCAM(model, config(**settings))
    heatmap = gradcam.generate_heatmap(image, class_idx=2)
    assert heatmap.dtype == np.float32
    assert heatmap.shape == (10, 12)
    assert np.allclose(heatmap, heated(loop(a[0], g[0], change), (10, 12)), atol=1e-5)
    # What is kept is what autograd gave, whatever the settings.
    assert torch.allclose(gradcam.gradients["conv2"], g, atol=1e-7)


def test_grad_cam_plus_plus_is_the_papers(make_cnn: CNN, full_graph: Graph) -> None:
    model, image = make_cnn(), images()
    a, g = (each[0].double().numpy() for each in full_graph(model, model.conv2, image))
    raw = np.zeros(a.shape[1:])
    for k in range(len(a)):
        below = 2 * g[k] ** 2 + a[k].sum() * g[k] ** 3
        alpha = np.divide(g[k] ** 2, below, out=np.zeros_like(below), where=g[k] > 0)
        raw += (alpha * np.maximum(g[k], 0)).sum() * a[k]
    heatmap = GradCAMPlusPlus(model, config()).generate_heatmap(image)
    assert np.allclose(heatmap, heated(np.maximum(raw, 0), (10, 12)), atol=1e-4)


def test_size_interpolation_and_raw_values(make_cnn: CNN, full_graph: Graph) -> None:
    model, image = make_cnn(), images()
    a, g = full_graph(model, model.conv2, image)
    raw = loop(a[0], g[0])
    settings = config(output_size=(7, 31), interpolation_mode="nearest", normalize_heatmap=False)
    heatmap = GradCAM(model, settings).generate_heatmap(image)
    assert np.allclose(heatmap, enlarged(raw, (7, 31), "nearest"), rtol=1e-4, atol=1e-7)
    smooth = config(output_size=(20, 24), interpolation_mode="bicubic")
    heatmap = GradCAM(model, smooth).generate_heatmap(image)
    assert heatmap.min() >= 0
    assert heatmap.max() == 1


def test_eigen_smooth_is_that_of_explain(make_cnn: CNN) -> None:
    model, image = make_cnn(), images()
    heatmap = GradCAM(model, config(eigen_smooth=True)).generate_heatmap(image)
    same = explain(model, image, layers="conv2", smoothing="eigen")
    assert np.array_equal(heatmap, same.heatmaps[0].numpy())
    assert not np.allclose(heatmap, explain(model, image, layers="conv2").heatmaps[0].numpy())


@pytest.mark.parametrize("method", [each.name for each in list_methods() if each.layers])
def test_every_cam_method_has_a_classic_face(make_cnn: CNN, method: str) -> None:
    model, image = make_cnn(), images(size=(6, 8))
    gradcam = create_gradcam(model, ["bn2"], method)
    assert isinstance(gradcam, GradCAM)
    heatmap = gradcam.generate_heatmap(image, 1)
    assert np.allclose(heatmap, explain(model, image, method, 1, "bn2").heatmaps[0], atol=1e-5)


def test_the_predicted_class_is_the_default(make_cnn: CNN) -> None:
    model, image = make_cnn(), images()
    predicted = int(model(image).argmax())
    gradcam = GradCAM(model, config())
    default = gradcam.generate_heatmap(image)
    assert gradcam.explanation is not None
    assert gradcam.explanation.targets.tolist() == [predicted]
    assert np.array_equal(default, gradcam.generate_heatmap(image[0], predicted))


def test_a_batch_is_its_images_one_by_one(make_cnn: CNN) -> None:
    model, batch = make_cnn(), images(5)
    gradcam = GradCAM(model, config(batch_size=2))
    together = gradcam.generate_batch_heatmaps(batch, [0, 1, 2, 3, 4])
    assert len(together) == 5
    # Of five images, two at once, the last one is kept.
    assert len(gradcam.gradients["conv2"]) == len(gradcam.activations["conv2"]) == 1
    for index, heatmap in enumerate(together):
        assert np.allclose(heatmap, gradcam.generate_heatmap(batch[index], index), atol=1e-5)
    for given in ([0, 1], [0] * 6):
        with pytest.raises(FedgazeError, match=f"{len(given)} targets for 5 images"):
            gradcam.generate_batch_heatmaps(batch, given)
    with pytest.raises(FedgazeError, match="holds 5 images; allowed is one, or generate_batch"):
        gradcam.generate_heatmap(batch)


def test_several_layers(make_cnn: CNN, full_graph: Graph) -> None:
    model, image = make_cnn(), images()
    raws = [
        loop(*(each[0] for each in full_graph(model, layer, image)))
        for layer in (model.conv1, model.conv2)
    ]
    early, late = (enlarged(raw / raw.max(), (10, 12)) for raw in raws)
    # The layers count in the order in which they run, however they were given.
    gradcam = GradCAM(model, config("conv2", "conv1"))
    for aggregation, truth in {
        "mean": (early + late) / 2,
        "max": np.maximum(early, late),
        "weighted": (early + 2 * late) / 3,
    }.items():
        heatmap = gradcam.get_multi_layer_heatmap(image, aggregation=aggregation)
        assert np.allclose(heatmap, truth / truth.max(), atol=1e-5), aggregation
    with pytest.raises(FedgazeError, match="'middle'; allowed are mean, max, weighted"):
        gradcam.get_multi_layer_heatmap(image, aggregation="middle")
    # A single map is that of the first given, or of any layer by name.
    first = gradcam.generate_heatmap(image)
    assert np.allclose(first, heated(raws[1], (10, 12)), atol=1e-5)
    other = gradcam.generate_heatmap(image, target_layer="conv1")
    assert np.allclose(other, heated(raws[0], (10, 12)), atol=1e-5)
    assert set(gradcam.gradients) == set(gradcam.activations) == {"conv1", "conv2"}


def test_gradients_and_activations_stay_until_the_next_call(
    make_cnn: CNN, full_graph: Graph
) -> None:
    model = make_cnn()
    gradcam = GradCAM(model, config())
    assert gradcam.gradients == gradcam.activations == {}
    for seed in (0, 1):
        image = images(seed=seed)
        a, g = full_graph(model, model.conv2, image)
        gradcam.generate_heatmap(image)
        assert torch.allclose(gradcam.activations["conv2"], a, atol=1e-6)
        assert torch.allclose(gradcam.gradients["conv2"], g, atol=1e-7)
        for kept in (gradcam.activations["conv2"], gradcam.gradients["conv2"]):
            assert not kept.requires_grad
            assert kept.grad_fn is None
    gradcam.remove_hooks()
    assert gradcam.gradients == gradcam.activations == {}
    assert gradcam.explanation is None
    # It still works.
    assert gradcam.generate_heatmap(images()).max() == 1


def test_methods_without_gradients_keep_none(make_cnn: CNN) -> None:
    gradcam = create_gradcam(make_cnn(), ["conv2"], "eigencam")
    gradcam.generate_heatmap(images())
    assert gradcam.gradients == {}
    assert gradcam.activations["conv2"].shape == (1, 8, 5, 6)


def test_the_model_is_left_as_it_was(make_cnn: CNN) -> None:
    model = make_cnn().train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with GradCAM(model, config("conv1", "conv2")) as gradcam:
        gradcam.generate_batch_heatmaps(images(3))
        gradcam.get_multi_layer_heatmap(images())
        assert gradcam.gradients
        assert all(not each._forward_hooks and not each._backward_hooks for each in model.modules())
    assert gradcam.gradients == {}
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_cuda_is_wished_for_not_needed(make_cnn: CNN) -> None:
    model, image = make_cnn(), images()
    wished = GradCAM(model, config(use_cuda=True)).generate_heatmap(image)
    assert np.allclose(
        wished, GradCAM(model, config(use_cuda=False)).generate_heatmap(image), atol=1e-3
    )
    assert next(model.parameters()).device.type == "cpu"


def test_errors_name_cause_and_remedy(make_cnn: CNN) -> None:
    model = make_cnn()
    with pytest.raises(FedgazeError, match=r"no layer 'conv3'.*did you mean"):
        GradCAM(model, config("conv3"))
    with pytest.raises(
        FedgazeError, match=r"'gradcan'; allowed are gradcam.*did you mean 'gradcam'"
    ):
        create_gradcam(model, method="gradcan")
    with pytest.raises(FedgazeError, match="'attention_rollout'; allowed are gradcam"):
        create_gradcam(model, method="attention_rollout")
    with pytest.raises(FedgazeError, match="there is no class 5; the model knows 0 to 4"):
        GradCAM(model, config()).generate_heatmap(images(), 5)
    for setting in ("relu_on_gradients", "use_abs_gradients", "eigen_smooth"):
        with pytest.raises(FedgazeError, match=f"{setting} is True, which eigencam has no use"):
            GradCAM(model, config(**{setting: True}), "eigencam")
