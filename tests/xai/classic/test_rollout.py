"""The classic face of attention rollout, against the paper in a loop."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgaze import (
    AttentionRollout,
    explain,
)
from fedgaze.errors import FedgazeError

CNN = Callable[..., nn.Module]


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def attentions(model: nn.Module, image: Tensor) -> list[np.ndarray]:
    """What each block's attention says, asked for by plain hooks."""
    kept: list[np.ndarray] = []

    def ask(module: nn.Module, args: Any, kwargs: Any) -> None:
        _, weights = nn.MultiheadAttention.forward(
            module, *args, **{**kwargs, "need_weights": True, "average_attn_weights": False}
        )
        kept.append(weights[0].double().numpy())

    blocks = [each for each in model.modules() if isinstance(each, nn.MultiheadAttention)]
    handles = [block.register_forward_pre_hook(ask, with_kwargs=True) for block in blocks]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_attention_rollout_is_the_papers(vit: nn.Module, fusion: str) -> None:
    image = torch.randn(1, 3, 32, 32)
    rolled = np.eye(17)
    for heads in attentions(vit, image):
        mixed = 0.5 * getattr(np, fusion)(heads, axis=0) + 0.5 * np.eye(17)
        rolled = mixed / mixed.sum(-1, keepdims=True) @ rolled
    truth = rolled[0, 1:].reshape(4, 4)
    rollout = AttentionRollout(vit, head_fusion=fusion, discard_ratio=0)
    grid = rollout.generate_attention_map(image)
    assert grid.dtype == np.float32
    assert np.allclose(grid, truth, atol=1e-6)
    flat = rollout.generate_attention_map(image[0], reshape_to_grid=False)
    assert np.array_equal(flat, grid.reshape(16))


def test_attention_rollout_discards_a_tenth_by_default(vit: nn.Module) -> None:
    image = torch.randn(1, 3, 32, 32)
    with AttentionRollout(vit) as rollout:
        grid = rollout.generate_attention_map(image)
    same = explain(vit, image, "attention_rollout", discard_ratio=0.1, head_fusion="mean")
    assert np.array_equal(grid, same.raw[0].numpy())
    whole = AttentionRollout(vit, discard_ratio=0).generate_attention_map(image)
    assert not np.allclose(grid, whole)


def test_attention_rollout_refuses_what_it_cannot_do(make_cnn: CNN, vit: nn.Module) -> None:
    with pytest.raises(FedgazeError, match=r"'media'; allowed are mean, max, min.*did you mean"):
        AttentionRollout(vit, head_fusion="media")
    with pytest.raises(FedgazeError, match="discard_ratio is 1; allowed is 0 up to"):
        AttentionRollout(vit, discard_ratio=1)
    with pytest.raises(FedgazeError, match=r"no attention maps captured: .* such as gradcam"):
        AttentionRollout(make_cnn()).generate_attention_map(torch.randn(1, 3, 10, 12))
    with pytest.raises(FedgazeError, match="holds 2 images; allowed is one"):
        AttentionRollout(vit).generate_attention_map(torch.randn(2, 3, 32, 32))
