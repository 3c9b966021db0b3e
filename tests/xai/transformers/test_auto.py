import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.auto import auto_layer, auto_query
from fedgaze.xai.tokens import main_tensor, with_main


def test_auto_finds_the_last_layer_whose_positions_count(
    case: Any, laid: Callable[..., Any]
) -> None:
    model, images = case.build(), case.images()
    found = auto_layer(model, images)
    assert f".{found}".endswith("." + case.auto)
    assert auto_query(model, images) == case.query
    # The truth: gradients of the predicted class, from an ordinary graph of the whole model.
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        kept.append(main_tensor(output))
        return with_main(output, kept[-1].clone())

    handle = model.get_submodule(found).register_forward_hook(keep)
    score = case.scores(model(images)).amax(1).sum()
    handle.remove()
    gradient = torch.autograd.grad(score, kept[-1])[0]
    where = laid(model, found, images)
    assert where.layout.to_map(gradient).abs().amax(1).min() > 0
    assert where.maps.shape[2:].numel() > 1


def test_the_choice_does_not_depend_on_weights_or_batches(cases: Any) -> None:
    model, images = cases["torchvision ViT"].build(), cases["torchvision ViT"].images(3)
    # As torchvision's head starts: at zero, where no class has a gradient.
    nn.init.zeros_(model.heads.head.weight)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode(), torch.autograd.set_detect_anomaly(True):
        assert auto_layer(model.bfloat16(), images.bfloat16()).endswith("encoder_layer_1.ln_1")


def test_the_probing_run_leaves_nothing_behind(cases: Any) -> None:
    model, images = cases["timm ViT"].build(), cases["timm ViT"].images()
    model.train()
    with torch.no_grad():
        auto_layer(model, images)
        assert not torch.is_grad_enabled()
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Within(nn.Module):
    """A backbone that the model runs in a no_grad block of its own."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(images)
        return self.head(features)


def test_tokens_of_a_backbone_under_no_grad_are_found(cases: Any) -> None:
    model = Within(cases["timm ViT"].build())
    assert auto_layer(model, cases["timm ViT"].images()) == "backbone.blocks.1.norm1"
    assert all(parameter.requires_grad for parameter in model.parameters())


class Cut(nn.Module):
    """Patches cut out by reshaping, an encoder of PyTorch's, and the mean or the first token."""

    def __init__(self, prefix: int, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.read = nn.Linear(3 * 8 * 8, 16), read
        self.leading = nn.Parameter(torch.randn(1, prefix, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        cut = (
            images.unfold(2, 8, 8)
            .unfold(3, 8, 8)
            .permute(0, 2, 3, 1, 4, 5)
            .flatten(3)
            .flatten(1, 2)
        )
        tokens = torch.cat([self.leading.expand(len(images), -1, -1), self.embed(cut)], 1)
        return self.head(self.read(self.encoder(tokens)))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_without_a_convolution_the_grid_is_that_of_square_patches(laid: Any) -> None:
    images = torch.rand(1, 3, 24, 40)
    averaged = Cut(0, lambda tokens: tokens.mean(1)).eval()
    assert (auto_layer(averaged, images), auto_query(averaged, images)) == ("encoder", "mean")
    read = Cut(1, lambda tokens: tokens[:, 0]).eval()
    assert auto_layer(read, images) == "encoder.layers.1.norm1"
    assert auto_query(read, images) == "class"
    found = laid(read, "encoder.layers.0.norm1", images)
    assert (found.layout.grid, found.layout.prefix) == ((3, 5), 1)
    assert found.maps.shape == (1, 16, 3, 5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_model_whose_output_no_position_reaches_says_so() -> None:
    model = Cut(1, lambda tokens: tokens[:, 0].detach()).eval()
    with pytest.raises(FedgazeError, match=r"no layer of Cut .* whose positions reach its output"):
        auto_layer(model, torch.rand(1, 3, 24, 40))


def test_videos_and_volumes() -> None:
    from torchvision.models.video import SwinTransformer3d

    model = SwinTransformer3d([2, 4, 4], 8, [1, 1], [2, 2], [2, 2, 2], num_classes=3).eval()
    assert auto_layer(model, torch.rand(1, 3, 4, 16, 24)) == "norm"
    plain = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    assert auto_layer(plain, torch.rand(1, 1, 8, 8, 8)) == "1"


def test_real_weights(real_data: Path, laid: Callable[..., Any]) -> None:
    import timm
    from safetensors.torch import load_file

    model = timm.create_model("vit_tiny_patch16_224").eval()
    weights = load_file(real_data / "weights" / "vit_tiny_patch16_224_imagenet_fp16.safetensors")
    model.load_state_dict({name: each.float() for name, each in weights.items()})
    images = torch.rand(1, 3, 224, 224)
    assert auto_layer(model, images) == "blocks.11.norm1"
    changed = images.clone()
    changed[..., 32:48, 160:176] = 1 - changed[..., 32:48, 160:176]
    both = torch.cat([images, changed])
    early, deep = (laid(model, f"blocks.{i}.norm1", both).maps for i in (0, 11))
    assert (early[1] - early[0]).abs().sum(0).nonzero().tolist() == [[2, 10]]
    assert divmod(int((deep[1] - deep[0]).norm(dim=0).argmax()), 14) == (2, 10)
