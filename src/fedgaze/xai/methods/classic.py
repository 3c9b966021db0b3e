"""The original CAM: the classifier's own weights, where a network has the head that it needs."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.cam import spatial, weighted, wide
from fedgaze.xai.runner import Runner

__all__ = ["class_activation_map"]

_NO_LOGITS = (
    "cam explains logits of classes, and weighted sums of them; what is explained here is neither"
)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Head(NamedTuple):
    """A linear layer: weights ``(C, K)`` and biases ``(C,)``; None for none."""

    weight: Tensor | None
    bias: Tensor | None

    def of(self, values: Tensor) -> Tensor:
        """``(N, S, C)`` of the classes to ``(N, S, K)`` of the channels."""
        return values if self.weight is None else values @ self.weight.to(values)


def class_activation_map(runner: Runner) -> Tensor:
    """Sum the last feature maps by the classifier's weights of the class: CAM.

    ``M_c = sum_k w_k^c f_k``: Zhou et al., "Learning Deep Features for Discriminative
    Localization", CVPR 2016, Eq. 2; see `cam_weights`. The map is signed; its mean, with the
    class's bias, is the class's logit. For a weighted sum of logits, such as the difference of two
    classes, it is that sum of their maps.

    It asks for a network in which nothing but global average pooling and one linear layer lies
    between the features and the logits. Whether that is so is not read from names but tried on
    these very images: among the model's linear layers and convolutions of one position there must
    be one that makes the logits of the channels' means, be it those of the features (ResNet,
    MobileNetV2, EfficientNet), of what a rectifier leaves of them (DenseNet), or none at all, where
    the features are one map a class that only is pooled (SqueezeNet).

    torchcam takes the last linear layer without looking at what it does, so that it gives a map
    for networks in which Eq. 2 has no meaning.

    Returns:
        ``(N, S, *s)``, signed.

    Raises:
        FedgazeError: The network has no such head, or what is explained is no weighted sum of
            logits.
    """
    features = runner.captured(gradients=False).activations
    logits = runner.logits
    shares = _shares(runner)
    means = []
    for pooled in (wide(features), wide(features).relu()):
        mean = pooled.mean(spatial(pooled))
        means.append(mean)
        for head in _heads(runner.model, mean.shape[1], logits.shape[1]):
            if _makes(head, mean, logits):
                return _maps(pooled, head.of(shares))
    (name,) = runner.layer_names
    raise FedgazeError(
        f"cam needs a network that ends in global average pooling and one linear layer: none in "
        f"{type(runner.model).__name__} makes the logits of the means of the {features.shape[1]} "
        f"channels of {name!r}; use gradcam, or another layer"
    )


def _maps(pooled: Tensor, weights: Tensor) -> Tensor:
    flat = [1] * len(spatial(pooled))
    columns = [each.reshape(*each.shape, *flat) for each in weights.unbind(1)]
    return torch.stack([weighted(pooled, each, relu=False) for each in columns], dim=1)


def _shares(runner: Runner) -> Tensor:
    """How much of each logit is in each score: ``(N, S, C)``.

    Raises:
        FedgazeError: The scores are no weighted sums of logits.
    """
    logits = runner.logits.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            scores = runner.scores_of(logits)
            rows = [
                torch.autograd.grad(column.sum(), logits, retain_graph=True)[0]
                for column in scores.unbind(1)
            ]
        shares = wide(torch.stack(rows, dim=1))
        explained = (shares * logits[:, None]).sum(2)
    except Exception as error:  # whatever a target that wants more than logits raises
        raise FedgazeError(_NO_LOGITS) from error
    if logits.dim() != 2 or not _equal(explained, runner.clean, runner.clean):
        raise FedgazeError(_NO_LOGITS)
    return shares


def _heads(model: nn.Module, channels: int, classes: int) -> Iterator[_Head]:
    if channels == classes:
        yield _Head(None, None)
    for module in model.modules():
        one = isinstance(module, _CONVOLUTIONS) and {*module.kernel_size, module.groups} == {1}
        weight = module.weight if one or isinstance(module, nn.Linear) else None
        if isinstance(weight, Tensor) and weight.flatten(1).shape == (classes, channels):
            bias = module.bias if isinstance(module.bias, Tensor) else None
            yield _Head(weight.flatten(1), bias)


def _makes(head: _Head, mean: Tensor, logits: Tensor) -> bool:
    """Whether the head makes the logits of the means.

    The bias is taken off first: beside a large one, any features would seem to fit. So would they
    if all weights were zero, but not features that are zero themselves.
    """
    with torch.no_grad():
        made = mean if head.weight is None else mean @ head.weight.to(mean).T
        rest = wide(logits) if head.bias is None else wide(logits) - head.bias.to(mean)
        said = rest.any(1) | ~mean.any(1)
        return bool(said.all()) and _equal(made, rest, logits)


def _equal(made: Tensor, wanted: Tensor, like: Tensor) -> bool:
    """Whether two are equal, beside the greatest number of a row and in like's precision."""
    tolerance = max(1e-3, 8 * torch.finfo(like.dtype).eps)
    distance = (made - wanted).abs().amax(1)
    return bool((distance <= tolerance * wanted.abs().amax(1)).all())
