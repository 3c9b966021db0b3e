from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain, grad_cam, grad_cam_plus_plus, logits_of

MakeCNN = Callable[..., nn.Module]
FullGraph = Callable[..., tuple[Tensor, Tensor]]
ARCHITECTURES = {
    "resnet18": "layer4",
    "densenet121": "features",
    "mobilenet_v2": "features",
    "shufflenet_v2_x0_5": "conv5",
}


def build(name: str) -> nn.Module:
    from torchvision.models import get_model

    torch.manual_seed(0xCA3)
    return get_model(name, weights=None).eval()


def captum_map(model: nn.Module, layer: Any, images: Tensor, classes: Any) -> tuple[Tensor, Tensor]:
    from captum.attr import LayerAttribution, LayerGradCam

    raw = LayerGradCam(model, layer).attribute(images, target=classes, relu_attributions=True)
    raw = raw.detach()
    return raw[:, 0], LayerAttribution.interpolate(raw, images.shape[2:], "bilinear")[:, 0]


def peers_raw_map(model: nn.Module, layer: Any, images: Tensor, classes: Any) -> Tensor:
    """The map of pytorch-grad-cam before it is scaled: its own Grad-CAM class, asked for it."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with GradCAM(model=model, target_layers=[layer]) as cam:
        targets = [ClassifierOutputTarget(int(c)) for c in classes]
        cam(input_tensor=images, targets=targets)
        activations = cam.activations_and_grads.activations[0].detach().numpy()
        gradients = cam.activations_and_grads.gradients[0].detach().numpy()
        raw = cam.get_cam_image(images, layer, targets, activations, gradients, False)
    return torch.from_numpy(np.maximum(raw, 0))


def close(found: Tensor, expected: Any) -> None:
    """Equal to 1e-5 of the largest value."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "layer"), ARCHITECTURES.items())
def test_grad_cam_is_that_of_captum_and_of_pytorch_grad_cam(name: str, layer: Any) -> None:
    model, images, classes = build(name), torch.rand(2, 3, 64, 96), torch.tensor([3, 77])
    found = explain(model, images, targets=classes, layers=layer)
    module = model.get_submodule(layer)
    raw, enlarged = captum_map(model, module, images, classes)
    assert raw.amax() > 0
    close(found.raw, raw)
    # Of DenseNet it keeps activations that the following in-place ReLU has overwritten.
    if name != "densenet121":
        close(found.raw, peers_raw_map(model, module, images, classes))
    peak = enlarged.amax((1, 2), keepdim=True)
    close(found.heatmaps, torch.where(peak > 0, enlarged / peak, 0))


