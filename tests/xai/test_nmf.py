"""Non-negative factors, against blocks worked by hand, scikit-learn and pytorch-grad-cam."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgaze.xai.nmf import factors


def positive(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def missed(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(matrix - left @ right) / np.linalg.norm(matrix))


def test_separate_blocks_are_found_exactly() -> None:
    matrix = torch.tensor([[2.0, 2, 0], [4, 4, 0], [0, 0, 3], [0, 0, 0]])
    left, right = factors(matrix, 2)
    assert torch.allclose(left @ right, matrix, atol=1e-6)
    # One row in W a block, up to its scale: (1, 1, 0) and (0, 0, 1).
    rows = sorted((right / right.amax(1, keepdim=True)).tolist())
    assert np.allclose(rows, [[0, 0, 1], [1, 1, 0]], atol=1e-6)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), st.integers(3, 40), st.integers(3, 30), st.integers(1, 3), st.booleans())
def test_factors_are_no_worse_than_those_of_scikit_learn(
    seed: int, rows: int, columns: int, rank: int, sparse: bool
) -> None:
    from sklearn.decomposition import NMF

    matrix = positive(rows, columns, seed=seed)
    if sparse:
        matrix = (matrix - 0.6).clamp(min=0)
    left, right = (each.numpy() for each in factors(matrix, rank))
    assert left.min() >= 0
    assert right.min() >= 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = NMF(rank, init="nndsvd", max_iter=500, tol=1e-6)
        theirs = missed(matrix.numpy(), oracle.fit_transform(matrix.numpy()), oracle.components_)
    assert missed(matrix.numpy(), left, right) <= 1.01 * theirs + 1e-6


def test_factors_are_a_stationary_point() -> None:
    # Karush-Kuhn-Tucker: the gradient is zero where a factor is positive, elsewhere not negative.
    matrix = (positive(60, 40) - 0.3).clamp(min=0)
    left, right = (each.numpy() for each in factors(matrix, 4))
    rest = left @ right - matrix.numpy()
    for gradient, factor in ((rest @ right.T, left), (left.T @ rest, right)):
        scale = np.abs(gradient).max() + np.linalg.norm(matrix.numpy())
        assert np.abs(gradient[factor > 0.01 * factor.max()]).max() < 0.03 * scale
        assert gradient.min() > -0.03 * scale


def test_factors_of_nothing_and_of_full_rank() -> None:
    left, right = factors(torch.zeros(5, 4), 2)
    assert not (left @ right).any()
    assert left.isfinite().all()
    assert right.isfinite().all()
    matrix = positive(3, 4)
    assert missed(matrix.numpy(), *(each.numpy() for each in factors(matrix, 3))) < 0.1


@pytest.mark.parametrize("count", [2, 5])
def test_images_are_factored_no_worse_than_by_pytorch_grad_cam(count: int) -> None:
    from pytorch_grad_cam.feature_factorization.deep_feature_factorization import dff

    # It takes each channel's lowest activation away first, which after a ReLU is mostly zero.
    activations = (positive(3, 16, 6, 5) - 0.5).clamp(min=0)
    assert not activations.amin((0, 2, 3)).any()
    rows = activations.movedim(1, -1).flatten(0, -2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        concepts, explanations = dff(activations.numpy().copy(), count)
    theirs = explanations.transpose(0, 2, 3, 1).reshape(-1, count)
    left, right = (each.numpy() for each in factors(rows, count))
    assert missed(rows.numpy(), left, right) <= 1.005 * missed(rows.numpy(), theirs, concepts.T)
