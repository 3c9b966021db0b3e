import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.auto import auto_layer, auto_query
from fedgaze.xai.tokens import (
    Layout,
    feature_map,
    lay_out,
    main_tensor,
    patch_layers,
    token_layout,
    with_main,
)

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def torchvision_model(name: str) -> nn.Module:
    from torchvision import models as tv
    from torchvision.models import swin_transformer as swin

    if name == "vit":
        return tv.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    if name == "maxvit":
        return tv.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=5)
    if name == "swin":
        return tv.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5)
    if name == "swin_v2":
        blocks = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
        return tv.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5, **blocks)
    setting = tv.convnext.CNBlockConfig
    return tv.ConvNeXt([setting(8, 16, 1), setting(16, None, 1)], num_classes=5)


def timm_model(name: str, size: tuple[int, int], **more: Any) -> nn.Module:
    import timm

    if name == "mixer":
        from timm.models.mlp_mixer import MlpMixer

        return MlpMixer(num_classes=5, img_size=size, patch_size=16, num_blocks=2, embed_dim=24)
    options: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": size}
    if "swin" in name:
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in STAGES.items()}
        options["img_size"] = size
    elif "convnext" in name:
        options = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    elif "pvt" in name:
        widths, heads = (8, 16, 24, 32), (1, 2, 3, 4)
        options = {"depths": (1, 1, 1, 1), "embed_dims": widths, "num_heads": heads}
    elif "maxvit" in name:
        options = {"depths": (1, 1), "embed_dim": (32, 64), "stem_width": 16, "img_size": size}
    return timm.create_model(name, num_classes=5, **{**options, **more})


