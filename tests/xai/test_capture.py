"""The model is run once and left as it was found, whatever surrounds it and whatever is in it."""

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fedgaze.errors import FedgazeError
from fedgaze.xai import Capture, Captured, explain, grad_cam

MakeCNN = Callable[..., nn.Module]
FullGraph = Callable[..., tuple[Tensor, Tensor]]


def state_of(model: nn.Module) -> tuple[Any, ...]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    flags = [m.training for m in model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    asking = [p.requires_grad for p in model.parameters()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return hooks, flags, grads, asking, values, torch.get_rng_state(), torch.is_grad_enabled()


def assert_same(before: Any, after: Any) -> None:
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def top_scores(logits: Tensor) -> Tensor:
    return logits.max(1).values


def captured(model: nn.Module, layers: Any, images: Tensor) -> Captured:
    with Capture(model, {name: model.get_submodule(name) for name in layers}) as capture:
        return capture.run(images, top_scores)


@pytest.mark.parametrize("layer", ["conv1", "bn1", "conv2", "bn2"])
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_equals_a_full_graph_and_leaves_nothing(
    make_cnn: MakeCNN, full_graph: FullGraph, layer: Any, mode: Any, training: bool, frozen: bool
) -> None:
    model, images = make_cnn(), torch.rand(3, 3, 9, 7)
    expected = full_graph(model, model.get_submodule(layer), images)
    model.train(training).requires_grad_(not frozen)
    model.bn2.eval()
    if not frozen:
        model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = state_of(model)
    with mode():
        if mode is torch.inference_mode:
            images = images.clone()
        found = captured(model, [layer], images)
    assert_same(before, state_of(model))
    torch.testing.assert_close(found.activations[layer], expected[0])
    torch.testing.assert_close(found.gradients[layer], expected[1])
    assert not found.activations[layer].requires_grad
    assert not found.gradients[layer].requires_grad


def test_several_layers_have_the_gradients_that_each_has_alone(
    make_cnn: MakeCNN, full_graph: FullGraph
) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    layers = ["bn2", "conv1", "conv2"]
    found = captured(model, layers, images)
    assert list(found.activations) == ["conv1", "conv2", "bn2"]
    for layer in layers:
        activations, gradients = full_graph(model, model.get_submodule(layer), images)
        torch.testing.assert_close(found.activations[layer], activations)
        torch.testing.assert_close(found.gradients[layer], gradients)


def test_no_graph_is_built_below_the_first_layer(make_cnn: MakeCNN) -> None:
    model, modes = make_cnn(), []
    for layer in (model.conv1, model.conv2, model.fc):
        layer.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    captured(model, ["conv2"], torch.rand(1, 3, 8, 8))
    assert modes == [False, False, True]


def test_state_is_restored_after_an_exception(make_cnn: MakeCNN) -> None:
    class Failing(nn.Module):
        def forward(self, _x: Tensor) -> None:
            raise ZeroDivisionError

    model, images = make_cnn().train(), torch.rand(1, 3, 8, 8)
    model.fc = Failing()
    before = state_of(model)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        captured(model, ["conv1"], images)
    assert_same(before, state_of(model))
    model = make_cnn().train()
    before = state_of(model)
    with pytest.raises(ZeroDivisionError):
        explain(model, images, targets=lambda _: 1 / 0)
    assert_same(before, state_of(model))


def test_training_flags_are_restored_where_train_is_overridden(make_cnn: MakeCNN) -> None:
    class Stubborn(nn.Sequential):
        def train(self, _mode: bool = True) -> nn.Module:
            return super().train(mode=False)

    model = make_cnn()
    model.bn1 = Stubborn(nn.BatchNorm2d(6))
    model.bn1.training, model.bn1[0].training = True, False
    statistics = model.bn1[0].running_mean.clone()
    explain(model, torch.rand(2, 3, 8, 8))
    assert model.bn1.training
    assert not model.bn1[0].training
    assert torch.equal(model.bn1[0].running_mean, statistics)


def test_a_view_that_is_overwritten_afterwards_is_kept_as_it_was() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.view = nn.Flatten(0, 0)

        def forward(self, x: Tensor) -> Any:
            y = self.view(self.conv(x))
            return F.relu(y, inplace=True).mean((2, 3))

    model, images = Views(), torch.randn(2, 1, 6, 6)
    found = captured(model, ["view"], images)
    assert torch.equal(found.activations["view"], model.conv(images))


def test_a_layer_whose_output_is_overwritten_through_an_alias_is_refused() -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.same = nn.Identity()

        def forward(self, x: Tensor) -> Any:
            x = self.conv(x)
            y = self.same(x)
            with torch.no_grad():
                x.zero_()
            return y.mean((2, 3))

    with pytest.raises(FedgazeError, match="layer 'same' is overwritten in place elsewhere"):
        captured(Alias(), ["same"], torch.rand(1, 1, 5, 5))


class Blocks(nn.Module):
    """A model that runs parts of itself in blocks of its own."""

    def __init__(self, lower: Any = nullcontext, upper: Any = nullcontext) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        with self.lower():
            x = self.conv(x)
        with self.upper():
            return self.fc(x.tanh().mean((2, 3)))


def test_a_target_in_the_models_own_no_grad_block_is_explained(full_graph: FullGraph) -> None:
    model, images = Blocks(lower=torch.no_grad), torch.rand(2, 1, 6, 6)
    before = state_of(model)
    found = captured(model, ["conv"], images)
    assert_same(before, state_of(model))
    model.lower = nullcontext
    activations, gradients = full_graph(model, model.conv, images)
    torch.testing.assert_close(found.activations["conv"], activations)
    torch.testing.assert_close(found.gradients["conv"], gradients)


def test_a_forward_that_is_decorated_with_no_grad_is_explained(full_graph: FullGraph) -> None:
    model, images = Blocks(), torch.rand(2, 1, 6, 6)
    expected = full_graph(model, model.conv, images)[1]
    model.forward = torch.no_grad()(model.forward)
    torch.testing.assert_close(captured(model, ["conv"], images).gradients["conv"], expected)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"upper": torch.no_grad}, "does not depend on layer 'conv' in a way that has gradients"),
        ({"upper": torch.inference_mode}, "does not depend on layer 'conv'"),
        ({"lower": torch.inference_mode}, "'conv' runs in the model's own inference_mode block"),
    ],
)
def test_what_cannot_have_gradients_is_said_in_a_sentence(
    blocks: dict[str, Any], message: str
) -> None:
    model, images = Blocks(**blocks), torch.rand(1, 1, 6, 6)
    before = state_of(model)
    with pytest.raises(FedgazeError, match=message):
        captured(model, ["conv"], images)
    assert_same(before, state_of(model))


