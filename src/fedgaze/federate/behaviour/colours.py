"""Bounded changes of colour and brightness, and which of them most changes where a model looks."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.train import LearnerProtocol

__all__ = ["Change", "changes_of", "disagreement", "most_misleading"]

Change = Callable[[Tensor], Tensor]
"""Takes images ``(N, C, H, W)`` in [0, 1] and returns others."""


def changes_of(channels: int) -> tuple[Change, ...]:
    """The changes that are tried on images of so many channels; none hides what is shown.

    Three channels: hue by a tenth of the circle either way, saturation halved and by 1.5, and gains
    of 1.2 and 0.8 that make images warmer, colder or greener. Else: gain 0.75, gamma 0.6 and 1.6,
    black raised to 0.15, and to 0 to 0.2 from left to right, from top to bottom or the other way.
    """
    if channels == 3:
        gains = ((1.2, 1.0, 0.8), (0.8, 1.0, 1.2), (0.8, 1.2, 0.8))
        return (
            *(partial(_hue, by=each) for each in (-0.1, 0.1)),
            *(partial(_saturation, by=each) for each in (0.5, 1.5)),
            *(partial(_gain, by=each) for each in gains),
        )
    return (
        partial(_gain, by=(0.75,)),
        *(partial(torch.pow, exponent=each) for each in (0.6, 1.6)),
        _tint,
        *(partial(_ramp, axis=axis, back=back) for axis in (3, 2) for back in (False, True)),
    )


def _hue(images: Tensor, by: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    turned: Tensor = functional.adjust_hue(images, by)
    return turned


def _saturation(images: Tensor, by: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    changed: Tensor = functional.adjust_saturation(images, by)
    return changed


def _gain(images: Tensor, by: Sequence[float]) -> Tensor:
    return (images * images.new_tensor(by).view(-1, 1, 1)).clamp(max=1)


def _tint(images: Tensor) -> Tensor:
    return 0.15 + 0.85 * images


def _ramp(images: Tensor, axis: int, *, back: bool) -> Tensor:
    count = images.shape[axis]
    rise = torch.linspace(0, 0.2, count, dtype=images.dtype, device=images.device)
    shape = [1, 1, 1, 1]
    shape[axis] = count
    lift = (rise.flip(0) if back else rise).view(shape)
    return lift + (1 - lift) * images


def disagreement(one: Tensor, other: Tensor) -> Tensor:
    """How unlike two sets of raw maps ``(N, h, w)`` are: ``1 - cosine``, ``(N,)``.

    0 where both are zero, 1 where one is.
    """
    left, right = one.flatten(1), other.flatten(1)
    unlike = 1 - F.cosine_similarity(left, right, eps=1e-12)
    return torch.where((left == 0).all(1) & (right == 0).all(1), torch.zeros_like(unlike), unlike)


def most_misleading(
    learner: LearnerProtocol, images: Tensor, labels: Tensor, changes: Sequence[Change]
) -> Tensor:
    """Which change makes the map of each image least like that of the image itself.

    Args:
        learner: Whose maps.
        images: ``(N, C, H, W)`` on the learner's device.
        labels: ``(N,)``: the classes that are explained.
        changes: Of :func:`changes_of`.

    Returns:
        Indices of changes ``(N,)``, on the CPU.
    """
    clean = learner.explain(images, labels).raw
    apart = [disagreement(learner.explain(each(images), labels).raw, clean) for each in changes]
    return torch.stack(apart).argmax(0).cpu()
