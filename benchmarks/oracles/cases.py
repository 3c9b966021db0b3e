"""What oracles are asked about: models with weights, a layer, images and the classes to explain."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Array = NDArray[np.float64]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Case:
    """A model that is asked; fedgaze gets it as it is, oracles a copy that they may change.

    Attributes:
        name: For people.
        real: Whether its weights were trained; else they are seeded random numbers.
        model: In eval mode, float32.
        layer: The layer that is explained.
        images: ``(N, 3, H, W)``, prepared.
        grid: Rows and columns of tokens, where the layer has tokens, the class's first.
        head: The linear layer that the original CAM reads, if there is one.
    """

    name: str
    real: bool
    model: nn.Module
    layer: str
    images: Tensor
    grid: tuple[int, int] | None = None
    head: str = ""

    @cached_property
    def classes(self) -> list[int]:
        """The predicted classes."""
        with torch.no_grad():
            found: list[int] = self.model(self.images).argmax(1).tolist()
        return found

    def copy(self) -> nn.Module:
        """A model of the same weights in which nothing happens in place: some peers need that."""
        model = copy.deepcopy(self.model)
        for module in model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        return model

    def laid_out(self, tokens: Tensor) -> Tensor:
        """``(N, K, h, w)`` of what the layer gives."""
        if self.grid is None:
            return tokens
        patches = tokens[:, 1:].mT
        return patches.reshape(*patches.shape[:2], *self.grid)

    def passed(
        self, score: Callable[[Tensor, int], Tensor], images: Tensor | None = None
    ) -> tuple[Array, Array, Array]:
        """Activations and gradients ``(N, K, h, w)`` of the layer, and logits ``(N, C)``.

        Args:
            score: From an image's logits and its class to what is explained.
            images: Others of the same number.
        """
        model = self.copy()
        kept: list[Tensor] = []
        model.get_submodule(self.layer).register_forward_hook(
            lambda _module, _inputs, output: kept.append(output)
        )
        logits = model((self.images if images is None else images).clone().requires_grad_())
        total = sum(
            (score(row, each) for row, each in zip(logits, self.classes, strict=True)),
            torch.zeros(()),
        )
        (gradient,) = torch.autograd.grad(total, kept[-1])
        return (
            wide(self.laid_out(kept[-1])),
            wide(self.laid_out(gradient)),
            wide(logits),
        )

    @cached_property
    def pair(self) -> tuple[Array, Array]:
        """Activations A and gradients g of the logits."""
        return self.passed(logit)[:2]

    def logits(self, images: Array) -> Array:
        """``(m, C)`` for images ``(m, 3, H, W)``, a few at a time."""
        with torch.no_grad():
            chunks = torch.from_numpy(images).float().split(32)
            return np.concatenate([wide(self.model(each)) for each in chunks])


def logit(row: Tensor, label: int) -> Tensor:
    return row[label]


def wide(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def unsettled(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics and factors that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                if tensor is not None:
                    tensor.uniform_(low, high)
    return model.eval()


def random_cases() -> list[Case]:
    """Architectures of torchvision with seeded random weights."""
    from torchvision.models import VisionTransformer, resnet18

    torch.manual_seed(0)
    resnet = unsettled(resnet18(weights=None))
    vit = VisionTransformer(64, 16, 3, 4, 64, 128, num_classes=10).eval()
    nn.init.normal_(vit.heads.head.weight, std=0.3)
    images = torch.randn(2, 3, 96, 96)
    return [
        Case("ResNet-18", False, resnet, "layer4", images, head="fc"),
        Case(
            "ViT",
            False,
            vit,
            "encoder.layers.encoder_layer_2.ln_1",
            torch.randn(2, 3, 64, 64),
            grid=(4, 4),
        ),
        Case("ResNet-18, first layer", False, resnet, "conv1", images),
        Case("ResNet-18, 64 px", False, resnet, "layer2", images[:1, :, :64, :64]),
    ]


def real_cases(data: Path) -> list[Case]:
    """The trained weights, on photographs."""
    import timm
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2, squeezenet1_1

    def loaded(model: nn.Module, file: str) -> nn.Module:
        weights = load_file(data / "weights" / f"{file}.safetensors")
        model.load_state_dict({name: each.float() for name, each in weights.items()})
        return model.eval()

    vit: Any = loaded(
        timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True),
        "vit_tiny_patch16_224_imagenet_fp16",
    )
    images = photographs(data, 2)
    # The same photographs, scaled as this model was trained on.
    scaled = (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 2 - 1
    cifar = np.load(data / "arrays" / "cifar10_test_jpeg_2000.npz")["x"][:2]
    small = torch.from_numpy(cifar).permute(0, 3, 1, 2) / 255
    small = (small - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    reduced = F.interpolate(images[:1], (96, 96), mode="area")
    squeezenet = loaded(squeezenet1_1(), "squeezenet1_1_imagenet")
    mobilenet = loaded(mobilenet_v2(), "mobilenet_v2_imagenet_fp16")
    return [
        Case("SqueezeNet 1.1", True, squeezenet, "features", images),
        Case("SqueezeNet 1.1, first layer", True, squeezenet, "features.0", images),
        Case("SqueezeNet 1.1, 96 px", True, squeezenet, "features", reduced),
        Case("MobileNetV2", True, mobilenet, "features.18", images, head="classifier.1"),
        Case("MobileNetV2, 96 px", True, mobilenet, "features.18", reduced),
        Case("ResNet-20", True, resnet20(data), "layer3", small, head="linear"),
        Case("ViT-tiny", True, vit, "blocks.11.norm1", scaled, grid=(14, 14)),
        Case(
            "ViT-tiny, 64 px",
            True,
            vit,
            "blocks.11.norm1",
            F.interpolate(scaled[:1], (64, 64), mode="area"),
            grid=(4, 4),
        ),
    ]


def photographs(data: Path, count: int) -> Tensor:
    from PIL import Image
    from torchvision.transforms import functional as vision

    folder = data / "photos" / "imagenet"
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    made = []
    for each in labels[:count]:
        picture = Image.open(folder / each["file"]).convert("RGB")
        cut = vision.center_crop(vision.resize(picture, 256), [224, 224])
        made.append(vision.normalize(vision.to_tensor(cut), MEAN, STD))
    return torch.stack(made)


class Block(nn.Module):
    """Two convolutions and a shortcut that pads the channels (He et al., 2016, option A)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.stride, self.more = stride, (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        z: Tensor = self.relu2(y + F.pad(x, (0, 0, 0, 0, self.more, self.more)))
        return z


def resnet20(data: Path) -> nn.Module:
    class ResNet20(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.relu = nn.ReLU()
            self.layer1, self.layer2, self.layer3 = (
                nn.Sequential(
                    Block(before, width, 1 + (before < width)),
                    Block(width, width, 1),
                    Block(width, width, 1),
                )
                for before, width in ((16, 16), (16, 32), (32, 64))
            )
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer3(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))))
            y: Tensor = self.linear(x.mean((2, 3)))
            return y

    model = ResNet20()
    file = data / "weights" / "resnet20-12fca82f.th"
    held = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): each for name, each in held.items()})
    return model.eval()
