"""The first principal component of a layer in the feature space of a kernel."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedgaze.errors import FedgazeError, nearest
from fedgaze.xai.methods.cam import wide
from fedgaze.xai.methods.eigen import oriented
from fedgaze.xai.methods.spectral import centred_kernel, gram, square_root, top_eigenvector

__all__ = ["KERNELS", "kpca_cam"]

Kernel = Callable[[Tensor, float, int, float], Tensor]


def _rbf(products: Tensor, gamma: float) -> Tensor:
    squares = products.diagonal(dim1=1, dim2=2)
    distances = squares[:, :, None] + squares[:, None, :] - 2 * products
    return torch.exp(-gamma * distances.clamp(min=0))


def _cosine(products: Tensor) -> Tensor:
    length = square_root(products.diagonal(dim1=1, dim2=2))
    length = torch.where(length > 0, length, 1)
    return products / length[:, :, None] / length[:, None, :]


KERNELS: dict[str, Kernel] = {
    "sigmoid": lambda p, gamma, _, coef0: torch.tanh(gamma * p + coef0),
    "rbf": lambda p, gamma, _, __: _rbf(p, gamma),
    "poly": lambda p, gamma, degree, coef0: (gamma * p + coef0) ** degree,
    "cosine": lambda p, _, __, ___: _cosine(p),
    "linear": lambda p, _, __, ___: p,
}
"""From inner products ``(N, P, P)``, gamma, degree and coef0 to what the kernel makes of them."""


def kpca_cam(
    activations: Tensor,
    gradients: Tensor | None = None,  # noqa: ARG001 - the arguments that every map method has
    *,
    kernel: str = "sigmoid",
    gamma: float | None = None,
    degree: int = 3,
    coef0: float = 1.0,
    centred: bool = True,
) -> Tensor:
    """Project positions on their first principal component under a kernel: KPCA-CAM.

    Karmani et al., "KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel
    PCA", MMSP 2024: Eigen-CAM (see `eigen_cam`) in the feature space of a kernel k. With
    ``K_ij = k(x_i, x_j)`` for the channels' values x at positions i and j, centred in feature
    space, ``K a = lambda a`` and a of length 1, the map is ``sqrt(lambda) a`` for the largest
    lambda. It does not look at classes. Matrices are P x P for P positions, in float64.

    The defaults are those of the authors' own code, which is pytorch-grad-cam's and calls
    scikit-learn's KernelPCA. It leaves the sign to chance; here it is that in which the map agrees
    with ``sum_k |A_k|``, as in `eigen_cam`. The kernels are scikit-learn's: ``sigmoid``:
    tanh(gamma x·y + coef0), ``rbf``: exp(-gamma |x - y|²), ``poly``: (gamma x·y + coef0)^degree,
    ``cosine``: x·y / |x| |y|, and ``linear``: x·y, which is the centred Eigen-CAM. The sigmoid is
    an inner product in no space, so that its matrix may have negative eigenvalues; they are
    ignored.

    Args:
        activations: ``(N, K, *s)``.
        gradients: Not used.
        kernel: One of `KERNELS`.
        gamma: 1 / K if None.
        degree: Of ``poly``.
        coef0: Of ``poly`` and ``sigmoid``.
        centred: Whether to subtract each channel's mean before the kernel, as the authors do.

    Returns:
        ``(N, *s)``, in float32 at least; signed, with mean zero. Zero where all positions are the
        same to the kernel.

    Raises:
        FedgazeError: There is no such kernel.
    """
    if kernel not in KERNELS:
        raise FedgazeError(
            f"there is no kernel {kernel!r}; allowed are {', '.join(KERNELS)}"
            f"{nearest(str(kernel), KERNELS)}"
        )
    flat = activations.flatten(2)
    gamma = 1 / flat.shape[1] if gamma is None else gamma
    products, noise = gram(flat, of_places=True, centred=centred)
    same = products.diagonal(dim1=1, dim2=2).amax(1) <= noise
    products = torch.where(same[:, None, None], 0, products)
    matrix = KERNELS[kernel](products, gamma, degree, coef0)
    # Where all positions are the same, centring leaves what rounding did to the kernel's numbers.
    rounding = 16 * matrix.shape[1] * torch.finfo(matrix.dtype).eps
    floor = rounding * matrix.detach().abs().sum(2).amax(1)
    vector, value = top_eigenvector(centred_kernel(matrix), floor)
    map_ = vector * square_root(value)[:, None]
    strength = activations.abs().sum(1, dtype=wide(activations[:0]).dtype)
    return oriented(map_, strength.flatten(1)).to(strength.dtype).reshape(strength.shape)
