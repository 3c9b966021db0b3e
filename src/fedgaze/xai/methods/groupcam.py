"""Group-CAM: groups of channels as masks, weighted by what they bring back."""

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.cam import spatial, wide
from fedgaze.xai.methods.inputs import at_least
from fedgaze.xai.methods.masks import blurred, enlarged, mixed, unit
from fedgaze.xai.runner import Runner

__all__ = ["group_cam"]


def group_cam(
    runner: Runner,
    *,
    groups: int = 32,
    percentile: float = 70.0,
    kernel: int = 51,
    sigma: float = 50.0,
    probability: bool = False,
) -> Tensor:
    """Weight groups of channels by what the score gains where they clear a blurred image.

    Zhang, Rao and Yang, "Group-CAM: Group Score-Weighted Visual Explanations for Deep Convolutional
    Networks", arXiv 2103.13859, 2021. Neighbouring channels form G groups; the initial mask of one
    is ``M = relu(sum_k w_k A_k)`` over its channels, with Grad-CAM's weights ``w_k``. What does not
    exceed a percentile of the mask's values becomes zero, the rest is scaled to [0, 1] and enlarged
    to the size of the image. With ``alpha = F(I M + B (1 - M)) - F(B)``, where F is the score, I
    the image and B the image blurred, the map is ``relu(sum alpha M)`` over the groups.

    It takes one pass there and back, and one for each group and for the blurred image. A group that
    has no mask, since it is the same everywhere, has no part in the map. The authors' code enlarges
    masks before it scales them to [0, 1], and takes probabilities for F where masks are judged,
    though logits for the weights; for the latter there is ``probability=True``.

    Args:
        runner: The model, images and layer.
        groups: G; as many as there are channels at most. Where it does not divide their number,
            some groups have one channel more.
        percentile: From 0, which keeps all but the lowest value, to below 100.
        kernel: Over how many pixels in each direction the blur reaches; odd.
        sigma: The blur's standard deviation in pixels.
        probability: Whether F is the probability of a class, where a class is explained.

    Returns:
        ``(N, S, *s)``, signed.

    Raises:
        FedgazeError: An option is out of its range.
    """
    at_least("groups", groups, 1)
    if not 0 <= percentile < 100:
        raise FedgazeError(f"percentile is {percentile}; allowed is 0 up to, but not, 100")
    if at_least("kernel", kernel, 1) % 2 == 0 or not sigma > 0:
        raise FedgazeError(
            f"kernel is {kernel} and sigma {sigma}; allowed are an odd number and one above 0"
        )
    found = runner.captured()
    masks = unit_groups(*found, groups, percentile)
    targets, groups = masks.shape[1:3]
    images, size = runner.images, runner.images.shape[2:]
    baseline = blurred(images, kernel, sigma)

    def shown(n: Tensor, v: Tensor) -> Tensor:
        return mixed(images, baseline, n, enlarged(masks.flatten(1, 2)[n, v], size))

    judged = wide(runner.scores(shown, targets * groups, probability=probability))
    # Of each target's score only what its own masks make of it.
    own = judged.unflatten(2, (targets, groups)).diagonal(dim1=1, dim2=2).movedim(-1, 1)
    nothing = runner.scores(lambda n, v: baseline[n], 1, probability=probability)  # noqa: ARG005
    return torch.einsum("nsg,nsg...->ns...", own - wide(nothing), masks)


def unit_groups(
    activations: Tensor, gradients: Tensor | None, groups: int, percentile: float
) -> Tensor:
    """The masks ``(N, S, G, *s)`` in [0, 1]; zero for groups that are the same everywhere.

    Args:
        activations: ``(N, K, *s)``.
        gradients: ``(N, S, K, *s)``.
        groups: G, at most K of which are made.
        percentile: See `group_cam`.
    """
    if gradients is None:
        raise ValueError("Group-CAM needs gradients")
    channels, size = activations.shape[1], activations.shape[2:]
    groups = min(groups, channels)
    weights = wide(gradients).mean(tuple(dim + 1 for dim in spatial(activations)))
    which = torch.arange(channels, device=activations.device) * groups // channels
    member = which == torch.arange(groups, device=activations.device)[:, None]
    apart = weights[:, :, None] * member.to(weights.dtype)
    masks = torch.einsum("nsgk,nkp->nsgp", apart, wide(activations).flatten(2)).relu()
    threshold = masks.quantile(percentile / 100, dim=-1, keepdim=True)
    masks = torch.where(masks > threshold, masks, 0)
    return unit(masks.flatten(0, 2)).reshape(*apart.shape[:3], *size)
