"""Targets of models that segment images: the pixels of a category."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai.classes import Classes, of_images, read_classes
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.outputs import logits_of
from fedgaze.xai.targets import Settled, Target

__all__ = ["segmentation"]


def segmentation(category: int | Sequence[int] | Tensor, mask: Tensor | None = None) -> Target:
    """Explain why pixels were given to a category: for models that segment images.

    The score is the sum of the category's logits over a set of pixels M,
    ``sum_(i,j in M) y_ij^c``, which takes the place of ``y^c`` in Grad-CAM: Vinogradova, Dibrov and
    Myers, "Towards Interpretable Semantic Segmentation via Gradient-Weighted Class Activation
    Mapping", AAAI 2020. With ``"gradcam"`` it is their Seg-Grad-CAM; one pixel as a mask asks for
    that pixel.

    Args:
        category: Of the model's, for all images or one an image. Of a model with one channel it is
            1 for what that speaks for and 0 for the rest.
        mask: M: ``(H, W)`` for all images, or ``(N, H, W)`` (``(N, D, H, W)`` of volumes), true, or
            with a weight, where a pixel counts; logits of another size (SegFormer's have a quarter)
            are brought to it bilinearly. None for the pixels of the output that the unchanged image
            gives to the category; images without any have no map, and `Explanation.images` tells
            whose each is.

    Raises:
        FedgazeError: A mask is empty, masks are not one an image, or, once the model has run, its
            output is no segmentation, or no image has any pixel of the category.

    >>> logits = torch.tensor([[[[1.0, 5.0]], [[2.0, 3.0]]]])  # one image of 1 × 2 pixels
    >>> settled = segmentation(0).settle({"out": logits}, torch.arange(1))
    >>> settled.score({"out": logits}, torch.arange(1))
    tensor([[5.]])
    """
    categories = read_classes(category)
    if categories.dim() > 1:
        raise FedgazeError(
            f"categories have the shape {tuple(categories.shape)}; allowed is one for all images, "
            "or one an image"
        )
    if mask is not None:
        if mask.dim() < 2:
            raise FedgazeError(
                f"the mask has the shape {tuple(mask.shape)}; allowed is (H, W), or (N, H, W) with "
                "one an image"
            )
        mask = mask.detach()[None] if mask.dim() == 2 else mask.detach()
    return _Segmentation(categories[..., None], mask)


class _Segmentation(Target):
    def __init__(self, categories: Tensor, mask: Tensor | None) -> None:
        self._categories = categories
        self._mask = mask

    def check(self, count: int) -> None:
        Classes(self._categories).check(count)
        if self._mask is None:
            return
        if len(self._mask) not in {1, count}:
            raise FedgazeError(
                f"there are {len(self._mask)} masks for {count} images; give one an image, or one "
                "for all"
            )
        empty = (self._mask == 0).flatten(1).all(1)
        if bool(empty.any()):
            raise FedgazeError(
                f"mask {int(empty.nonzero()[0])} is empty; allowed is a mask in which pixels count"
            )

    def settle(self, outputs: Any, images: Tensor) -> Settled:
        maps = _maps(outputs, images).detach()
        categories = of_images(self._categories, images, maps.shape[1])
        keep = None
        if self._mask is None:
            mask = maps.argmax(1) == categories.view(-1, *[1] * (maps.dim() - 2))
            keep = mask.flatten(1).any(1, keepdim=True)
        else:
            mask = self._mask.to(maps.device)
            mask = mask[images] if len(mask) > 1 else mask.expand(len(images), *mask.shape[1:])
        if mask.dim() != maps.dim() - 1:
            raise FedgazeError(
                f"masks have the shape {tuple(mask.shape)} and the model's output "
                f"{tuple(maps.shape)}; allowed is a mask with as many dimensions as the images"
            )
        nothing = (
            f"no pixel of any image is given to category {int(categories[0])}; name another, or "
            "give a mask"
        )
        score = _summed(categories[:, 0], mask)
        flipped = _summed(categories[:, 0], mask.flip(-1))

        def mirrored(outputs: Any, rows: Tensor, width: int) -> Tensor:  # noqa: ARG001
            return flipped(outputs, rows)

        return Settled(score, categories, keep, nothing, mirrored)


def _summed(categories: Tensor, mask: Tensor) -> Callable[[Any, Tensor], Tensor]:
    """Logits of categories ``(N,)``, summed over masks ``(N, *s)``."""
    size = tuple(mask.shape[1:])
    mode = "bilinear" if len(size) == 2 else "trilinear"

    def score(outputs: Any, rows: Tensor) -> Tensor:
        maps = _maps(outputs, rows)
        chosen = wide(maps[torch.arange(len(rows), device=maps.device), categories[rows]])
        if tuple(chosen.shape[1:]) != size:
            chosen = F.interpolate(chosen[:, None], size, mode=mode)[:, 0]
        return (chosen * mask[rows]).flatten(1).sum(1, keepdim=True)

    return score


def _maps(outputs: Any, rows: Tensor) -> Tensor:
    """Logits ``(m, categories, *s)``."""
    logits = logits_of(outputs)
    if logits.dim() not in {4, 5} or len(logits) != len(rows):
        raise FedgazeError(
            f"the model returned logits of shape {tuple(logits.shape)} for {len(rows)} images; "
            "allowed is (N, categories, h, w) for a segmentation"
        )
    return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits
