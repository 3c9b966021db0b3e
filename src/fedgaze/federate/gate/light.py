"""Other light and other colours, under which an honest model sees about as well as before."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["under_other_light"]

Change = Callable[[Tensor], Tensor]


def under_other_light(images: Tensor) -> Tensor:
    """Images as they would be under other light: ``(T, N, C, H, W)`` in [0, 1].

    Darker (by 0.6), with gamma 0.5, with black raised to 0.2, and raised from left to right and
    from top to bottom to 0.3; with three channels, the hue turned by 0.15 of the circle either way
    and a third of the saturation instead of the last two.

    Args:
        images: ``(N, C, H, W)`` in [0, 1].
    """
    changes: list[Change] = [_darker, torch.sqrt, _raised]
    changes += [_turned, _turned_back, _paler] if images.shape[1] == 3 else [_across, _down]
    return torch.stack([change(images) for change in changes])


def _darker(images: Tensor) -> Tensor:
    return 0.6 * images


def _raised(images: Tensor) -> Tensor:
    return 0.2 + 0.8 * images


def _across(images: Tensor) -> Tensor:
    rise = torch.linspace(0, 0.3, images.shape[3], dtype=images.dtype, device=images.device)
    return rise + (1 - rise) * images


def _down(images: Tensor) -> Tensor:
    rise = torch.linspace(0, 0.3, images.shape[2], dtype=images.dtype, device=images.device)
    return rise[:, None] + (1 - rise[:, None]) * images


def _turned(images: Tensor) -> Tensor:
    return _hue(images, 0.15)


def _turned_back(images: Tensor) -> Tensor:
    return _hue(images, -0.15)


def _hue(images: Tensor, by: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    turned: Tensor = functional.adjust_hue(images, by)
    return turned


def _paler(images: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    paler: Tensor = functional.adjust_saturation(images, 0.33)
    return paler
