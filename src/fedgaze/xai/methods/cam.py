"""Methods that give each channel one weight, from gradients or from the classifier.

Each is a function that returns weights, for any number of spatial dimensions s; `weighted` makes
the raw map of them. Sums are made in float32 at least, and everything can be differentiated again.
"""

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai.methods.spectral import precise

__all__ = [
    "cam_weights",
    "grad_cam",
    "grad_cam_plus_plus",
    "grad_cam_plus_plus_weights",
    "grad_cam_weights",
    "spatial",
    "weighted",
    "wide",
    "x_grad_cam_weights",
]


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that: what sums are made in."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def spatial(tensor: Tensor) -> tuple[int, ...]:
    """The spatial dimensions of ``(N, K, *s)``."""
    return tuple(range(2, tensor.dim()))


def weighted(activations: Tensor, weights: Tensor, *, relu: bool = True) -> Tensor:
    """Sum the channels of activations by their weights.

    Args:
        activations: ``(N, K, *s)``: A.
        weights: ``(N, K, 1, ...)`` with one number a channel, or ``(N, K, *s)``: w.
        relu: Whether to keep only what is positive.

    Returns:
        ``sum_k w_k A_k`` ``(N, *s)``, in float32 at least; not negative with relu.

    >>> weighted(torch.tensor([[[1.0, 2.0], [3.0, 1.0]]]), torch.tensor([[[1.0], [-1.0]]]))
    tensor([[0., 1.]])
    """
    a, w = wide(activations), wide(weights)
    if a.dtype != w.dtype:
        a, w = a.double(), w.double()
    if w[0, 0].numel() == 1:
        # One product of matrices, and nothing of the size of the activations beside them.
        raw = (w.flatten(1)[:, None] @ a.flatten(2)).reshape(len(a), *a.shape[2:])
    else:
        raw = (w * a).sum(1)
    return raw.relu() if relu else raw


def cam_weights(activations: Tensor, linear_weight: Tensor, classes: Tensor) -> Tensor:
    """Weight each channel as the classifier does: the original CAM.

    ``M_c = sum_k w_k^c f_k``: Zhou et al., "Learning Deep Features for Discriminative
    Localization", CVPR 2016, Eq. 2. It explains networks that end in global average pooling and
    one linear layer, where the mean of the map and the bias are the class's logit; there Grad-CAM's
    weights are these, divided by the number of positions. The paper's map is signed.

    Args:
        activations: ``(N, K, *s)``: f, what is pooled.
        linear_weight: ``(C, K)``: w, of the linear layer.
        classes: ``(N,)``, whole numbers: c.

    Returns:
        ``(N, K, 1, ...)``.

    Raises:
        FedgazeError: The linear layer does not take as many channels as there are.

    >>> cam_weights(torch.zeros(1, 2, 3, 3), torch.eye(2), torch.tensor([1])).flatten()
    tensor([0., 1.])
    """
    channels = activations.shape[1]
    if linear_weight.dim() != 2 or linear_weight.shape[1] != channels:
        raise FedgazeError(
            f"the linear layer has weights of shape {tuple(linear_weight.shape)}; allowed is "
            f"(classes, {channels}), since the activations have {channels} channels"
        )
    weights = wide(linear_weight[classes])
    return weights.reshape(-1, channels, *[1] * len(spatial(activations)))


