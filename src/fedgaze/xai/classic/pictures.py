"""Pictures: from what people have at hand to tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError

__all__ = ["Picture", "read_images", "visible"]

Picture = Any
"""A tensor, an array or a PIL image."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def read_images(given: Picture, model: nn.Module) -> Tensor:
    """Images for a model as ``(N, C, H, W)``.

    Args:
        given: Tensors ``(C, H, W)`` or ``(N, C, H, W)``, taken as they are: preprocessed as the
            model wants them. Or arrays ``(H, W)``, ``(H, W, C)`` or ``(N, H, W, C)``, PIL images,
            or several pictures of one size: of these, whole numbers are brought to [0, 1], and the
            channels to as many as the first convolution of the model takes.
        model: The model.

    Raises:
        FedgazeError: They have another shape.
    """
    if isinstance(given, (list, tuple)):
        parts = [read_images(each, model) for each in given]
        if len({part.shape[1:] for part in parts}) != 1:
            shapes = ", ".join(str(tuple(part.shape[1:])) for part in parts) or "none"
            raise FedgazeError(
                f"the pictures have the shapes {shapes}; allowed is one size for all"
            )
        return torch.cat(parts)
    if isinstance(given, Tensor):
        if given.dim() not in {3, 4}:
            raise FedgazeError(
                f"the input is a tensor of shape {tuple(given.shape)}; allowed is (C, H, W) or "
                "(N, C, H, W)"
            )
        pixels = given.float() / 255 if given.dtype == torch.uint8 else given
    else:
        pixels = _with_channels(_from_array(given), _channels(model))
    return pixels[None] if pixels.dim() == 3 else pixels


def visible(picture: Picture) -> Tensor:
    """What a person would see: RGB ``(3, H, W)`` in [0, 1], on the CPU; see `visualize`."""
    if isinstance(picture, Tensor):
        pixels = picture.detach().cpu()
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        outside = bool(pixels.min() < 0 or pixels.max() > 1)
    else:
        pixels = _from_array(picture)
        outside = bool(pixels.min() < 0)
        if pixels.max() > 1 and not outside:
            pixels = pixels / 255
    if pixels.dim() == 4 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.dim() != 3 or pixels.shape[0] not in {1, 3, 4}:
        raise FedgazeError(
            f"the image has the shape {tuple(pixels.shape)}; allowed is one picture, grey or RGB"
        )
    pixels = pixels[:3]
    if outside and len(pixels) == 3:
        mean, std = torch.tensor(_IMAGENET)[:, :, None, None]
        pixels = pixels * std + mean
    elif outside:
        low, high = pixels.aminmax()
        pixels = (pixels - low) / (high - low).clamp(min=1e-12)
    return pixels.clamp(0, 1).expand(3, -1, -1)


def _from_array(given: Any) -> Tensor:
    """Channels first, floats; whole numbers in [0, 1]."""
    mode = getattr(given, "mode", None)
    if mode is not None and mode[0] not in "LIF":
        given = given.convert("RGB")
    elif mode == "LA":
        given = given.convert("L")
    array = np.asarray(given)
    if array.dtype.kind not in "buif" or array.ndim not in {2, 3, 4} or not array.size:
        raise FedgazeError(
            f"the input is {type(given).__name__} of shape {array.shape} and type {array.dtype}; "
            "allowed is a tensor, an array (H, W, C) of numbers, or a PIL image"
        )
    # Pillow opens 16-bit pictures as I;16, or as I of 32 bits.
    highest = 1 if array.dtype.kind in "bf" else 255
    if array.dtype == np.uint16 or mode == "I":
        highest = 65535
    pixels = torch.from_numpy(array.astype(np.float32)) / highest
    if pixels.dim() == 2:
        return pixels[None]
    first, last = pixels.shape[-3], pixels.shape[-1]
    if last in {1, 3, 4}:
        return pixels.movedim(-1, -3)
    if first in {1, 3, 4}:
        return pixels
    raise FedgazeError(
        f"the array has the shape {array.shape}; allowed is (H, W), (H, W, C) or (N, H, W, C), "
        "grey, RGB or RGBA"
    )


def _channels(model: nn.Module) -> int | None:
    found = (each for each in model.modules() if isinstance(each, _CONVOLUTIONS))
    stem = next(found, None)
    return None if stem is None else stem.in_channels


def _with_channels(pixels: Tensor, wanted: int | None) -> Tensor:
    if wanted in {1, 3} and pixels.shape[-3] == 4:
        pixels = pixels[..., :3, :, :]
    if wanted == 3 and pixels.shape[-3] == 1:
        return pixels.expand(*pixels.shape[:-3], 3, -1, -1)
    if wanted == 1 and pixels.shape[-3] == 3:
        weights = torch.tensor(_LUMINANCE)[:, None, None]
        return (pixels * weights).sum(-3, keepdim=True)
    return pixels
