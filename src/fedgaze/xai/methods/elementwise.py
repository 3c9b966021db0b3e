"""Methods that give each activation a weight of its own, from its gradient."""

import torch
from torch import Tensor

from fedgaze.xai.methods.cam import wide

__all__ = ["elementwise_weights", "hires_cam_weights", "layer_cam_weights"]


def hires_cam_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Weight each activation by its own gradient: HiResCAM.

    ``sum_k dS/dA_k * A_k``, element by element: Draelos and Carin, "Use HiResCAM instead of
    Grad-CAM for faithful explanations of convolutional neural networks", arXiv 2011.08891, 2020.
    The authors' map is signed; pytorch-grad-cam applies relu. For a network that ends in one
    linear layer on the activations, the sum of the signed map and the bias are the logit.

    Args:
        activations: ``(N, K, *s)``: A.
        gradients: ``(N, K, *s)``: of each image's score S to its activations.

    Returns:
        ``(N, K, *s)``: the gradients.
    """
    return wide(gradients).expand_as(activations)


def layer_cam_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Weight each activation by its own gradient where that is positive: LayerCAM.

    ``relu(sum_k relu(dS/dA_k) * A_k)``, element by element: Jiang et al., "LayerCAM: Exploring
    Hierarchical Class Activation Maps for Localization", IEEE Transactions on Image Processing,
    2021. For the maps of several layers see `fedgaze.xai.maps.fuse`.

    Args:
        activations: ``(N, K, *s)``: A.
        gradients: ``(N, K, *s)``: of each image's score S to its activations.

    Returns:
        ``(N, K, *s)``, not negative.
    """
    return wide(gradients).relu().expand_as(activations)


def elementwise_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Weight each activation by its own gradient where their product is positive.

    ``sum_k relu(dS/dA_k * A_k)``: the element-wise Grad-CAM of Pillai and Pirsiavash, "Explainable
    Models with Consistent Interpretations", AAAI 2021.

    Args:
        activations: ``(N, K, *s)``: A.
        gradients: ``(N, K, *s)``: of each image's score S to its activations.

    Returns:
        ``(N, K, *s)``: the gradients, zero where they speak against the score.

    >>> elementwise_weights(torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[3.0, 3.0]]]))
    tensor([[[3., 0.]]])
    """
    a, g = wide(activations), wide(gradients)
    return torch.where((a > 0) == (g > 0), g, 0)
