"""Classes as targets, and whatever else a caller may name."""

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.outputs import class_scores, log_probabilities
from fedgaze.xai.targets import Score, Settled, Target, Targets

__all__ = [
    "Change",
    "Classes",
    "Function",
    "Reading",
    "as_target",
    "of_images",
    "read_classes",
    "read_targets",
]

Change = Callable[[Tensor, Tensor], Tensor]
"""``(logits (m, classes), class of each (m,)) -> (m,)``: what is explained instead of a logit."""
Reading = Callable[[Any, int], Tensor]
"""``(outputs, m) -> (m, classes)``: what an output says of each class; see `class_scores`."""


class Classes(Target):
    """Given classes, or the predicted one.

    Args:
        classes: ``(S,)`` for all images, ``(N, S)``, or None for the predicted class.
    """

    def __init__(self, classes: Tensor | None = None) -> None:
        self._classes = classes
        self._reading: Reading = class_scores
        self._change: Change | None = None

    def check(self, count: int) -> None:
        """See `Target`."""
        if self._classes is not None and self._classes.dim() == 2 and len(self._classes) != count:
            raise FedgazeError(
                f"there are {len(self._classes)} targets for {count} images; give one class an "
                "image, or one number for all"
            )

    def settle(self, outputs: Any, images: Tensor) -> Settled:
        """See `Target`."""
        scores = class_scores(outputs, len(images)).detach()
        return self.settled(self._chosen(scores, images))

    def settled(self, classes: Tensor, keep: Tensor | None = None, nothing: str = "") -> Settled:
        """Explain these classes ``(N, S)``; the rest as in `Settled`."""

        def score(outputs: Any, rows: Tensor) -> Tensor:
            scores, wanted = self._reading(outputs, len(rows)), classes[rows]
            if self._change is None:
                return scores.gather(1, wanted)
            return torch.stack([self._change(scores, each) for each in wanted.unbind(1)], dim=1)

        def probability(outputs: Any, rows: Tensor) -> Tensor:
            return log_probabilities(outputs, len(rows)).gather(1, classes[rows]).exp()

        logits = self._reading is class_scores and self._change is None
        return Settled(score, classes, keep, nothing, probability=probability if logits else None)

    def changed(self, change: Change) -> "Classes":
        """The same classes, of which something else is explained than the logit.

        Raises:
            FedgazeError: Their logits are not what is explained.
        """
        if self._reading is not class_scores:
            raise FedgazeError(
                "the method explains a score of its own, which it makes of the logits; allowed as "
                "targets are classes, not their probabilities"
            )
        found = copy.copy(self)
        found._change = change  # noqa: SLF001 - its own class
        return found

    def read_as(self, reading: Reading) -> "Classes":
        """The same classes, of which is explained what a reading of the outputs says of them."""
        found = copy.copy(self)
        found._reading = reading  # noqa: SLF001 - its own class
        return found

    def _chosen(self, scores: Tensor, images: Tensor) -> Tensor:
        if self._classes is None:
            return scores.argmax(1, keepdim=True)
        return of_images(self._classes, images, scores.shape[1])


class Function(Target):
    """A function from the model's output to scores ``(m,)``, or ``(m, S)``, a row each."""

    def __init__(self, function: Score) -> None:
        self._function = function

    def settle(self, outputs: Any, images: Tensor) -> Settled:  # noqa: ARG002
        """See `Target`."""
        return Settled(self._scores)

    def _scores(self, outputs: Any, rows: Tensor) -> Tensor:
        scores = self._function(outputs)
        if not isinstance(scores, Tensor) or scores.dim() not in {1, 2} or len(scores) != len(rows):
            given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise FedgazeError(
                f"the target function returned {given} for {len(rows)} images; allowed is a "
                f"tensor of shape ({len(rows)},), or ({len(rows)}, S) for S targets an image"
            )
        return scores if scores.dim() == 2 else scores[:, None]


def read_targets(targets: Targets, count: int) -> Target:
    """Check targets before any work.

    Args:
        targets: What the caller gave.
        count: How many images there are.

    Raises:
        FedgazeError: They are no classes, or not one an image.
    """
    found = as_target(targets)
    found.check(count)
    return found


def as_target(targets: Targets) -> Target:
    """A target of what the caller gave, for any number of images.

    Raises:
        FedgazeError: It is nothing that can be explained.
    """
    if isinstance(targets, Target):
        return targets
    if targets is None:
        return Classes()
    if callable(targets) and not isinstance(targets, Tensor):
        return Function(targets)
    classes = read_classes(targets)
    # One number is for all images, several are one an image, rows are several an image.
    return Classes(classes[..., None] if classes.dim() < 2 else classes)


def of_images(classes: Tensor, images: Tensor, known: int) -> Tensor:
    """Of classes ``(S,)`` for all images, or ``(all, S)``, those of some images: ``(N, S)``.

    Args:
        classes: Given by the caller.
        images: ``(N,)``: which images, on the model's device.
        known: How many classes the model knows.

    Raises:
        FedgazeError: The model does not know one of them.
    """
    classes = classes.to(images.device)
    classes = classes[images] if classes.dim() == 2 else classes.expand(len(images), -1)
    wrong = classes[(classes < 0) | (classes >= known)]
    if len(wrong):
        raise FedgazeError(f"there is no class {int(wrong[0])}; the model knows 0 to {known - 1}")
    return classes


def read_classes(targets: Any) -> Tensor:
    """Class indices as a long tensor of at most two dimensions.

    Raises:
        FedgazeError: They are something else.
    """
    if isinstance(targets, Tensor):
        whole = not (targets.is_floating_point() or targets.is_complex())
        if not whole or targets.dtype == torch.bool or targets.dim() > 2:
            raise FedgazeError(
                f"targets are {str(targets.dtype).removeprefix('torch.')} of shape "
                f"{tuple(targets.shape)}; allowed is one whole number an image, or (N, S) of them"
            )
        return targets.detach().long()
    try:
        classes = torch.tensor(_whole_numbers(targets), dtype=torch.long)
        if classes.dim() > 2 or classes.shape[1:] == (0,):
            raise ValueError
    except (TypeError, ValueError):
        raise FedgazeError(
            f"targets are {targets!r}; allowed are None for the predicted class, a class index, "
            "one an image, several an image (all as many), a target such as top_k(3), or a "
            "function from the model's output to (N,) scores"
        ) from None
    return classes


def _whole_numbers(targets: Any) -> Any:
    if isinstance(targets, (str, bool)):
        raise TypeError
    if isinstance(targets, Sequence) or hasattr(targets, "__len__"):
        return [_whole_numbers(each) for each in targets]
    return operator.index(targets)
