import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedgaze.errors import FedgazeError
from fedgaze.xai import Method, find_method, grad_cam, grad_cam_plus_plus, list_methods


def paper_grad_cam_plus_plus(
    activations: NDArray[np.float64], gradients: NDArray[np.float64], scores: list[float]
) -> NDArray[np.float64]:
    """Eq. 5, 10 and 19 of the paper, letter for letter, with Y = exp(S), in float64 loops."""
    images, channels, height, width = activations.shape
    maps = np.zeros((images, height, width))
    for n in range(images):
        y = math.exp(scores[n])
        for k in range(channels):
            weight = 0.0
            for i in range(height):
                for j in range(width):
                    g = float(gradients[n, k, i, j])
                    first, second, third = y * g, y * g**2, y * g**3
                    total = 0.0
                    for a in range(height):
                        for b in range(width):
                            total += float(activations[n, k, a, b]) * third
                    alpha = second / (2 * second + total) if second != 0 else 0.0
                    weight += alpha * max(first, 0.0)
            maps[n] += weight * activations[n, k]
        maps[n] = np.maximum(maps[n], 0) / y
    return maps


def pair(seed: int, *shape: int, sparse: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(shape, generator=generator, dtype=torch.float64).relu()
    gradients = torch.randn(shape, generator=generator, dtype=torch.float64)
    if sparse:
        gradients *= torch.rand(shape, generator=generator) < 0.5
    return activations, gradients


@pytest.mark.parametrize("sparse", [False, True])
def test_grad_cam_plus_plus_is_the_papers_formula(sparse: bool) -> None:
    activations, gradients = pair(0xA1, 2, 5, 4, 3, sparse=sparse)
    expected = paper_grad_cam_plus_plus(activations.numpy(), gradients.numpy(), [0.7, -1.3])
    found = grad_cam_plus_plus(activations, gradients)
    assert found.numpy() == pytest.approx(expected, rel=1e-9)


def test_grad_cam_plus_plus_keeps_its_weights_where_gradients_are_tiny() -> None:
    # An epsilon beside g² would change these weights by orders of magnitude.
    activations, gradients = pair(0xA2, 1, 3, 4, 4)
    gradients *= 1e-7
    expected = paper_grad_cam_plus_plus(activations.numpy(), gradients.numpy(), [0.0])
    found = grad_cam_plus_plus(activations, gradients)
    assert found.numpy() == pytest.approx(expected, rel=1e-9, abs=0)


def test_grad_cam_plus_plus_survives_a_denominator_of_zero() -> None:
    # 2 + g sum(A) = 2 + 1 * -2: the paper's fraction has no value there, and counts as zero.
    found = grad_cam_plus_plus(torch.tensor([[[[-3.0, 1.0]]]]), torch.tensor([[[[1.0, 0.5]]]]))
    assert found.tolist() == [[[0.0, 0.5]]]  # alpha = 1 / (2 - 1) at the second position


def test_grad_cam_by_hand() -> None:
    activations = torch.tensor([[[[1.0, 2.0], [0.0, 4.0]], [[5.0, 0.0], [1.0, 0.0]]]])
    gradients = torch.tensor([[[[1.0, 1.0], [2.0, 0.0]], [[-1.0, 0.0], [0.0, 0.0]]]])
    # weights 1 and -1/4: 1 - 1.25 < 0 | 2 | -0.25 < 0 | 4
    assert grad_cam(activations, gradients).tolist() == [[[0.0, 2.0], [0.0, 4.0]]]


def test_grad_cam_plus_plus_by_hand() -> None:
    # sum A = 3: g = 1 -> 1/5, g = 0 and g < 0 -> 0; the weight is 1/5.
    found = grad_cam_plus_plus(
        torch.tensor([[[[0.0, 1.0, 2.0]]]]), torch.tensor([[[[1.0, 0.0, -4.0]]]])
    )
    assert found.flatten().tolist() == pytest.approx([0.0, 0.2, 0.4])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), factor=st.floats(0.01, 100))
def test_grad_cam_is_linear_in_gradients_and_blind_to_the_order_of_channels(
    seed: int, factor: float
) -> None:
    activations, gradients = pair(seed, 2, 4, 3, 5)
    raw = grad_cam(activations, gradients)
    assert torch.allclose(grad_cam(activations, gradients * factor), raw * factor)
    order = torch.randperm(4)
    assert torch.allclose(grad_cam(activations[:, order], gradients[:, order]), raw)


@pytest.mark.parametrize("method", [grad_cam, grad_cam_plus_plus])
def test_methods_leave_their_arguments_as_they_were(method: Method) -> None:
    activations, gradients = pair(0xA3, 1, 3, 4, 4)
    before = activations.clone(), gradients.clone()
    method(activations, gradients)
    assert torch.equal(activations, before[0])
    assert torch.equal(gradients, before[1])


def test_methods_are_found_by_name() -> None:
    assert list_methods() == ("gradcam", "gradcam++")
    assert find_method("gradcam") is grad_cam
    with pytest.raises(FedgazeError, match=r"'gradcam\+'; .*did you mean 'gradcam"):
        find_method("gradcam+")
    with pytest.raises(FedgazeError, match="'rise'; allowed are gradcam, gradcam"):
        find_method("rise")
