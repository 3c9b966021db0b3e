"""Methods that show the first principal component of a layer."""

import torch
from torch import Tensor

from fedgaze.xai.methods.cam import wide
from fedgaze.xai.methods.spectral import gram, square_root, top_eigenvector

__all__ = ["eigen_cam", "eigen_grad_cam", "eigen_smooth", "first_component", "oriented"]


def eigen_cam(
    activations: Tensor,
    gradients: Tensor | None = None,  # noqa: ARG001 - the arguments that every map method has
    *,
    centred: bool = False,
) -> Tensor:
    """Project the activations on their first right singular vector: Eigen-CAM.

    ``O = U Sigma V^T`` and ``L = O V_1``, for the matrix O of positions by channels: Muhammad and
    Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020. It does not
    look at classes.

    The paper decomposes the activations as they are, and so does this. Its sign is not fixed by the
    paper; here it is that in which the map is high where the layer responds strongly (see
    `first_component`). After ReLU, where no activation is negative, so is no value of the map.
    pytorch-grad-cam subtracts each channel's mean over the positions first, and leaves the sign to
    chance: there, object and background change places from one machine to the next.

    Args:
        activations: ``(N, K, *s)``.
        gradients: Not used.
        centred: Whether to subtract each channel's mean first.

    Returns:
        ``(N, *s)``, in float32 at least; signed.

    >>> eigen_cam(torch.tensor([[[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]]])).round(decimals=3)
    tensor([[4.9990, 0.0000, 0.6150]])
    """
    strength = activations.abs().sum(1, dtype=wide(activations[:0]).dtype)
    return first_component(activations, strength, centred=centred)


def eigen_grad_cam(activations: Tensor, gradients: Tensor, *, centred: bool = True) -> Tensor:
    """Project gradient times activation on its first principal component: EigenGradCAM.

    Eigen-CAM (see `eigen_cam`) of ``g A``, which makes it tell classes apart. There is no paper; it
    comes from pytorch-grad-cam, which centres as this does, and leaves the sign to chance. Here the
    sign is that in which the map agrees with ``sum_k g_k A_k``, the evidence for the score: where
    all of g A is negative, so is the map that is not centred.

    Args:
        activations: ``(N, K, *s)``: A.
        gradients: ``(N, K, *s)``: g, of each image's score to its activations.
        centred: Whether to subtract each channel's mean first.

    Returns:
        ``(N, *s)``, in float32 at least; signed.
    """
    return eigen_smooth(activations, gradients, centred=centred)


def eigen_smooth(activations: Tensor, weights: Tensor, *, centred: bool = True) -> Tensor:
    """Replace the sum over the channels of ``w A`` by their first principal component.

    It smooths the map of any method that weights activations. There is no paper; it comes from
    pytorch-grad-cam (``eigen_smooth=True``), with the differences of `eigen_grad_cam`.

    Args:
        activations: ``(N, K, *s)``: A.
        weights: ``(N, K, 1, ...)`` or ``(N, K, *s)``: w.
        centred: Whether to subtract each channel's mean first.

    Returns:
        ``(N, *s)``, in float32 at least; signed: it agrees with ``sum_k w_k A_k``.
    """
    product = wide(weights) * wide(activations)
    return first_component(product, product.sum(1), centred=centred)


def first_component(x: Tensor, towards: Tensor, *, centred: bool = False) -> Tensor:
    """Project channels on their first right singular vector, at every position.

    Found from the smaller of the two matrices ``X X^T`` (positions by positions) and ``X^T X``
    (channels by channels), in float64 where the device has it. Where the first two singular values
    are equal there is no first component: any mixture of both is as good. Near there, tiny changes
    of x turn one into the other.

    Args:
        x: ``(N, K, *s)``.
        towards: ``(N, *s)``: the component's sign is that in which its inner product with this is
            positive; where it is zero, that in which the largest value is positive.
        centred: Whether to subtract each channel's mean first, as in principal component analysis.

    Returns:
        ``(N, *s)``, in float32 at least: the first singular value times the first left singular
        vector. Zero for an x that is zero, or that is centred and was the same at all positions.
        The gradient is zero where the first singular value is not simple.
    """
    flat = x.flatten(2)
    of_places = flat.shape[2] <= flat.shape[1]
    vector, value = top_eigenvector(*gram(flat, of_places=of_places, centred=centred))
    if of_places:
        component = vector * square_root(value)[:, None]
    else:
        flat = wide(flat)
        component = torch.einsum("nk,nkp->np", vector.to(flat.dtype), flat)
        if centred:
            component = component - component.mean(1, keepdim=True)
        component = torch.where(value[:, None] == 0, 0, component)
    return oriented(component, towards.flatten(1)).to(wide(x[:0]).dtype).reshape(towards.shape)


def oriented(component: Tensor, towards: Tensor) -> Tensor:
    """Give components ``(N, P)`` the sign in which they agree with ``towards`` ``(N, P)``.

    That is the sign of their inner product or, where it is zero up to rounding, the sign of the
    component's largest value.
    """
    with torch.no_grad():
        other = towards.to(component.dtype)
        product = (component * other).sum(1)
        size = component.norm(dim=1) * other.norm(dim=1)
        largest = component.gather(1, component.abs().argmax(1, keepdim=True))[:, 0]
        decided = torch.where(product.abs() > 1e-6 * size, product, largest)
        sign = torch.where(decided < 0, -1, 1).to(component.dtype)
    return component * sign[:, None]