@pytest.mark.parametrize("surrounding", [nullcontext, torch.inference_mode])
def test_a_model_made_in_inference_mode_is_explained(
    make_cnn: MakeCNN, full_graph: FullGraph, surrounding: Any
) -> None:
    images = torch.rand(2, 3, 8, 8)
    twin = make_cnn()
    expected = full_graph(twin, twin.conv1, images)[1]
    with torch.inference_mode():
        model = make_cnn()
    with surrounding():
        found = captured(model, ["conv1"], images)
    torch.testing.assert_close(found.gradients["conv1"], expected)
    assert all(parameter.is_inference() for parameter in model.parameters())


def test_a_layer_that_did_not_run_is_an_error(make_cnn: MakeCNN) -> None:
    model = make_cnn()
    model.unused = nn.Conv2d(1, 1, 1)
    with pytest.raises(FedgazeError, match="layer 'unused' did not run"):
        explain(model, torch.rand(1, 3, 8, 8), layers="unused")


def test_a_layer_without_part_in_the_score_is_an_error(make_cnn: MakeCNN) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Conv2d(1, 2, 3)
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Any:
            self.idle(x)
            return self.conv(x).mean((2, 3))

    for layers in ("idle", ["idle", "conv"]):
        with pytest.raises(FedgazeError, match="does not depend on layer 'idle'"):
            explain(Idle(), torch.rand(1, 1, 6, 6), layers=layers)


def test_of_a_layer_that_runs_twice_the_last_call_is_explained(
    make_cnn: MakeCNN, full_graph: FullGraph
) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    explanation = explain(model, images, layers="relu")
    activations, gradients = full_graph(model, model.relu, images)
    torch.testing.assert_close(explanation.raw, grad_cam(activations, gradients))
    assert explanation.flags == (("last_of_2_calls",),) * 2


def test_checkpointed_parts_after_the_layer_are_no_obstacle(full_graph: FullGraph) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.tail = nn.Sequential(nn.Conv2d(4, 3, 3), nn.Tanh())

        def forward(self, x: Tensor) -> Any:
            x = checkpoint(self.tail, self.conv(x), use_reentrant=False)
            return x.mean((2, 3))

    model, images = Checkpointed(), torch.rand(2, 1, 7, 7)
    expected = full_graph(model, model.conv, images)[1]
    torch.testing.assert_close(captured(model, ["conv"], images).gradients["conv"], expected)


class Pair(NamedTuple):
    map: Tensor
    extra: Any


