from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import Deconvolution, GuidedBackprop, GuidedGradCam
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain
from fedgaze.xai.classes import read_targets
from fedgaze.xai.inputs import Inputs
from fedgaze.xai.memory import Budget
from fedgaze.xai.methods.relevance import deconvnet_maps, guided_backprop, guided_grad_cam, lrp
from fedgaze.xai.runner import Runner
from fedgaze.xai.targets import Scorer

pytestmark = pytest.mark.filterwarnings("ignore:Setting", "ignore:Input Tensor")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small lose time by being shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def running_on(
    model: nn.Module, images: Tensor, targets: Any = None, layer: str = "", *, graph: bool = False
) -> Iterator[Runner]:
    scorer = Scorer(read_targets(targets, len(images)), torch.arange(len(images)))
    layers = {layer: model.get_submodule(layer)} if layer else {}
    inputs = Inputs(images, 0, {})
    with Runner(model, inputs, scorer, layers, Budget(2), graph) as runner:
        yield runner


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(128, 7)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # Captum cannot hook those in place
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    return model.eval()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - expected).abs().max() < tolerance * expected.abs().max())


METHODS: dict[str, Callable[[Runner], Tensor]] = {
    "guided_backprop": guided_backprop,
    "deconvnet": deconvnet_maps,
    "guided_gradcam": guided_grad_cam,
    "lrp": lrp,
}


def test_oracles_agree_for_several_targets_an_image(resnet: nn.Module) -> None:
    images, targets = torch.randn(3, 3, 32, 32), torch.tensor([[0, 4], [1, 5], [2, 6]])
    with running_on(resnet, images, targets, "layer2") as runner:
        found = {name: method(runner) for name, method in METHODS.items()}
        found["flat"] = lrp(runner, composite="epsilon_plus_flat")
        scores = runner.clean
    assert not any(each.requires_grad for each in found.values())
    for s in range(2):
        classes = targets[:, s]
        expected = {
            "guided_backprop": GuidedBackprop(resnet).attribute(images, target=classes),
            "deconvnet": Deconvolution(resnet).attribute(images, target=classes),
            "guided_gradcam": GuidedGradCam(resnet, resnet.layer2).attribute(
                images, target=classes, interpolate_mode="bilinear"
            ),
        }
        leaf = images.clone().requires_grad_()
        with EpsilonPlusFlat(canonizers=[ResNetCanonizer()]).context(resnet) as changed:
            score = changed(leaf).gather(1, classes[:, None])[:, 0]
            (shares,) = torch.autograd.grad(score, leaf, torch.ones_like(score))
        expected["flat"] = shares * score[:, None, None, None]
        for name, each in expected.items():
            assert found[name].shape == (3, 2, 3, 32, 32)
            assert close(found[name][:, s], each.detach()), name
        assert torch.allclose(
            scores[:, s], resnet(images).gather(1, classes[:, None])[:, 0], atol=1e-5
        )


def test_guided_grad_cam_by_hand() -> None:
    # A = (1, 2, 0, 3) with weight 2, so its map is (2, 4, 0, 6) / 4 x 2; every gradient is 2 / 4.
    model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(1, 1))
    nn.init.constant_(model[4].weight, 2.0)
    nn.init.zeros_(model[4].bias)
    images = torch.tensor([[[[1.0, 2.0], [-1.0, 3.0]]]])
    with running_on(model, images, lambda out: out[:, 0], "1") as runner:
        found = guided_grad_cam(runner)
    assert found.flatten().tolist() == pytest.approx([0.25, 0.5, 0.0, 0.75])


