"""The local training loop and the evaluation that goes with it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.data import Images
from fedgaze.train.drift import Drift, held_back
from fedgaze.xai import logits_of

__all__ = ["Penalty", "Score", "evaluate", "train"]

NO_DRIFT = Drift()

Penalty = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Takes the model, and the images and labels of a batch; returns what is added to its loss."""


@dataclass(frozen=True)
class Score:
    """How well a model does on some images.

    Attributes:
        accuracy: In [0, 1].
        loss: Mean cross-entropy in nats.
        metrics: What else a task's own test measures, by name.
        rates: Of training with controls: the learning rates of all steps, summed, by a weight's
            name.
    """

    accuracy: float
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)


def train(  # noqa: PLR0913 - most have a default
    model: nn.Module,
    images: Images,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    optimizer: Literal["adam", "sgd"] = "adam",
    drift: Drift = NO_DRIFT,
    penalty: Penalty | None = None,
) -> Score:
    """Train a model in place with cross-entropy.

    Order, dropout and everything else random come from torch's global generator: seed it before.
    A last batch of one image joins the one before it, since BatchNorm cannot train on it.

    Args:
        model: Where it is, the images go; left in train mode.
        images: At least one; labels are class indices.
        epochs: How often each image is seen.
        batch_size: Images a step.
        learning_rate: The optimiser's.
        optimizer: Adam, or plain SGD without momentum.
        drift: Terms of FedProx and SCAFFOLD; none by default. They are no part of the loss that
            is returned.
        penalty: Called after each batch's forward pass and added to its loss; no part of the loss
            that is returned, either.

    Returns:
        Accuracy and loss over the last epoch, as seen while training.
    """
    device = next(model.parameters()).device
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    optimiser = kind(model.parameters(), lr=learning_rate)
    model.train()
    hits = losses = torch.zeros((), device=device)
    with held_back(model, drift):
        for _ in range(epochs):
            hits, losses = torch.zeros_like(hits), torch.zeros_like(losses)
            for indices in _batches(torch.randperm(len(images.labels)), batch_size):
                pixels, labels = images[indices].to(device), images.labels[indices].to(device)
                logits = logits_of(model(pixels))
                loss = F.cross_entropy(logits, labels)
                hits += (logits.detach().argmax(1) == labels).sum()
                losses += loss.detach() * len(labels)
                if penalty is not None:
                    loss = loss + penalty(model, pixels, labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    count = len(images.labels)
    return Score(hits.item() / count, losses.item() / count)


def evaluate(model: nn.Module, images: Images, batch_size: int = 128) -> Score:
    """Accuracy and loss of a model in eval mode, in which it is left.

    Where that is faster a copy runs in its place; see :func:`fedgaze.xai.fast.prepare`.

    Args:
        model: Where it is, the images go.
        images: At least one.
        batch_size: Images a forward pass.
    """
    from fedgaze.xai.fast import prepare

    device = next(model.parameters()).device
    model.eval()
    hits = losses = torch.zeros((), device=device)
    runner = prepare(model, images[torch.zeros(1, dtype=torch.long)].to(device), (), "fast")
    with torch.no_grad():
        for indices in torch.arange(len(images.labels)).split(batch_size):
            labels = images.labels[indices].to(device)
            logits = logits_of(runner.model(runner.images(images[indices].to(device))))
            hits = hits + (logits.argmax(1) == labels).sum()
            losses = losses + F.cross_entropy(logits, labels, reduction="sum")
    count = len(images.labels)
    return Score(hits.item() / count, losses.item() / count)


def _batches(order: Tensor, size: int) -> Iterator[Tensor]:
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return iter(batches)
