"""The fast copy says what the model says, follows it when it changes, and leaves it alone."""

import copy
import gc
import json
import statistics
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fedgaze.xai import Capture, explain
from fedgaze.xai.fast import Prepared, prepare
from fedgaze.xai.fast.classifier import shorten_way_back
from fedgaze.xai.methods import find_method

MakeCNN = Callable[..., nn.Module]
FullGraph = Callable[..., tuple[Tensor, Tensor]]

HAS_BF16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="bfloat16 needs AVX512-BF16 or AMX")

# By name: the last stage, and what "fast" makes of it.
ARCHITECTURES = {
    "resnet18": ("layer4", "fast"),
    "resnet50": ("layer4", "fast"),
    "densenet121": ("features", "fast"),
    "mobilenet_v2": ("features", "fast"),
    "mobilenet_v3_small": ("features", "fast"),
    "efficientnet_b0": ("features", "fast"),
    "squeezenet1_1": ("features", "fast"),
    "googlenet": ("inception5b", "fast"),
    "inception_v3": ("Mixed_7c", "fast"),
    "regnet_y_400mf": ("trunk_output", "fast"),
    "shufflenet_v2_x0_5": ("conv5", "fast"),
    "convnext_tiny": ("features", "full"),
    "timm/efficientnet_b0": ("bn2", "fast"),
    "timm/vit_tiny_patch16_224": ("blocks.11.norm1", "full"),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0xFA57)


