"""Models of many kinds: compiled, spread, hooked, with several inputs, in low precision, in 3-D."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai import explain, list_methods

MakeCNN = Callable[..., nn.Module]

# One of each way to run a model, with options that make it quick.
KINDS: dict[str, dict[str, Any]] = {
    "gradcam": {"layers": "relu2"},
    "eigencam": {"layers": "relu2"},
    "scorecam": {"layers": "relu2"},
    "ablationcam": {"layers": "relu2"},
    "integrated_gradients": {"steps": 4},
    "occlusion": {"window": 4, "stride": 4},
}
SLOW = {
    "rise": {"masks": 16},
    "sscam": {"samples": 2},
    "iscam": {"steps": 2},
    "smooth_gradcam++": {"samples": 2},
}


class Net(nn.Module):
    """Three convolutions and a linear head, without anything in place, in 2 or 3 dimensions."""

    def __init__(self, dimensions: int = 2, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        torch.manual_seed(6)
        self.conv1, self.relu1 = conv(channels, 6, 3, padding=1), nn.ReLU()
        self.conv2, self.relu2 = conv(6, 8, 3, stride=2, padding=1), nn.ReLU()
        self.pool, self.fc = nn.Flatten(2), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(self.pool(x).mean(2))


@pytest.fixture
def model() -> nn.Module:
    return Net().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def same(found: Any, expected: Any, **tolerance: float) -> None:
    torch.testing.assert_close(found.raw, expected.raw, **tolerance)
    torch.testing.assert_close(found.scores, expected.scores, **tolerance)
    assert found.flags == expected.flags


# --- Compiled and spread ------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options"), KINDS.items())
def test_a_compiled_model_is_explained_and_stays_compiled(
    model: nn.Module, images: Tensor, method: str, options: dict[str, Any]
) -> None:
    runs = []

    def backend(graph: Any, _inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            runs.append(1)
            return graph(*args)

        return run

    expected = explain(model, images, method, **options)
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        before = compiled(images)
    assert len(runs) == 1
    same(explain(compiled, images, method, **options), expected)
    assert len(runs) == 1  # its own code ran, where hooks fire
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), before)
    assert len(runs) == 2


@pytest.mark.slow
def test_inductor(model: nn.Module, images: Tensor) -> None:
    expected = explain(model, images, layers="relu2")
    compiled = torch.compile(model)
    compiled(images).sum().backward()
    same(explain(compiled, images, layers="relu2"), expected)
    same(explain(compiled, images, layers=["relu1"]), explain(model, images, layers="relu1"))


def test_data_parallel(model: nn.Module, images: Tensor) -> None:
    expected = explain(model, images, layers="relu2")
    same(explain(nn.DataParallel(model), images, layers="relu2"), expected)
    compiled = torch.compile(nn.DataParallel(model), backend="eager")
    found = explain(compiled, images, layers=compiled.module.relu2)
    same(found, expected)
    assert found.layers == ("relu2",)


# --- Hooks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options"), KINDS.items())
def test_hooks_of_the_owner_are_kept_called_and_heeded(
    model: nn.Module, images: Tensor, method: str, options: dict[str, Any]
) -> None:
    seen = dict.fromkeys(("pre", "forward", "changes", "global"), 0)

    def count(name: str, value: Any = None) -> Any:
        seen[name] += 1
        return value

    twin = Net().eval()
    twin.forward = lambda x: twin.fc(
        2 * twin.pool(twin.relu2(twin.conv2(twin.relu1(twin.conv1(x))))).mean(2)
    )
    model.conv1.register_forward_pre_hook(lambda *_: count("pre"))
    model.relu2.register_forward_hook(lambda *_: count("forward"))
    model.pool.register_forward_hook(lambda _m, _i, output: count("changes", 2 * output))
    every = nn.modules.module.register_module_forward_hook(lambda *_: count("global"))
    kept = [list(module._forward_hooks) for module in model.modules()]
    try:
        found = explain(model, images, method, **options)
    finally:
        every.remove()
    same(found, explain(twin, images, method, **options))
    assert all(seen.values())
    assert [list(module._forward_hooks) for module in model.modules()] == kept


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_backward_hooks_of_the_owner_are_no_obstacle(model: nn.Module, images: Tensor) -> None:
    expected = explain(model, images, layers="relu2")
    seen = []
    for layer in (model.relu2, model.fc):
        layer.register_full_backward_hook(lambda module, *_: seen.append(module))
    same(explain(model, images, layers="relu2"), expected)
    assert model.fc in seen
    # One that scales gradients is part of the model: what it says is what is explained.
    scaled = Net().eval()
    scaled.fc.register_full_backward_hook(lambda _m, gradients, _o: (3 * gradients[0],))
    torch.testing.assert_close(explain(scaled, images, layers="relu2").raw, 3 * expected.raw)


def test_parametrised_weights(model: nn.Module, images: Tensor) -> None:
    expected = explain(model, images, layers="relu2", relu=False)
    nn.utils.parametrizations.weight_norm(model.conv2)
    same(explain(model, images, layers="relu2", relu=False), expected)


# --- Inputs -------------------------------------------------------------------------------------


class Several(nn.Module):
    """Images, a vector an image, a table for all and a flag, in whatever order."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.fc = inner, nn.Linear(2, 4)

    def forward(self, vector: Tensor, images: Tensor, table: Tensor, *, double: bool) -> Tensor:
        found = self.inner(images) + self.fc(vector) * (2 if double else 1)
        return found * table