def test_guided_grad_cam_of_lines_and_volumes() -> None:
    for dims, conv in ((1, nn.Conv1d), (3, nn.Conv3d)):
        torch.manual_seed(dims)
        model = nn.Sequential(conv(2, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
        images = torch.rand(2, 2, *[7] * dims)
        model(images)
        with running_on(model, images, 1, "1") as runner:
            guided, product = guided_backprop(runner), guided_grad_cam(runner)
        assert product.shape == guided.shape == (2, 1, 2, *[7] * dims)
        assert (product.abs() > 0).any()
        assert (product * guided >= 0).all()


def test_relevance_begins_with_the_score_and_ends_with_it(make_cnn: Any) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        nn.Linear(54, 4, bias=False),
    ).double()
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    targets = [[0, 1], [2, 3], [1, 0]]
    with running_on(model, images, targets) as runner:
        for composite in ("epsilon", "epsilon_plus", "epsilon_plus_flat"):
            found = lrp(runner, composite=composite, epsilon=1e-12)
            assert torch.allclose(found.sum((2, 3, 4)), runner.clean, rtol=1e-3)


def test_a_difference_of_logits_is_explained_by_what_explains_each(make_cnn: Any) -> None:
    model = make_cnn(1).double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with running_on(model, images, [[0, 3], [0, 3]]) as runner:
        each = lrp(runner, composite="epsilon_alpha2_beta1")
    with running_on(model, images, lambda out: out[:, 0] - out[:, 3]) as runner:
        found = lrp(runner, composite="epsilon_alpha2_beta1")
    # The sum's own denominator is 1e-6 off.
    assert close(found[:, 0], each[:, 0] - each[:, 1], 1e-3)


def test_it_does_not_matter_how_images_are_batched(make_cnn: Any) -> None:
    model = make_cnn(2)
    images = torch.rand(4, 3, 10, 10)
    for name, method in METHODS.items():
        with running_on(model, images, [0, 1, 2, 3], "conv2") as runner:
            together = method(runner)
        for n in range(4):
            with running_on(model, images[n : n + 1], n, "conv2") as runner:
                assert close(method(runner)[0], together[n]), name


def test_half_precision_gives_maps_in_single(make_cnn: Any) -> None:
    model = make_cnn(3)
    images = torch.rand(2, 3, 10, 10)
    with running_on(model, images, 1, "conv2") as runner:
        expected = {name: method(runner) for name, method in METHODS.items()}
    half = model.bfloat16()
    with running_on(half, images.bfloat16(), 1, "conv2") as runner:
        for name, method in METHODS.items():
            found = method(runner)
            assert found.dtype == torch.float32
            assert close(found, expected[name], 0.2), name


def test_implementation_does_not_matter(make_cnn: Any) -> None:
    """What is written with modules, and the same with functions in place."""
    model = make_cnn(4)

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for conv, bn, pool in ((model.conv1, model.bn1, 2), (model.conv2, model.bn2, 1)):
                x = torch.conv2d(x, conv.weight, conv.bias, padding=1)
                x = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)
                x = torch.clamp_min_(x, 0).contiguous()
                x = nn.MaxPool2d(pool)(x)
            return F.linear(F.adaptive_avg_pool2d(x, 1).view(len(x), -1), *model.fc.parameters())

    images = torch.rand(2, 3, 8, 8)
    for method in (guided_backprop, deconvnet_maps, lrp):
        with running_on(model, images, 1) as one, running_on(Other().eval(), images, 1) as other:
            assert close(method(other), method(one))


def test_what_cannot_be_done_is_said_before_or_while_the_model_runs(make_cnn: Any) -> None:
    model = make_cnn(5)
    images = torch.rand(2, 3, 8, 8)
    with running_on(model, images, 1) as runner:
        for options, message in (
            ({"composite": "plus"}, "composite is 'plus'; allowed are epsilon"),
            ({"composite": "epsilon_gamma_box"}, "needs low and high"),
            ({"first": "box", "low": 0.0, "high": 0.5}, "values from 0.* to 0.9.*; allowed"),
            ({"first": "box", "low": [0.0, 0.0, 0.0], "high": 0.0}, "allowed is a low below high"),
        ):
            with pytest.raises(FedgazeError, match=message):
                lrp(runner, **options)
        lrp(runner, composite="epsilon_gamma_box", low=[0.0, 0.0, 0.0], high=torch.ones(3, 1, 1))
    with (
        running_on(model, images, lambda out: out.softmax(1)[:, 1]) as runner,
        pytest.raises(FedgazeError, match=r"no rule for 'softmax'; allowed are .* logits"),
    ):
        lrp(runner)
    with (
        running_on(model, images.requires_grad_(), 1, graph=True) as runner,
        pytest.raises(FedgazeError, match="lrp cannot be differentiated; allowed"),
    ):
        lrp(runner)
    assert not _get_current_function_mode_stack()


def test_guided_maps_can_be_a_loss(make_cnn: Any) -> None:
    model = make_cnn(6)
    with running_on(model, torch.rand(2, 3, 8, 8), 1, graph=True) as runner:
        guided_backprop(runner).square().sum().backward()
    assert model.conv1.weight.grad.abs().sum() > 0


