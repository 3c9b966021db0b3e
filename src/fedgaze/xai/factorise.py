"""Deep feature factorisation: which parts a layer sees in several images alike."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.auto import auto_layer
from fedgaze.xai.concepts import Concepts, colours_of
from fedgaze.xai.inputs import Images, read_inputs
from fedgaze.xai.layers import Layer, layer_names, named_layers, unwrap
from fedgaze.xai.maps import resized
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.nmf import factors
from fedgaze.xai.tail import LayerRuns

__all__ = ["factorise"]


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
    whatever lies between, which depends on how H and W share a factor; and it takes each channel's
    lowest activation away before it factors, and adds it to every concept.

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
        colours=colours_of(concepts).to(raw),
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
