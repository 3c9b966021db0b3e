"""Targets: which scores of a model's output are explained."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.outputs import class_scores, logits_of

__all__ = [
    "Change",
    "Classes",
    "Function",
    "Scorer",
    "Settled",
    "Target",
    "Targets",
    "read_targets",
]

Score = Callable[[Any], Tensor]
Change = Callable[[Tensor, Tensor], Tensor]
"""``(logits (m, classes), class of each (m,)) -> (m,)``: what is explained instead of a logit."""


@dataclass(frozen=True, eq=False)
class Settled:
    """A target, once the model has been seen to run on the images themselves.

    Attributes:
        score: ``(outputs, rows (m,)) -> (m, S)``: the scores of outputs for changed images, where
            rows tells of which image of the batch each is a variant.
        classes: ``(N, S)``, or None where no class is explained.
        keep: bool ``(N, S)``: which of the scores count; None for all.
    """

    score: Callable[[Any, Tensor], Tensor]
    classes: Tensor | None = None
    keep: Tensor | None = None


class Target(ABC):
    """What is explained: a way from a model's output to S scores an image."""

    @abstractmethod
    def settle(self, outputs: Any, images: Tensor) -> Settled:
        """Find out what is explained, from what the model says to the unchanged images.

        Args:
            outputs: Of the model, for a batch of N images.
            images: ``(N,)``: which of all images these are.

        Raises:
            FedgazeError: The output does not have what is to be explained.
        """

    def check(self, count: int) -> None:  # noqa: B027 - most targets go with any number of images
        """Find before any work what does not go with the number of images.

        Raises:
            FedgazeError: They are not one an image.
        """


Targets = int | Sequence[int] | Sequence[Sequence[int]] | Tensor | Score | Target | None
"""See `fedgaze.xai.explain`."""


class Classes(Target):
    """Given classes, or the predicted one.

    Args:
        classes: ``(S,)`` for all images, ``(N, S)``, or None for the predicted class.
        change: What is explained instead of the logit.
    """

    def __init__(self, classes: Tensor | None = None, change: Change | None = None) -> None:
        self._classes = classes
        self._change = change

    def check(self, count: int) -> None:
        """See `Target`."""
        if self._classes is not None and self._classes.dim() == 2 and len(self._classes) != count:
            raise FedgazeError(
                f"there are {len(self._classes)} targets for {count} images; give one class an "
                "image, or one number for all"
            )

    def settle(self, outputs: Any, images: Tensor) -> Settled:
        """See `Target`."""
        scores = class_scores(outputs, len(images))
        return self.settled(self._chosen(scores, images))

    def settled(self, classes: Tensor, keep: Tensor | None = None) -> Settled:
        """Explain these classes ``(N, S)``."""

        def score(outputs: Any, rows: Tensor) -> Tensor:
            scores, wanted = class_scores(outputs, len(rows)), classes[rows]
            if self._change is None:
                return scores.gather(1, wanted)
            return torch.stack([self._change(scores, each) for each in wanted.unbind(1)], dim=1)

        return Settled(score, classes, keep)

    def changed(self, change: Change) -> "Classes":
        """The same classes, of which something else is explained than the logit."""
        return type(self)(self._classes, change)

    def _chosen(self, scores: Tensor, images: Tensor) -> Tensor:
        if self._classes is None:
            return scores.argmax(1, keepdim=True)
        classes = self._classes.to(scores.device)
        classes = classes[images] if classes.dim() == 2 else classes.expand(len(images), -1)
        wrong = classes[(classes < 0) | (classes >= scores.shape[1])]
        if len(wrong):
            raise FedgazeError(
                f"there is no class {int(wrong[0])}; the model knows 0 to {scores.shape[1] - 1}"
            )
        return classes


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


class _Fixed(Target):
    def __init__(self, settled: Settled | None) -> None:
        self._settled = settled

    def settle(self, outputs: Any, images: Tensor) -> Settled:  # noqa: ARG002
        if self._settled is None:
            raise RuntimeError("the scorer has not seen the images themselves")
        return self._settled


class Scorer:
    """The way from a model's output to the scores that are explained, for one batch.

    Args:
        target: What `read_targets` gave.
        images: ``(N,)``: which of all images are in the batch, on the model's device.

    Attributes:
        settled: What is explained; None before the first call.
        logits: Detached: ``(N, classes)``; see `Explanation.logits`.
        scores: Of the first call, detached: ``(N, S)``.
    """

    logits: Tensor
    scores: Tensor

    def __init__(self, target: Target, images: Tensor) -> None:
        self.settled: Settled | None = None
        self._target = target
        self._images = images

    @property
    def classes(self) -> Tensor | None:
        """``(N, S)``: the explained classes; None where no class is explained."""
        return None if self.settled is None else self.settled.classes

    @property
    def keep(self) -> Tensor | None:
        """Which scores count, bool ``(N, S)``; None for all."""
        return None if self.settled is None else self.settled.keep

    def fixed(self) -> Target:
        """What was explained, as a target of the same images."""
        return _Fixed(self.settled)

    def __call__(self, outputs: Any) -> Tensor:
        """Return the scores ``(N, S)`` of the images themselves, with their graph."""
        self.settled = self._target.settle(outputs, self._images)
        rows = torch.arange(len(self._images), device=self._images.device)
        scores = self.again(outputs, rows)
        self.scores = scores.detach()
        self.logits = _logits_or(self.scores, outputs)
        return scores

    def again(self, outputs: Any, rows: Tensor) -> Tensor:
        """Return the scores ``(m, S)`` of variants of the images ``rows``, with their graph."""
        if self.settled is None:
            raise RuntimeError("the scorer has not seen the images themselves")
        return self.settled.score(outputs, rows)


def read_targets(targets: Targets, count: int) -> Target:
    """Check targets before any work.

    Args:
        targets: What the caller gave.
        count: How many images there are.

    Raises:
        FedgazeError: They are no classes, or not one an image.
    """
    if isinstance(targets, Target):
        targets.check(count)
        return targets
    if targets is None:
        return Classes()
    if callable(targets) and not isinstance(targets, Tensor):
        return Function(targets)
    classes = read_classes(targets)
    # One number is for all images, several are one an image, rows are several an image.
    found = Classes(classes[None] if classes.dim() == 0 else classes.view(len(classes), -1))
    found.check(count)
    return found


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
        return torch.tensor(_whole_numbers(targets), dtype=torch.long)
    except (TypeError, ValueError):
        raise FedgazeError(
            f"targets are {targets!r}; allowed are None for the predicted class, a class index, "
            "one an image, several an image (all as many), a target such as top_k(3), or a "
            "function from the model's output to (N,) scores"
        ) from None


def _whole_numbers(targets: Any) -> Any:
    if isinstance(targets, (str, bool)):
        raise TypeError
    if isinstance(targets, Sequence) or hasattr(targets, "__len__"):
        return [_whole_numbers(each) for each in targets]
    return operator.index(targets)


def _logits_or(instead: Tensor, outputs: Any) -> Tensor:
    try:
        logits = logits_of(outputs).detach()
    except FedgazeError:
        return instead
    return logits if logits.dim() > 1 else instead