def build(name: str) -> nn.Module:
    """The architecture with BatchNorms that do something, as after training."""
    if name.startswith("timm/"):
        import timm

        model = (
            timm.create_model(name.removeprefix("timm/"), img_size=96)
            if "vit" in name
            else (timm.create_model(name.removeprefix("timm/")))
        )
    else:
        from torchvision.models import get_model

        options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
        model = get_model(name, weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def logits_and_capture(model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Any:
    logits: list[Tensor] = []

    def score(outputs: Tensor) -> Tensor:
        logits.append(outputs.detach())
        return outputs.gather(1, classes[:, None])[:, 0]

    with Capture(model, {layer: model.get_submodule(layer)}) as capture:
        found = capture.run(images, score)
    return logits[0], found.activations[layer], found.gradients[layer]


def maps_of(model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    _, activations, gradients = logits_and_capture(model, layer, images, classes)
    return grad_cam_map(activations.float(), gradients.float())


def grad_cam_map(activations: Tensor, gradients: Tensor) -> Tensor:
    """Eq. 1 and 2 of the Grad-CAM paper without its ReLU, so that no map is empty."""
    return (gradients.mean((2, 3), keepdim=True) * activations).sum(1)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def is_copy(prepared: Prepared, model: nn.Module) -> bool:
    own = {id(module) for module in model.modules()}
    return not any(id(module) in own for module in prepared.model.modules())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("classes", [[3, 3], [0, 6], None])
@pytest.mark.parametrize("relu", [None, "1"])
def test_a_classifying_convolution_goes_back_from_the_explained_classes(
    classes: list[int] | None, relu: str | None, inplace: bool
) -> None:
    own = nn.Sequential(nn.Conv2d(5, 7, 1), nn.ReLU(inplace))
    images = torch.rand(2, 5, 3, 4, requires_grad=True)
    other = copy.deepcopy(own).requires_grad_(requires_grad=False)
    shorten_way_back(other, "0", relu)
    assert type(other[0]) is not nn.Conv2d

    def gradient(module: nn.Module) -> Tensor:
        scores = module(images).square().mean((2, 3))
        chosen = scores * 0 if classes is None else scores[[0, 1], classes]
        return torch.autograd.grad(chosen.sum(), images)[0]

    torch.testing.assert_close(other(images), own(images))
    torch.testing.assert_close(gradient(other), gradient(own))


def test_only_a_pointwise_convolution_is_changed() -> None:
    for module in (nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1, stride=2), nn.Linear(2, 2)):
        model = nn.Sequential(module, nn.ReLU())
        shorten_way_back(model, "0", "1")
        assert type(model[0]) is type(module)
        assert type(model[1]) is nn.ReLU


@pytest.mark.parametrize("layer", ["classifier.1", "classifier.2", "features"])
def test_each_layer_of_a_convolutional_classifier_keeps_its_map(layer: str) -> None:
    model, images = build("squeezenet1_1"), torch.rand(3, 3, 96, 96)
    classes = torch.tensor([5, 5, 700])
    # Copies are shared where that is sound.
    prepared = [prepare(model, images, [each], "fast") for each in ("features", layer)]
    assert [each.precision for each in prepared] == ["fast", "fast"]
    expected = logits_and_capture(model, layer, images, classes)
    found = logits_and_capture(prepared[1].model, layer, images, classes)
    for one, two in zip(found, expected, strict=True):
        close(one, two)
    assert bool((expected[1] < 0).any()) == (layer == "classifier.1")


def test_what_watches_the_way_back_gets_the_model_s_own_classifier() -> None:
    model, images = build("squeezenet1_1"), torch.rand(1, 3, 96, 96)
    kinds = {
        name: type(
            prepare(model, images, ["features"], "fast", find_method(name)).model.classifier[1]
        )
        for name in ("gradcam", "lrp", "shapleycam")
    }
    assert kinds["gradcam"] is not nn.Conv2d
    assert kinds["lrp"] is kinds["shapleycam"] is nn.Conv2d


QUICK = {"resnet18", "mobilenet_v2", "squeezenet1_1", "timm/vit_tiny_patch16_224"}


@pytest.mark.parametrize(
    ("name", "expectation"),
    [
        pytest.param(name, each, marks=[] if name in QUICK else pytest.mark.slow)
        for name, each in ARCHITECTURES.items()
    ],
)
def test_the_copy_gives_the_same_logits_and_maps(name: str, expectation: tuple[str, Any]) -> None:
    layer, precision = expectation
    model, images = build(name), torch.rand(2, 3, 96, 96)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prepared = prepare(model, images, [layer], "fast")
    assert prepared.precision == precision
    assert (prepared.reason is None) == (precision == "fast")
    if precision == "full":
        assert prepared.model is model
        assert "no BatchNorm to fuse" in str(prepared.reason)
        return
    assert is_copy(prepared, model)
    assert list(dict(prepared.model.named_modules())) == list(dict(model.named_modules()))
    classes = torch.tensor([3, 77])
    expected = logits_and_capture(model, layer, images, classes)
    found = logits_and_capture(prepared.model, layer, prepared.images(images), classes)
    for one, other in zip(found, expected, strict=True):
        close(one, other, 1e-4)
    close(grad_cam_map(*found[1:]), grad_cam_map(*expected[1:]), 1e-4)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "timm/efficientnet_b0"])
def test_every_batchnorm_after_a_convolution_is_fused(name: str) -> None:
    model = build(name)
    prepared = prepare(model, torch.rand(1, 3, 96, 96), [], "fast")
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.model.modules())


@pytest.mark.parametrize("layer", ["conv1", "bn1", "conv2", "bn2", "relu"])
def test_a_layer_returns_the_same_whether_or_not_it_is_fused(
    make_cnn: MakeCNN, full_graph: FullGraph, layer: str
) -> None:
    model, images = make_cnn(), torch.randn(3, 3, 9, 7)
    activations, gradients = full_graph(model, model.get_submodule(layer), images)
    prepared = prepare(model, images, [layer], "fast")
    assert prepared.precision == "fast"
    classes = model(images).argmax(1)
    found = logits_and_capture(prepared.model, layer, prepared.images(images), classes)
    close(found[1], activations, 1e-5)
    close(found[2], gradients, 1e-5)
    spared = {"conv1": "bn1", "conv2": "bn2"}.get(layer)
    for name in ("bn1", "bn2"):
        kind = type(prepared.model.get_submodule(name))
        assert kind is (nn.BatchNorm2d if name == spared else nn.Identity)


