"""What a model is given: the images, and whatever else it takes beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError

__all__ = ["Images", "Inputs", "read_inputs"]

Images = Tensor | Sequence[Any] | Mapping[str, Any]
"""Images, or all arguments of a model: the first that has the shape of images is explained."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of a model for N images.

    Attributes:
        images: ``(N, C, *size)``, on the model's device and of its dtype.
        place: Which argument they are: a position or a name.
        others: The other arguments, by position or name. Tensors with N rows are one an image.
    """

    images: Tensor
    place: int | str
    others: Mapping[int | str, Any]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, start: int, stop: int) -> "Inputs":
        """The images from start to stop with what belongs to them."""
        rows = slice(start, stop)
        others = {key: self._rows(each, rows) for key, each in self.others.items()}
        return replace(self, images=self.images[rows], others=others)

    def variants(self, images: Tensor, rows: Tensor) -> "Inputs":
        """Other images, ``(m, C, *size)``, each with what belongs to the image ``rows (m,)``."""
        others = {key: self._rows(each, rows) for key, each in self.others.items()}
        return replace(self, images=images, others=others)

    def call(self, images: Tensor | None = None, rows: Tensor | None = None) -> tuple[Any, Any]:
        """Arguments and keyword arguments of the model.

        Args:
            images: ``(m, C, *size)``: variants; None for the images themselves.
            rows: ``(m,)``: of which image each is a variant.
        """
        given: dict[int | str, Any] = dict(self.others)
        if rows is not None:
            given = {key: self._rows(each, rows) for key, each in given.items()}
        given[self.place] = self.images if images is None else images
        positions = sorted(key for key in given if isinstance(key, int))
        names = {key: each for key, each in given.items() if isinstance(key, str)}
        return [given[position] for position in positions], names

    def _rows(self, argument: Any, rows: Any) -> Any:
        one_each = isinstance(argument, Tensor) and argument.dim() and len(argument) == len(self)
        return argument[rows] if one_each else argument


def read_inputs(model: nn.Module, images: Images) -> Inputs:
    """Check what a model is to be given, and bring it to the model's device.

    Raises:
        FedgazeError: There are no images in it.
    """
    given: dict[int | str, Any]
    if isinstance(images, Mapping):
        given = {name: each for name, each in images.items()}  # noqa: C416
    elif isinstance(images, (tuple, list)):
        given = dict(enumerate(images))
    else:
        given = {0: images}
    found = [key for key, each in given.items() if _are_images(each)]
    if not found:
        raise FedgazeError(_what_is_wrong(images))
    place = found[0]
    like = _like(model, given[place])
    if like.is_meta:
        raise FedgazeError(
            f"{type(model).__name__} is on the meta device, where it has no weights; load them "
            "first, and bring it to a device"
        )
    pixels = given.pop(place)
    pixels = (pixels[None] if pixels.dim() == 3 else pixels).to(like)
    others = {
        key: each.to(like.device) if isinstance(each, Tensor) else each
        for key, each in given.items()
    }
    return Inputs(pixels, place, others)


def _are_images(argument: Any) -> bool:
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        return False
    if argument.layout != torch.strided or argument.is_meta:
        return False
    return argument.dim() in {3, 4, 5} and argument.numel() > 0


def _what_is_wrong(images: Any) -> str:
    if isinstance(images, Tensor) and (images.layout != torch.strided or images.is_meta):
        how = "on the meta device" if images.is_meta else str(images.layout).removeprefix("torch.")
        return f"images are {how}; allowed is a tensor that holds all its numbers"
    if isinstance(images, Tensor) and images.is_floating_point():
        return (
            f"images have the shape {tuple(images.shape)}; allowed is (N, C, H, W), (C, H, W), or "
            "(N, C, D, H, W)"
        )
    what = images.dtype if isinstance(images, Tensor) else type(images).__name__
    return f"images are {what}; allowed is a tensor of floats, preprocessed as the model wants it"


def _like(model: nn.Module, images: Tensor) -> Tensor:
    """A tensor with the device and dtype of the model."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return tensor
    return torch.empty(0, dtype=images.dtype, device=images.device)
