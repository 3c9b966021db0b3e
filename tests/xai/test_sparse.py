"""Ways back through Linear layers that leave out zeros are the ways back of autograd."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedgaze.xai import Capture, explain
from fedgaze.xai.sparse import sparse_ways_back

Score = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0x5BA5)


def by_autograd(model: nn.Module, x: Tensor, score: Score) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(score(model(leaf)).sum(), leaf)[0]


def shortened(model: nn.Module, x: Tensor, score: Score) -> Tensor:
    with sparse_ways_back(list(model.modules())):
        return by_autograd(model, x, score)


SCORES: dict[str, Score] = {
    "a token": lambda out: out[:, 0].square().sum(1),
    "another token of each image": lambda out: out[[0, 1], [2, 4]].sum(1),
    "a class at all tokens": lambda out: out[..., 3].sum(1),
    "everything": lambda out: out.square().sum((1, 2)),
    "nothing": lambda out: out.sum((1, 2)) * 0,
    "not a number": lambda out: out[:, 1, 2] * torch.nan,
    "no bound": lambda out: out[:, 1, 2] * torch.inf,
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("bias", [True, False])
def test_tokens(score: Score, bias: bool) -> None:
    layers = nn.Linear(6, 9, bias=bias), nn.GELU(), nn.LayerNorm(9), nn.Linear(9, 7, bias=bias)
    model, x = nn.Sequential(*layers).double(), torch.randn(2, 5, 6).double()
    expected = by_autograd(model, x, score)
    found = shortened(model, x, score)
    if bool(expected.isfinite().all()):
        torch.testing.assert_close(found, expected)
    else:
        # What is no number is not taken for zero.
        assert torch.equal(
            found.isfinite().flatten(1).all(1), expected.isfinite().flatten(1).all(1)
        )


@pytest.mark.parametrize("count", [1, 3])
def test_rows_and_classes(count: int) -> None:
    model, x = (
        nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 40)),
        torch.randn(count, 6),
    )
    torch.testing.assert_close(
        shortened(model, x, lambda out: out[:, 7]), by_autograd(model, x, lambda out: out[:, 7])
    )


def test_some_zeros_are_left_out_and_nothing_else_is_different() -> None:
    model, x = nn.Linear(6, 9), torch.randn(2, 5, 6, requires_grad=True)
    plain = model(x)
    with sparse_ways_back([model]):
        out = model(x)
    assert torch.equal(out, plain)
    assert type(out.grad_fn).__name__ == "_LinearBackward"
    assert type(model(x).grad_fn).__name__ == type(plain.grad_fn).__name__
    assert not model._forward_hooks


class Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def own_forward(linear: nn.Linear) -> nn.Linear:
    linear.forward = lambda x: 3 * nn.functional.linear(x, linear.weight)  # type: ignore[method-assign]
    return linear


def hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_hook(lambda _module, _inputs, output: output.square())
    return linear


def backward_hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_full_backward_hook(lambda _module, given, _upstream: (given[0] * 5,))
    return linear


@pytest.mark.parametrize(
    "make",
    [
        lambda: Twice(4, 4),
        lambda: own_forward(nn.Linear(4, 4)),
        lambda: hooked(nn.Linear(4, 4)),
        lambda: backward_hooked(nn.Linear(4, 4)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)).eval(),
    ],
    ids=["a type of its own", "a forward", "a hook", "a backward hook", "weight norm", "pre-hook"],
)
def test_layers_that_do_more_keep_their_way_back(make: Callable[[], nn.Module]) -> None:
    model, x = nn.Sequential(make(), nn.Linear(4, 3)), torch.randn(2, 4)
    torch.testing.assert_close(
        shortened(model, x, lambda out: out[:, 1]), by_autograd(model, x, lambda out: out[:, 1])
    )


def test_global_hooks_are_heard() -> None:
    from torch.nn.modules.module import register_module_forward_hook

    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    with register_module_forward_hook(lambda _module, _inputs, output: output.square()):
        torch.testing.assert_close(
            shortened(model, x, lambda out: out[:, 1]), by_autograd(model, x, lambda out: out[:, 1])
        )


def test_autocast_keeps_its_own_way_back() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5)), torch.randn(3, 8)

    def cast(leaf: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(leaf)

    def gradient() -> Tensor:
        # The way back is gone outside autocast, as torch advises.
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(cast(leaf)[:, 1].sum(), leaf)[0]

    expected = gradient()
    with sparse_ways_back(list(model.modules())):
        assert torch.equal(gradient(), expected)


def test_another_thread_has_gradients_of_weights() -> None:
    model, x = nn.Linear(4, 3), torch.randn(2, 4, requires_grad=True)
    kinds: list[str] = []

    def train() -> None:
        model(x).sum().backward()
        kinds.append(type(model(x).grad_fn).__name__)

    with sparse_ways_back([model]):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert model.weight.grad is not None
    assert kinds == ["AddmmBackward0"]


class Block(nn.Module):
    """A convolution, and an MLP over its positions whose first token is read."""

    def __init__(self, *, checkpointed: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.head = nn.Linear(6, 30)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).mT
        run: Any = self.mlp
        mixed = checkpoint(run, tokens, use_reentrant=False) if self.checkpointed else run(tokens)
        return self.head((tokens + mixed).amax(1))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_capture_has_the_gradients_of_autograd(checkpointed: bool) -> None:
    model, images = Block(checkpointed=checkpointed).eval(), torch.rand(3, 1, 8, 8)
    classes = torch.tensor([[3, 8], [3, 29], [0, 1]])
    activations = model.conv(images).detach().requires_grad_()
    tokens = activations.flatten(2).mT
    scores = model.head((tokens + model.mlp(tokens)).amax(1)).gather(1, classes)
    with Capture(model, {"conv": model.conv}) as capture:
        captured = capture.run(images, lambda logits: logits.gather(1, classes))
        for column in (0, 1):
            (expected,) = torch.autograd.grad(
                scores[:, column].sum(), activations, retain_graph=True
            )
            torch.testing.assert_close(captured.gradients_of(column)["conv"], expected)
    assert not any(part._forward_hooks for part in model.modules())


def test_maps_that_are_trained_with_keep_the_gradients_of_all_weights() -> None:
    model, images = Block(checkpointed=False), torch.rand(2, 1, 8, 8)
    explain(model, images, layers="conv", differentiable=True).raw.sum().backward()
    for name, parameter in model.named_parameters():
        # Biases of what is linear above the layer, and the head's, are in no gradient.
        if name.endswith("weight"):
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name
