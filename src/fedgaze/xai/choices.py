"""Targets of classes: the highest, those above a threshold, one against another, probabilities."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.classes import Classes, as_target, of_images, read_classes
from fedgaze.xai.outputs import class_scores, log_probabilities
from fedgaze.xai.targets import Settled, Target, Targets

__all__ = ["above", "contrast", "log_probability", "probability", "top_k"]

Choice = int | Sequence[int] | Tensor | None
"""A class for all images, one an image, or None for the highest."""


def top_k(k: int) -> Target:
    """Explain the k classes with the highest scores of each image, the highest first.

    All of them take one forward pass, and one way back each.

    Args:
        k: At least 1, and at most as many as there are classes.

    Raises:
        FedgazeError: k is below 1, or, once the model has run, above the number of classes.

    >>> outputs = torch.tensor([[1.0, 5.0, 3.0], [9.0, 7.0, 8.0]])
    >>> top_k(2).settle(outputs, torch.arange(2)).classes
    tensor([[1, 2],
            [0, 2]])
    """
    if k < 1:
        raise FedgazeError(f"k is {k}; allowed is 1 and more")
    return _Top(k)


def above(threshold: float = 0.5) -> Target:
    """Explain every class whose probability exceeds a threshold: for multi-label classifiers.

    Probabilities are the sigmoids of the logits. Which classes these are is found out from the
    unchanged images; the most probable come first. Images without any have no map:
    `Explanation.images` tells whose each is.

    Args:
        threshold: Above 0 and below 1.

    Raises:
        FedgazeError: The threshold is something else, or, once the model has run, no image has
            such a class.

    >>> outputs = torch.tensor([[1.0, -2.0, 3.0], [-1.0, -4.0, 2.0]])
    >>> settled = above(0.5).settle(outputs, torch.arange(2))
    >>> settled.classes, settled.keep
    (tensor([[2, 0],
            [2, 0]]), tensor([[ True,  True],
            [ True, False]]))
    """
    if not 0 < threshold < 1:
        raise FedgazeError(f"threshold is {threshold}; allowed is a number between 0 and 1")
    return _Above(threshold)


def contrast(a: Choice = None, b: Choice = None) -> Target:
    """Explain why class a and not class b: the difference of their scores.

    Without names it is the predicted class against the runner-up. Which these are is found out
    from the unchanged images.

    Args:
        a: A class for all images, one an image, or None for the highest but b.
        b: A class for all images, one an image, or None for the highest but a.

    Raises:
        FedgazeError: a and b are the same class of an image, or are not one an image.

    >>> outputs = torch.tensor([[1.0, 5.0, 3.0]])
    >>> settled = contrast().settle(outputs, torch.arange(1))
    >>> settled.classes, settled.score(outputs, torch.arange(1))
    (tensor([[1]]), tensor([[2.]]))
    """
    return _Contrast(*(None if each is None else _one_each(each) for each in (a, b)))


def probability(targets: Targets = None, *, multi_label: bool = False) -> Target:
    """Explain the probabilities of classes instead of their logits.

    A probability also falls when another class rises, so its map tells classes apart where that of
    a logit need not; near 0 and 1 its gradients vanish, which `log_probability` avoids near 0.

    Args:
        targets: Classes, as `fedgaze.xai.explain` takes them, `top_k` and `above` included.
        multi_label: Whether each class is a yes or no of its own: the sigmoid instead of the
            softmax. Of a binary classifier with one logit it is always the sigmoid.

    Raises:
        FedgazeError: The targets are no classes.

    >>> outputs = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    >>> probability(1).settle(outputs, torch.arange(2)).score(outputs, torch.arange(2))
    tensor([[0.5000],
            [0.5000]])
    """
    return _classes(targets).read_as(partial(_probabilities, multi_label=multi_label))


def log_probability(targets: Targets = None, *, multi_label: bool = False) -> Target:
    """Explain the logarithms of the probabilities of classes; see `probability`.

    >>> outputs = torch.tensor([[0.0, 0.0]])
    >>> log_probability(1).settle(outputs, torch.arange(1)).score(outputs, torch.arange(1))
    tensor([[-0.6931]])
    """
    return _classes(targets).read_as(partial(log_probabilities, multi_label=multi_label))


class _Top(Classes):
    def __init__(self, k: int) -> None:
        super().__init__()
        self._k = k

    def _chosen(self, scores: Tensor, images: Tensor) -> Tensor:  # noqa: ARG002
        if self._k > scores.shape[1]:
            raise FedgazeError(f"k is {self._k}; the model knows {scores.shape[1]} classes")
        return scores.topk(self._k).indices


class _Above(Classes):
    def __init__(self, threshold: float) -> None:
        super().__init__()
        self._threshold = threshold

    def settle(self, outputs: Any, images: Tensor) -> Settled:
        found = log_probabilities(outputs, len(images), multi_label=True).detach().exp()
        probable, classes = found.sort(dim=1, descending=True, stable=True)
        keep = probable > self._threshold
        most = max(1, int(keep.sum(1).max()))
        nothing = (
            f"no class of any image has a probability above {self._threshold}; the highest is "
            f"{float(probable[:, 0].max()):.3g}"
        )
        return self.settled(classes[:, :most], keep[:, :most], nothing)


class _Contrast(Target):
    def __init__(self, a: Tensor | None, b: Tensor | None) -> None:
        self._pair = a, b

    def check(self, count: int) -> None:
        for each in self._pair:
            Classes(each).check(count)
        a, b = self._pair
        if a is not None and b is not None:
            both = torch.broadcast_tensors(a.cpu(), b.cpu())
            same = both[0][both[0] == both[1]]
            if len(same):
                raise FedgazeError(
                    f"class {int(same[0])} is contrasted with itself; give two classes, or one, "
                    "for the highest of the others"
                )

    def settle(self, outputs: Any, images: Tensor) -> Settled:
        scores = class_scores(outputs, len(images)).detach()
        a, b = (
            None if each is None else of_images(each, images, scores.shape[1])
            for each in self._pair
        )
        if a is None:
            a = _highest_but(b, scores)
        if b is None:
            b = _highest_but(a, scores)

        def score(outputs: Any, rows: Tensor) -> Tensor:
            scores = class_scores(outputs, len(rows))
            return scores.gather(1, a[rows]) - scores.gather(1, b[rows])

        return Settled(score, a)


def _highest_but(other: Tensor | None, scores: Tensor) -> Tensor:
    """The class ``(N, 1)`` with the highest score that is not the other one."""
    if other is not None:
        scores = scores.scatter(1, other, -torch.inf)
    return scores.argmax(1, keepdim=True)


def _one_each(choice: Any) -> Tensor:
    classes = read_classes(choice)
    if classes.dim() == 2:
        raise FedgazeError(
            f"the classes to contrast have the shape {tuple(classes.shape)}; allowed is one for "
            "all images, or one an image"
        )
    return classes[..., None]


def _classes(targets: Targets) -> Classes:
    found = as_target(targets)
    if not isinstance(found, Classes):
        raise FedgazeError("a probability is that of classes; allowed as targets are classes")
    return found


def _probabilities(outputs: Any, count: int, *, multi_label: bool) -> Tensor:
    return log_probabilities(outputs, count, multi_label=multi_label).exp()