def test_several_layers_are_all_spared(make_cnn: MakeCNN, full_graph: FullGraph) -> None:
    model, images = make_cnn(), torch.randn(2, 3, 8, 8)
    prepared = prepare(model, images, ["conv1", "bn1", "conv2"], "fast")
    assert type(prepared.model.bn1) is type(prepared.model.bn2) is nn.BatchNorm2d
    prepared = prepare(model, images, ["conv1", "bn1"], "fast")
    for layer in ("conv1", "bn1"):
        expected = full_graph(model, model.get_submodule(layer), images)
        classes = model(images).argmax(1)
        found = logits_and_capture(prepared.model, layer, images, classes)
        close(found[1], expected[0], 1e-5)
        close(found[2], expected[1], 1e-5)


class Tail(nn.Module):
    """A part that is followed by BatchNorm, ReLU in place, and the mean."""

    def __init__(self, part: nn.Module, channels: int = 4) -> None:
        super().__init__()
        self.part = part
        self.bn = batch_norm(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Any:
        return self.relu(self.bn(self.part(x))).mean((2, 3))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def same_as(model: nn.Module, prepared: Prepared, images: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        close(prepared.model(images), model(images), 1e-5)


def test_a_layer_that_ends_with_a_convolution_returns_what_it_returned() -> None:
    model = Tail(nn.Sequential(nn.Conv2d(3, 4, 3), batch_norm(4), nn.Conv2d(4, 4, 3))).eval()
    images = torch.randn(2, 3, 8, 8)
    prepared = prepare(model, images, ["part"], "fast")
    assert type(prepared.model.bn) is nn.BatchNorm2d
    assert type(prepared.model.part[1]) is nn.Identity
    with torch.no_grad():
        close(prepared.model.part(images), model.part(images), 1e-5)
    prepared = prepare(model, images, ["relu"], "fast")
    assert type(prepared.model.bn) is nn.Identity
    same_as(model, prepared, images)


class Reader(Tail):
    """Something else reads what the convolution made, where no module is seen to."""

    def forward(self, x: Tensor) -> Any:
        x = self.part(x)
        return (self.bn(x) + x).mean((2, 3))


class Changer(Tail):
    """What the convolution made is changed in place before BatchNorm reads it."""

    def forward(self, x: Tensor) -> Any:
        return self.bn(self.part(x).add_(1)).mean((2, 3))


class Twice(Tail):
    """The convolution and its BatchNorm run twice, the BatchNorm once on something else."""

    def forward(self, x: Tensor) -> Any:
        once = self.bn(self.part(x))
        return self.bn(once).mean((2, 3)) + self.part(x).mean((2, 3))


class Tied(Tail):
    """A second convolution has the first one's weights, without its BatchNorm."""

    def __init__(self, part: Any) -> None:
        super().__init__(part)
        self.other = nn.Conv2d(3, 4, 3)
        self.other.weight = part.weight

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + self.other(x).mean((2, 3))


class Statistics(Tail):
    """BatchNorm without running statistics asks the batch."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part)
        self.bn = nn.BatchNorm2d(4, track_running_stats=False)


class Plus(nn.BatchNorm2d):
    """Derives from BatchNorm, and does more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Derived(Tail):
    def __init__(self, part: nn.Module) -> None:
        super().__init__(part)
        self.bn = Plus(4)


@pytest.mark.parametrize("kind", [Tail, Reader, Changer, Twice, Tied, Statistics, Derived])
def test_nothing_is_fused_that_would_say_something_else(kind: Any) -> None:
    # Another pair first, so that there is something to gain in any case.
    first = nn.Sequential(nn.Conv2d(3, 3, 1), batch_norm(3))
    model = nn.Sequential(first, kind(nn.Conv2d(3, 4, 3))).eval()
    images = torch.randn(2, 3, 8, 8)
    prepared = prepare(model, images, ["0"], "fast")
    if kind is Reader:  # seen only by what comes out
        assert prepared.model is model
        assert prepared.reason == "a copy does not say the same"
        return
    assert prepared.precision == "fast"
    fused = type(prepared.model[1].bn) is nn.Identity
    assert fused == (kind in {Tail, Tied})
    same_as(model, prepared, images)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dimensions", [0, 1, 2, 3])
def test_folding_in_each_dimension(bias: bool, affine: bool, dimensions: int) -> None:
    convolutions = [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d]
    norms = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]
    layer = convolutions[dimensions](4, 6, *([3] if dimensions else []), bias=bias)
    norm = norms[dimensions](6, affine=affine, eps=0.1)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model = nn.Sequential(layer, norm, nn.Tanh()).eval()
    images = torch.randn(3, 4, *[[], [16], [8, 8], [5, 5, 5]][dimensions])
    prepared = prepare(model, images, ["2"], "fast")
    assert type(prepared.model[1]) is nn.Identity
    same_as(model, prepared, images)


def test_folding_by_hand() -> None:
    convolution, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0)
    for tensor, value in (
        (convolution.weight, 3.0),
        (convolution.bias, 5.0),
        (norm.running_mean, 1.0),
        (norm.running_var, 4.0),
        (norm.weight, 10.0),
        (norm.bias, 7.0),
    ):
        nn.init.constant_(tensor, value)
    model = nn.Sequential(convolution, norm).eval()
    fused = prepare(model, torch.rand(1, 1, 2, 2), [], "fast").model
    # (3 x + 5 - 1) * 10 / 2 + 7 = 15 x + 27
    assert float(fused[0].weight.detach()) == 15
    assert float(fused[0].bias.detach()) == 27
    assert float(convolution.weight.detach()) == 3


