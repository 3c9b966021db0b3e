"""The methods: pure functions from activations and gradients to raw maps."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest

__all__ = ["METHODS", "Method", "find_method", "grad_cam", "grad_cam_plus_plus", "list_methods"]

Method = Callable[[Tensor, Tensor], Tensor]
"""``(activations (N, K, h, w), gradients (N, K, h, w)) -> raw map (N, h, w)``, not negative."""


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Weight each channel by the mean of its gradient.

    ``raw = relu(sum_k w_k A_k)`` with ``w_k = mean_ij dS/dA_kij``: Selvaraju et al., "Grad-CAM:
    Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017, Eq. 1 and 2.

    Args:
        activations: ``(N, K, h, w)``: A.
        gradients: ``(N, K, h, w)``: of each image's score S to its activations.

    Returns:
        ``(N, h, w)``, not negative.

    >>> grad_cam(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]),
    ...          torch.tensor([[[[1.0, 3.0]], [[-1.0, -1.0]]]]))
    tensor([[[0., 4.]]])
    """
    return _weighted(activations, gradients.mean((2, 3)))


def grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Weight each channel by its positive gradients, each by how much it alone explains.

    ``raw = relu(sum_k w_k A_k)`` with ``w_k = sum_ij alpha_kij relu(dY/dA_kij)``: Chattopadhay et
    al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional
    Networks", WACV 2018, Eq. 5, 10 and 19.

    As in the paper, Y = exp(S): where the way from A to S is piecewise linear, the derivatives of
    Y are exp(S) g, exp(S) g² and exp(S) g³ with g = dS/dA, and Eq. 19 becomes, divided by
    exp(S) g²: ``alpha_kij = 1 / (2 + g_kij sum_ab A_kab)`` where g is not zero. The factor exp(S)
    that remains in the weights is left out: it is the same for a whole image and may overflow.

    Args:
        activations: ``(N, K, h, w)``: A.
        gradients: ``(N, K, h, w)``: g, of each image's score S (a logit) to its activations.

    Returns:
        ``(N, h, w)``, not negative.

    >>> grad_cam_plus_plus(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, -1.0]]]]))
    tensor([[[0.2500, 0.5000]]])
    """
    denominator = 2 + gradients * activations.sum((2, 3), keepdim=True)
    # Below a gradient that is not positive, relu makes the term zero whatever its alpha is.
    counts = (gradients > 0) & (denominator != 0)
    terms = torch.where(counts, gradients / denominator, 0)
    return _weighted(activations, terms.sum((2, 3)))


def _weighted(activations: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("nk,nkhw->nhw", weights, activations).relu_()


METHODS: dict[str, Method] = {
    "gradcam": grad_cam,
    "gradcam++": grad_cam_plus_plus,
}


def list_methods() -> tuple[str, ...]:
    """Name the methods.

    >>> list_methods()
    ('gradcam', 'gradcam++')
    """
    return tuple(METHODS)


def find_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        FedgazeError: There is none.

    >>> find_method("grad-cam")
    Traceback (most recent call last):
    fedgaze.errors.FedgazeError: there is no method 'grad-cam'; allowed are gradcam, gradcam++; ...
    """
    if name not in METHODS:
        raise FedgazeError(
            f"there is no method {name!r}; allowed are {', '.join(METHODS)}"
            f"{nearest(str(name), METHODS)}"
        )
    return METHODS[name]