def transformers_model(name: str) -> nn.Module:
    import transformers as hf

    config, model, options = {
        "vit": ("ViTConfig", "ViTForImageClassification", SMALL),
        "deit": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", SMALL),
        "swin": ("SwinConfig", "SwinForImageClassification", {"image_size": 64, **STAGES}),
        "swin_v2": ("Swinv2Config", "Swinv2ForImageClassification", {"image_size": 64, **STAGES}),
        "convnext": (
            "ConvNextConfig",
            "ConvNextForImageClassification",
            {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        ),
        "convnext_v2": (
            "ConvNextV2Config",
            "ConvNextV2ForImageClassification",
            {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        ),
        "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", SMALL),
        "dinov2_registers": (
            "Dinov2WithRegistersConfig",
            "Dinov2WithRegistersForImageClassification",
            {**SMALL, "num_register_tokens": 3},
        ),
        "beit": ("BeitConfig", "BeitForImageClassification", SMALL),
        "clip": ("CLIPVisionConfig", "CLIPVisionModel", SMALL),
        "clip_projection": ("CLIPVisionConfig", "CLIPVisionModelWithProjection", SMALL),
        "siglip": ("SiglipVisionConfig", "SiglipVisionModel", SMALL),
        "segformer": (
            "SegformerConfig",
            "SegformerForImageClassification",
            {"hidden_sizes": [8, 16, 24, 32]},
        ),
    }[name]
    return getattr(hf, model)(getattr(hf, config)(**options))


class Case(NamedTuple):
    """A model, and what is known of its layers by reading its code.

    ``early`` is a layer before anything of one patch reaches another, with the edge of its cells in
    pixels, and ``late`` one after that (both by a part of the name, since libraries rename).
    """

    make: Callable[[], nn.Module]
    size: tuple[int, int]
    early: tuple[str, int]
    late: tuple[str, int]
    prefix: int
    auto: str
    query: str = "mean"


# Their convolutions overlap: a patch changes its neighbours from the first layer on.
OVERLAPPING = ("torchvision MaxViT", "timm MaxViT", "timm PVT v2", "transformers SegFormer")


def tv(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision_model(name)


def timm(name: str, *size: int, **more: Any) -> Callable[[], nn.Module]:
    return lambda: timm_model(name, (size[0], size[1]), **more)


def hf(name: str) -> Callable[[], nn.Module]:
    return lambda: transformers_model(name)


CASES = {
    "torchvision ViT": Case(
        tv("vit"),
        (32, 32),
        ("encoder_layer_0.ln_1", 8),
        ("encoder_layer_1", 8),
        1,
        "encoder_layer_1.ln_1",
        "class",
    ),
    "torchvision Swin": Case(
        tv("swin"), (32, 64), ("features.1.0.norm1", 4), ("features.3.1", 8), 0, "norm"
    ),
    # 36 pixels are 9 patches, which are merged to 5.
    "torchvision Swin v2": Case(
        tv("swin_v2"), (36, 64), ("features.0", 4), ("features.3.1.mlp.0", 8), 0, "norm"
    ),
    "torchvision ConvNeXt": Case(
        tv("convnext"), (32, 64), ("features.0", 4), ("features.3", 8), 0, "features"
    ),
    "torchvision MaxViT": Case(
        tv("maxvit"), (64, 64), ("layers.MBconv.layers.pre_norm", 2), ("MBconv", 4), 0, "blocks.1"
    ),
    "timm ViT": Case(
        timm("vit_tiny_patch16_224", 32, 48),
        (32, 48),
        ("blocks.0.norm1", 16),
        ("blocks.1", 16),
        1,
        "blocks.1.norm1",
        "class",
    ),
    "timm ViT, registers, averaged": Case(
        timm("vit_medium_patch16_reg4_gap_256", 32, 48),
        (32, 48),
        ("blocks.0.norm1", 16),
        ("blocks.1", 16),
        4,
        "blocks",
    ),
    "timm ViT, pooled by attention": Case(
        timm("vit_base_patch16_siglip_224", 32, 48),
        (32, 48),
        ("blocks.0.norm1", 16),
        ("norm", 16),
        0,
        "norm",
    ),
    "timm DeiT, distilled": Case(
        timm("deit_tiny_distilled_patch16_224", 32, 48),
        (32, 48),
        ("blocks.0.norm1", 16),
        ("blocks.1", 16),
        2,
        "blocks.1.norm1",
        "class",
    ),
    "timm DINOv2, registers": Case(
        timm("vit_small_patch14_reg4_dinov2", 28, 42),
        (28, 42),
        ("blocks.0.norm1", 14),
        ("blocks.1", 14),
        5,
        "blocks.1.norm1",
        "class",
    ),
    "timm BEiT": Case(
        timm("beit_base_patch16_224", 32, 48),
        (32, 48),
        ("blocks.0.norm1", 16),
        ("blocks.1", 16),
        1,
        "blocks.1",
    ),
    "timm EVA-02": Case(
        timm("eva02_tiny_patch14_224", 28, 42),
        (28, 42),
        ("blocks.0.norm1", 14),
        ("blocks.1", 14),
        1,
        "blocks.1",
    ),
    "timm CaiT": Case(
        timm("cait_xxs24_224", 32, 48),
        (32, 48),
        ("blocks.0.norm1", 16),
        ("blocks.1", 16),
        0,
        "blocks_token_only.1.norm1",
        "class",
    ),
    "timm MLP-Mixer": Case(
        timm("mixer", 32, 48), (32, 48), ("blocks.0.norm1", 16), ("norm", 16), 0, "norm"
    ),
    "timm Swin": Case(
        timm("swin_tiny_patch4_window7_224", 64, 96),
        (64, 96),
        ("layers.0.blocks.0.norm1", 4),
        ("layers.1", 8),
        0,
        "norm",
    ),
    "timm Swin v2": Case(
        timm("swinv2_tiny_window8_256", 64, 96),
        (64, 96),
        ("patch_embed", 4),
        ("layers.1.blocks.1.mlp", 8),
        0,
        "norm",
    ),
    "timm ConvNeXt": Case(
        timm("convnext_atto", 0, 0), (64, 96), ("stem", 4), ("stages.1.blocks.0", 8), 0, "stages"
    ),
    "timm MaxViT": Case(
        timm("maxvit_pico_rw_256", 64, 64),
        (64, 64),
        ("stages.0.blocks.0.attn_block.norm1", 4),
        ("stages.1", 8),
        0,
        "norm",
    ),
    "timm PVT v2": Case(
        timm("pvt_v2_b0", 0, 0), (64, 96), ("patch_embed", 4), ("stages.1", 8), 0, "stages"
    ),
    "transformers ViT": Case(
        hf("vit"),
        (32, 32),
        ("layers.0.layernorm_before", 8),
        ("layers.1", 8),
        1,
        "layers.1.layernorm_before",
        "class",
    ),
    "transformers DeiT": Case(
        hf("deit"),
        (32, 32),
        ("layers.0.layernorm_before", 8),
        ("layers.1", 8),
        2,
        "layers.1.layernorm_before",
        "class",
    ),
    "transformers Swin": Case(
        hf("swin"),
        (64, 96),
        ("layers.0.blocks.0.layernorm_before", 4),
        ("layers.0", 8),
        0,
        "swin.layernorm",
    ),
    "transformers Swin v2": Case(
        hf("swin_v2"), (60, 96), ("embeddings", 4), ("encoder", 8), 0, "swinv2.layernorm"
    ),
    "transformers ConvNeXt": Case(
        hf("convnext"), (32, 64), ("embeddings", 4), ("encoder", 8), 0, "encoder.stages.1"
    ),
    "transformers ConvNeXt v2": Case(
        hf("convnext_v2"),
        (32, 64),
        ("embeddings", 4),
        ("stages.1", 8),
        0,
        "encoder.stages.1",
    ),
    "transformers DINOv2": Case(
        hf("dinov2"), (32, 48), ("layer.0.norm1", 8), ("encoder", 8), 1, "layernorm", "class"
    ),
    "transformers DINOv2, registers": Case(
        hf("dinov2_registers"),
        (32, 48),
        ("layer.0.norm1", 8),
        ("layer.1", 8),
        4,
        "layernorm",
        "class",
    ),
    "transformers BEiT": Case(
        hf("beit"), (32, 32), ("layers.0.layernorm_before", 8), ("layers.1", 8), 1, "layers.1"
    ),
    "transformers CLIP": Case(
        hf("clip"),
        (32, 32),
        ("layers.0.layer_norm1", 8),
        ("encoder", 8),
        1,
        "layers.1.layer_norm1",
        "class",
    ),
    "transformers CLIP, projected": Case(
        hf("clip_projection"),
        (32, 32),
        ("layers.0.layer_norm1", 8),
        ("vision_model", 8),
        1,
        "layers.1.layer_norm1",
        "class",
    ),
    "transformers SigLIP": Case(
        hf("siglip"), (32, 32), ("layers.0.layer_norm1", 8), ("encoder", 8), 0, "post_layernorm"
    ),
    "transformers SegFormer": Case(
        hf("segformer"), (64, 96), ("patch_embeddings", 4), ("stages.1", 8), 0, "segformer.stages.3"
    ),
}


def build(case: Case) -> nn.Module:
    torch.manual_seed(0x70C)
    model = case.make().eval()
    for module in model.modules():
        # Layer scales of 1e-6, and normalisations after blocks that start at zero, hide what
        # blocks do; of merging, position embeddings and the rest nothing is hidden.
        for name, parameter in module.named_parameters(recurse=False):
            if "gamma" in name or "lambda" in name or "scale" in name:
                nn.init.constant_(parameter, 0.1)
    return model


def module_of(model: nn.Module, ending: str) -> tuple[str, nn.Module]:
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name == ending or name.endswith("." + ending)
    ]
    return min(found, key=lambda pair: len(pair[0]))


def maps_of(model: nn.Module, ending: str, images: Tensor) -> tuple[Tensor, Layout, Tensor]:
    """By plain hooks: the map, its layout, and the tensor that the layer returned."""
    name, module = module_of(model, ending)
    kept: dict[str, Any] = {}

    def first(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept.setdefault("patches", tuple(output.shape[2:]))

    def last(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept["tensor"] = main_tensor(output)

    handles = [each.register_forward_hook(first) for each in patch_layers(model)]
    handles.append(module.register_forward_hook(last))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    tensor, size = kept["tensor"], tuple(images.shape[2:])
    layout = lay_out(name, module, tensor, kept.get("patches"), size, len(images))
    maps = feature_map(name, module, tensor, kept.get("patches"), size)
    assert torch.equal(maps, layout.to_map(tensor))
    return maps, layout, tensor


@pytest.mark.parametrize("name", CASES)
def test_a_changed_patch_changes_its_place(name: str) -> None:
    case = CASES[name]
    model = build(case)
    height, width = case.size
    cell = max(case.early[1], case.late[1])
    places = [(0, width // cell - 1), (height // cell - 1, 0), (1, width // cell // 2)]
    images = torch.rand(1, 3, height, width).repeat(len(places) + 1, 1, 1, 1)
    for image, (row, column) in enumerate(places, 1):
        spot = (slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell))
        images[(image, slice(None), *spot)] = torch.rand(3, cell, cell)
    for which, (layer, edge) in {"early": case.early, "late": case.late}.items():
        maps, layout, _ = maps_of(model, layer, images)
        grid = (-(-height // edge), -(-width // edge))
        assert tuple(maps.shape[2:]) == layout.grid == grid
        assert layout.prefix == (case.prefix if layout.tokens else 0)
        changes = (maps[1:] - maps[:1]).abs().sum(1)
        for change, (row, column) in zip(changes, places, strict=True):
            cells = torch.zeros(grid, dtype=torch.bool)
            step = cell // edge
            cells[row * step : (row + 1) * step, column * step : (column + 1) * step] = True
            assert (change[cells] > 0).all()
            if which == "early" and name not in OVERLAPPING:
                assert change[~cells].count_nonzero() == 0
            else:
                assert change[cells].mean() > 2 * change[~cells].mean()


@pytest.mark.parametrize("name", CASES)
def test_the_way_back_is_the_inverse(name: str) -> None:
    case = CASES[name]
    images = torch.rand(2, 3, *case.size)
    model = build(case)
    for layer in (case.early[0], case.late[0]):
        maps, layout, tensor = maps_of(model, layer, images)
        back = layout.from_map(maps, tensor)
        assert torch.equal(back, tensor)
        assert back.is_contiguous() or not tensor.is_contiguous()
        # Several changed maps of one image keep its leading tokens.
        many = layout.from_map(maps[:1].repeat(3, *[1] * (maps.dim() - 1)) + 1, tensor[:1])
        assert many.shape == (3, *tensor.shape[1:])
        torch.testing.assert_close(layout.to_map(many)[2], maps[0] + 1)
        if layout.tokens and layout.prefix:
            assert torch.equal(many[2][: layout.prefix], tensor[0][: layout.prefix])


@pytest.mark.parametrize("name", CASES)
def test_auto_finds_the_last_layer_whose_positions_count(name: str) -> None:
    case = CASES[name]
    model, images = build(case), torch.rand(2, 3, *case.size)
    found = auto_layer(model, images)
    assert found == case.auto or found.endswith("." + case.auto)
    assert auto_query(model, images) == case.query
    # The truth: gradients of the predicted class, from an ordinary graph of the whole model.
    for head in (module for module in model.modules() if isinstance(module, nn.Linear)):
        if head.weight.count_nonzero() == 0:
            nn.init.normal_(head.weight)
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        kept.append(main_tensor(output))
        return with_main(output, kept[-1].clone())

    handle = model.get_submodule(found).register_forward_hook(keep)
    outputs = model(images)
    handle.remove()
    pooled = "pooler_output" if "CLIP" in name or "SigLIP" in name else "logits"
    pooled = "image_embeds" if "projected" in name else pooled
    scores = outputs if isinstance(outputs, Tensor) else outputs[pooled]
    gradient = torch.autograd.grad(scores.amax(1).sum(), kept[-1])[0]
    maps, layout, _ = maps_of(model, found, images)
    assert layout.to_map(gradient).abs().amax(1).min() > 0
    assert maps.shape[2:].numel() > 1


def test_channels_come_last_within_a_block_of_convnext() -> None:
    case = CASES["torchvision ConvNeXt"]
    maps, layout, tensor = maps_of(
        build(case), "features.3.0.block.3", torch.rand(2, 3, *case.size)
    )
    assert tensor.shape == (2, 4, 8, 64)
    assert layout == Layout((4, 8), channels_last=True)
    assert torch.equal(maps, tensor.permute(0, 3, 1, 2))


def test_tokens_within_an_mlp_over_tokens_come_last() -> None:
    case = CASES["timm MLP-Mixer"]
    maps, layout, tensor = maps_of(build(case), "blocks.1.mlp_tokens", torch.rand(2, 3, *case.size))
    assert tensor.shape == (2, 24, 6)
    assert layout == Layout((2, 3), tokens=True)
    assert torch.equal(maps, tensor.view(2, 24, 2, 3))
    assert torch.equal(layout.from_map(maps, tensor), tensor)


def test_the_automatic_choice_does_not_depend_on_weights_or_batches() -> None:
    case = CASES["torchvision ViT"]
    model, images = build(case), torch.rand(3, 3, 32, 32)
    # torchvision's head starts at zero, where no class has a gradient.
    assert model.heads.head.weight.count_nonzero() == 0
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode(), torch.autograd.set_detect_anomaly(True):
        assert auto_layer(model.bfloat16(), images.bfloat16()).endswith("encoder_layer_1.ln_1")


def test_the_probing_run_leaves_nothing_behind() -> None:
    import gc
    import weakref

    model, images = build(CASES["timm ViT"]), torch.rand(1, 3, 32, 48)
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


def test_tokens_of_a_backbone_under_no_grad_are_found() -> None:
    model = Within(build(CASES["timm ViT"]))
    assert auto_layer(model, torch.rand(1, 3, 32, 48)) == "backbone.blocks.1.norm1"
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
def test_without_a_convolution_the_grid_is_that_of_square_patches() -> None:
    images = torch.rand(1, 3, 24, 40)
    averaged = Cut(0, lambda tokens: tokens.mean(1)).eval()
    assert auto_layer(averaged, images) == "encoder"
    assert auto_query(averaged, images) == "mean"
    read = Cut(1, lambda tokens: tokens[:, 0]).eval()
    assert auto_layer(read, images) == "encoder.layers.1.norm1"
    assert auto_query(read, images) == "class"
    maps, layout, _ = maps_of(read, "encoder.layers.0.norm1", images)
    assert (layout.grid, layout.prefix, maps.shape) == ((3, 5), 1, (1, 16, 3, 5))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_model_whose_output_no_position_reaches_says_so() -> None:
    model = Cut(1, lambda tokens: tokens[:, 0].detach()).eval()
    with pytest.raises(FedgazeError, match=r"no layer of Cut .* whose positions reach its output"):
        auto_layer(model, torch.rand(1, 3, 24, 40))


def test_videos_and_volumes() -> None:
    from torchvision.models.video import SwinTransformer3d

    torch.manual_seed(0)
    model = SwinTransformer3d([2, 4, 4], 8, [1, 1], [2, 2], [2, 2, 2], num_classes=3).eval()
    images = torch.rand(1, 3, 4, 16, 24)
    maps, layout, tensor = maps_of(model, "norm", images)
    # Merging goes over height and width alone.
    assert (layout.channels_last, tuple(maps.shape)) == (True, (1, 16, 2, 2, 3))
    assert torch.equal(layout.from_map(maps, tensor), tensor)
    assert auto_layer(model, images) == "norm"
    plain = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    assert auto_layer(plain, torch.rand(1, 1, 8, 8, 8)) == "1"


@pytest.mark.parametrize("library", ["vit", "mvit"])
def test_tokens_of_videos(library: str) -> None:
    if library == "vit":
        import transformers as hf

        config = hf.VideoMAEConfig(num_frames=4, num_labels=3, **SMALL)
        model, layer = hf.VideoMAEForVideoClassification(config).eval(), "videomae"
        maps, layout, _ = maps_of_video(model, layer, torch.rand(1, 4, 3, 32, 32))
        assert (layout.prefix, tuple(maps.shape)) == (0, (1, 16, 2, 4, 4))
    else:
        layout = token_layout(1 + 4 * 8 * 6, (4, 16, 12), (8, 64, 48))
        assert (layout.grid, layout.prefix) == ((4, 8, 6), 1)


def maps_of_video(model: nn.Module, ending: str, frames: Tensor) -> tuple[Tensor, Layout, Tensor]:
    """transformers wants frames before channels: the layout is asked for (D, H, W)."""
    name, module = module_of(model, ending)
    kept: dict[str, Any] = {}
    convolution = patch_layers(model)[0]
    hooks = [
        convolution.register_forward_hook(
            lambda _m, _i, o: kept.update(patches=tuple(o.shape[2:]))
        ),
        module.register_forward_hook(lambda _m, _i, o: kept.update(tensor=main_tensor(o))),
    ]
    with torch.no_grad():
        model(frames)
    for hook in hooks:
        hook.remove()
    size = (frames.shape[1], *frames.shape[3:])
    layout = lay_out(name, module, kept["tensor"], kept["patches"], size)
    return layout.to_map(kept["tensor"]), layout, kept["tensor"]


@pytest.mark.parametrize(
    ("layer", "shape", "last"),
    [
        # Grids decide where one side alone is one: those of 8 x 16 patches are (4, 8), (2, 4), …
        (nn.ReLU(), (1, 16, 8, 16), False),
        (nn.ReLU(), (1, 8, 16, 3), True),
        (nn.ReLU(), (1, 4, 8, 32), True),
        (nn.LayerNorm(16), (1, 3, 8, 16), False),
        # Both or neither: what the layer computes.
        (nn.Linear(4, 8), (1, 4, 8, 8), True),
        (nn.LayerNorm(16), (1, 8, 16, 16), True),
        (nn.Conv2d(3, 8, 1), (1, 8, 8, 16), False),
        (nn.BatchNorm2d(8), (1, 8, 5, 5), False),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), (1, 5, 5, 4), True),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), (1, 4, 5, 4), False),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.LayerNorm(8)), (1, 8, 16, 8), True),
        (nn.ReLU(), (1, 7, 5, 5), False),
    ],
)
def test_where_channels_stand(layer: nn.Module, shape: tuple[int, ...], last: bool) -> None:
    layout = lay_out("x", layer, torch.zeros(shape), (8, 16), (32, 64))
    assert layout.channels_last is last


