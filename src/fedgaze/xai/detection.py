"""Targets of models that detect objects: boxes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.targets import Settled, Target

__all__ = ["boxes", "detections"]

# What pads rows of labels: those of references are never those of predictions.
_NO_REFERENCE, _NO_PREDICTION = -1, -2


def boxes(boxes: Tensor | Sequence[Any], labels: Tensor | Sequence[Any] | int) -> Target:
    """Explain why a detector finds objects in these places.

    The score of a reference box is the best match among the boxes p that the model predicts,
    ``max_p [label_p = label] · IoU(p, box) · score_p``: the similarity by which D-RISE weights its
    masks (Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps", CVPR
    2021), for models that give each box one label and one score instead of a vector of
    probabilities and an objectness. It has gradients through places and scores, so it goes with
    CAM methods as well as with ``"rise"``, which makes it D-RISE.

    pytorch-grad-cam's target adds IoU and score instead, of the one box with the greatest overlap,
    and is 0 where that overlap is at most 0.5 or the label another: it jumps where boxes change.

    Models are those of torchvision (Faster and Mask R-CNN, RetinaNet, FCOS, SSD) and all that
    return for each image a mapping with ``boxes (D, 4)``, ``labels (D,)`` and ``scores (D,)``.

    Args:
        boxes: ``(x1, y1, x2, y2)`` in pixels of the images: ``(4,)`` or ``(S, 4)`` for all images,
            ``(N, S, 4)``, or a tensor ``(S_n, 4)`` an image.
        labels: One for all boxes, or one a box, arranged as the boxes are.

    Raises:
        FedgazeError: Boxes have no area, labels are not one a box, boxes are not those of each
            image, or, once the model has run, it returns no boxes.

    >>> import torch
    >>> found = [{"boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]]),
    ...           "labels": torch.tensor([7, 8]), "scores": torch.tensor([0.8, 0.5])}]
    >>> settled = boxes([0, 0, 4, 3], 7).settle(found, torch.arange(1))
    >>> settled.score(found, torch.arange(1))  # 12/16 of 0.8; the other has another label
    tensor([[0.6000]])
    """
    return _Boxes(*_references(boxes, labels))


def detections(threshold: float = 0.5) -> Target:
    """Explain each object that a detector finds in the unchanged images: `boxes` of its own.

    All of an image take one forward pass, and one way back each; the highest score comes first.
    Images without any have no map: `Explanation.images` tells whose each is.

    Args:
        threshold: Only detections with a higher score, of 0 to 1.

    Raises:
        FedgazeError: The threshold is something else, or, once the model has run, nothing is found
            in any image, or the model returns no boxes.
    """
    if not 0 <= threshold < 1:
        raise FedgazeError(f"threshold is {threshold}; allowed is 0 and more, below 1")
    return _Detections(threshold)


class _Found(NamedTuple):
    """What is predicted: boxes ``(N, D, 4)``, labels and scores ``(N, D)``."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class _Boxes(Target):
    def __init__(self, boxes: Tensor, labels: Tensor) -> None:
        self._boxes, self._labels = boxes, labels

    def check(self, count: int) -> None:
        given = len(self._boxes)
        if given not in {1, count}:
            raise FedgazeError(
                f"there are boxes of {given} images for {count} images; give those of each, or of "
                "all"
            )

    def settle(self, outputs: Any, images: Tensor) -> Settled:
        _predictions(outputs, len(images))
        rows = images if len(self._boxes) > 1 else torch.zeros_like(images)
        return _settled(self._boxes.to(rows.device)[rows], self._labels.to(rows.device)[rows])


class _Detections(Target):
    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def settle(self, outputs: Any, images: Tensor) -> Settled:
        found = _Found(*(each.detach() for each in _predictions(outputs, len(images))))
        scores, order = found.scores.sort(dim=1, descending=True, stable=True)
        keep = scores > self._threshold
        most = max(1, int(keep.sum(1).max()))
        boxes = found.boxes.gather(1, order[..., None].expand_as(found.boxes))
        labels = found.labels.gather(1, order).where(keep, _NO_REFERENCE)
        nothing = (
            f"nothing is detected in any image with a score above {self._threshold}; the highest "
            f"is {float(scores.max()):.3g}"
        )
        return _settled(boxes[:, :most], labels[:, :most], nothing)


