"""Localisation: does the heatmap lie where the object is? None costs a forward pass."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.measure.perturbation import parts_of, ranks, where_defined

__all__ = [
    "attribution_localisation",
    "border_mass",
    "box_iou",
    "iou",
    "mass_on",
    "pointing_game",
    "relevance_rank_accuracy",
    "top_k_intersection",
]


def mass_on(heatmaps: Tensor, mask: Tensor) -> Tensor:
    """The share of a heatmap's mass that lies on a mask.

    ``sum_p∈M h_p / sum_p h_p``: the energy-based pointing game (Wang et al. 2020, Score-CAM,
    arXiv:1910.01279) and, with a mask for a box, relevance mass accuracy (Arras et
    al. 2022, arXiv:2003.07258).

    Args:
        heatmaps: ``(N, H, W)``; what is negative counts as zero.
        mask: ``(N, H, W)``, bool.

    Returns:
        ``(N,)`` in [0, 1], higher is better for an object's mask; NaN where nothing is positive, or
        the mask is empty.

    >>> heatmap = torch.tensor([[[3.0, 1.0], [0.0, 0.0]]])
    >>> mass_on(heatmap, torch.tensor([[[True, False], [True, False]]])).item()
    0.75
    """
    positive = heatmaps.clamp(min=0)
    share = (positive * mask).sum((1, 2)) / positive.sum((1, 2))
    return share.masked_fill(~mask.flatten(1).any(1), torch.nan)


def border_mass(heatmaps: Tensor, width: float = 0.125) -> Tensor:
    """The share of a heatmap's mass in a frame along the image's border.

    A map that is even everywhere has ``1 - (1 - 2·width)²``, 0.44 at the default.

    Args:
        heatmaps: ``(N, H, W)``, not negative.
        width: The frame's width as a part of each side, in (0, 0.5); at least one pixel.

    Returns:
        ``(N,)`` in [0, 1]; NaN where the map is zero.

    >>> border_mass(torch.ones(1, 8, 8)).item()
    0.4375
    """
    rows, columns = (max(1, round(side * width)) for side in heatmaps.shape[1:])
    inner = torch.zeros_like(heatmaps[:1, rows:-rows, columns:-columns], dtype=torch.bool)
    frame = F.pad(inner, [columns, columns, rows, rows], value=True)
    return mass_on(heatmaps, frame)


def pointing_game(heatmaps: Tensor, mask: Tensor, *, tolerance: int = 0) -> Tensor:
    """Whether the strongest pixel lies on the object.

    ``hits / (hits + misses)``: Zhang et al., "Top-down Neural Attention by Excitation Backprop",
    ECCV 2016, who count up to 15 pixels beside the object as hits. Where several
    pixels are strongest, it is the part of them that lies there.

    Args:
        heatmaps: ``(N, H, W)``.
        mask: bool ``(N, H, W)``.
        tolerance: How far beside the mask is still on it, in pixels.

    Returns:
        ``(N,)`` in [0, 1], higher is better; NaN where the map is the same everywhere, or the mask
        is empty.
    """
    flat = heatmaps.flatten(1)
    strongest = flat == flat.amax(1, keepdim=True)
    near = _grown(mask, tolerance).flatten(1)
    return _on(mask, heatmaps, (strongest & near).sum(1) / strongest.sum(1))


def top_k_intersection(heatmaps: Tensor, mask: Tensor, *, share: float = 0.02) -> Tensor:
    """Which part of the strongest pixels lies on the object.

    ``|T_k ∩ M| / k``: Theiner, Müller-Budack and Ewerth, "Interpretable Semantic Photo
    Geolocation", WACV 2022. Quantus takes k = 1000 pixels: 2 % of an image of 224 x 224.

    Args:
        heatmaps: ``(N, H, W)``.
        mask: bool ``(N, H, W)``.
        share: k, as a share of the pixels.

    Returns:
        ``(N,)`` in [0, 1], higher is better; NaN as for `pointing_game`.
    """
    count = parts_of([share], mask[0].numel(), mask.device)
    inside = (ranks(heatmaps) < count) & mask.flatten(1)
    return _on(mask, heatmaps, inside.sum(1) / count)


def relevance_rank_accuracy(heatmaps: Tensor, mask: Tensor) -> Tensor:
    """Which part of so many of the strongest pixels as the object has lies on it.

    ``|T_|M| ∩ M| / |M|``: Arras, Osman and Samek, "CLEVR-XAI: A Benchmark Dataset for the Ground
    Truth Evaluation of Neural Network Explanations", Information Fusion 2022.

    Args:
        heatmaps: ``(N, H, W)``.
        mask: bool ``(N, H, W)``.

    Returns:
        ``(N,)`` in [0, 1], higher is better; NaN as for `pointing_game`.
    """
    size = mask.flatten(1).sum(1, keepdim=True)
    inside = (ranks(heatmaps) < size) & mask.flatten(1)
    return _on(mask, heatmaps, inside.sum(1) / size[:, 0])


def attribution_localisation(heatmaps: Tensor, mask: Tensor, *, weighted: bool = False) -> Tensor:
    """The part of the positive attribution that lies on the object, over what an even map has.

    ``mu = R_in / R_tot``, and ``weighted`` ``mu_w = mu · S_tot / S_in`` with the numbers of pixels
    S: Kohlbrenner et al., "Towards Best Practice in Explaining Neural Network Decisions with LRP",
    IJCNN 2020. Quantus (0.6) multiplies by ``S_in / S_tot`` instead, with the size of the images
    from the third on for S_tot.

    Args:
        heatmaps: ``(N, H, W)``; what is negative counts as zero.
        mask: bool ``(N, H, W)``.
        weighted: Whether small objects count as much as large ones: an even map has 1.

    Returns:
        ``(N,)`` in [0, 1], weighted from 0 on, higher is better; NaN as for `pointing_game`.
    """
    share = mass_on(heatmaps, mask)
    if weighted:
        share = share * mask[0].numel() / mask.flatten(1).sum(1)
    return _on(mask, heatmaps, share)


def iou(heatmaps: Tensor, mask: Tensor, *, threshold: float = 0.5) -> Tensor:
    """How well what is hot covers the object: intersection over union.

    Args:
        heatmaps: ``(N, H, W)``, not negative.
        mask: bool ``(N, H, W)``.
        threshold: What part of its maximum is hot, in (0, 1].

    Returns:
        ``(N,)`` in [0, 1], higher is better; NaN as for `pointing_game`.
    """
    hot = (heatmaps >= threshold * heatmaps.amax((1, 2), keepdim=True)).flatten(1)
    object_ = mask.flatten(1)
    return _on(mask, heatmaps, (hot & object_).sum(1) / (hot | object_).sum(1))


def box_iou(heatmaps: Tensor, boxes: Tensor, *, thresholds: Sequence[float] = (0.2,)) -> Tensor:
    """How well the box round the largest hot region covers the object's: intersection over union.

    Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016,
    with the threshold 0.2; the best of several thresholds, as in Choe et al., "Evaluating
    Weakly Supervised Object Localization Methods Right", CVPR 2020, who choose it once for all
    images and count IoU from 0.5 on. Of several boxes, the best counts.

    Args:
        heatmaps: ``(N, H, W)``, not negative.
        boxes: ``(N, B, 4)``: left, top, right, bottom in pixels of the heatmap, the last two
            exclusive; an image that has fewer than B has NaN in the others.
        thresholds: What part of its maximum is hot, in (0, 1].

    Returns:
        ``(N,)`` in [0, 1], higher is better; NaN where the map is the same everywhere, or there is
        no box.
    """
    found = torch.stack([_boxes_of(heatmaps, each) for each in thresholds], 1)[:, :, None]
    given = boxes.to(found)[:, None]
    low = torch.maximum(found[..., :2], given[..., :2])
    high = torch.minimum(found[..., 2:], given[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    sizes = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (found, given)]
    shares = (both / (sizes[0] + sizes[1] - both)).flatten(1)
    none = shares.isnan().all(1)
    best = shares.nan_to_num(nan=-1).amax(1).masked_fill(none, torch.nan)
    return where_defined(best, heatmaps)


def _on(mask: Tensor, heatmaps: Tensor, values: Tensor) -> Tensor:
    """The values ``(N,)``, NaN where there is no object, or the map puts pixels in no order."""
    empty = ~mask.flatten(1).any(1)
    return where_defined(values.to(heatmaps.dtype).masked_fill(empty, torch.nan), heatmaps)


def _grown(mask: Tensor, by: int) -> Tensor:
    """What lies on a mask ``(N, H, W)``, or so many pixels beside it in each direction."""
    if by == 0:
        return mask
    return F.max_pool2d(mask[:, None].float(), 2 * by + 1, stride=1, padding=by)[:, 0] > 0


def _boxes_of(heatmaps: Tensor, threshold: float) -> Tensor:
    """``(N, 4)``: the box round the largest connected part that reaches a threshold."""
    from scipy.ndimage import find_objects, label

    hot = (heatmaps >= threshold * heatmaps.amax((1, 2), keepdim=True)).cpu().numpy()
    found = []
    for each in hot:
        parts, _ = label(each)
        rows, columns = find_objects(parts)[np.bincount(parts.flat)[1:].argmax()]
        found.append([columns.start, rows.start, columns.stop, rows.stop])
    return torch.tensor(found, dtype=heatmaps.dtype, device=heatmaps.device)