def test_a_grouped_convolution_and_frozen_statistics() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    norm = FrozenBatchNorm2d(6)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.normal_()
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), norm, nn.ReLU(inplace=True)).eval()
    images = torch.randn(2, 4, 6, 6)
    prepared = prepare(model, images, ["2"], "fast")
    assert type(prepared.model[1]) is nn.Identity
    same_as(model, prepared, images)


@pytest.mark.parametrize("how", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_are_left_as_they_are(how: Any) -> None:
    part = nn.Sequential(nn.Conv2d(3, 3, 1), batch_norm(3), how(nn.Conv2d(3, 4, 3)))
    model, images = Tail(part).eval(), torch.randn(2, 3, 8, 8)
    prepared = prepare(model, images, ["relu"], "fast")
    assert prepared.precision == "fast"
    assert type(prepared.model.bn) is nn.BatchNorm2d
    same_as(model, prepared, images)


def test_a_norm_that_has_two_names_is_replaced_under_both() -> None:
    model = Tail(nn.Conv2d(3, 4, 3)).eval()
    model.alias = model.bn
    images = torch.randn(1, 3, 6, 6)
    prepared = prepare(model, images, ["alias"], "fast")
    assert type(prepared.model.bn) is nn.Identity
    assert prepared.model.alias is prepared.model.bn
    same_as(model, prepared, images)


def test_hooks_of_the_owner_run_in_the_model_and_nowhere_else(make_cnn: MakeCNN) -> None:
    model, images, seen = make_cnn(), torch.rand(1, 3, 8, 8), []
    first = prepare(model, images, ["bn2"], "fast")
    handle = model.conv1.register_forward_hook(lambda *_: seen.append(1))
    second = prepare(model, images, ["bn2"], "fast")
    assert second.model is model
    assert second.reason == "Conv2d has hooks, which a copy would call in its own way"
    assert not seen
    handle.remove()
    assert prepare(model, images, ["bn2"], "fast").model is first.model


def test_a_model_whose_forward_is_tied_to_it_falls_back(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 8, 8)
    model.forward = torch.no_grad()(model.forward)
    prepared = prepare(model, images, ["bn2"], "fast")
    assert prepared.model is model
    assert prepared.reason == "a copy does not say the same"


def test_what_cannot_be_copied_falls_back(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 8, 8)
    model.lock = threading.Lock()
    prepared = prepare(model, images, ["bn2"], "fast")
    assert prepared.model is model
    assert prepared.precision == "full"
    assert prepared.images(images) is images
    assert "a copy does not work (TypeError: cannot pickle" in str(prepared.reason)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["fast", "bf16"])