class Bound(nn.Module):
    """The same for one image, with everything else fixed."""

    def __init__(self, several: Several, **others: Any) -> None:
        super().__init__()
        self.several, self.others = several, others

    def forward(self, images: Tensor) -> Tensor:
        vector = self.others["vector"].expand(len(images), -1)
        return self.several(vector, images, self.others["table"], double=self.others["double"])


@pytest.mark.parametrize(("method", "options"), KINDS.items())
@pytest.mark.parametrize("batch_size", [None, 2])
def test_several_inputs(
    model: nn.Module, images: Tensor, method: str, options: dict[str, Any], batch_size: int | None
) -> None:
    model, vectors, table = Several(model).eval(), torch.randn(3, 2), torch.tensor([1.0, 2, 3, 4])
    options = dict(options)
    if "layers" in options:
        options["layers"] = "inner.relu2"
    given = {"vector": vectors, "images": images, "table": table, "double": True}
    found = explain(model, given, method, targets=2, relu=False, batch_size=batch_size, **options)
    if "layers" in options:
        options["layers"] = "several.inner.relu2"
    for n in range(3):
        alone = Bound(model, vector=vectors[n : n + 1], table=table, double=True)
        expected = explain(alone, images[n], method, targets=2, relu=False, **options)
        torch.testing.assert_close(found.raw[n], expected.raw[0])
        torch.testing.assert_close(found.scores[n], expected.scores[0])


def test_inputs_by_position(images: Tensor) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net()

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.inner(x) * scale

    scale = torch.tensor([[1.0], [2.0], [3.0]])
    found = explain(Two(), (images, scale), layers="inner.relu2", targets=1)
    alone = explain(Net(), images, layers="relu2", targets=1)
    torch.testing.assert_close(found.raw, alone.raw * scale[..., None])


# --- Outputs ------------------------------------------------------------------------------------


@dataclass
class Said:
    logits: Tensor
    loss: None = None


class Named(NamedTuple):
    logits: Tensor
    features: Tensor | None


PACKS: dict[str, Callable[[Tensor], Any]] = {
    "dataclass": Said,
    "dict": lambda logits: {"features": None, "logits": logits},
    "named tuple": lambda logits: Named(logits, None),
    "tuple": lambda logits: (logits, [1, 2]),
}


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize(("method", "options"), KINDS.items())
def test_outputs(
    model: nn.Module, images: Tensor, pack: str, method: str, options: dict[str, Any]
) -> None:
    expected = explain(model, images, method, **options)
    plain = model.forward
    model.forward = lambda x: PACKS[pack](plain(x))
    same(explain(model, images, method, **options), expected)