def test_real_weights_on_real_photographs(real_data: Path) -> None:
    from PIL import Image
    from safetensors.torch import load_file
    from torchvision.models import squeezenet1_1
    from torchvision.transforms.functional import normalize, pil_to_tensor

    model = squeezenet1_1()
    model.load_state_dict(load_file(real_data / "weights" / "squeezenet1_1_imagenet.safetensors"))
    model.eval()
    picture = Image.open(real_data / "photos" / "dog_and_cat.png").convert("RGB").resize((224, 224))
    image = normalize(pil_to_tensor(picture) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[
        None
    ]
    for layer in ("features", "classifier.1"):
        found = explain(model, image, targets=243, layers=layer)  # the bull mastiff
        module = model.get_submodule(layer)
        raw, _ = captum_map(model, module, image, torch.tensor([243]))
        close(found.raw, raw)
        close(found.raw, peers_raw_map(model, module, image, [243]))
    # The dog sits at the top left, the cat at the bottom.
    dog = explain(model, image, targets=243).heatmaps[0]
    cat = explain(model, image, targets=282).heatmaps[0]
    assert dog[:112].sum() > dog[112:].sum()
    assert cat[112:].sum() > cat[:112].sum()


def by_hand() -> tuple[nn.Sequential, Tensor]:
    """Pixels as they are, and as scores twice the mean of their map and minus twice."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1, 2, bias=False),
    )
    model[0].weight.data.fill_(1)
    model[4].weight.data.copy_(torch.tensor([[2.0], [-2.0]]))
    return model, torch.tensor([[[[1.0, 2.0], [0.0, 5.0]]]])


def test_a_case_worked_by_hand() -> None:
    model, image = by_hand()
    found = explain(model, image)
    # The mean is 2, the scores 4 and -4; dS/dA = 2/4, so the map is half the activations.
    assert found.layers == ("1",)
    assert found.logits.tolist() == [[4.0, -4.0]]
    assert found.predicted.tolist() == found.targets.tolist() == [0]
    assert found.scores.tolist() == [4.0]
    assert found.raw.tolist() == [[[0.5, 1.0], [0.0, 2.5]]]
    assert found.heatmaps[0].flatten().tolist() == pytest.approx([0.2, 0.4, 0.0, 1.0])
    assert found.flags == ((),)
    assert (found.method, len(found)) == ("gradcam", 1)


def test_no_evidence_is_flagged_and_never_nan() -> None:
    model, image = by_hand()
    against = explain(model, torch.cat([image, image * 0]), targets=1)
    assert against.raw.count_nonzero() == 0
    assert against.heatmaps.count_nonzero() == 0
    assert against.flags == (("no_positive_evidence",),) * 2
    assert explain(model, image, "gradcam++", targets=1).flags == (("no_positive_evidence",),)


def test_a_constant_map_is_flagged_and_not_made_to_look_like_evidence() -> None:
    model, image = by_hand()
    found = explain(model, torch.stack([torch.full_like(image[0], 0.3), image[0]]))
    assert found.flags == (("constant",), ())
    assert found.heatmaps[0].count_nonzero() == 0
    assert found.raw[0].unique().item() == pytest.approx(0.15)
    assert explain(model, torch.rand(1, 1, 1, 1), layers="1").flags == (("constant",),)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_flagged_and_the_map_zero(method: str, bad: float) -> None:
    model, image = by_hand()
    broken = image.clone()
    broken[0, 0, 0, 0] = bad
    found = explain(model, torch.cat([broken, image]), method, targets=0)
    assert found.flags == (("not_finite",), ())
    assert found.raw[0].count_nonzero() == found.heatmaps[0].count_nonzero() == 0
    assert found.heatmaps[1].amax() == 1
    # A model that diverged in training.
    model[4].weight.data.fill_(float("nan"))
    assert explain(model, image, method, targets=0).flags == (("not_finite",),)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
@pytest.mark.parametrize("shape", [(1, 1, 9, 14), (33, 3, 12, 7), (3, 10, 10)])
def test_shapes(
    make_cnn: MakeCNN, full_graph: FullGraph, method: str, shape: tuple[int, ...]
) -> None:
    model, images = make_cnn(channels=shape[-3]), torch.rand(shape)
    found = explain(model, images, method, layers="bn2")
    batch = images.reshape(-1, *shape[-3:])
    compute = {"gradcam": grad_cam, "gradcam++": grad_cam_plus_plus}[method]
    torch.testing.assert_close(found.raw, compute(*full_graph(model, model.bn2, batch)))
    assert found.heatmaps.shape == (len(batch), *shape[-2:])
    assert 0 <= found.heatmaps.min() <= found.heatmaps.max() <= 1
    peaks = found.heatmaps.amax((1, 2))
    assert all(p == 1 or f for p, f in zip(peaks.tolist(), found.flags, strict=True))


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_batches_change_nothing(make_cnn: MakeCNN, size: int) -> None:
    model, images, classes = make_cnn(), torch.rand(5, 3, 8, 8), [0, 1, 2, 3, 4]
    whole = explain(model, images, targets=classes, layers=["conv1", "conv2"])
    parts = explain(model, images, targets=classes, layers=["conv1", "conv2"], batch_size=size)
    for name in ("heatmaps", "raw", "targets", "scores", "logits", "predicted"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert parts.flags == whole.flags


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_interpolation(make_cnn: MakeCNN, interpolation: str) -> None:
    found = explain(make_cnn(), torch.rand(2, 3, 16, 16), interpolation=interpolation)
    enlarged = F.interpolate(found.raw[:, None], (16, 16), mode=interpolation)[:, 0].clamp(min=0)
    torch.testing.assert_close(found.heatmaps, enlarged / enlarged.amax((1, 2), keepdim=True))


def test_several_layers_are_fused_as_the_docstring_says(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    layers = ["conv2", "conv1"]
    alone = [explain(model, images, targets=1, layers=name) for name in ("conv1", "conv2")]
    unit = [each.raw / each.raw.amax((1, 2), keepdim=True) for each in alone]
    unit[1] = F.interpolate(unit[1][:, None], (8, 8), mode="bilinear")[:, 0]
    expected = {
        "mean": (unit[0] + unit[1]) / 2,
        "max": torch.maximum(*unit),
        "weighted": (unit[0] + 2 * unit[1]) / 3,
    }
    for fusion, truth in expected.items():
        found = explain(model, images, targets=1, layers=layers, fusion=fusion)
        torch.testing.assert_close(found.raw, truth)
        torch.testing.assert_close(found.heatmaps, truth / truth.amax((1, 2), keepdim=True))
        assert found.layers == ("conv1", "conv2")
        assert found.fusion == fusion
        for name, each in zip(found.layers, alone, strict=True):
            torch.testing.assert_close(found.per_layer[name], each.raw)


def test_swin_has_its_channels_last() -> None:
    from torchvision.models import swin_t

    torch.manual_seed(0)
    model, images = swin_t().eval(), torch.rand(2, 3, 64, 96)
    found = explain(model, images, layers="norm")
    # The layer after it only moves the channels to the front.
    torch.testing.assert_close(found.raw, explain(model, images, layers="permute").raw)
    assert found.raw.shape == (2, 2, 3)


def test_a_layer_that_is_no_feature_map_is_refused() -> None:
    from torchvision.models import VisionTransformer

    vit = VisionTransformer(32, 16, 1, 2, 8, 8).eval()
    with pytest.raises(FedgazeError, match=r"layer 'heads' returns a tensor of shape \(1, 1000\);"):
        explain(vit, torch.rand(1, 3, 32, 32), layers="heads")


@pytest.mark.parametrize(
    "targets",
    [2, np.int64(2), [2, 2], (2, 2), torch.tensor(2), torch.tensor([2, 2]), np.array([2, 2])],
)
def test_classes_are_given_in_many_ways(make_cnn: MakeCNN, targets: Any) -> None:
    found = explain(make_cnn(), torch.rand(2, 3, 8, 8), targets=targets)
    assert found.targets.tolist() == [2, 2]
    assert found.targets.dtype == torch.int64
    torch.testing.assert_close(found.scores, found.logits[:, 2])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1], "1 targets for 2 images"),
        ([1, 2, 3], "3 targets for 2 images"),
        (torch.tensor([1.0, 2.0]), r"targets are float32 of shape \(2,\)"),
        (torch.tensor([[1, 2]]), "1 targets for 2 images"),
        ([[1, 2], [1]], "several an image \\(all as many\\)"),
        (torch.zeros(1, 1, 2).long(), r"targets are int64 of shape \(1, 1, 2\)"),
        (torch.tensor([True, False]), "targets are bool"),
        ("cat", "targets are 'cat'; allowed are None"),
        ([True, False], "targets are"),
        (1.5, r"targets are 1\.5"),
        (5, "no class 5; the model knows 0 to 4"),
        ([0, -1], "no class -1; the model knows 0 to 4"),
        (lambda logits: logits[:1, 0], r"returned \(1,\) for 2 images; allowed is .* \(2,\)"),
        (lambda _: 1.0, "returned float for 2 images"),
    ],
)
def test_wrong_targets_are_errors(make_cnn: MakeCNN, targets: Any, message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        explain(make_cnn(), torch.rand(2, 3, 8, 8), targets=targets)


def test_a_function_of_the_output_is_explained(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(3, 3, 8, 8)
    margin = explain(model, images, targets=lambda logits: logits[:, 1] - logits[:, 2])
    assert margin.targets is None
    torch.testing.assert_close(margin.scores, margin.logits[:, 1] - margin.logits[:, 2])
    plain = explain(model, images, targets=lambda logits: logits[:, 1])
    torch.testing.assert_close(plain.raw, explain(model, images, targets=1).raw)


class Wrapped(nn.Module):
    """A model whose output is packed."""

    def __init__(self, inner: nn.Module, pack: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.pack = inner, pack

    def forward(self, x: Tensor) -> object:
        return self.pack(self.inner(x))


def image_classifier_output(logits: Tensor) -> Any:
    from transformers.modeling_outputs import ImageClassifierOutput

    return ImageClassifierOutput(logits=logits)


@pytest.mark.parametrize(
    "pack",
    [
        image_classifier_output,
        lambda logits: {"logits": logits},
        lambda logits: {"out": logits},
        lambda logits: (logits, None),
        lambda logits: [logits],
    ],
)
def test_outputs_of_many_kinds_have_logits(make_cnn: MakeCNN, pack: Callable[[Any], Any]) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    found = explain(Wrapped(model, pack), images, layers="inner.conv2")
    torch.testing.assert_close(found.raw, explain(model, images, layers="conv2").raw)


def test_outputs_that_hold_no_classes(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    one = explain(Wrapped(model, lambda logits: logits[:, 0]), images, layers="last")
    assert one.logits.shape == (2, 1)
    for pack, message in [
        (lambda logits: {"embedding": logits}, "returned dict without logits"),
        (lambda logits: logits[..., None], r"logits of shape \(2, 5, 1\) for 2 images"),
    ]:
        packed = Wrapped(model, pack)
        with pytest.raises(FedgazeError, match=message):
            explain(packed, images, layers="last")
    embedding = Wrapped(model, lambda logits: {"embedding": logits})
    found = explain(
        embedding, images, layers="last", targets=lambda o: o["embedding"].square().sum(1)
    )
    assert torch.equal(found.logits, found.scores[:, None])
    flat = explain(
        Wrapped(model, lambda o: o.sum(1)), images, layers="last", targets=lambda o: o * 2
    )
    torch.testing.assert_close(flat.logits, model(images).sum(1, keepdim=True))
    torch.testing.assert_close(flat.scores, 2 * flat.logits[:, 0])
    with pytest.raises(FedgazeError, match="returned tuple without logits"):
        logits_of(())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "gradcma"}, "no method 'gradcma'; .*did you mean 'gradcam'"),
        ({"fusion": "avg"}, "fusion is 'avg'; allowed are mean, max, weighted"),
        ({"interpolation": "linear"}, "interpolation is 'linear'; .*did you mean 'bilinear'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, r"images are torch\.uint8"),
        ({"images": np.zeros((2, 3, 8, 8))}, "images are ndarray"),
        ({"images": torch.zeros(8, 8)}, r"images have the shape \(8, 8\)"),
        ({"images": torch.zeros(0, 3, 8, 8)}, r"images have the shape \(0, 3, 8, 8\)"),
    ],
)
def test_wrong_arguments_fail_before_any_work(
    make_cnn: MakeCNN, arguments: dict[str, Any], message: str
) -> None:
    model = make_cnn()
    model.forward = pytest.fail
    with pytest.raises(FedgazeError, match=message):
        explain(model, **({"images": torch.rand(2, 3, 8, 8)} | arguments))


def test_a_model_that_normalises_over_its_batch_is_flagged(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(3, 3, 8, 8)
    model.bn1 = nn.BatchNorm2d(6, track_running_stats=False)
    assert explain(model, images).flags[0][0] == "batch_dependent"
    assert explain(model, images, layers="bn2", batch_size=1).flags == ((),) * 3
    assert explain(model, images[0], layers="bn2").flags == ((),)


def test_images_come_to_the_models_dtype(make_cnn: MakeCNN) -> None:
    model, images = make_cnn().double(), torch.rand(1, 3, 8, 8)
    assert explain(model, images).raw.dtype == torch.float64
    bare = nn.Sequential(nn.Hardtanh(), nn.AvgPool2d(4), nn.Flatten())
    assert explain(bare, images, layers="0").raw.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(make_cnn: MakeCNN, dtype: torch.dtype) -> None:
    model, images = make_cnn(), torch.rand(4, 3, 8, 8)
    expected = explain(model, images, targets=1, layers="bn2")
    found = explain(model.to(dtype), images, targets=1, layers="bn2")
    assert found.raw.dtype == found.heatmaps.dtype == torch.float32
    for index in range(4):
        pair = torch.stack([found.heatmaps[index].flatten(), expected.heatmaps[index].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.99 or expected.flags[index]


def test_gradients_below_what_float16_holds_are_not_lost(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(4, 3, 8, 8)
    model.fc.weight.data[1] = 1e-6 * torch.arange(1, 9)
    wide = explain(model, images, targets=1, layers="bn2")
    found = explain(model.half(), images, targets=1, layers="bn2")
    # Each gradient is 1e-6 / 16 and less; float16 ends at 6e-8.
    assert wide.raw.amax() > 0
    torch.testing.assert_close(found.raw, wide.raw, rtol=0.1, atol=0.05 * wide.raw.max().item())


def test_gradients_above_what_float16_holds_are_scaled_down(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    model.fc.weight.data[1] = 300 * torch.arange(1, 9)
    wide = explain(model, images, targets=1, layers="bn2")
    found = explain(model.half(), images, targets=lambda logits: logits[:, 1].float(), layers="bn2")
    assert found.flags == wide.flags
    torch.testing.assert_close(found.heatmaps, wide.heatmaps, rtol=0.1, atol=0.05)