def test_other_dtypes_fall_back(make_cnn: MakeCNN, dtype: torch.dtype, precision: Any) -> None:
    model, images = make_cnn().to(dtype), torch.rand(1, 3, 8, 8, dtype=dtype)
    prepared = prepare(model, images, ["bn2"], precision)
    assert prepared.model is model
    name = str(dtype).removeprefix("torch.")
    assert prepared.reason == f"the model is {name}, not float32"


@pytest.mark.parametrize("how", ["script", "compile"])
def test_compiled_parts_fall_back(make_cnn: MakeCNN, how: str) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 8, 8)
    if how == "script":
        model.bn1 = torch.jit.script(model.bn1)
    else:
        model.bn1.compile(backend="eager")
    prepared = prepare(model, images, ["bn2"], "fast")
    assert prepared.model is model
    assert "is compiled" in str(prepared.reason)


def test_an_image_without_numbers_does_not_decide_for_the_next(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 8, 8)
    prepared = prepare(model, images * float("nan"), ["bn2"], "fast")
    assert prepared.reason == "the model returns no finite numbers for the first image"
    assert prepare(model, images, ["bn2"], "fast").precision == "fast"


@pytest.mark.parametrize("surrounding", [torch.inference_mode, torch.enable_grad])
def test_a_copy_made_in_inference_mode_can_be_explained(
    make_cnn: MakeCNN, full_graph: FullGraph, surrounding: Any
) -> None:
    twin, images = make_cnn(), torch.rand(2, 3, 8, 8)
    expected = full_graph(twin, twin.bn2, images)[1]
    with torch.inference_mode():
        model = make_cnn()
    classes = twin(images).argmax(1)
    with surrounding():
        prepared = prepare(model, images, ["bn2"], "fast")
        found = logits_and_capture(prepared.model, "bn2", images, classes)
    assert prepared.precision == "fast"
    close(found[2], expected, 1e-5)