def test_a_second_output_is_asked_for_by_a_function(model: nn.Module, images: Tensor) -> None:
    plain = model.forward
    model.forward = lambda x: (plain(x)[:, :2], plain(x)[:, 2:])
    found = explain(model, images, targets=lambda o: o[1][:, 1], layers="relu2")
    model.forward = plain
    torch.testing.assert_close(found.raw, explain(model, images, targets=3, layers="relu2").raw)


# --- Precision ----------------------------------------------------------------------------------


def correlations(found: Tensor, expected: Tensor) -> Tensor:
    a, b = (each.flatten(1) - each.flatten(1).mean(1, keepdim=True) for each in (found, expected))
    return F.cosine_similarity(a, b)


@pytest.mark.parametrize(("method", "options"), KINDS.items())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["model", "autocast", "within"])
def test_low_precision(
    images: Tensor, method: str, options: dict[str, Any], dtype: torch.dtype, how: str
) -> None:
    model = Net().eval()
    expected = explain(model, images, method, targets=1, relu=False, **options)
    if how == "model":
        found = explain(model.to(dtype), images, method, targets=1, relu=False, **options)
    elif how == "autocast":
        with torch.autocast("cpu", dtype=dtype):
            found = explain(model, images, method, targets=1, relu=False, **options)
    else:
        plain = model.forward
        model.forward = torch.autocast("cpu", dtype=dtype)(plain)
        found = explain(model, images, method, targets=1, relu=False, **options)
    assert found.raw.dtype == found.heatmaps.dtype == torch.float32
    # Differences of scores that are almost the same have few digits left.
    least = 0.8 if method in {"occlusion", "ablationcam", "scorecam"} else 0.98
    assert correlations(found.raw, expected.raw).min() > least
    torch.testing.assert_close(found.scores.float(), expected.scores, rtol=0.03, atol=0.01)


# --- Volumes ------------------------------------------------------------------------------------


METHODS = [method for method in list_methods() if method.layers]


def quick(method: Any) -> dict[str, Any]:
    return {
        name: value for name, value in SLOW.get(method.name, {}).items() if name in method.options
    }


@pytest.mark.parametrize("method", METHODS, ids=[each.name for each in METHODS])
def test_every_cam_method_explains_volumes(method: Any) -> None:
    """As it does the same network of flat images: of volumes one voxel deep."""
    volumes, flat = Net(3).eval(), Net(2).eval()
    for name in ("conv1", "conv2"):
        deep, thin = getattr(volumes, name), getattr(flat, name)
        thin.weight.data.copy_(deep.weight[:, :, 1])
        thin.bias.data.copy_(deep.bias)
    flat.fc.load_state_dict(volumes.fc.state_dict())
    images = torch.rand(2, 3, 8, 8)
    options = {"layers": "relu2", "relu": False, "targets": [1, 2]} | quick(method)
    found = explain(volumes, images[:, :, None], method.name, **options)
    expected = explain(flat, images, method.name, **options)
    of_images = found.attributions is not None  # guided Grad-CAM, which ends at the image
    assert found.raw.shape == ((2, 1, 8, 8) if of_images else (2, 1, 4, 4))
    assert found.heatmaps.shape == (2, 1, 8, 8)
    if method.name != "random":
        torch.testing.assert_close(found.raw[:, 0], expected.raw, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.heatmaps[:, 0], expected.heatmaps, rtol=1e-3, atol=1e-4)
    # And of volumes that are deep, each direction has its own size.
    deep = explain(volumes, torch.rand(2, 3, 4, 6, 8), method.name, **options)
    assert deep.raw.shape == ((2, 4, 6, 8) if of_images else (2, 2, 3, 4))
    assert deep.heatmaps.shape == (2, 4, 6, 8)
    assert deep.heatmaps.isfinite().all()
    # Guided Grad-CAM's map of the layer may have nothing that speaks for the class.
    assert of_images or deep.flags == ((), ())


