"""Methods that need more than one gradient: of second order, or of many runs."""

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.methods.cam import spatial, wide

__all__ = [
    "exp_derivatives",
    "hessian_product",
    "shapley_weights",
    "smooth_grad_cam_plus_plus_weights",
]

NUMERATORS = ("first", "second")


def shapley_weights(
    activations: Tensor, gradients: Tensor, hessian_product: Tensor, *, average: bool = True
) -> Tensor:
    """Weight activations by their Shapley values, to the second order: ShapleyCAM.

    ``w = g - H A / 2``, its mean over each channel's positions, for g and H the first and second
    derivatives of the utility U to the activations A: Cai, "CAMs as Shapley Value-based
    Explainers", arXiv 2501.06261, 2025. The map is ``relu(sum_k w_k A_k)``. ``A (g - H A / 2)`` are
    the Shapley values of the game in which players are activations, those who stay away are zero,
    and U is its own Taylor expansion of second order around A; they sum to what that loses at zero.

    What is explained there is not the logit but the residual softmax, `rest_scores` in
    `fedgaze.xai.methods.scores`: a network that is piecewise linear from the layer to the logit has
    H = 0, and ShapleyCAM of a logit is Grad-CAM. pytorch-grad-cam explains the logit unless told
    otherwise.

    Args:
        activations: ``(N, K, *s)``: A.
        gradients: ``(N, K, *s)``: g.
        hessian_product: ``(N, K, *s)``: H A, see the function of this name.
        average: Over each channel, as Grad-CAM does; otherwise each activation keeps the weight of
            its own, as in HiResCAM.

    Returns:
        ``(N, K, 1, ...)``, or ``(N, K, *s)`` without averaging.

    Raises:
        FedgazeError: The shapes differ.

    >>> a, g = torch.tensor([[[2.0, 4.0]]]), torch.tensor([[[1.0, 1.0]]])
    >>> shapley_weights(a, g, torch.tensor([[[2.0, 0.0]]]))
    tensor([[[0.5000]]])
    """
    if not activations.shape == gradients.shape == hessian_product.shape:
        raise FedgazeError(
            f"activations, gradients and Hessian product have the shapes {tuple(activations.shape)}"
            f", {tuple(gradients.shape)} and {tuple(hessian_product.shape)}; allowed is one shape"
        )
    weights = wide(gradients) - wide(hessian_product) / 2
    return weights.mean(spatial(weights), keepdim=True) if average else weights


def hessian_product(activations: Tensor, gradients: Tensor, *, graph: bool = False) -> Tensor:
    """The Hessian of the scores, times the activations: ``H A``.

    Args:
        activations: ``(N, K, *s)``: A, which the scores were computed from.
        gradients: ``(N, K, *s)``: of the sum of the scores to A, made with ``create_graph=True``.
        graph: Whether the product can be differentiated, too.

    Returns:
        ``(N, K, *s)``; zero where the gradients do not depend on the activations.

    >>> a = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    >>> (g,) = torch.autograd.grad((a**3).sum(), a, create_graph=True)
    >>> hessian_product(a, g)  # 6 a a
    tensor([[[ 6., 24.]]])
    """
    if not gradients.requires_grad:
        return torch.zeros_like(activations)
    (product,) = torch.autograd.grad(
        gradients,
        activations,
        activations.to(gradients.dtype),
        retain_graph=True,
        create_graph=graph,
        materialize_grads=True,
    )
    return product


def exp_derivatives(
    gradients: Tensor, scores: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The first three derivatives of ``Y = exp(S)``, for a score S that is piecewise linear.

    ``exp(S) g``, ``exp(S) g²`` and ``exp(S) g³``: Grad-CAM++ and Smooth Grad-CAM++ go by them.

    Args:
        gradients: ``(N, K, *s)``: g, of S to the activations.
        scores: ``(N,)``: S, less some number that is the same for all runs on an image, such as the
            score without noise: exp(S) may overflow. If None, exp(S) is left out.

    Returns:
        Three of ``(N, K, *s)``.
    """
    g = wide(gradients)
    if scores is None:
        return g, g**2, g**3
    factor = wide(scores).exp().reshape(-1, *[1] * (g.dim() - 1))
    return factor * g, factor * g**2, factor * g**3


def smooth_grad_cam_plus_plus_weights(
    first: Tensor,
    second: Tensor,
    third: Tensor,
    activations: Tensor,
    *,
    numerator: str = "first",
) -> Tensor:
    """Weight each channel as Grad-CAM++ does, from derivatives averaged over noisy runs.

    Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep
    Convolutional Neural Network Models", arXiv 1908.01224, 2019. With D1, D2 and D3 the averages of
    the first three derivatives of Y to the activations, over images to which Gaussian noise was
    added, and A the activations of the image itself::

        alpha_kij = D1_kij / (2 D2_kij + sum_ab A_kab D3_kij)
        w_k = sum_ij alpha_kij relu(D1_kij)

    and the map is ``relu(sum_k w_k A_k)``. Where the fraction has no value it counts as zero.

    So it is printed in the paper, but without noise that is not Grad-CAM++, whose alphas have the
    second derivative above the line: a misprint, perhaps. ``numerator="second"`` has D2 there, and
    is Grad-CAM++ for a single run without noise. torchcam has D2, too, and differs otherwise: its
    derivatives are g, g² and g³, without exp(S); it takes the sum of A D3 and not of A alone, the
    relu of the last noisy run's gradient and not of the average, and adds 1e-8 to the denominator.

    Args:
        first: ``(N, K, *s)``: the sum or average of the first derivatives; see `exp_derivatives`.
        second: Of the second.
        third: Of the third. A factor that all three share only scales an image's map.
        activations: ``(N, K, *s)``: A.
        numerator: ``"first"`` or ``"second"``: what stands above the line.

    Returns:
        ``(N, K, 1, ...)``.

    Raises:
        FedgazeError: There is no such numerator.
    """
    if numerator not in NUMERATORS:
        raise FedgazeError(
            f"there is no numerator {numerator!r}; allowed are {', '.join(NUMERATORS)}"
            f"{nearest(str(numerator), NUMERATORS)}"
        )
    d1, d2, d3 = wide(first), wide(second), wide(third)
    above = d1 if numerator == "first" else d2
    below = 2 * d2 + wide(activations).sum(spatial(activations), keepdim=True) * d3
    counts = (d1 > 0) & (below != 0)
    # Divided by 1 elsewhere, or the gradient of what is not chosen would be NaN.
    alphas = torch.where(counts, above / torch.where(counts, below, 1), 0)
    return (alphas * d1.relu()).sum(spatial(d1), keepdim=True)