def test_the_model_is_left_as_it_was(make_cnn: MakeCNN) -> None:
    model, images = make_cnn().train(), torch.rand(2, 3, 8, 8)
    model.bn2.eval()
    model.fc.weight.requires_grad_(False)
    model(images).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())

    def state() -> Any:
        tensors = [*model.parameters(), *model.buffers()]
        return (
            [m.training for m in model.modules()],
            [(id(t), t._version, t.requires_grad, t.data_ptr(), t.stride()) for t in tensors],
            [None if p.grad is None else p.grad.sum().item() for p in model.parameters()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
            torch.get_rng_state().tolist(),
        )

    kept = state()
    for precision in ("fast", "bf16"):
        copied = prepare(model, images, ["relu"], precision).model
        assert copied is not model
        assert not any(module.training for module in copied.modules())
        assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert state() == kept
    assert list(model.modules()) == modules
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


COUNTED: list[int] = []


class Counting(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        COUNTED.append(1)
        return super().forward(x)


def test_a_copy_is_made_once(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 8, 8)
    model.relu = Counting(inplace=True)
    first = prepare(model, images, ["bn2"], "fast").model
    COUNTED.clear()
    assert prepare(model, images, ["bn2"], "fast").model is first
    assert not COUNTED
    assert prepare(model, images, ["fc"], "fast").model is first  # spares the same
    assert COUNTED


def step(model: Any) -> None:
    model.train()
    model(torch.rand(4, 3, 8, 8)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def load(model: Any) -> None:
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})


def assign(model: Any) -> None:
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def put(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def write(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.5)


def see(model: Any) -> None:
    model.train()
    with torch.no_grad():
        model(5 * torch.rand(4, 3, 8, 8))


def replace(model: Any) -> None:
    model.relu = nn.Tanh()


def write_one(model: Any) -> None:
    with torch.no_grad():
        model.conv2.weight[3, 2, 1, 1] += 1


@pytest.mark.parametrize("change", [step, load, assign, put, write, see, replace, write_one])
def test_a_change_of_the_model_makes_a_new_copy(make_cnn: MakeCNN, change: Any) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    old = prepare(model, images, ["bn2"], "fast")
    with torch.no_grad():
        before = model(images)
    for _ in range(3):  # memory that was freed may be used again, at the old address
        change(model)
        new = prepare(model, images, ["bn2"], "fast")
        same_as(model, new, images)
    assert new.model is not old.model
    assert not torch.allclose(model(images), before)


def test_a_copy_dies_with_its_model_and_with_its_weights(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 8, 8)
    first = weakref.ref(prepare(model, images, ["bn2"], "fast").model)
    step(model)
    second = weakref.ref(prepare(model, images, ["bn2"], "fast").model)
    gc.collect()
    assert first() is None
    assert second() is not None
    forgotten = weakref.ref(model)
    del model
    gc.collect()
    assert forgotten() is None
    assert second() is None


def test_a_model_that_fell_back_can_be_forgotten() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    assert prepare(model, torch.rand(1, 1, 4, 4), ["0"], "fast").model is model
    forgotten = weakref.ref(model)
    del model
    gc.collect()
    assert forgotten() is None


def test_no_more_than_two_copies_are_kept(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 8, 8)
    layers = ["conv1", "conv2", "bn1", "bn2", "relu"]
    copies = [weakref.ref(prepare(model, images, [each], "fast").model) for each in layers * 2]
    gc.collect()
    assert len({id(copy()) for copy in copies if copy() is not None}) <= 2


def test_threads_share_one_copy(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    found: list[Any] = [None] * 6
    classes = torch.tensor([1, 2])
    expected = maps_of(model, "bn2", images, classes)
    start = threading.Barrier(6)

    def work(index: int) -> None:
        start.wait()
        for _ in range(5):
            prepared = prepare(model, images, ["bn2"], "fast")
            found[index] = prepared.model, maps_of(prepared.model, "bn2", images, classes)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({id(copy) for copy, _ in found}) == 1
    for _, maps in found:
        close(maps, expected, 1e-5)


def test_other_arguments_of_the_model_are_handed_on() -> None:
    from fedgaze.xai.inputs import Inputs

    class Scaled(Tail):
        def forward(self, x: Tensor, *, factor: Tensor) -> Any:
            return {"logits": super().forward(x) * factor, "loss": None}

    model, images = Scaled(nn.Conv2d(3, 4, 3)).eval(), torch.rand(2, 3, 8, 8)
    factor = torch.rand(2, 1)
    inputs = Inputs(images, 0, {"factor": factor})
    prepared = prepare(model, inputs, ["relu"], "fast")
    assert prepared.precision == "fast"
    with torch.no_grad():
        found = prepared.model(images, factor=factor)["logits"]
        close(found, model(images, factor=factor)["logits"], 1e-5)


class Counter(Tail):
    """Counts its runs in a buffer."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.runs += 1
        return super().forward(x)


def test_a_model_that_changes_when_it_runs_falls_back() -> None:
    model = Counter(nn.Conv2d(3, 4, 3)).eval()
    for _ in range(2):
        prepared = prepare(model, torch.rand(1, 3, 8, 8), ["relu"], "fast")
        assert prepared.model is model
        assert prepared.reason == "the model changed while it was copied"


def test_autocast_falls_back_and_leaves_no_trace(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        prepared = prepare(model, images, ["bn2"], "fast")
    assert (prepared.model, prepared.reason) == (model, "autocast chooses the precision")
    assert prepare(model, images, ["bn2"], "fast").precision == "fast"


def test_small_images_of_a_wide_network_fall_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), batch_norm(4), nn.ReLU()).eval()
    small = prepare(model, torch.rand(1, 3, 5, 5), ["2"], "fast")  # 9 positions
    assert small.reason == "images of 5 x 5 pixels are too small to gain"
    assert prepare(model, torch.rand(1, 3, 6, 6), ["2"], "fast").precision == "fast"  # 16


# Through explain


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "fullgrad", "lrp"])
def test_methods_give_the_same_on_the_copy(make_cnn: MakeCNN, method: str) -> None:
    # Its convolutions have biases of their own, which FullGrad tells from those of BatchNorm.
    model, images = make_cnn(), torch.randn(2, 3, 12, 12)
    expected = explain(model, images, method)
    found = explain(model, images, method, precision="fast")
    spares = method == "fullgrad"
    copied = prepare(model, images, found.layers, "fast", find_method(method)).model
    assert type(copied.bn1) is (nn.BatchNorm2d if spares else nn.Identity)
    assert found.precision == "fast"
    close(found.raw, expected.raw, 1e-4)
    assert torch.equal(found.predicted, expected.predicted)


@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_wrapped_models_are_unwrapped(make_cnn: MakeCNN, wrap: Any) -> None:
    model, images = make_cnn(), torch.randn(2, 3, 8, 8)
    expected = explain(model, images)
    found = explain(wrap(model), images, precision="fast")
    assert found.precision == "fast"
    close(found.raw, expected.raw, 1e-4)


@needs_bf16
@pytest.mark.parametrize("method", ["guided_gradcam", "shapleycam"])
def test_methods_that_go_far_back_are_refused_in_bf16(method: str) -> None:
    found = explain(
        Deep().eval(), torch.randn(2, 3, 48, 48), method, None, "last", precision="bf16"
    )
    assert found.precision == (
        "fast: bfloat16 would distort gradients that go back further than to the layer"
    )


# bfloat16


class Deep(nn.Module):
    """Two stages, each with BatchNorm and ReLU, and two Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), batch_norm(16), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(16, 16, 3), batch_norm(16), nn.ReLU(inplace=True))
        self.hidden = nn.Linear(16, 16)
        self.fc = nn.Linear(16, 5)
        self.deep = False

    def forward(self, x: Tensor) -> Any:
        x = self.last(self.stem(x)).mean((2, 3))
        return self.fc(F.relu(self.hidden(x)) if self.deep else x)


@needs_bf16
def test_bf16_runs_in_bf16_between_a_float32_stem_and_head() -> None:
    model, images = Deep().eval(), torch.randn(2, 3, 48, 48)
    prepared = prepare(model, images, ["last"], "bf16")
    assert (prepared.precision, prepared.reason) == ("bf16", None)
    assert prepared.images(images).dtype == torch.float32
    dtypes = {name: p.dtype for name, p in prepared.model.named_parameters()}
    assert dtypes["stem.0.weight"] == dtypes["fc.weight"] == torch.float32
    assert dtypes["last.0.weight"] == torch.bfloat16
    classes = torch.tensor([0, 3])
    logits, activations, gradients = logits_and_capture(prepared.model, "last", images, classes)
    assert activations.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    expected = logits_and_capture(model, "last", images, classes)
    close(logits, expected[0], 0.02)
    close(activations.float(), expected[1], 0.02)
    close(gradients.float(), expected[2], 0.02)


@needs_bf16
@pytest.mark.parametrize(
    ("layer", "deep", "reason"),
    [
        ("stem", False, "bfloat16 would distort 'stem', which 2 layers with weights follow"),
        ("last", True, "bfloat16 would distort 'last', which 2 layers with weights follow"),
        ("last.1", False, "bfloat16 would distort 'last.1', which returns negative numbers"),
        ("", False, "bfloat16 is for layers of convolutional networks"),
    ],
)
def test_bf16_is_refused_where_it_distorts_and_fast_takes_its_place(
    layer: str, deep: bool, reason: str
) -> None:
    model, images = Deep().eval(), torch.randn(2, 3, 48, 48)
    model.deep = deep
    prepared = prepare(model, images, [layer] if layer else [], "bf16")
    assert (prepared.precision, prepared.reason) == ("fast", reason)
    same_as(model, prepared, images)


@needs_bf16
def test_where_neither_gains_both_reasons_are_given() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4)).eval()
    prepared = prepare(model, torch.rand(1, 3, 8, 8), ["0"], "bf16")
    assert prepared.model is model
    assert prepared.reason == (
        "bfloat16 gains nothing on 1 of 8 x 8 pixels; there is no BatchNorm to fuse and no "
        "convolution that gains from channels last"
    )


