"""The local training loop and the evaluation that goes with it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgaze.data import Images
from fedgaze.xai import logits_of

__all__ = ["Score", "evaluate", "train"]


@dataclass(frozen=True)
class Score:
    """How well a model does on some images.

    Attributes:
        accuracy: In [0, 1].
        loss: Mean cross-entropy in nats.
    """

    accuracy: float
    loss: float


def train(
    model: nn.Module,
    images: Images,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    proximal_mu: float = 0.0,
) -> Score:
    """Train a model in place with Adam and cross-entropy.

    Order, dropout and everything else random come from torch's global generator: seed it before.
    A last batch of one image joins the one before it, since BatchNorm cannot train on it.

    Args:
        model: Where it is, the images go; left in train mode.
        images: At least one; labels are class indices.
        epochs: How often each image is seen.
        batch_size: Images a step.
        learning_rate: Adam's.
        proximal_mu: FedProx's ``mu`` (Li et al. 2020, arXiv:1812.06127, Eq. 2): adds
            ``mu / 2 · ||w - w_received||²`` to the loss.

    Returns:
        Accuracy and loss over the last epoch, as seen while training.
    """
    device = next(model.parameters()).device
    received = [w.detach().clone() for w in model.parameters()] if proximal_mu else []
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    model.train()
    hits = losses = torch.zeros((), device=device)
    for _ in range(epochs):
        hits, losses = torch.zeros_like(hits), torch.zeros_like(losses)
        for indices in _batches(torch.randperm(len(images.labels)), batch_size):
            labels = images.labels[indices].to(device)
            logits = logits_of(model(images[indices].to(device)))
            loss = F.cross_entropy(logits, labels)
            hits += (logits.detach().argmax(1) == labels).sum()
            losses += loss.detach() * len(labels)
            for weight, before in zip(model.parameters(), received, strict=False):
                loss = loss + proximal_mu / 2 * (weight - before).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    count = len(images.labels)
    return Score(hits.item() / count, losses.item() / count)


def evaluate(model: nn.Module, images: Images, batch_size: int = 256) -> Score:
    """Accuracy and loss of a model in eval mode, in which it is left.

    Args:
        model: Where it is, the images go.
        images: At least one.
        batch_size: Images a forward pass.
    """
    device = next(model.parameters()).device
    model.eval()
    hits = losses = torch.zeros((), device=device)
    with torch.no_grad():
        for indices in torch.arange(len(images.labels)).split(batch_size):
            labels = images.labels[indices].to(device)
            logits = logits_of(model(images[indices].to(device)))
            hits = hits + (logits.argmax(1) == labels).sum()
            losses = losses + F.cross_entropy(logits, labels, reduction="sum")
    count = len(images.labels)
    return Score(hits.item() / count, losses.item() / count)


def _batches(order: Tensor, size: int) -> Iterator[Tensor]:
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return iter(batches)