def grad_cam_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Weight each channel by the mean of its gradient: Grad-CAM.

    ``alpha_k = mean_ij dS/dA_kij``: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep
    Networks via Gradient-based Localization", ICCV 2017, Eq. 1; S is the class's logit. The map is
    ``relu(sum_k alpha_k A_k)`` (Eq. 2).

    Args:
        activations: ``(N, K, *s)``: A.
        gradients: ``(N, K, *s)``: of each image's score S to its activations.

    Returns:
        ``(N, K, 1, ...)``.
    """
    return wide(gradients).mean(spatial(activations), keepdim=True)


def grad_cam_plus_plus_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Weight each channel by its positive gradients, each by how much it alone explains.

    ``w_k = sum_ij alpha_kij relu(dY/dA_kij)``: Chattopadhay et al., "Grad-CAM++: Generalized
    Gradient-based Visual Explanations for Deep Convolutional Networks", WACV 2018, Eq. 5, 10 and
    19. The map is ``relu(sum_k w_k A_k)``.

    As in the paper, Y = exp(S): where the way from A to S is piecewise linear, the derivatives of
    Y are exp(S) g, exp(S) g² and exp(S) g³ with g = dS/dA, and Eq. 19 becomes, divided by
    exp(S) g²: ``alpha_kij = 1 / (2 + g_kij sum_ab A_kab)`` where g is not zero. The factor exp(S)
    that remains in the weights is left out: it is the same for a whole image and may overflow.
    Where the fraction has no value it counts as zero.

    Others differ: pytorch-grad-cam adds 1e-6 to the denominator, beside g², which changes weights
    by a multiple where gradients are small; torchcam (as of 0.5) assigns the division to a copy, so
    that its alpha is g², and sums A g³ position by position, not A alone; the authors' code
    divides the alphas of a channel by their sum.

    Args:
        activations: ``(N, K, *s)``: A.
        gradients: ``(N, K, *s)``: g, of each image's score S (a logit) to its activations.

    Returns:
        ``(N, K, 1, ...)``.
    """
    a, g = wide(activations), wide(gradients)
    # Where activations have both signs the denominator may be near zero, and the last digit of the
    # sum decides: so it is made in float64 and added in two parts.
    total = precise(a).sum(spatial(a), keepdim=True)
    high = total.to(a.dtype)
    denominator = torch.addcmul(a.new_full((), 2), g, high)
    denominator = torch.addcmul(denominator, g, (total - high).to(a.dtype))
    # Over infinity, so that neither the quotient nor its gradient is ever NaN.
    terms = g.relu() / denominator.masked_fill(denominator == 0, torch.inf)
    return terms.sum(spatial(a), keepdim=True)


def x_grad_cam_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Weight each channel by the mean of its gradient, weighted by the activations: XGrad-CAM.

    ``w_k = sum_ij (A_kij / sum_ab A_kab) dS/dA_kij``: Fu et al., "Axiom-based Grad-CAM: Towards
    Accurate Visualization and Explanation of CNNs", BMVC 2020, the weights that hold to its axioms
    of sensitivity and conservation. The map is ``relu(sum_k w_k A_k)``; without relu its sum is
    ``sum g A``: what is conserved.

    A channel whose activations sum to zero gets the weight zero. The authors' code,
    pytorch-grad-cam and torchcam add a small number to the sum instead, which changes the weights
    of faint channels. The paper has activations after ReLU in mind: where they have both signs, a
    sum near zero makes a weight that is large.

    Args:
        activations: ``(N, K, *s)``: A.
        gradients: ``(N, K, *s)``: of each image's score S to its activations.

    Returns:
        ``(N, K, 1, ...)``.

    >>> x_grad_cam_weights(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0, 4.0]]]))
    tensor([[[3.5000]]])
    """
    a, g = wide(activations), wide(gradients)
    total = a.sum(spatial(a), keepdim=True)
    product = (g * a).sum(spatial(a), keepdim=True)
    return torch.where(total != 0, product / torch.where(total != 0, total, 1), 0)


def grad_cam(activations: Tensor, gradients: Tensor, *, relu: bool = True) -> Tensor:
    """The map ``(N, *s)`` of `grad_cam_weights`.

    >>> grad_cam(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]),
    ...          torch.tensor([[[[1.0, 3.0]], [[-1.0, -1.0]]]]))
    tensor([[[0., 4.]]])
    """
    return weighted(activations, grad_cam_weights(activations, gradients), relu=relu)


def grad_cam_plus_plus(activations: Tensor, gradients: Tensor, *, relu: bool = True) -> Tensor:
    """The map ``(N, *s)`` of `grad_cam_plus_plus_weights`.

    >>> grad_cam_plus_plus(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, -1.0]]]]))
    tensor([[[0.2500, 0.5000]]])
    """
    return weighted(activations, grad_cam_plus_plus_weights(activations, gradients), relu=relu)
