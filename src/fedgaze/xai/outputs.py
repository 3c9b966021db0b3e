"""What a model returned: where its logits are, and what they say."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgaze.errors import FedgazeError

__all__ = ["class_scores", "log_probabilities", "logits_of", "predictions", "probabilities"]

_NAMES = ("logits", "out", "logits_per_image", "image_embeds", "pooler_output", "last_hidden_state")


def logits_of(outputs: Any) -> Tensor:
    """Find the logits in what a model returned.

    Args:
        outputs: A tensor; something that has, as an attribute or under a key, ``logits``, ``out``,
            ``logits_per_image``, or an embedding by its usual name (``image_embeds``,
            ``pooler_output``, ``last_hidden_state``); or a tuple or list whose first element is a
            tensor.

    Returns:
        The tensor itself, with its graph.

    Raises:
        FedgazeError: There is none in it.

    >>> logits_of({"logits": torch.ones(2, 3), "loss": None}).shape
    torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in _NAMES:
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise FedgazeError(
        f"the model returned {type(outputs).__name__} without logits; allowed are a tensor, a "
        "tuple that begins with one, an object or mapping with 'logits', or a function as target"
    )


def class_scores(outputs: Any, count: int) -> Tensor:
    """Scores ``(count, classes)`` of a classifier's output, with their graph.

    Of a binary classifier with one logit z, class 1 has the score z, and class 0 has -z.

    Raises:
        FedgazeError: The output has another shape.
    """
    logits = _class_logits(outputs, count)
    return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits


def log_probabilities(outputs: Any, count: int, *, multi_label: bool = False) -> Tensor:
    """Logarithms of the probabilities ``(count, classes)`` of a classifier's output.

    Args:
        outputs: With logits ``(count, classes)``; one logit z is that of class 1, and of class 0
            -z.
        count: How many images there were.
        multi_label: Whether each class is a yes or no of its own: the sigmoid instead of the
            softmax.

    Returns:
        ``(count, classes)``, ``(count, 2)`` for one logit, in float32 at least.

    Raises:
        FedgazeError: The output has another shape.
    """
    logits = _class_logits(outputs, count)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[1] == 1:
        return F.logsigmoid(torch.cat([-logits, logits], dim=1))
    return F.logsigmoid(logits) if multi_label else logits.log_softmax(1)


def _class_logits(outputs: Any, count: int) -> Tensor:
    logits = logits_of(outputs)
    if logits.dim() == 1 and len(logits) == count:
        logits = logits[:, None]
    if logits.dim() != 2 or len(logits) != count:
        raise FedgazeError(
            f"the model returned logits of shape {tuple(logits.shape)} for {count} "
            "images; allowed is (N, classes), or a function as target"
        )
    return logits


def predictions(logits: Tensor) -> Tensor:
    """The predicted classes ``(N,)`` of logits ``(N, classes)``; of one logit, its sign's."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def probabilities(logits: Tensor, *, multi_label: bool = False) -> Tensor:
    """What logits ``(N, classes)`` say of each class, in [0, 1].

    Args:
        logits: Of width 1, they are those of class 1 against class 0.
        multi_label: Whether each class is a yes or no of its own.

    Returns:
        ``(N, classes)``, ``(N, 2)`` for logits of width 1.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        yes = logits.sigmoid()
        return torch.cat([1 - yes, yes], dim=1)
    return logits.sigmoid() if multi_label else logits.softmax(1)
