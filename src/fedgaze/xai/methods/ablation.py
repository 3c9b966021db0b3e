"""Ablation-CAM: weights that are what the score loses without a channel."""

import torch
from torch import Tensor

from fedgaze.xai.methods.cam import wide
from fedgaze.xai.methods.channels import first_of, scattered, weighted_by
from fedgaze.xai.runner import Runner

__all__ = ["ablation_cam"]


def ablation_cam(runner: Runner) -> Tensor:
    """Weight each channel by the share of the score that is lost when it is set to zero.

    ``w_k = (y - y_k) / y``, where y is the target's score and y_k the score with channel k zero at
    all positions: Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional
    Network via Gradient-free Localization", WACV 2020, Eq. 3. The map is ``relu(sum_k w_k A_k)``.

    What lies below the layer runs once for an image, what lies above once for each channel that is
    not zero anyway (the others would get the weight zero).

    The paper has scores above zero in mind. Here y - y_k is divided by the size of y, so that a
    channel without which the score falls speaks for the target whatever the score's sign, and is
    not divided where y is zero. Maps of a target with a negative score thus have the opposite sign
    of the fraction as it is written, which is what pytorch-grad-cam computes. That runs the whole
    model for each channel, and at layers whose smallest activation is not zero it puts 1e7 less
    than that in place of zero.

    Args:
        runner: The model, images and layer.

    Returns:
        ``(N, S, *s)``, signed.
    """
    activations = runner.captured(gradients=False).activations
    live = activations.flatten(2).any(2)
    index = first_of(live)

    def without(n: Tensor, v: Tensor) -> Tensor:
        changed = activations[n]
        changed[torch.arange(len(n), device=n.device), index[n, v]] = 0
        return changed

    clean = wide(runner.clean)[:, :, None]
    lost = clean - wide(runner.tail_scores(without, index.shape[1]))
    share = lost / torch.where(clean == 0, 1, clean.abs())
    return weighted_by(activations, scattered(share, index, live, rest=0))
