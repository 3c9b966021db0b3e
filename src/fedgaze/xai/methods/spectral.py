"""The top eigenvector of small symmetric matrices, fast, precise and with a gradient."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["gram", "precise", "square_root", "top_eigenvector"]

PIECE = 2**21
"""How many numbers are brought to float64 at a time: 16 MiB."""

SMALL = 256
"""Up to this size a matrix is decomposed whole, which takes time with the cube of the size."""

BLOCK, STEPS, ROUNDS = 8, 12, 10
"""Above it: how many vectors, how often multiplied, and how often at most from the start."""

PRECISION = 1e-6
"""How far off the eigenvector of a larger matrix may be, if rounding allows."""


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float64 where its device has that, else in float32."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def gram(x: Tensor, *, of_places: bool, centred: bool) -> tuple[Tensor, Tensor]:
    """Inner products of positions, or of channels.

    Args:
        x: ``(N, K, P)``: K channels at P positions.
        of_places: Positions by positions, or channels by channels.
        centred: Whether to subtract each channel's mean over the positions.

    Returns:
        ``(N, P, P)`` or ``(N, K, K)``, and what an eigenvalue of it may be by rounding alone
        ``(N,)``.
    """
    side, along = (2, 1) if of_places else (1, 2)
    equation = "nkp,nkq->npq" if of_places else "nkp,nlp->nkl"
    step = max(1, PIECE // (len(x) * x.shape[side]))
    products = torch.zeros((), dtype=precise(x[:0]).dtype, device=x.device)
    for piece in x.split(step, along):
        wider = precise(piece)
        products = products + torch.einsum(equation, wider, wider)
    trace = products.diagonal(dim1=1, dim2=2).sum(1)
    if centred and of_places:
        products = centred_kernel(products)
    elif centred:
        mean = x.mean(2, dtype=products.dtype)
        products = products - x.shape[2] * mean[:, :, None] * mean[:, None, :]
    # Each number of x may be off by its last digit, and so may each sum that was made of them.
    own, made = torch.finfo(x.dtype).eps, torch.finfo(products.dtype).eps
    return products, (own**2 + 16 * products.shape[1] * made) * trace.detach()


def centred_kernel(products: Tensor) -> Tensor:
    """Inner products ``(N, P, P)`` of vectors whose mean over the P is subtracted."""
    rows = products.mean(2, keepdim=True)
    return products - rows - rows.mT + rows.mean(1, keepdim=True)


def top_eigenvector(matrix: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue and its eigenvector.

    It can be differentiated, also again. Where the eigenvalue is not simple (up to rounding) the
    eigenvector has no derivative, and zero takes its place.

    Args:
        matrix: ``(N, D, D)``, symmetric.
        floor: ``(N,)``: what an eigenvalue may be by rounding alone.

    Returns:
        ``(N, D)``, of length 1 and either sign, and ``(N,)``: zero where it is not above the floor.
    """
    vector: Tensor = _TopEigenvector.apply(matrix)
    value = torch.einsum("nd,nde,ne->n", vector, matrix, vector)
    # In this order, so that NaN stays NaN.
    return vector, torch.where(value <= floor, 0, value)


def square_root(value: Tensor) -> Tensor:
    """The square root; for zero and below zero, with the gradient zero."""
    none = value <= 0
    return torch.where(none, 0, torch.where(none, 1, value).sqrt())


class _TopEigenvector(torch.autograd.Function):
    """From matrices to eigenvectors: torch's own gradient is NaN where any two eigenvalues meet."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        finite = matrix.isfinite().all(2).all(1)
        first, second, vector = _leading(torch.where(finite[:, None, None], matrix, 0))
        simple = first - second > 16 * matrix.shape[1] * torch.finfo(matrix.dtype).eps * first.abs()
        vector = torch.where(finite[:, None], vector, torch.nan)
        ctx.save_for_backward(matrix, vector, simple & (first > 0))
        return vector

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        """From ``(lambda I - M) dv = (I - v v^T) dM v``."""
        matrix, vector, simple = ctx.saved_tensors
        simple = simple[:, None]
        along = torch.einsum("nd,ne->nde", vector, vector)
        one = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        value = torch.einsum("nd,nde,ne->n", vector, matrix, vector)[:, None, None]
        # lambda v v^T makes it regular, and changes nothing across v.
        regular = torch.where(simple[..., None], value * (one + along) - matrix, one)
        across = upstream[0] - vector * (vector * upstream[0]).sum(1, keepdim=True)
        solved = torch.linalg.solve(regular, torch.where(simple, across, 0))
        outer = torch.einsum("nd,ne->nde", solved, vector)
        return (outer + outer.mT) / 2


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two largest eigenvalues ``(N,)``, and the first's eigenvector ``(N, D)``."""
    if matrix.shape[1] > SMALL:
        return _leading_of_large(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    second = values[:, -2] if matrix.shape[1] > 1 else torch.zeros_like(values[:, -1])
    return values[:, -1], second, vectors[:, :, -1]


def _leading_of_large(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same, from a small basis in which the leading eigenvectors lie.

    The basis is that of a few vectors, multiplied by the matrix again and again: Musco and Musco,
    "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
    Decomposition", NIPS 2015, Algorithm 2; once more from what it gave, where that is not yet
    precise. With several vectors, close eigenvalues at the top need no more steps.
    """
    # The same numbers at every call, without a trace in the state of torch's own generator.
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], BLOCK, generator=generator, dtype=torch.float64)
    block = start.to(matrix).expand(len(matrix), -1, -1)
    for _ in range(ROUNDS):
        basis = _krylov(matrix, block)
        values, vectors = torch.linalg.eigh(basis.mT @ (matrix @ basis))
        block = basis @ vectors[:, :, -BLOCK:]
        first, second, vector = values[:, -1], values[:, -2], block[:, :, -1]
        left = torch.einsum("nde,ne->nd", matrix, vector) - first[:, None] * vector
        rounding = 100 * torch.finfo(matrix.dtype).eps * first.abs()
        # The eigenvector is off by no more than what is left over the gap.
        if bool((left.norm(dim=1) <= torch.maximum(PRECISION * (first - second), rounding)).all()):
            break
    return first, second, vector


def _krylov(matrix: Tensor, block: Tensor) -> Tensor:
    """An orthonormal basis ``(N, D, B)`` of the block and its products with the matrix."""
    blocks = [block]
    for _ in range(STEPS):
        blocks.append(torch.linalg.qr(matrix @ blocks[-1])[0])
    basis: Tensor = torch.linalg.qr(torch.cat(blocks, 2))[0]
    return basis
