"""Small transformers of three libraries, and what is known of each by reading its code."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fedgaze.xai.tokens import Layout, feature_map, lay_out, main_tensor, patch_layers

# early: a layer before anything of one patch reaches another, with the edge of its cells in pixels;
# late: one after that (by a part of the name, since libraries rename); prefix: tokens that are no
# patches; auto: the last layer whose positions count; query: what is read at the end.
TABLE = """
torchvision ViT | 32 32 | encoder_layer_0.ln_1 8 | encoder_layer_1 8 | 1 | encoder_layer_1.ln_1 | class
torchvision Swin | 32 64 | features.1.0.norm1 4 | features.3.1 8 | 0 | norm | mean
torchvision Swin v2 | 36 64 | features.0 4 | features.3.1.mlp.0 8 | 0 | norm | mean
torchvision ConvNeXt | 32 64 | features.0 4 | features.3 8 | 0 | features | mean
torchvision MaxViT | 64 64 | layers.MBconv.layers.pre_norm 2 | MBconv 4 | 0 | blocks.1 | mean
timm ViT | 32 48 | blocks.0.norm1 16 | blocks.1 16 | 1 | blocks.1.norm1 | class
timm ViT, averaged | 32 48 | blocks.0.norm1 16 | blocks.1 16 | 4 | blocks | mean
timm ViT, pooled by attention | 32 48 | blocks.0.norm1 16 | norm 16 | 0 | norm | mean
timm DeiT, distilled | 32 48 | blocks.0.norm1 16 | blocks.1 16 | 2 | blocks.1.norm1 | class
timm DINOv2, registers | 28 42 | blocks.0.norm1 14 | blocks.1 14 | 5 | blocks.1.norm1 | class
timm BEiT | 32 48 | blocks.0.norm1 16 | blocks.1 16 | 1 | blocks.1 | mean
timm EVA-02 | 28 42 | blocks.0.norm1 14 | blocks.1 14 | 1 | blocks.1 | mean
timm CaiT | 32 48 | blocks.0.norm1 16 | blocks.1 16 | 0 | blocks_token_only.1.norm1 | class
timm MLP-Mixer | 32 48 | blocks.0.norm1 16 | norm 16 | 0 | norm | mean
timm Swin | 64 96 | layers.0.blocks.0.norm1 4 | layers.1 8 | 0 | norm | mean
timm Swin v2 | 64 96 | patch_embed 4 | layers.1.blocks.1.mlp 8 | 0 | norm | mean
timm ConvNeXt | 64 96 | stem 4 | stages.1.blocks.0 8 | 0 | stages | mean
timm MaxViT | 64 64 | stages.0.blocks.0.attn_block.norm1 4 | stages.1 8 | 0 | norm | mean
timm PVT v2 | 64 96 | patch_embed 4 | stages.1 8 | 0 | stages | mean
transformers ViT | 32 32 | 0.layernorm_before 8 | layers.1 8 | 1 | layers.1.layernorm_before | class
transformers DeiT | 32 32 | 0.layernorm_before 8 | layers.1 8 | 2 | layers.1.layernorm_before | class
transformers Swin | 64 96 | blocks.0.layernorm_before 4 | layers.0 8 | 0 | swin.layernorm | mean
transformers Swin v2 | 60 96 | embeddings 4 | encoder 8 | 0 | swinv2.layernorm | mean
transformers ConvNeXt | 32 64 | embeddings 4 | encoder 8 | 0 | encoder.stages.1 | mean
transformers ConvNeXt v2 | 32 64 | embeddings 4 | stages.1 8 | 0 | encoder.stages.1 | mean
transformers DINOv2 | 32 48 | layer.0.norm1 8 | encoder 8 | 1 | layernorm | class
transformers DINOv2, registers | 32 48 | layer.0.norm1 8 | layer.1 8 | 4 | layernorm | class
transformers BEiT | 32 32 | layers.0.layernorm_before 8 | layers.1 8 | 1 | layers.1 | mean
transformers CLIP | 32 32 | 0.layer_norm1 8 | encoder 8 | 1 | layers.1.layer_norm1 | class
transformers CLIP, projected | 32 32 | 0.layer_norm1 8 | vision_model 8 | 1 | 1.layer_norm1 | class
transformers SigLIP | 32 32 | layers.0.layer_norm1 8 | encoder 8 | 0 | post_layernorm | mean
transformers SegFormer | 64 96 | patch_embeddings 4 | stages.1 8 | 0 | segformer.stages.3 | mean
"""  # noqa: E501 - one line a model

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
TWO = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
# By the names in the table: the configuration's, the model's, options.
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViT": ("ViT", "ForImageClassification", SMALL),
    "DeiT": ("DeiT", "ForImageClassificationWithTeacher", SMALL),
    "Swin": ("Swin", "ForImageClassification", {"image_size": 64, **STAGES}),
    "Swin v2": ("Swinv2", "ForImageClassification", {"image_size": 64, **STAGES}),
    "ConvNeXt": ("ConvNext", "ForImageClassification", TWO),
    "ConvNeXt v2": ("ConvNextV2", "ForImageClassification", TWO),
    "DINOv2": ("Dinov2", "ForImageClassification", SMALL),
    "DINOv2, registers": (
        "Dinov2WithRegisters",
        "ForImageClassification",
        {**SMALL, "num_register_tokens": 3},
    ),
    "BEiT": ("Beit", "ForImageClassification", {**SMALL, "use_relative_position_bias": True}),
    "CLIP": ("CLIPVision", "Model", SMALL),
    "CLIP, projected": ("CLIPVision", "ModelWithProjection", SMALL),
    "SigLIP": ("SiglipVision", "Model", SMALL),
    "SegFormer": ("Segformer", "ForImageClassification", {"hidden_sizes": [8, 16, 24, 32]}),
}
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", VIT),
    "ViT, averaged": ("vit_medium_patch16_reg4_gap_256", VIT),
    "ViT, pooled by attention": ("vit_base_patch16_siglip_224", VIT),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", VIT),
    "BEiT": ("beit_base_patch16_224", VIT),
    "EVA-02": ("eva02_tiny_patch14_224", VIT),
    "CaiT": ("cait_xxs24_224", VIT),
    "Swin": ("swin_tiny_patch4_window7_224", STAGES),
    "Swin v2": ("swinv2_tiny_window8_256", STAGES),
    "ConvNeXt": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "MaxViT": ("maxvit_pico_rw_256", {"depths": (1, 1), "embed_dim": (32, 64), "stem_width": 16}),
    "PVT v2": (
        "pvt_v2_b0",
        {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)},
    ),
}


class Case(NamedTuple):
    """A line of the table."""

    name: str
    size: tuple[int, int]
    early: tuple[str, int]
    late: tuple[str, int]
    prefix: int
    auto: str
    query: str

    def build(self, **more: Any) -> nn.Module:
        """The model in eval mode, with weights that hide nothing of what blocks do."""
        torch.manual_seed(0x70C)
        library, _, name = self.name.partition(" ")
        make = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[library]
        model = make(name, self.size, more).eval()
        for module in model.modules():
            if isinstance(module, nn.Linear) and not module.weight.count_nonzero():
                nn.init.normal_(module.weight)  # heads that start at zero
            # Layer scales of 1e-6, normalisations after blocks and biases that start at zero.
            for part, parameter in module.named_parameters(recurse=False):
                if "gamma" in part or "lambda" in part or "scale" in part:
                    nn.init.constant_(parameter, 0.1)
                elif "relative_position_bias" in part:
                    nn.init.normal_(parameter)
        return model

    def images(self, count: int = 2) -> Tensor:
        return torch.rand(count, 3, *self.size, generator=torch.Generator().manual_seed(3))

    def scores(self, outputs: Any) -> Tensor:
        """What the model says, ``(N, classes)``."""
        if isinstance(outputs, Tensor):
            return outputs
        pooled = "pooler_output" if "CLIP" in self.name or "SigLIP" in self.name else "logits"
        return outputs["image_embeds" if "projected" in self.name else pooled]


def _torchvision(name: str, _size: tuple[int, int], _more: Any) -> nn.Module:
    from torchvision import models as tv
    from torchvision.models import swin_transformer as swin

    if name == "ViT":
        return tv.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    if name == "MaxViT":
        return tv.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=5)
    if name == "ConvNeXt":
        setting = tv.convnext.CNBlockConfig
        return tv.ConvNeXt([setting(8, 16, 1), setting(16, None, 1)], num_classes=5)
    second = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    options = second if name == "Swin v2" else {}
    return tv.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5, **options)


def _timm(name: str, size: tuple[int, int], more: Any) -> nn.Module:
    import timm

    if name == "MLP-Mixer":
        from timm.models.mlp_mixer import MlpMixer

        return MlpMixer(num_classes=5, img_size=size, patch_size=16, num_blocks=2, embed_dim=24)
    model, options = TIMM[name]
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    if name not in {"ConvNeXt", "PVT v2"}:
        options["img_size"] = size
    return timm.create_model(model, num_classes=5, **{**options, **more})


def _transformers(name: str, _size: tuple[int, int], more: Any) -> nn.Module:
    import transformers as hf

    config, model, options = TRANSFORMERS[name]
    implementation = {key: more.pop(key) for key in list(more) if key == "_attn_implementation"}
    made = getattr(hf, config + "Config")(**{**options, **more})
    for key, value in implementation.items():
        setattr(made, key, value)
    return getattr(hf, config + model)(made)


def _case(line: str) -> Case:
    name, size, early, late, prefix, auto, query = (each.strip() for each in line.split("|"))
    height, width = map(int, size.split())
    layers = [(layer, int(edge)) for layer, edge in (early.split(), late.split())]
    return Case(name, (height, width), layers[0], layers[1], int(prefix), auto, query)


CASES = {case.name: case for case in map(_case, TABLE.strip().splitlines())}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Each line of the table in turn."""
    return CASES[request.param]


