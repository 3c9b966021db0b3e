"""Targets: which scores of a model's output are explained."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.outputs import logits_of

__all__ = ["Score", "Scorer", "Settled", "Target", "Targets"]

Score = Callable[[Any], Tensor]
"""From a model's output to scores ``(N,)``, or ``(N, S)``."""


@dataclass(frozen=True, eq=False)
class Settled:
    """A target, once the model has been seen to run on the images themselves.

    Attributes:
        score: ``(outputs, rows (m,)) -> (m, S)``: the scores of outputs for changed images, where
            rows tells of which image of the batch each is a variant.
        classes: ``(N, S)``, or None where no class is explained.
        keep: bool ``(N, S)``: which of the scores count; None for all.
        nothing: What to tell a person if none counts, of any image.
        mirrored: ``(outputs, rows, width of the images) -> (m, S)``: as score, where the variants
            are flipped left to right; None where that makes no difference.
        probability: As score, with the probabilities of classes in place of their logits; None
            where it is not their logits that are explained.
    """

    score: Callable[[Any, Tensor], Tensor]
    classes: Tensor | None = None
    keep: Tensor | None = None
    nothing: str = ""
    mirrored: Callable[[Any, Tensor, int], Tensor] | None = None
    probability: Callable[[Any, Tensor], Tensor] | None = None


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

    @property
    def nothing(self) -> str:
        """What to tell a person if no score of any image counts."""
        return "" if self.settled is None else self.settled.nothing

    def fixed(self, *, width: int | None = None) -> Target:
        """What was explained, as a target of the same images.

        Args:
            width: Of the images, if they are flipped left to right.
        """
        settled = self.settled
        if settled is not None and (mirrored := settled.mirrored) is not None and width is not None:
            settled = replace(settled, score=lambda outputs, rows: mirrored(outputs, rows, width))
        return _Fixed(settled)

    def __call__(self, outputs: Any) -> Tensor:
        """Return the scores ``(N, S)`` of the images themselves, with their graph."""
        self.settled = self._target.settle(outputs, self._images)
        rows = torch.arange(len(self._images), device=self._images.device)
        scores = self.again(outputs, rows)
        self.scores = scores.detach()
        self.logits = _logits_or(self.scores, outputs)
        return scores

    def again(self, outputs: Any, rows: Tensor, *, probability: bool = False) -> Tensor:
        """Return the scores ``(m, S)`` of variants of the images ``rows``, with their graph.

        With probability, those that are logits of classes become their probabilities.
        """
        if self.settled is None:
            raise RuntimeError("the scorer has not seen the images themselves")
        if probability and self.settled.probability is not None:
            return self.settled.probability(outputs, rows)
        return self.settled.score(outputs, rows)


def _logits_or(instead: Tensor, outputs: Any) -> Tensor:
    try:
        logits = logits_of(outputs).detach()
    except FedgazeError:
        return instead
    # One number an image is the logit of class 1, or what a regression puts out.
    one_each = logits.shape == (len(instead),)
    return logits[:, None] if one_each else logits if logits.dim() > 1 else instead