def test_the_weights_matter(make_cnn: Any) -> None:
    images = torch.rand(2, 3, 8, 8)
    for method in METHODS.values():
        maps = []
        for seed in (7, 8):
            with running_on(make_cnn(seed), images, 1, "conv2") as runner:
                maps.append(method(runner))
        assert not close(maps[0], maps[1], 0.1)


class Hooked(nn.Module):
    """Of volumes, with hooks of its own, in train mode; fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.conv = nn.Conv3d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm3d(4)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 3)
        nn.init.uniform_(self.fc.weight)
        self.act.register_forward_hook(lambda *_: None)
        self.conv.register_full_backward_hook(self.back)
        self.fails: str = ""

    def back(self, *_: Any) -> None:
        if self.fails == "backward":
            raise ZeroDivisionError

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x)))
        if self.fails == "forward":
            raise ZeroDivisionError
        return self.fc(F.relu(self.conv(x[:, :2])).mean((2, 3, 4)))


def test_of_several_layers_no_single_one_passes_for_all(resnet: nn.Module) -> None:
    images, layers = torch.randn(2, 3, 32, 32), ["layer1", "layer2"]
    alone = [explain(resnet, images, "guided_gradcam", 1, layer) for layer in layers]
    together = explain(resnet, images, "guided_gradcam", 1, layers)
    assert together.attributions is None
    for name, one in zip(layers, alone, strict=True):
        assert one.attributions is not None
        assert close(together.per_layer[name], one.raw)


@pytest.mark.parametrize("name", METHODS)
def test_explain_knows_them_and_leaves_the_model_as_it_was(name: str) -> None:
    model = Hooked()
    volumes = torch.rand(3, 2, 4, 6, 5)
    with torch.no_grad():
        before = {key: each.clone() for key, each in model.state_dict().items()}
        hooks = [
            (dict(part._forward_hooks), dict(part._backward_hooks), part.training)
            for part in model.modules()
        ]
        found = explain(model, volumes, name, targets=[[0, 1], [1, 2], [2, 0]], batch_size=2)
    assert found.attributions.shape == (6, 2, 4, 6, 5)
    assert found.heatmaps.shape == (6, 4, 6, 5)
    assert found.heatmaps.abs().amax((1, 2, 3)).tolist() == pytest.approx([1] * 6)
    assert not found.heatmaps.requires_grad
    for n in range(3):
        alone = explain(model, volumes[n : n + 1], name, targets=[[n, (n + 1) % 3]])
        assert close(found.attributions[2 * n : 2 * n + 2], alone.attributions)
    with torch.inference_mode():
        assert close(explain(model, volumes, name, targets=0).raw[:1], found.raw[:1])
    for fails in ("forward", "backward"):
        model.fails = fails
        with pytest.raises(ZeroDivisionError):
            explain(model, volumes, name, layers="conv" if "cam" in name else None)
    assert not _get_current_function_mode_stack()
    assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())
    assert hooks == [
        (dict(part._forward_hooks), dict(part._backward_hooks), part.training)
        for part in model.modules()
    ]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_transformers_are_refused_in_a_sentence() -> None:
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=3)
    nn.init.normal_(vit.heads.head.weight)
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(FedgazeError, match=r"'multi_head_attention_forward'; .* gradient_rollout"):
        explain(vit, images, "lrp")
    for name in ("guided_backprop", "deconvnet"):
        with pytest.raises(
            FedgazeError, match=r"changes ReLUs, .* of the model are: gelu; allowed"
        ):
            explain(vit, images, name)


def test_relevance_finds_the_object(real_data: Path) -> None:
    model = torchvision.models.squeezenet1_1(weights=None)
    model.load_state_dict(load_file(real_data / "weights/squeezenet1_1_imagenet.safetensors"))
    picture = Image.open(real_data / "photos/dog_and_cat.png").convert("RGB").resize((224, 224))
    pixels = torch.from_numpy(np.asarray(picture) / 255).movedim(2, 0)[None].float()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    box = {"low": (-mean / std).tolist(), "high": ((1 - mean) / std).tolist()}
    with running_on(model.eval(), images, torch.tensor([[243, 281]])) as runner:
        found = lrp(runner, composite="epsilon_gamma_box", **box).sum(2)[0]
        assert torch.allclose(found.sum((1, 2)), runner.clean[0], rtol=0.05)
    # The dog's head is in the upper half of the picture, the cat's in the lower.
    dog, cat = (int(F.avg_pool2d(each[None], 31, 1, 15).argmax()) // 224 for each in found)
    assert dog < 90
    assert cat > 120
