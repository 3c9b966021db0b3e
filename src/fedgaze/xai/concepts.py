"""Concepts: parts that a layer sees in several images alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.errors import FedgazeError
from fedgaze.xai.colour import ALPHA, grey, painted, pictures_of
from fedgaze.xai.maps import resized

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Concepts", "colours_of"]

_MARKED = 0.2  # how strong a concept is that gets a number in a picture
_LEGIBLE = 288  # pixels: smaller pictures are drawn larger

# Of the colours of Okabe and Ito, "Color Universal Design", 2008, in the order in which the first
# two, three, ... stay furthest apart for people with any kind of colour vision.
_PALETTE = ("0072b2", "d55e00", "f0e442", "56b4e9", "cc79a7", "e69f00", "009e73")


@dataclass(frozen=True, eq=False)
class Concepts:
    """What k concepts are, where they are in N images, and what for they speak.

    Every tensor is on the model's device and detached. Concepts stand in the order of how much of
    the activations they make up, the greatest first.

    Attributes:
        maps: ``(N, k, H, W)`` in [0, 1], at the size of the images: how strong each concept is.
            1 is its strongest place in all images.
        raw: ``(N, k, h, w)``: the same at the layer's size.
        vectors: ``(k, K)``, not negative: the activations of the K channels where each concept is
            strongest, so that ``sum_j raw[n, j] * vectors[j]`` is near the activations of image n.
        contributions: ``(N, k, classes)``: what each concept does for each class in each image.
        layer: The name of the layer.
        error: ``|A - H W| / |A|``, in [0, 1]: how much of the activations is no concept.
        colours: RGB ``(k, 3)`` in [0, 1], apart for people with any kind of colour vision up to
            seven; from then on they come again, darker.
    """

    maps: Tensor
    raw: Tensor
    vectors: Tensor
    contributions: Tensor
    layer: str
    error: float
    colours: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def scores(self) -> Tensor:
        """``(k, classes)``: the contributions' mean over the images."""
        return self.contributions.mean(0)

    def labels(self, class_names: Sequence[str] | None = None, top: int = 2) -> tuple[str, ...]:
        """Name the classes that each concept speaks for the most.

        Args:
            class_names: A name for each class; None for their numbers.
            top: How many classes.

        Returns:
            k texts such as ``"tabby, tiger cat"``; empty for a concept that speaks for no class.

        Raises:
            FedgazeError: There are not as many names as classes.
        """
        classes = self.scores.shape[1]
        names = [f"class {i}" for i in range(classes)] if class_names is None else class_names
        if len(names) != classes:
            raise FedgazeError(f"there are {len(names)} class names for {classes} classes")
        if not 1 <= top <= classes:
            raise FedgazeError(f"top is {top}; allowed is 1 to {classes}")
        best = self.scores.topk(top, dim=1)
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return tuple(
            ", ".join(names[i] for value, i in zip(*row, strict=True) if value > 0) for row in rows
        )

    def overlay(self, images: Tensor, *, alpha: float = ALPHA) -> Tensor:
        """Colour each place of the pictures with its strongest concept, the stronger the more.

        The pictures become grey, so that all colours are concepts.

        Args:
            images: ``(N, C, H, W)``, grey or RGB, in [0, 1] or uint8, of any size: what a person
                should see, so before normalisation.
            alpha: How strongly a concept covers the picture where it is strongest, in [0, 1].

        Returns:
            uint8 ``(N, H, W, 3)``.

        Raises:
            FedgazeError: Shapes do not fit.
        """
        if not 0 <= alpha <= 1:
            raise FedgazeError(f"alpha is {alpha}; allowed is 0 to 1")
        pictures = pictures_of(images, self.maps)
        heat, which = self._strongest(pictures.shape[2:])
        return painted(grey(pictures), self.colours[which], heat, alpha)

    def picture(
        self, images: Tensor, class_names: Sequence[str] | None = None, top: int = 2
    ) -> "Image":
        """Draw the overlays side by side, with a legend of concepts and classes.

        Numbers stand where a concept is strongest in a picture, for those who cannot tell colours.
        Small pictures are made larger, so that both can be read.

        Args:
            images: As for `overlay`.
            class_names: As for `labels`.
            top: As for `labels`.

        Returns:
            A PIL image.
        """
        from fedgaze.xai.drawing import with_legend

        pictures = pictures_of(images, self.maps)
        height, width = pictures.shape[2:]
        factor = max(1, _LEGIBLE / max(height, width))
        if factor > 1:
            size = (round(height * factor), round(width * factor))
            pictures = F.interpolate(pictures, size, mode="bilinear")
        overlays = self.overlay(pictures)
        labels = self.labels(class_names, top)
        texts = [f"{number}  {text or 'no class'}" for number, text in enumerate(labels, 1)]
        heat, which = self._strongest(overlays.shape[1:3])
        own = torch.arange(len(self)).to(which).view(1, -1, 1, 1) == which[:, None]
        peaks, places = (heat[:, None] * own).flatten(2).max(2)
        width = heat.shape[2]
        marks = [
            [
                (place % width, place // width, str(number))
                for number, (peak, place) in enumerate(pairs, 1)
                if peak > _MARKED
            ]
            for pairs in torch.stack([peaks, places.to(peaks)], -1).tolist()
        ]
        return with_legend(overlays, self.colours, texts, marks)

    def _strongest(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """How strong the strongest concept is, and which it is: ``(N, H, W)`` at any size."""
        shape = (*self.maps.shape[:2], *size)
        maps = resized(self.maps.flatten(0, 1), size, "bilinear").view(shape)
        heat, which = maps.max(1)
        return heat.clamp(0, 1), which


def colours_of(count: int) -> Tensor:
    """RGB ``(count, 3)`` in [0, 1]; see `Concepts`."""
    palette = torch.tensor([list(bytes.fromhex(each)) for each in _PALETTE]) / 255
    index = torch.arange(count)
    darker = 0.55 ** (index // len(palette))
    return palette[index % len(palette)] * darker[:, None]