def test_grad_cam_of_a_volume_is_the_papers() -> None:
    model, volume = Net(3).eval(), torch.rand(1, 3, 4, 6, 8)
    kept = []
    handle = model.relu2.register_forward_hook(lambda _m, _i, output: kept.append(output))
    logits = model(volume)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, 3], kept[0])
    raw = sum(gradient[0, k].mean() * kept[0][0, k] for k in range(8)).relu()
    found = explain(model, volume, targets=3, layers="relu2")
    torch.testing.assert_close(found.raw[0], raw.detach())
    large = F.interpolate(raw.detach()[None, None], (4, 6, 8), mode="trilinear")[0, 0]
    torch.testing.assert_close(found.heatmaps[0], large / large.max())


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_quantised_models_are_refused_clearly(images: Tensor) -> None:
    from torch.ao import quantization

    class Static(Net):
        def __init__(self) -> None:
            super().__init__()
            self.open, self.close = quantization.QuantStub(), quantization.DeQuantStub()
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu2(self.conv2(self.relu1(self.conv1(self.open(x)))))
            return self.close(self.fc(self.pool(x).flatten(1)))

    static = Static().eval()
    static.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(static)
    prepared(images)
    static = quantization.convert(prepared)
    for method in ("gradcam", "scorecam", "eigencam", "saliency", "lrp"):
        with pytest.raises(FedgazeError, match=r"'conv1' is quantised \(Conv2d\).*or use occlusio"):
            explain(static, images, method)
    dynamic = quantization.quantize_dynamic(Net().eval(), {nn.Linear}, torch.qint8)
    with pytest.raises(FedgazeError, match=r"layer 'fc' is quantised \(Linear\), which gradcam"):
        explain(dynamic, images)
    # What needs no gradients can be had, and is what the other model says, but for rounding.
    found = explain(dynamic, images, "ablationcam", layers="relu2", relu=False, targets=1)
    exact = explain(Net().eval(), images, "ablationcam", layers="relu2", relu=False, targets=1)
    assert correlations(found.raw, exact.raw).min() > 0.9
    assert explain(static, images, "occlusion", window=4, stride=4).raw.isfinite().all()


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 3, 3), torch.jit.script(Net())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x))


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_where_it_cannot_be_seen_into(images: Tensor) -> None:
    with pytest.raises(FedgazeError, match="the model is TorchScript, into which gradcam cannot"):
        explain(torch.jit.script(Net()), images)
    model = Scripted().eval()
    with pytest.raises(FedgazeError, match=r"layer 'inner\.relu2' did not run"):
        explain(model, images, layers="inner.relu2")
    assert explain(model, images).layers == ("first",)
    for method, message in [
        ("fullgrad", "TorchScript, in which fullgrad cannot find biases"),
        ("guided_backprop", "cannot reach a ReLU in a scripted"),
    ]:
        with pytest.raises(FedgazeError, match=message):
            explain(model, images, method)
    assert explain(torch.jit.script(Net()), images, "occlusion", window=4).raw.isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x: x[:0], r"images have the shape \(0, 3, 8, 8\)"),
        (lambda x: x[:, :0], r"images have the shape \(3, 0, 8, 8\)"),
        (lambda x: x.to("meta"), "images are on the meta device"),
        (lambda x: x.to_sparse(), "images are sparse_coo"),
        (lambda x: x.to(torch.complex64), r"images are torch\.complex64"),
        (lambda x: x.bool(), r"images are torch\.bool"),
        (lambda _: [], "images are list; allowed is a tensor of floats"),
        (lambda _: {}, "images are dict"),
        (lambda _: None, "images are NoneType"),
        (lambda x: [x.numpy()], "images are list"),
    ],
)
def test_what_are_no_images(model: nn.Module, images: Tensor, given: Any, message: str) -> None:
    model.forward = pytest.fail
    with pytest.raises(FedgazeError, match=message):
        explain(model, given(images))


def test_a_model_without_weights_says_so(images: Tensor) -> None:
    with pytest.raises(FedgazeError, match="Net is on the meta device, where it has no weights"):
        explain(Net().to("meta"), images)