@pytest.mark.parametrize("pack", [Pair._make, tuple, list])
def test_a_layer_may_return_a_tuple(pack: Callable[[Any], Any]) -> None:
    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Any:
            return pack([self.conv(x), None])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Packing()

        def forward(self, x: Tensor) -> Any:
            output = self.block(x)
            assert isinstance(output, type(pack([1, 2])))
            return output[0].mean((2, 3))

    model, images = Model(), torch.rand(1, 1, 5, 5)
    if pack is list:
        with pytest.raises(FedgazeError, match="layer 'block' returns list"):
            captured(model, ["block"], images)
    else:
        found = captured(model, ["block"], images)
        assert torch.equal(found.activations["block"], model.block.conv(images))


def test_a_layer_of_whole_numbers_is_refused() -> None:
    class Rounding(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.long()

    model = nn.Sequential(Rounding())
    with pytest.raises(FedgazeError, match=r"layer '0' returns torch\.int64"):
        captured(model, ["0"], torch.rand(1, 1, 5, 5))


def test_a_model_that_changes_its_input_does_not_change_the_callers(make_cnn: MakeCNN) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 2, 3), nn.Flatten())
    images = torch.randn(2, 1, 5, 5)
    before = images.clone()
    explain(model, images)
    assert torch.equal(images, before)


def test_dropout_called_as_a_function_does_not_move_the_random_state() -> None:
    class Noisy(Blocks):
        def forward(self, x: Tensor) -> Any:
            return F.dropout(super().forward(x))

    model, images = Noisy(), torch.rand(1, 1, 6, 6)
    before = torch.get_rng_state()
    explain(model, images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("compile_part", ["whole", "in_place", "part"])
def test_compiled_models_are_explained_as_they_are_written(
    make_cnn: MakeCNN, full_graph: FullGraph, compile_part: str
) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    expected = full_graph(model, model.bn2, images)
    if compile_part == "whole":
        model = torch.compile(model, backend="eager")
    elif compile_part == "in_place":
        model.compile(backend="eager")
    else:
        model.bn2 = torch.compile(model.bn2, backend="eager")
    with torch.no_grad():
        model(images)
    found = explain(model, images, layers="bn2")
    assert found.layers == ("bn2",)
    torch.testing.assert_close(found.raw, grad_cam(*expected))


@pytest.mark.parametrize("shared", [True, False])
def test_threads_do_not_disturb_each_other(make_cnn: MakeCNN, shared: bool) -> None:
    images = torch.rand(6, 4, 3, 8, 8)
    models = [make_cnn(seed=0 if shared else seed).train() for seed in range(6)]
    expected = [explain(m, x, layers="conv2").raw for m, x in zip(models, images, strict=True)]
    if shared:
        models = models[:1] * 6
    found = [None] * 6
    start = threading.Barrier(7)

    def work(index: int) -> None:
        start.wait()
        for _ in range(10):
            found[index] = explain(models[index], images[index], layers="conv2").raw

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    start.wait()
    for worker in workers:
        worker.join()
    for raw, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(raw, truth)
    assert all(module.training for module in models[0].modules())


def test_hooks_are_silent_in_another_thread_that_runs_the_model(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 8, 8)
    plain = model(images).detach()
    here, other = threading.get_ident(), []

    def meanwhile(*_: Any) -> None:
        def run() -> None:
            with torch.no_grad():
                other.append(model(torch.ones(5, 3, 8, 8)))

        if threading.get_ident() == here:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()

    handle = model.fc.register_forward_pre_hook(meanwhile)
    with Capture(model, {"conv2": model.conv2}) as capture:
        found = capture.run(images, top_scores)
    handle.remove()
    assert len(found.activations["conv2"]) == 1
    assert found.calls == {"conv2": 1}
    assert [logits.shape for logits in other] == [(5, 5)]
    torch.testing.assert_close(model(images), plain)


def test_no_activation_and_no_graph_outlives_the_call(make_cnn: MakeCNN) -> None:
    model, kept = make_cnn(), []

    def remember(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(weakref.ref(output))

    for layer in (model.conv1, model.bn2, model.fc):
        layer.register_forward_hook(remember)
    explanation = explain(model, torch.rand(2, 3, 8, 8), layers=["conv1", "conv2"])
    with pytest.raises(FedgazeError):
        explain(model, torch.rand(2, 3, 8, 8), layers="conv1", targets=99)
    gc.collect()
    assert [ref() for ref in kept] == [None] * 6
    tensors = [*vars(explanation).values(), *explanation.per_layer.values()]
    assert all(t.grad_fn is None for t in tensors if isinstance(t, torch.Tensor))


def test_many_calls_leave_no_more_tensors_than_one(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(1, 3, 6, 6)

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    explain(model, images)
    after_one = alive()
    for _ in range(100):
        explain(model, images)
    assert alive() == after_one


def test_a_model_can_be_forgotten_after_it_was_explained(make_cnn: MakeCNN) -> None:
    model = make_cnn()
    explain(model, torch.rand(1, 3, 6, 6))
    forgotten = weakref.ref(model)
    del model
    gc.collect()
    assert forgotten() is None
