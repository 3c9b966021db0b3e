"""Targets that are no classes: numbers put out as they are, and embeddings."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.classes import read_classes
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.outputs import logits_of
from fedgaze.xai.targets import Settled, Target

__all__ = ["output", "similarity"]

MEASURES = ("cosine", "dot")


def output(index: int | Sequence[int] = 0) -> Target:
    """Explain numbers that a model puts out as they are: for regression.

    A single output is itself here, where a classifier's would be the logit of class 1.

    Args:
        index: Which of the outputs ``(N, D)``, or ``(N,)``; several for several maps an image.

    Raises:
        FedgazeError: It is no whole number, or, once the model has run, there is no such output.

    >>> import torch
    >>> outputs = torch.tensor([[0.5, -2.0]])
    >>> output(1).settle(outputs, torch.arange(1)).score(outputs, torch.arange(1))
    tensor([[-2.]])
    """
    return _Output(read_classes(index).flatten())


def similarity(
    reference: Tensor,
    of: Callable[[Any], Tensor] | None = None,
    *,
    measure: Literal["cosine", "dot"] = "cosine",
) -> Target:
    """Explain how near a model's embedding of an image is to a reference.

    Args:
        reference: ``(D,)``, or ``(N, D)`` with one an image: such as the embedding of another
            image, of a text, or the mean of a class.
        of: From the model's output to the embeddings ``(m, D)``; None where they are the output, or
            stand in it under the usual names (``image_embeds``, ``pooler_output``).
        measure: ``"cosine"``, in [-1, 1], or ``"dot"`` for the dot product.

    Raises:
        FedgazeError: References are not one an image, zero, or, once the model has run, of another
            length than its embeddings.

    >>> import torch
    >>> outputs = torch.tensor([[3.0, 4.0]])
    >>> target = similarity(torch.tensor([1.0, 0.0]))
    >>> target.settle(outputs, torch.arange(1)).score(outputs, torch.arange(1))
    tensor([[0.6000]])
    """
    if measure not in MEASURES:
        raise FedgazeError(
            f"measure is {measure!r}; allowed are {', '.join(MEASURES)}"
            f"{nearest(str(measure), MEASURES)}"
        )
    vectors = wide(reference.detach())
    if vectors.dim() not in {1, 2} or not vectors.numel():
        raise FedgazeError(
            f"the reference has the shape {tuple(vectors.shape)}; allowed is (D,), or (N, D) with "
            "one an image"
        )
    if measure == "cosine" and bool((vectors == 0).all(-1).any()):
        raise FedgazeError("a reference is zero, which has no direction to be similar to")
    return _Similarity(vectors, of or logits_of, measure)


class _Output(Target):
    def __init__(self, index: Tensor) -> None:
        self._index = index

    def settle(self, outputs: Any, images: Tensor) -> Settled:
        numbers = _numbers(outputs, len(images))
        # Checked as classes are, but called what they are.
        wrong = self._index[(self._index < 0) | (self._index >= numbers.shape[1])]
        if len(wrong):
            raise FedgazeError(
                f"there is no output {int(wrong[0])}; the model has 0 to {numbers.shape[1] - 1}"
            )
        index = self._index.to(numbers.device)
        return Settled(lambda outputs, rows: _numbers(outputs, len(rows))[:, index])


class _Similarity(Target):
    def __init__(self, reference: Tensor, of: Callable[[Any], Tensor], measure: str) -> None:
        self._reference = reference
        self._of = of
        self._measure = measure

    def check(self, count: int) -> None:
        if self._reference.dim() == 2 and len(self._reference) != count:
            raise FedgazeError(
                f"there are {len(self._reference)} references for {count} images; give one an "
                "image, or one for all"
            )

    def settle(self, outputs: Any, images: Tensor) -> Settled:
        found = self._embeddings(outputs, images)
        reference = self._reference.to(found.device)
        if reference.shape[-1] != found.shape[1]:
            raise FedgazeError(
                f"the reference has {reference.shape[-1]} numbers, and the model's embeddings have "
                f"{found.shape[1]}"
            )
        reference = reference[images] if reference.dim() == 2 else reference.expand(len(images), -1)

        def score(outputs: Any, rows: Tensor) -> Tensor:
            embeddings, wanted = self._embeddings(outputs, rows), reference[rows]
            if self._measure == "dot":
                return (embeddings * wanted).sum(1, keepdim=True)
            return F.cosine_similarity(embeddings, wanted)[:, None]

        return Settled(score)

    def _embeddings(self, outputs: Any, rows: Tensor) -> Tensor:
        found = self._of(outputs)
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(rows):
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise FedgazeError(
                f"the embeddings are {given} for {len(rows)} images; allowed is (N, D), which the "
                "argument 'of' may make of the model's output"
            )
        return wide(found)


def _numbers(outputs: Any, count: int) -> Tensor:
    found = logits_of(outputs)
    if found.dim() not in {1, 2} or len(found) != count:
        raise FedgazeError(
            f"the model returned {tuple(found.shape)} for {count} images; allowed is (N,) or "
            "(N, D) numbers, or a function as target"
        )
    return found.reshape(count, -1)
