"""Concepts: parts that a layer sees in several images alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.auto import auto_layer
from fedgaze.xai.colour import ALPHA, grey, painted, pictures_of
from fedgaze.xai.inputs import Images, read_inputs
from fedgaze.xai.layers import Layer, layer_names, named_layers, unwrap
from fedgaze.xai.maps import resized
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.nmf import factors
from fedgaze.xai.tail import LayerRuns

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Concepts", "factorise"]

_MARKED = 0.2  # how strong a concept is that gets a number in a picture

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

        Args:
            images: As for `overlay`.
            class_names: As for `labels`.
            top: As for `labels`.

        Returns:
            A PIL image.
        """
        from fedgaze.xai.drawing import with_legend

        overlays = self.overlay(images)
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


def factorise(
    model: nn.Module,
    images: Images,
    layers: Layer | Sequence[Layer] | None = None,
    concepts: int = 5,
    *,
    relu: bool = False,
    target: Callable[[Any], Tensor] | None = None,
    batch_size: int | None = None,
) -> Concepts:
    """Find concepts by deep feature factorisation.

    The activations of a layer for all images, ``A (N h w, K)``, are factored into ``H W`` with k
    rows in W, none negative: the rows of W are the concepts, shared by the images, and the columns
    of H, laid out, where they are. Collins, Achanta and Süsstrunk, "Deep Feature Factorization for
    Concept Discovery", ECCV 2018, Eq. 2-3.

    What a concept does for a class is beyond the paper. Here it is ``f(H_j W_j) - f(0)``, f being
    the logits as a function of the layer's output: what the rest of the model makes of the concept
    alone. For a model that ends in average pooling and a linear layer w, it is the concept's share,
    ``w · W_j`` times the mean of ``H_j``, and the shares of all concepts sum to the logits, without
    the bias, of the factored activations. pytorch-grad-cam puts W_j through the last linear layer,
    whatever lies between, which depends on how H and W share a factor.

    Args:
        model: As for `explain`.
        images: As for `explain`. The more images show the same things, the more concepts mean.
        layers: One layer, as for `explain`; None for the automatic choice. One after a ReLU.
        concepts: How many: at most as many as channels, and as positions in all images together.
        relu: Whether negative activations count as zero; without it they are refused.
        target: Scores ``(m, S)`` of the model's output, for what is no classifier.
        batch_size: How many images, or variants of images, run at once.

    Returns:
        Maps, vectors and scores; the same every time.

    Raises:
        FedgazeError: The layer has negative activations, or too few for so many concepts.

    >>> torch.manual_seed(0) and None
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    ... )
    >>> found = factorise(model, torch.rand(3, 1, 9, 9), concepts=2)
    >>> found.maps.shape, found.vectors.shape, found.scores.shape
    (torch.Size([3, 2, 9, 9]), torch.Size([2, 8]), torch.Size([2, 2]))
    """
    if batch_size is not None and batch_size < 1:
        raise FedgazeError(f"batch_size is {batch_size}; allowed is 1 and more")
    model = unwrap(model)
    named = named_layers(model)
    chosen = layer_names(named, layers)
    if len(chosen) != 1:
        raise FedgazeError(f"there are {len(chosen)} layers; concepts are of one layer")
    inputs = read_inputs(model, images)
    layer = chosen[0] or auto_layer(model, inputs)
    runs = LayerRuns(
        model=model,
        inputs=inputs,
        layers={layer: named[layer]},
        function=target,
        batch_size=batch_size,
    )
    activations = wide(runs.activations())
    if relu:
        activations = activations.relu()
    count, _, *grid = activations.shape
    rows = activations.movedim(1, -1).flatten(0, -2)
    _check(rows, concepts, layer, relu)
    left, right = factors(rows, concepts)
    peaks = left.amax(0)
    left, right = left / torch.where(peaks > 0, peaks, 1), right * peaks[:, None]
    order = (left.sum(0) * right.sum(1)).argsort(descending=True, stable=True)
    left, right = left[:, order], right[order]
    whole = torch.linalg.vector_norm(rows)
    missed = torch.linalg.vector_norm(rows - left @ right)
    raw = left.unflatten(0, (count, *grid)).movedim(-1, 1)
    size = tuple(inputs.images.shape[2:])
    maps = resized(raw.flatten(0, 1), size, "bilinear").unflatten(0, (count, concepts))
    highest = maps.movedim(1, 0).flatten(1).amax(1).view(1, -1, *[1] * len(size))
    return Concepts(
        maps=maps / torch.where(highest > 0, highest, 1),  # interpolation misses the peak
        raw=raw.contiguous(),
        vectors=right,
        contributions=runs.contributions(raw, right),
        layer=layer,
        error=float(missed / torch.where(whole > 0, whole, 1)),
        colours=_colours(concepts).to(raw),
    )


def _check(rows: Tensor, concepts: int, layer: str, relu: bool) -> None:
    positions, channels = rows.shape
    if not 1 <= concepts <= min(positions, channels):
        raise FedgazeError(
            f"concepts is {concepts}; layer {layer!r} has {positions} positions in all images and "
            f"{channels} channels, so allowed is 1 to {min(positions, channels)}"
        )
    if not bool(rows.sum().isfinite()):
        raise FedgazeError(f"layer {layer!r} has activations that are NaN or infinite")
    if not relu and bool((rows < 0).any()):
        raise FedgazeError(
            f"layer {layer!r} has negative activations (down to {float(rows.min()):.3g}), which no "
            "sum of concepts can be; choose a layer after a ReLU, or relu=True to leave them out"
        )


def _colours(count: int) -> Tensor:
    palette = torch.tensor([list(bytes.fromhex(each)) for each in _PALETTE]) / 255
    index = torch.arange(count)
    darker = 0.55 ** (index // len(palette))
    return palette[index % len(palette)] * darker[:, None]