def _settled(boxes: Tensor, labels: Tensor, nothing: str = "") -> Settled:
    """Explain boxes ``(N, S, 4)`` with labels ``(N, S)``."""

    def score(outputs: Any, rows: Tensor) -> Tensor:
        found = _predictions(outputs, len(rows))
        same = found.labels[:, :, None] == labels[rows][:, None]
        overlaps = _iou(found.boxes[:, :, None], boxes[rows][:, None])
        return torch.where(same, overlaps * found.scores[:, :, None], 0).amax(1)

    def mirrored(outputs: Any, rows: Tensor, width: int) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(-1)
        flipped = torch.stack([width - x2, y1, width - x1, y2], dim=-1)
        return _settled(flipped, labels).score(outputs, rows)

    return Settled(score, labels, labels != _NO_REFERENCE, nothing, mirrored)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes ``(..., 4)``, which are broadcast."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    # Never a division by zero, whose gradient would be NaN although nobody takes the value.
    return shared / torch.where(union > 0, union, 1)


def _predictions(outputs: Any, count: int) -> _Found:
    """What a detector returned for each image, in rows that are padded, by at least one."""
    names = ("boxes", "labels", "scores")
    images = outputs if isinstance(outputs, (list, tuple)) else ()
    fine = all(isinstance(each, Mapping) and all(n in each for n in names) for each in images)
    if len(images) != count or not fine:
        raise FedgazeError(
            f"the model returned {type(outputs).__name__}; allowed is a list with a mapping of "
            "boxes, labels and scores for each image, as of torchvision's detectors"
        )
    boxes, labels, scores = (
        pad_sequence([each[name] for each in images], batch_first=True, padding_value=fill)
        for name, fill in zip(names, (0, _NO_PREDICTION, 0), strict=True)
    )
    return _Found(
        F.pad(wide(boxes), (0, 0, 0, 1)),
        F.pad(labels, (0, 1), value=_NO_PREDICTION),
        F.pad(wide(scores), (0, 1)),
    )


def _references(boxes: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Boxes ``(N, S, 4)`` and labels ``(N, S)``, padded; N is 1 where they are for all images."""
    try:
        corners = _by_image(boxes, 2)
        names = _by_image(labels, 1)
        if len(names) == 1 and len(names[0]) == 1:
            names = names * len(corners)  # one for all
        pairs = list(zip(corners, names, strict=True))
        named = [name.expand(corner.shape[:1]) for corner, name in pairs]
        whole = not any(name.is_floating_point() or name.dtype == torch.bool for name in named)
    except (TypeError, ValueError, RuntimeError):
        whole = False
    if not whole:
        raise FedgazeError(
            f"boxes are {_plain(boxes)} with labels {_plain(labels)}; allowed are four numbers a "
            "box, and one whole number as a label for all or one a box"
        )
    stacked = pad_sequence([corner.float() for corner in corners], batch_first=True)
    found = torch.cat(corners)
    if found.shape[1] != 4 or not len(found) or not bool((found[:, 2:] > found[:, :2]).all()):
        raise FedgazeError(
            f"boxes are {found.tolist()}; allowed is (x1, y1, x2, y2) with x1 < x2 and y1 < y2"
        )
    if int(torch.cat(named).min()) < 0:
        raise FedgazeError(f"labels are {torch.cat(named).tolist()}; allowed is 0 and more")
    return stacked, pad_sequence(named, batch_first=True, padding_value=_NO_REFERENCE).long()


def _by_image(given: Any, dimensions: int) -> list[Tensor]:
    """What belongs to each image, with so many dimensions; once what belongs to all."""
    if isinstance(given, (list, tuple)) and given and isinstance(given[0], Tensor):
        if given[0].dim() == dimensions:
            return [each.detach() for each in given]
        given = torch.stack(list(given))
    found = torch.as_tensor(given).detach()
    while found.dim() < dimensions:
        found = found[None]
    return [found] if found.dim() == dimensions else list(found.unbind())


def _plain(given: Any) -> Any:
    """The same in lists: tensors are printed over several lines."""
    if isinstance(given, Tensor):
        return given.tolist()
    return [_plain(each) for each in given] if isinstance(given, (list, tuple)) else given
