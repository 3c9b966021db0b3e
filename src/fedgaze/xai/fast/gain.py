"""Gain: where a copy would be faster than the model, and its maps the model's."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgaze.xai.fast.watch import Watch
from fedgaze.xai.registry import Method

__all__ = ["Effort", "goes_far_back", "no_bf16", "no_bf16_on", "no_fast"]

# Measured on a processor with AMX, with ten networks on images of 32 to 224 pixels, 1 and 16 at
# once. Below these, copies took 0.8 to 1.8 times as long as what they would replace.
_LEAST_POSITIONS = 10
_LEAST_PRODUCTS = 4e6


@dataclass(frozen=True)
class Effort:
    """What the convolutions of a model do for an image.

    Attributes:
        positions: At how many positions a weight is used, by pixel of the image, on average.
        products: How many products a convolution adds up, by pixel of the image, on average.
        spread: Which part of them where several positions and all channels meet.
    """

    positions: float
    products: float
    spread: float

    @classmethod
    def of(cls, seen: Watch, images: Tensor) -> "Effort":
        """From what was seen of one of these images; zeros if no convolution ran."""
        products, pixels = sum(seen.products), images[0, 0].numel()
        return cls(
            positions=products / max(1, seen.weights) / pixels,
            products=products / max(1, len(seen.products)) / pixels,
            spread=seen.spread / max(1, products),
        )

    def too_small_for_fast(self, images: Tensor) -> str | None:
        """Why channels last would gain nothing: there is more to do with weights than with maps."""
        positions = self.positions * images[0, 0].numel()
        if self.spread > 0.4 and positions < _LEAST_POSITIONS:
            return f"images of {_size(images)} pixels are too small to gain"
        return None

    def too_small_for_bf16(self, images: Tensor, method: Method | None) -> str | None:
        """Why bfloat16 would gain nothing: all that surrounds the products takes longer."""
        if not self.products:
            return None
        together = float("inf") if method is not None and method.many else len(images)
        if self.products * images[0, 0].numel() * together < _LEAST_PRODUCTS:
            return f"bfloat16 gains nothing on {len(images)} of {_size(images)} pixels"
        return None


def no_fast(device: torch.device, seen: Watch) -> str | None:
    """Why a copy would gain nothing."""
    if seen.pairs or (device.type == "cpu" and seen.reordered):
        return None
    return "there is no BatchNorm to fuse and no convolution that gains from channels last"


def no_bf16_on(device: torch.device) -> str | None:
    """Why bfloat16 would gain nothing on a device."""
    if device.type == "cpu":
        able = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001
        return None if able else "bfloat16 gains nothing on a processor without AVX512-BF16 or AMX"
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if able else "this GPU has no bfloat16"
    return f"bfloat16 was not tried on {device.type}"


def no_bf16(seen: Watch, layers: Collection[str], method: Method | None) -> str | None:
    """Why bfloat16 would distort."""
    if not layers or seen.stem is None:
        return "bfloat16 is for layers of convolutional networks"
    if goes_far_back(method):
        return "bfloat16 would distort gradients that go back further than to the layer"
    for name in layers:
        if (after := len(seen.weighing.get(name, ()))) > 1:
            return f"bfloat16 would distort {name!r}, which {after} layers with weights follow"
        if name not in seen.kept or bool((seen.kept[name] < 0).any()):
            return f"bfloat16 would distort {name!r}, which returns negative numbers"
    return None


def goes_far_back(method: Method | None) -> bool:
    """Whether it goes back to the image, as Guided Grad-CAM, or twice, as ShapleyCAM."""
    return method is not None and method.kind == "run" and method.gradients


def _size(images: Tensor) -> str:
    return " x ".join(map(str, images.shape[2:]))
