"""Traps that others fell into, and that no other file of tests has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedgaze.errors import FedgazeError
from fedgaze.xai import Capture, explain

MakeCNN = Callable[..., nn.Module]


def test_without_gradients_activations_are_those_before_the_in_place_relu(
    make_cnn: MakeCNN,
) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    with Capture(model, {"bn2": model.bn2}, gradients=False) as capture:
        found = capture.run(images, lambda logits: logits[:, 0]).activations["bn2"]
    assert found.min() < 0  # a ReLU in place would have left nothing below zero
    activations = model.bn2(
        model.conv2(nn.functional.max_pool2d(model.relu(model.bn1(model.conv1(images))), 2))
    )
    torch.testing.assert_close(found, activations.detach())


def test_the_projection_inside_fused_attention_never_runs() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 2, 2)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            return self.attention(tokens, tokens, tokens)[0].mean(1)

    with pytest.raises(FedgazeError, match=r"layer 'attention\.out_proj' did not run"):
        explain(Attends(), torch.rand(1, 1, 8, 8), layers="attention.out_proj")


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_a_layer_inside_a_checkpointed_block_is_right_or_refused() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, how: Any) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.block = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 3))
            self.how = how

        def forward(self, x: Tensor) -> Tensor:
            if self.how is None:
                return self.block(x).tanh().mean((2, 3))
            return checkpoint(self.block, x, use_reentrant=self.how).tanh().mean((2, 3))

    images = torch.rand(2, 1, 8, 8)
    expected = explain(Checkpointed(None), images, layers="block.1", relu=False)
    assert expected.raw.abs().min() > 0
    for how in (False, True):
        try:
            found = explain(Checkpointed(how), images, layers="block.1", relu=False)
        except FedgazeError as error:
            assert "layer 'block.1'" in str(error)  # noqa: PT017
        else:
            torch.testing.assert_close(found.raw, expected.raw)


def test_layers_of_a_traced_graph_are_found_by_its_own_names(make_cnn: MakeCNN) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)
    traced = torch.fx.symbolic_trace(model)
    found = explain(traced, images, layers="bn2")
    torch.testing.assert_close(found.raw, explain(model, images, layers="bn2").raw)


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_no_full_decomposition_an_image(
    make_cnn: MakeCNN, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("svd", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, pytest.fail)
    monkeypatch.setattr(torch, "svd", pytest.fail)
    assert explain(make_cnn(), torch.rand(2, 3, 8, 8), method, layers="bn2").raw.isfinite().all()


def test_the_compilers_stance_is_left_alone_where_nothing_is_compiled(
    make_cnn: MakeCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "set_stance", pytest.fail)
    assert len(explain(make_cnn(), torch.rand(2, 3, 8, 8))) == 2


def test_nothing_is_printed_and_swallowed(
    make_cnn: MakeCNN, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = make_cnn(), torch.rand(2, 3, 8, 8)

    def target(_: Tensor) -> Tensor:
        raise KeyError("mine")

    for method in ("gradcam", "scorecam", "saliency"):
        with pytest.raises(KeyError, match="mine"):
            explain(model, images, method, target)
    assert capsys.readouterr() == ("", "")