@given(
    patches=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    prefix=st.integers(0, 16),
    stage=st.integers(0, 2),
)
def test_grids_are_found_from_the_number_of_tokens(
    patches: tuple[int, int], prefix: int, stage: int
) -> None:
    grid = patches
    for _ in range(stage):
        grid = (-(-grid[0] // 2), -(-grid[1] // 2))
    prefix = min(prefix, 1) if stage else prefix
    tokens = grid[0] * grid[1] + prefix
    found = token_layout(tokens, patches, (patches[0] * 4, patches[1] * 4))
    if grid == (1, 1):
        return
    assert found is not None
    rows, columns = found.grid
    assert rows * columns + found.prefix == tokens
    # Another grid only if it leaves fewer tokens over.
    assert found == Layout(grid, prefix, tokens=True, channels_last=True) or found.prefix < prefix


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 77, 8), r"layer 'x' returns .* \(1, 77, 8\), and 77 tokens fit no grid of .* 32 × 48"),
        ((1, 1, 8), "1 tokens fit no grid"),
        ((2, 24, 8), "returns .* for 1 images: it works on windows"),
        ((1, 8), r"returns a tensor of shape \(1, 8\); allowed is a layer"),
        ((1, 8, 2, 4, 6), "allowed is a layer"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(FedgazeError, match=message):
        lay_out("x", nn.ReLU(), torch.zeros(shape), (4, 6), (32, 48), 1)


def test_maps_are_views_with_gradients() -> None:
    layout = Layout((2, 3), prefix=1, tokens=True, channels_last=True)
    tokens = torch.rand(2, 7, 4, dtype=torch.float64, requires_grad=True)
    maps = layout.to_map(tokens)
    assert maps.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()
    assert maps[1, 2, 1, 0] == tokens[1, 1 + 3, 2]
    assert torch.autograd.gradcheck(lambda t: layout.from_map(layout.to_map(t) * 2, t), [tokens])


Pair = namedtuple("Pair", "maps more")  # noqa: PYI024


@dataclasses.dataclass
class Plain:
    last_hidden_state: Tensor
    more: str = "kept"


def test_what_a_layer_returns_is_unpacked_and_packed_again() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    old, new = torch.zeros(2), torch.ones(2)
    pooled = BaseModelOutputWithPooling(last_hidden_state=old, pooler_output=old + 3)
    for output in (
        old,
        (old, None),
        ((old, 1), 2),
        Pair(old, 2),
        OrderedDict(out=old, aux=None),
        {"last_hidden_state": old},
        Plain(old),
        pooled,
    ):
        assert main_tensor(output) is old
        again = with_main(output, new)
        assert type(again) is type(output)
        assert main_tensor(again) is new
        assert main_tensor(output) is old
    again = with_main(pooled, new)
    assert again[0] is again["last_hidden_state"] is again.last_hidden_state is new
    assert torch.equal(again.pooler_output, old + 3)
    assert with_main(Plain(old), new).more == "kept"
    for nothing in (None, (), [old], {"maps": old}, (None, old), "text", {"out": 1}):
        assert main_tensor(nothing) is None
    with pytest.raises(TypeError, match="list has no main tensor"):
        with_main([old], new)


def test_real_weights(real_data: Path) -> None:
    import timm
    from safetensors.torch import load_file

    model = timm.create_model("vit_tiny_patch16_224").eval()
    weights = load_file(real_data / "weights" / "vit_tiny_patch16_224_imagenet_fp16.safetensors")
    model.load_state_dict({name: each.float() for name, each in weights.items()})
    images = torch.rand(1, 3, 224, 224)
    assert auto_layer(model, images) == "blocks.11.norm1"
    changed = images.clone()
    changed[..., 32:48, 160:176] = 1 - changed[..., 32:48, 160:176]
    early = [maps_of(model, "blocks.0.norm1", each)[0] for each in (images, changed)]
    change = (early[1] - early[0]).abs().sum(1)[0]
    assert change.nonzero().tolist() == [[2, 10]]
    deep = [maps_of(model, "blocks.11.norm1", each)[0] for each in (images, changed)]
    assert divmod(int((deep[1] - deep[0]).norm(dim=1).argmax()), 14) == (2, 10)