@pytest.fixture
def cases() -> dict[str, Case]:
    return CASES


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Laid:
    """What a layer returned, and how it lies."""

    maps: Tensor
    layout: Layout
    tensor: Tensor


@pytest.fixture
def laid() -> Callable[..., Laid]:
    """By plain hooks: a layer's output (by the end of its name), laid out."""

    def find(model: nn.Module, ending: str, images: Tensor, video: bool = False) -> Laid:
        found = [each for each in model.named_modules() if f".{each[0]}".endswith("." + ending)]
        name, module = min(found, key=lambda pair: len(pair[0]))
        kept: dict[str, Any] = {}

        def first(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            kept.setdefault("patches", tuple(output.shape[2:]))

        def last(_module: nn.Module, _inputs: Any, output: Any) -> None:
            kept["tensor"] = main_tensor(output)

        handles = [each.register_forward_hook(first) for each in patch_layers(model.modules())]
        handles.append(module.register_forward_hook(last))
        with torch.no_grad():
            model(images)
        for handle in handles:
            handle.remove()
        # transformers wants a video's frames before channels.
        size = (images.shape[1], *images.shape[3:]) if video else tuple(images.shape[2:])
        where = name, module, kept["tensor"], kept.get("patches"), size
        layout = lay_out(*where, len(images))
        maps = feature_map(*where)
        assert torch.equal(maps, layout.to_map(kept["tensor"]))
        return Laid(maps, layout, kept["tensor"])

    return find