def test_without_hardware_bf16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, each, lambda: False)
    model, images = Deep().eval(), torch.randn(2, 3, 48, 48)
    prepared = prepare(model, images, ["last"], "bf16")
    assert prepared.precision == "fast"
    assert prepared.reason == "bfloat16 gains nothing on a processor without AVX512-BF16 or AMX"
    same_as(model, prepared, images)


@needs_bf16
def test_fast_and_bf16_are_kept_side_by_side() -> None:
    model, images = Deep().eval(), torch.randn(2, 3, 48, 48)
    copies = [prepare(model, images, ["last"], each).model for each in ("fast", "bf16")]
    again = [prepare(model, images, ["last"], each).model for each in ("fast", "bf16")]
    assert copies[0] is again[0]
    assert copies[1] is again[1]
    assert copies[0] is not copies[1]


# Real weights and photographs


def photographs(folder: Path, edge: int) -> Tensor:
    from PIL import Image
    from torchvision.transforms import v2

    load = v2.Compose(
        [
            v2.Resize(edge * 8 // 7),
            v2.CenterCrop(edge),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    listed = json.loads((folder / "photos/imagenet/labels.json").read_text())
    names = [folder / "photos/imagenet" / each["file"] for each in listed]
    return torch.stack([load(Image.open(name).convert("RGB")) for name in names])


def trained(folder: Path, name: str) -> nn.Module:
    from safetensors.torch import load_file
    from torchvision.models import get_model

    model = get_model(name, weights=None)
    (file,) = (folder / "weights").glob(f"{name}_imagenet*.safetensors")
    weights = load_file(file)
    model.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    )
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer"),
    [("squeezenet1_1", "features"), ("mobilenet_v2", "features"), ("mobilenet_v2", "features.18")],
)
def test_maps_of_photographs(real_data: Path, name: str, layer: str) -> None:
    from scipy.stats import spearmanr

    model, images = trained(real_data, name), photographs(real_data, 224)
    with torch.no_grad():
        classes = model(images).argmax(1)
    expected = maps_of(model, layer, images, classes).relu()
    prepared = prepare(model, images, [layer], "fast")
    assert prepared.precision == "fast"
    found = maps_of(prepared.model, layer, prepared.images(images), classes).relu()
    error = (found - expected).abs().amax((1, 2)) / expected.amax((1, 2))
    assert float(error.max()) <= 1e-4
    if not HAS_BF16:
        return
    prepared = prepare(model, images, [layer], "bf16")
    assert prepared.precision == "bf16"
    found = maps_of(prepared.model, layer, prepared.images(images), classes).relu()
    pairs = zip(found, expected, strict=True)
    order = [float(spearmanr(one.flatten(), two.flatten()).statistic) for one, two in pairs]
    assert statistics.median(order) >= 0.995
    assert min(order) >= 0.99


@pytest.mark.slow
@needs_bf16
@pytest.mark.parametrize("layer", ["features.16", "features.13", "features.10"])
def test_earlier_layers_are_refused_in_bf16(real_data: Path, layer: str) -> None:
    model = trained(real_data, "mobilenet_v2")
    prepared = prepare(model, torch.rand(1, 3, 224, 224), [layer], "bf16")
    assert prepared.precision == "fast"
    assert f"bfloat16 would distort '{layer}'" in str(prepared.reason)
