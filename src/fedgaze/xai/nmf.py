"""Non-negative matrix factorisation, on the device."""

import torch
from torch import Tensor

__all__ = ["factors"]

_SWEEPS = 300
_EVERY = 5  # sweeps between two looks at the error, for which a GPU has to be waited for
_TOLERANCE = 1e-4
_OVERSAMPLED, _POWERS = 10, 4


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factor a matrix without negative numbers into two such of a small rank.

    ``min |X - H W|²`` over ``H, W >= 0``, by hierarchical alternating least squares: each column of
    H, then each row of W, is set to its optimum with all others fixed (Cichocki and Phan, "Fast
    Local Algorithms for Large Scale Nonnegative Matrix and Tensor Factorizations", IEICE
    Transactions 2009, Algorithm 2). It starts from the singular vectors (NNDSVD: Boutsidis and
    Gallopoulos, Pattern Recognition 2008), so that results repeat, and ends where five sweeps
    lower the error by less than 1e-4 of itself. scikit-learn's NMF finds the same minima, at 2 to
    15 times the time for activations of images on a CPU, and only there.

    Args:
        matrix: ``(P, K)``, not negative.
        rank: At most P and K.

    Returns:
        ``H (P, rank)`` and ``W (rank, K)``, not negative.

    >>> left, right = factors(torch.tensor([[2.0, 4.0], [1.0, 2.0]]), 1)
    >>> (left @ right).round().tolist()
    [[2.0, 4.0], [1.0, 2.0]]
    """
    left, right = _start(matrix, rank)
    power = matrix.square().sum()
    last = power
    for sweep in range(1, _SWEEPS + 1):
        left = _improved(left.T, right @ right.T, right @ matrix.T).T
        gram, mixed = left.T @ left, left.T @ matrix
        right = _improved(right, gram, mixed)
        if sweep % _EVERY == 0:
            # |X - H W|² without the product H W.
            error = power - 2 * (mixed * right).sum() + (gram * (right @ right.T)).sum()
            if last - error <= _TOLERANCE * error:
                break
            last = error
    return left, right


def _improved(rows: Tensor, gram: Tensor, mixed: Tensor) -> Tensor:
    """Set each row to its optimum, one after the other: ``gram rows = mixed``, not negative."""
    better = list(rows)
    for index, row in enumerate(rows):
        scale = gram[index, index]
        change = (mixed[index] - gram[index] @ torch.stack(better)) / torch.where(
            scale > 0, scale, 1
        )
        # A row whose counterpart is empty may be anything.
        better[index] = torch.where(scale > 0, (row + change).clamp(min=0), row)
    return torch.stack(better)


def _start(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """NNDSVD: of each pair of singular vectors the part of one sign that weighs more."""
    u, s, v = _singular(matrix, rank)
    positive = [each.clamp(min=0) for each in (u, v)]
    negative = [(-each).clamp(min=0) for each in (u, v)]
    plus, minus = (a.norm(dim=0) * b.norm(dim=0) for a, b in (positive, negative))
    # The first pair of a matrix without negative numbers has one sign, whichever it is.
    left, right = (
        torch.where(plus >= minus, a, b) for a, b in zip(positive, negative, strict=True)
    )
    scale = (s * torch.maximum(plus, minus)).sqrt()

    def scaled(vectors: Tensor) -> Tensor:
        norm = vectors.norm(dim=0)
        return vectors / torch.where(norm > 0, norm, 1) * scale

    return scaled(left), scaled(right).T


def _singular(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The greatest singular values and vectors ``(P, rank), (rank,), (K, rank)``.

    By a seeded random projection: Halko, Martinsson and Tropp, SIAM Review 2011, Algorithm 4.4.
    """
    wide = min(rank + _OVERSAMPLED, *matrix.shape)
    # Drawn on the CPU, so that all devices start alike.
    seeded = torch.Generator().manual_seed(0xFED6)
    drawn = torch.randn(matrix.shape[1], wide, generator=seeded, dtype=torch.float64)
    basis = torch.linalg.qr(matrix @ drawn.to(matrix))[0]
    for _ in range(_POWERS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], v[:rank].T
