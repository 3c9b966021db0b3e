"""Targets: which score of a model's output is explained."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError

__all__ = ["Score", "Scorer", "Targets", "logits_of", "read_targets"]

Score = Callable[[Any], Tensor]
Targets = int | Sequence[int] | Tensor | Score | None
"""None is the predicted class; a function takes the model's output and returns ``(N,)`` scores."""


def logits_of(outputs: Any) -> Tensor:
    """Find the logits in what a model returned.

    Args:
        outputs: A tensor, something with ``logits`` (an attribute or a key), a tensor under the
            key ``out``, or a tuple or list whose first element is a tensor.

    Returns:
        The tensor itself, with its graph.

    Raises:
        FedgazeError: There is none in it.

    >>> logits_of({"logits": torch.ones(2, 3), "loss": None}).shape
    torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = getattr(outputs, "logits", None)
    if found is None and isinstance(outputs, Mapping):
        found = outputs.get("logits", outputs.get("out"))
    if found is None and isinstance(outputs, (tuple, list)) and outputs:
        found = outputs[0]
    if isinstance(found, Tensor):
        return found
    raise FedgazeError(
        f"the model returned {type(outputs).__name__} without logits; allowed are a tensor, a "
        "tuple that begins with one, or an object or mapping with 'logits'"
    )


def read_targets(targets: Targets, count: int) -> Tensor | Score | None:
    """Check targets before any work.

    Args:
        targets: What the caller gave.
        count: How many images there are.

    Returns:
        None and functions as they are, classes as a long tensor ``(count,)``.

    Raises:
        FedgazeError: They are no classes, or not one an image.
    """
    if targets is None or (callable(targets) and not isinstance(targets, Tensor)):
        return targets
    if isinstance(targets, Tensor):
        whole = not (targets.is_floating_point() or targets.is_complex())
        if not whole or targets.dtype == torch.bool or targets.dim() > 1:
            raise FedgazeError(
                f"targets are {str(targets.dtype).removeprefix('torch.')} of shape "
                f"{tuple(targets.shape)}; allowed is one whole number an image"
            )
        classes = targets.detach().long()
    else:
        classes = _whole_numbers(targets)
    if classes.dim() == 0:
        return classes.expand(count)
    if len(classes) != count:
        raise FedgazeError(
            f"there are {len(classes)} targets for {count} images; give one class an image, or one "
            "number for all"
        )
    return classes


class Scorer:
    """The function from a model's output to the scores that are explained, for one batch.

    Args:
        targets: What `read_targets` gave, for the images of the batch.
        count: How many images these are.

    Attributes:
        logits: Set by the call, detached: ``(N, classes)``; see `Explanation.logits`.
        classes: Set by the call: ``(N,)``, or None if a function is explained.
        scores: Set by the call, detached: ``(N,)``.
    """

    logits: Tensor
    classes: Tensor | None
    scores: Tensor

    def __init__(self, targets: Tensor | Score | None, count: int) -> None:
        self._targets = targets
        self._count = count

    def __call__(self, outputs: Any) -> Tensor:
        """Return the scores ``(N,)``, with their graph."""
        if self._targets is None or isinstance(self._targets, Tensor):
            scores = self._class_scores(logits_of(outputs), self._targets)
        else:
            self.classes = None
            scores = self._targets(outputs)
            if not isinstance(scores, Tensor) or scores.shape != (self._count,):
                given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise FedgazeError(
                    f"the target function returned {given} for {self._count} images; allowed is a "
                    f"tensor of shape ({self._count},)"
                )
            self.logits = _logits_or(scores[:, None], outputs)
        self.scores = scores.detach()
        return scores

    def _class_scores(self, logits: Tensor, classes: Tensor | None) -> Tensor:
        if logits.dim() == 1:
            logits = logits[:, None]
        if logits.dim() != 2 or len(logits) != self._count:
            raise FedgazeError(
                f"the model returned logits of shape {tuple(logits.shape)} for {self._count} "
                "images; allowed is (N, classes), or a function as target"
            )
        self.logits = logits.detach()
        if classes is None:
            classes = logits.argmax(1)
        else:
            classes = classes.to(logits.device)
            wrong = classes[(classes < 0) | (classes >= logits.shape[1])]
            if len(wrong):
                raise FedgazeError(
                    f"there is no class {int(wrong[0])}; the model knows 0 to {logits.shape[1] - 1}"
                )
        self.classes = classes
        return logits.gather(1, classes[:, None])[:, 0]


def _logits_or(instead: Tensor, outputs: Any) -> Tensor:
    try:
        logits = logits_of(outputs).detach()
    except FedgazeError:
        return instead.detach()
    return logits if logits.dim() > 1 else instead.detach()


def _whole_numbers(targets: Any) -> Tensor:
    values = list(targets) if isinstance(targets, Sequence) or hasattr(targets, "__len__") else None
    try:
        if isinstance(targets, str) or any(isinstance(v, bool) for v in values or [targets]):
            raise TypeError
        numbers = operator.index(targets) if values is None else [operator.index(v) for v in values]
    except TypeError:
        raise FedgazeError(
            f"targets are {targets!r}; allowed are None for the predicted class, a class index, "
            "one an image, or a function from the model's output to (N,) scores"
        ) from None
    return torch.tensor(numbers, dtype=torch.long)
